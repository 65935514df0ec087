package upstream

import (
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Association is how a session of datagrams reaches its server: a connected
// socket, so that the kernel passes on nobody else's datagrams, and the ICMP
// errors that come back for its own. The server is leased.
type Association struct {
	FD     int
	V6     bool
	Server *Server
}

// Associate leases a server of g, by its policy, and connects a socket to it.
// Those in but are left out; of a group without another server there is then
// NoServer. On the loop.
func (dl *Dialer) Associate(g *Group, c *Client, but []*Server) (Association, Outcome, error) {
	d := &dl.datagrams
	d.dialer, d.group, d.client = dl, g, *c
	d.ntried = copy(d.tried[:], but)
	defer func() { d.group, d.choices, d.client = nil, nil, Client{} }()
	var last error
	for range g.retries + 1 {
		m := g.pick(d, dl.Loop.Index, dl.Loop.Now())
		if m == nil {
			break
		}
		a, o, err := dl.associate(g, m.Server)
		if o == Connected || o == Overloaded {
			return a, o, err
		}
		last = err
		if d.ntried == maxTried {
			break
		}
		d.tried[d.ntried] = m.Server
		d.ntried++
	}
	if last != nil {
		return Association{}, ConnectFailed, last
	}
	return Association{}, NoServer, fmt.Errorf("upstream %q has no usable server", g.opts.Name)
}

// Rejoin is Associate with a server that is known: the session goes on with
// what another one has begun there. On the loop.
func (dl *Dialer) Rejoin(g *Group, s *Server) (Association, Outcome, error) {
	i := slices.IndexFunc(g.members, func(m *member) bool { return m.Server == s })
	if i < 0 || !s.lease(g.members[i].opts.MaxConnections) {
		return Association{}, NoServer, fmt.Errorf("server %q has reached its max_connections", s.Name)
	}
	return dl.associate(g, s)
}

// associate connects a socket to a server that is leased; the lease is given
// back if that fails.
func (dl *Dialer) associate(g *Group, s *Server) (Association, Outcome, error) {
	e := s.endpoint.Load()
	if e == nil {
		s.Release()
		return Association{}, ConnectFailed, fmt.Errorf("server %q has no address yet", s.Name)
	}
	fd, errno, local := e.openDatagrams(&g.opts, &dl.turn)
	switch {
	case errno == 0:
		s.sessions.Add(1)
		return Association{FD: fd, V6: e.family == unix.AF_INET6, Server: s}, Connected, nil
	case local:
		s.Release()
		return Association{}, Overloaded, fmt.Errorf("opening a socket for server %q: %w", s.Name, errno)
	}
	s.Release()
	s.Failed(DatagramReason(errno))
	return Association{}, ConnectFailed, fmt.Errorf("connecting to server %q at %s: %w", s.Name, s.Address, errno)
}

// Failed counts a failure that a session of datagrams has seen: an ICMP error.
func (s *Server) Failed(why Reason) { s.failures[why].Add(1) }

// DatagramReason classifies what a socket of datagrams says of its server: by
// ICMP, or when it is connected, where EAGAIN means that no port is left.
func DatagramReason(errno unix.Errno) Reason {
	if errno == unix.EAGAIN {
		return NoPorts
	}
	return reasonOf(errno)
}

// openDatagrams makes a socket and connects it. local reports that it is this
// machine that has run out of something.
func (e *endpoint) openDatagrams(o *Options, turn *uint32) (fd int, errno unix.Errno, local bool) {
	if e.family == unix.AF_UNIX {
		return -1, unix.EPROTONOSUPPORT, false // the configuration has said so
	}
	n, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(e.family), unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		switch errno {
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			return -1, errno, true
		}
		return -1, errno, false
	}
	fd = int(n)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1)
	// Without it the kernel keeps what routers say to itself: that there is no
	// way to the server's host, or none any more.
	if e.family == unix.AF_INET6 {
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
	} else {
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
	}
	if len(o.Source) > 0 {
		errno = e.bindSource(fd, o.Source, turn)
	}
	if errno == 0 {
		_, _, errno = unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&e.raw[0])), uintptr(len(e.raw)))
	}
	if errno != 0 {
		unix.Close(fd)
		return -1, errno, false
	}
	return fd, 0, false
}

// Retries is how many further servers a session may try, 0 or more.
func (g *Group) Retries() int { return g.retries }

// Size is the number of servers.
func (g *Group) Size() int { return len(g.members) }

// QUICServers are the servers whose QUIC server id is known beforehand.
func (g *Group) QUICServers() map[string]*Server {
	ids := map[string]*Server{}
	for _, m := range g.members {
		if m.opts.QUICServerID != "" {
			ids[m.opts.QUICServerID] = m.Server
		}
	}
	return ids
}
