package udp

import (
	"errors"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Features of a kernel, or of what of it a sandbox lets through.
type Features struct {
	GRO     bool // UDP_GRO, Linux 5.0
	Segment bool // UDP_SEGMENT, Linux 4.18
}

// Probe tries them on a socket of its own.
func Probe() Features {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		// A kernel without IPv4; the options are the same.
		if fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return Features{}
		}
	}
	defer unix.Close(fd)
	return Features{
		GRO:     unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil,
		Segment: unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 0) == nil,
	}
}

// ListenOptions are those of a socket for clients.
type ListenOptions struct {
	Dual          bool // bound to ::, it takes IPv4 as well
	ReusePort     bool // one of a group on the same address
	GRO           bool // trains may come as one message
	PMTUProbe     bool // never fragment, and leave finding the path's MTU to the peers (QUIC: RFC 9000 section 14)
	ReceiveBuffer int  // SO_RCVBUF; 0: the kernel's default
	SendBuffer    int  // SO_SNDBUF; 0: the kernel's default
}

// Listen binds a non-blocking socket to ap. What it receives has a TOS and, if
// ap is a wildcard, a Local. Options that only help (GRO, buffers, counts)
// are left out where the kernel refuses them.
//
// A dual-stack socket on a kernel without IPv6 becomes one for all of IPv4: the
// caller learns of it from getsockname.
func Listen(ap netip.AddrPort, o ListenOptions) (fd int, err error) {
	ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	family := unix.AF_INET
	if ap.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if o.Dual && errors.Is(err, unix.EAFNOSUPPORT) {
		o.Dual = false
		return Listen(netip.AddrPortFrom(netip.IPv4Unspecified(), ap.Port()), o)
	}
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := setUp(fd, ap, o); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func setUp(fd int, ap netip.AddrPort, o ListenOptions) error {
	v6 := ap.Addr().Is6()
	if v6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, truth(!o.Dual)); err != nil {
			return os.NewSyscallError("setsockopt IPV6_V6ONLY", err)
		}
	}
	if o.ReusePort {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
			return os.NewSyscallError("setsockopt SO_REUSEPORT", err)
		}
	}
	if ap.Addr().IsUnspecified() {
		// Without it, replies would leave from whatever address the route to
		// the client prefers.
		if !v6 || o.Dual {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1); err != nil {
				return os.NewSyscallError("setsockopt IP_PKTINFO", err)
			}
		}
		if v6 {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1); err != nil {
				return os.NewSyscallError("setsockopt IPV6_RECVPKTINFO", err)
			}
		}
	}
	buffer(fd, o.ReceiveBuffer, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
	buffer(fd, o.SendBuffer, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
	Tune(fd, v6, TuneOptions{GRO: o.GRO, TOS: true, Overflow: true, PMTUProbe: o.PMTUProbe})

	// Datagrams may come as soon as it is bound: all options are set by then.
	a := AddrFrom(ap)
	sa, n := a.sockaddr()
	if _, _, errno := unix.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(sa), uintptr(n)); errno != 0 {
		return os.NewSyscallError("bind", errno)
	}
	return nil
}

// buffer asks with CAP_NET_ADMIN first: without it the kernel cuts the size to
// net.core.rmem_max or wmem_max.
func buffer(fd, size, force, option int) {
	if size > 0 && unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, size)
	}
}

// TuneOptions are what a connected socket may have in addition. Each costs a
// system call, which a session of two datagrams need not pay.
type TuneOptions struct {
	GRO       bool // trains may come as one message
	TOS       bool // messages have a TOS
	Overflow  bool // Dropped counts
	PMTUProbe bool // as in [ListenOptions]
}

// Tune sets what is asked for on a socket, and leaves out what the kernel refuses.
func Tune(fd int, v6 bool, o TuneOptions) {
	set := func(level, option, value int) { unix.SetsockoptInt(fd, level, option, value) }
	if o.GRO {
		set(unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	}
	if o.Overflow {
		set(unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1)
	}
	// An IPv6 socket has those of IPv4, too, for IPv4 peers.
	if o.TOS {
		set(unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
		if v6 {
			set(unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
		}
	}
	if o.PMTUProbe {
		set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		if v6 {
			set(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
		}
	}
}

// Retune changes the options of a socket that [Listen] has bound to addr, as far
// as they can change: GRO, PMTUProbe and the buffers.
func Retune(fd int, addr netip.Addr, o ListenOptions) {
	unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, truth(o.GRO))
	discover := func(level, option, probe, otherwise int) {
		if o.PMTUProbe {
			otherwise = probe
		}
		unix.SetsockoptInt(fd, level, option, otherwise)
	}
	discover(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE, unix.IP_PMTUDISC_WANT)
	if addr.Is6() {
		discover(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE, unix.IPV6_PMTUDISC_WANT)
	}
	buffer(fd, o.ReceiveBuffer, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
	buffer(fd, o.SendBuffer, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
}

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}
