package listener

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/udp"
)

// udpFeatures are asked for once: the kernel does not change.
var udpFeatures = sync.OnceValue(udp.Probe)

// udpOptions are the options of a listening socket. QUIC's datagrams are never
// to be fragmented; those of others may be larger than any path.
func udpOptions(a Address, t *table) udp.ListenOptions {
	o := &t.opts.UDP
	return udp.ListenOptions{
		Dual: a.Dual, ReusePort: true, GRO: !o.NoOffload && udpFeatures().GRO, PMTUProbe: t.aboutQUIC(),
		ReceiveBuffer: cmp.Or(o.ReceiveBuffer, DefaultReceiveBuffer), SendBuffer: cmp.Or(o.SendBuffer, DefaultSendBuffer),
	}
}

// aboutQUIC reports whether QUIC is what the listener is for.
func (t *table) aboutQUIC() bool { return t.want != 0 || t.opts.UDP.QUICServerID > 0 }

// openDatagrams binds a socket for each of n loops, all in one group.
func openDatagrams(a Address, n int, t *table, inherited func(name string) []*os.File, ours bool) ([]*socket, error) {
	if a.Systemd != "" {
		return inheritDatagrams(a, n, t, inherited)
	}
	s := &socket{addr: a, network: UDP}
	ap := a.AddrPort
	o := udpOptions(a, t)
	if !ours {
		// Without SO_REUSEPORT first: with it, the kernel lets two processes
		// of one user share a port in silence.
		alone := udp.ListenOptions{Dual: a.Dual}
		probe, err := udp.Listen(ap, alone)
		if err != nil {
			return nil, explainBind(a, UDP, err)
		}
		unix.Close(probe)
	}
	for range n {
		fd, err := udp.Listen(ap, o)
		if err != nil {
			s.close()
			return nil, explainBind(a, UDP, err)
		}
		s.fds = append(s.fds, fd)
		if ap.Port() == 0 {
			ap = netip.AddrPortFrom(ap.Addr(), boundTo(fd).Port()) // the other loops' sockets join this one
		}
	}
	s.local = boundTo(s.fds[0])
	s.bound = s.local.String()
	return []*socket{s}, nil
}

// inheritDatagrams takes sockets that systemd has bound. Each is one socket,
// not a group: one loop serves it, as a session's datagrams must all come to
// the same one.
func inheritDatagrams(a Address, n int, t *table, inherited func(string) []*os.File) ([]*socket, error) {
	files := inherited(a.Systemd)
	if len(files) == 0 {
		return nil, fmt.Errorf("%s: systemd passed no socket of that name; set FileDescriptorName=%s in the .socket unit and start the service through it", a, a.Systemd)
	}
	var out []*socket
	fail := func(err error) ([]*socket, error) {
		for _, s := range out {
			s.close()
		}
		return nil, err
	}
	for i, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return fail(fmt.Errorf("%s: duplicating the inherited socket: %w", a, err))
		}
		s := &socket{addr: a, network: UDP, local: boundTo(fd), fds: make([]int, n)}
		for loop := range s.fds {
			s.fds[loop] = -1
		}
		s.fds[i%n] = fd
		out = append(out, s)
		if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_DGRAM || !s.local.IsValid() {
			return fail(fmt.Errorf("%s: the inherited socket is not one of UDP; write ListenDatagram= with an address and a port in the .socket unit", a))
		}
		s.bound = s.local.String()
		unix.SetNonblock(fd, true)
		s.retuneDatagrams(t)
	}
	return out, nil
}

// retuneDatagrams applies the options that may change while a socket is in use.
func (s *socket) retuneDatagrams(t *table) {
	o := udpOptions(s.addr, t)
	for _, fd := range s.fds {
		if fd >= 0 {
			udp.Retune(fd, s.local.Addr(), o)
		}
	}
}

// ownAddresses are those that this process receives datagrams at.
type ownAddresses struct {
	exact map[netip.AddrPort]bool
	ports map[uint16]bool // at any address of this machine
}

func (o *ownAddresses) has(a netip.AddrPort) bool {
	if o == nil {
		return false
	}
	return o.exact[netip.AddrPortFrom(a.Addr().WithZone(""), a.Port())] || o.ports[a.Port()] && isLocal(a.Addr())
}

// isLocal reports whether a is an address of this machine: whether a socket can
// be bound to it. Asked for clients from a port that is a listener's only.
func isLocal(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	fd, err := udp.Listen(netip.AddrPortFrom(a, 0), udp.ListenOptions{})
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// noteOwn finds the addresses anew. With m.mu held.
func (m *Manager) noteOwn() {
	o := &ownAddresses{exact: map[netip.AddrPort]bool{}, ports: map[uint16]bool{}}
	note := func(us []*use) {
		for _, u := range us {
			switch l := u.socket.local; {
			case u.socket.network != UDP || !l.IsValid():
			case l.Addr().IsUnspecified():
				o.ports[l.Port()] = true
			default:
				o.exact[netip.AddrPortFrom(l.Addr().Unmap().WithZone(""), l.Port())] = true
			}
		}
	}
	for _, us := range m.sockets {
		note(us)
	}
	for _, us := range m.draining {
		note(us)
	}
	m.own.Store(o)
}

// drain has sockets take no new sessions, and be closed when the last one has
// ended. Until then a reload may take them back. With m.mu held.
func (m *Manager) drain(us []*use) {
	for _, u := range us {
		key := socketKey(UDP, u.socket.addr)
		m.draining[key] = append(m.draining[key], &use{u.socket, nil})
		u.socket.draining.Store(true)
	}
}

// overlaps reports whether the socket's address and a would be in each other's way.
func (s *socket) overlaps(a Address) bool {
	bound := Address{AddrPort: s.local, Dual: s.addr.Dual}
	return bound.AddrPort.IsValid() && a.AddrPort.IsValid() && bound.Overlaps(a)
}

// inherit has sockets that are draining take sessions for whoever listens on
// their address by now, such as for a wildcard: the kernel gives datagrams to
// the socket whose address fits best. With m.mu held.
func (m *Manager) inherit() {
	for _, us := range m.draining {
		for _, u := range us {
			heir := m.heir(u.socket)
			if heir == u.ln {
				continue
			}
			u.ln = heir
			m.onLoops(func(w *worker) {
				if heir == nil {
					w.refuseDatagrams(u.socket)
				} else {
					w.moveDatagrams(u.socket, heir)
				}
			})
		}
	}
}

func (m *Manager) heir(s *socket) *Listener {
	for _, ln := range m.listeners {
		if o := ln.table.Load().opts; o.Network == UDP && slices.ContainsFunc(o.Addresses, s.overlaps) {
			return ln
		}
	}
	return nil
}

// closeDrained closes a socket on all loops at once, as the kernel would
// otherwise spread the clients anew over those that are left, unless it has
// sessions again or has been taken back.
func (m *Manager) closeDrained(s *socket) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := socketKey(UDP, s.addr)
	us := m.draining[key]
	i := slices.IndexFunc(us, func(u *use) bool { return u.socket == s })
	if i < 0 || s.live.Load() > 0 {
		return
	}
	m.onLoops(func(w *worker) { w.refuseDatagrams(s) }) // so that no session begins from here on
	if heir := us[i].ln; s.live.Load() > 0 {
		if heir != nil {
			m.onLoops(func(w *worker) { w.moveDatagrams(s, heir) })
		}
		return
	}
	if us = slices.Delete(slices.Clone(us), i, i+1); len(us) > 0 {
		m.draining[key] = us
	} else {
		delete(m.draining, key)
	}
	m.onLoops(func(w *worker) { w.detachDatagrams(s) })
	m.noteOwn()
}

// segments reports whether trains may be sent in one piece.
func segments(t *table) bool { return !t.opts.UDP.NoOffload && udpFeatures().Segment }
