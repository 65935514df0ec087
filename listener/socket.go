package listener

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// socket is one listening address. With SO_REUSEPORT every loop has a
// descriptor, and so a queue, of its own; a unix or inherited socket is one
// that all loops watch, each through a duplicate.
type socket struct {
	addr    Address
	network Network
	bound   string         // what it is really bound to
	local   netip.AddrPort // likewise; invalid for unix sockets
	fds     []int          // one per loop; the loops' once they are registered
	shared  bool
	steered bool   // the program of [Steering] chooses the loop
	file    string // unix socket file to be removed

	live     atomic.Int64 // of UDP: sessions of all loops
	draining atomic.Bool  // … and it is to be closed after the last one
}

// open listens on one address, for n loops.
func open(a Address, n int, o *TCPOptions, inherited func(name string) []*os.File) ([]*socket, error) {
	return openBeside(a, n, o, inherited, false)
}

// openBeside is open; with ours, sockets of this process on the same port are
// in order, because they are about to be closed.
func openBeside(a Address, n int, o *TCPOptions, inherited func(name string) []*os.File, ours bool) ([]*socket, error) {
	switch {
	case a.Systemd != "":
		return openInherited(a, n, inherited)
	case a.Unix != "":
		s, err := openUnix(a, n, o)
		return []*socket{s}, err
	default:
		s, err := openTCP(a, n, o, ours)
		return []*socket{s}, err
	}
}

func openTCP(a Address, n int, o *TCPOptions, ours bool) (*socket, error) {
	s := &socket{addr: a}
	ap := a.AddrPort
	if !ours {
		// Without SO_REUSEPORT first: with it, the kernel lets two processes
		// of one user share a port in silence.
		probe, err := bindTCP(a, ap, false)
		if err != nil {
			return nil, explainBind(a, TCP, err)
		}
		unix.Close(probe)
	}
	for range n {
		fd, err := bindTCP(a, ap, true)
		if err == nil {
			tune(fd, o)
			err = unix.Listen(fd, backlog(o))
			if err != nil {
				unix.Close(fd)
			}
		}
		if err != nil {
			s.close()
			return nil, explainBind(a, TCP, err)
		}
		s.fds = append(s.fds, fd)
		if ap.Port() == 0 {
			ap = netip.AddrPortFrom(ap.Addr(), boundTo(fd).Port()) // the other loops' sockets join this one
		}
	}
	s.local = boundTo(s.fds[0])
	s.bound = s.local.String()
	return s, nil
}

func bindTCP(a Address, ap netip.AddrPort, reuse bool) (int, error) {
	family := unix.AF_INET
	if ap.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil && a.Dual && errors.Is(err, unix.EAFNOSUPPORT) {
		// A kernel without IPv6: ":443" means what there is.
		return bindTCP(Address{}, netip.AddrPortFrom(netip.IPv4Unspecified(), ap.Port()), reuse)
	}
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	var sa unix.Sockaddr
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if family == unix.AF_INET6 {
		only := 1
		if a.Dual {
			only = 0
		}
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only)
		sa = &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16(), ZoneId: zoneIndex(ap.Addr().Zone())}
	} else {
		sa = &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	if reuse {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	}
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func zoneIndex(zone string) uint32 {
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	if ifc, err := net.InterfaceByName(zone); zone != "" && err == nil {
		return uint32(ifc.Index)
	}
	return 0
}

// tune sets what accepted sockets inherit, so that accepting one needs no
// further system call.
func tune(fd int, o *TCPOptions) {
	set := func(opt, v int) { unix.SetsockoptInt(fd, unix.IPPROTO_TCP, opt, v) }
	// Urgent data stays in the stream, RFC 6093 section 6.
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
	nodelay := 1
	if o.Delay {
		nodelay = 0
	}
	set(unix.TCP_NODELAY, nodelay)
	set(unix.TCP_USER_TIMEOUT, int(o.UserTimeout.Milliseconds()))
	idle, on := timeout(o.Keepalive, DefaultKeepalive), 0
	if idle > 0 {
		on = 1
		set(unix.TCP_KEEPIDLE, int(max(idle/time.Second, 1)))
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, on)
}

// retune applies changed options to a kept socket.
func (s *socket) retune(t *table) {
	if s.network == UDP {
		s.retuneDatagrams(t)
		return
	}
	o := &t.opts.TCP
	if s.addr.Unix != "" || s.addr.Systemd != "" {
		return
	}
	for _, fd := range s.fds {
		tune(fd, o)
		unix.Listen(fd, backlog(o)) // on a listening socket this only changes the length of its queue
	}
}

func backlog(o *TCPOptions) int {
	if o.Backlog == 0 {
		return DefaultBacklog
	}
	return o.Backlog
}

func openUnix(a Address, n int, o *TCPOptions) (*socket, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, explainBind(a, TCP, os.NewSyscallError("socket", err))
	}
	sa := &unix.SockaddrUnix{Name: a.Unix}
	err = unix.Bind(fd, sa)
	if errors.Is(err, unix.EADDRINUSE) && a.Unix[0] != '@' && stale(a.Unix) {
		if err = os.Remove(a.Unix); err == nil {
			err = unix.Bind(fd, sa)
		}
	}
	if err == nil {
		if err = unix.Listen(fd, backlog(o)); err != nil && a.Unix[0] != '@' {
			os.Remove(a.Unix) // made by bind a moment ago
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, explainBind(a, TCP, err)
	}
	s := &socket{addr: a, bound: a.String(), shared: true}
	if a.Unix[0] != '@' {
		s.file = a.Unix
		// Whom the folder lets in may connect, as with haproxy and nginx.
		os.Chmod(a.Unix, 0o666)
	}
	if err := s.duplicate(fd, n); err != nil {
		s.close()
		return nil, explainBind(a, TCP, err)
	}
	return s, nil
}

// stale reports whether a socket file is left over from a process that has
// gone. Other files are never taken for that.
func stale(path string) bool {
	if fi, err := os.Lstat(path); err != nil || fi.Mode().Type() != os.ModeSocket {
		return false
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED)
}

func openInherited(a Address, n int, inherited func(string) []*os.File) ([]*socket, error) {
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
	for _, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return fail(fmt.Errorf("%s: duplicating the inherited socket: %w", a, err))
		}
		if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || v == 0 {
			unix.Close(fd)
			return fail(fmt.Errorf("%s: the inherited socket is not a listening stream socket; write ListenStream= and Accept=no in the .socket unit", a))
		}
		unix.SetNonblock(fd, true)
		s := &socket{addr: a, shared: true}
		sa, _ := unix.Getsockname(fd)
		if u, ok := sa.(*unix.SockaddrUnix); ok {
			s.bound = "unix:" + u.Name
		} else {
			s.local = boundTo(fd)
			s.bound = s.local.String()
		}
		out = append(out, s)
		if err := s.duplicate(fd, n); err != nil {
			return fail(fmt.Errorf("%s: duplicating the inherited socket: %w", a, err))
		}
	}
	return out, nil
}

// duplicate gives each of n loops its own descriptor of fd, which it takes over.
func (s *socket) duplicate(fd, n int) error {
	s.fds = append(s.fds, fd)
	for range n - 1 {
		d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return err
		}
		s.fds = append(s.fds, d)
	}
	return nil
}

// close gives up a socket that no loop has taken over.
func (s *socket) close() {
	for _, fd := range s.fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	s.fds = nil
	s.removeFile()
}

// settleTime is how long handshakes that are under way get to reach the queue of a
// socket that is about to be closed: a round trip to most clients.
const settleTime = 100 * time.Millisecond

// refuseNew keeps new connections from beginning: for TCP the kernel drops
// SYNs from now on, which a client sends again after a second and then finds
// the port closed, or open elsewhere; a unix socket loses its name. What is in the queue, or in
// a handshake, is not touched. Without this, connections that arrive between
// the last accept and the close would be reset.
func (s *socket) refuseNew() {
	if s.addr.Systemd != "" {
		return // not ours to close: systemd keeps it, and its queue
	}
	s.removeFile()
	if s.addr.Unix != "" {
		return
	}
	// ldb [13]; jset #SYN, 0, 1; ret 0; ret -1: flags of the TCP header.
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 13},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jt: 0, Jf: 1, K: 0x02},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	}
	for _, fd := range s.fds {
		// A failure, for want of option memory, leaves what there was before.
		_ = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	}
}

func (s *socket) removeFile() {
	if s.file != "" {
		os.Remove(s.file)
		s.file = ""
	}
}

func boundTo(fd int) netip.AddrPort {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		a := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 {
			a = a.WithZone(strconv.Itoa(int(sa.ZoneId)))
		}
		return netip.AddrPortFrom(a, uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// explainBind says what to do about a failure to listen.
func explainBind(a Address, network Network, err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.EADDRINUSE) && a.Unix != "":
		hint = "; another process listens on it, or the file is not a socket: stop that process, or remove the file"
	case errors.Is(err, unix.EADDRINUSE) && network == UDP:
		hint = "; another process listens there: find it with `ss -lunp`, stop it, or choose another port"
	case errors.Is(err, unix.EADDRINUSE):
		hint = "; another process listens there: find it with `ss -ltnp`, stop it, or choose another port"
	case errors.Is(err, unix.EADDRNOTAVAIL):
		hint = "; no interface of this machine has that address: see `ip addr`, or set net.ipv4.ip_nonlocal_bind=1"
	case errors.Is(err, unix.EACCES) && a.Unix != "", errors.Is(err, unix.EPERM) && a.Unix != "":
		hint = "; this user may not create files in " + filepath.Dir(a.Unix)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		hint = "; run as root, or grant CAP_NET_BIND_SERVICE"
	case errors.Is(err, unix.ENOENT) && a.Unix != "":
		hint = "; create the folder " + filepath.Dir(a.Unix)
	case errors.Is(err, unix.ENOTDIR) && a.Unix != "":
		hint = "; " + filepath.Dir(a.Unix) + " is not a folder"
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		hint = "; raise the limit of open files (LimitNOFILE= in systemd, ulimit -n)"
	case errors.Is(err, unix.EAFNOSUPPORT):
		hint = "; this kernel has no such address family"
	}
	where := a.String()
	if network == UDP {
		where += "/udp"
	}
	return fmt.Errorf("binding %s: %w%s", where, err, hint)
}

// sourceOf reads the address that accept4 or getsockname has filled in; an
// invalid one for a unix socket.
func sourceOf(raw *[unix.SizeofSockaddrAny]byte) netip.AddrPort {
	switch binary.NativeEndian.Uint16(raw[:]) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(raw[4:8])), binary.BigEndian.Uint16(raw[2:]))
	case unix.AF_INET6:
		a := netip.AddrFrom16([16]byte(raw[8:24])).Unmap()
		if a.IsLinkLocalUnicast() {
			if z := binary.NativeEndian.Uint32(raw[24:]); z != 0 && a.Is6() {
				a = a.WithZone(strconv.Itoa(int(z)))
			}
		}
		return netip.AddrPortFrom(a, binary.BigEndian.Uint16(raw[2:]))
	}
	return netip.AddrPort{}
}
