package upstream

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func newEndpoint(ap netip.AddrPort, path string) *endpoint {
	e := &endpoint{addr: ap, text: ap.String()}
	switch {
	case path != "":
		e.text = "unix:" + path
		e.family = unix.AF_UNIX
		e.raw = binary.NativeEndian.AppendUint16(nil, unix.AF_UNIX)
		if path[0] == '@' {
			e.raw = append(append(e.raw, 0), path[1:]...)
		} else {
			e.raw = append(append(e.raw, path...), 0)
		}
	default:
		e.family, e.raw = rawAddr(ap)
	}
	return e
}

// rawAddr lays out a sockaddr_in or sockaddr_in6.
func rawAddr(ap netip.AddrPort) (family int, raw []byte) {
	a := ap.Addr().Unmap()
	if a.Is4() {
		raw = binary.NativeEndian.AppendUint16(nil, unix.AF_INET)
		raw = binary.BigEndian.AppendUint16(raw, ap.Port())
		ip := a.As4()
		raw = append(raw, ip[:]...)
		return unix.AF_INET, append(raw, make([]byte, 8)...)
	}
	raw = binary.NativeEndian.AppendUint16(nil, unix.AF_INET6)
	raw = binary.BigEndian.AppendUint16(raw, ap.Port())
	raw = append(raw, 0, 0, 0, 0) // flow information
	ip := a.As16()
	raw = append(raw, ip[:]...)
	return unix.AF_INET6, binary.NativeEndian.AppendUint32(raw, zoneIndex(a.Zone()))
}

// open makes a socket and starts to connect it. errno is 0 when it is
// connected, EINPROGRESS when that goes on, anything else when it failed and
// there is no socket. local reports that it is this machine that has run out
// of something.
func (e *endpoint) open(o *Options, turn *uint32) (fd int, errno unix.Errno, local bool) {
	proto := unix.IPPROTO_TCP
	if e.family == unix.AF_UNIX {
		proto = 0
	}
	n, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(e.family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, uintptr(proto))
	if errno != 0 {
		switch errno {
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			return -1, errno, true
		}
		return -1, errno, false // no IPv6 in this kernel, say: another server may do
	}
	fd = int(n)
	if e.family != unix.AF_UNIX {
		if !o.TCP.Delay {
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		}
		if o.TCP.UserTimeout > 0 {
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(max(o.TCP.UserTimeout.Milliseconds(), 1)))
		}
		if len(o.Source) > 0 {
			if errno := e.bindSource(fd, o.Source, turn); errno != 0 {
				unix.Close(fd)
				return -1, errno, false
			}
		}
	}
	_, _, errno = unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&e.raw[0])), uintptr(len(e.raw)))
	if errno != 0 && errno != unix.EINPROGRESS {
		unix.Close(fd)
		return -1, errno, false
	}
	return fd, errno, false
}

// bindSource binds to the next source address of the server's family, without
// choosing a port: the kernel does that in connect, where the same port can
// serve many servers.
func (e *endpoint) bindSource(fd int, sources []netip.Addr, turn *uint32) unix.Errno {
	for range sources {
		*turn++
		a := sources[int(*turn)%len(sources)].Unmap()
		family, raw := rawAddr(netip.AddrPortFrom(a, 0))
		if family != e.family {
			continue
		}
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		_, _, errno := unix.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&raw[0])), uintptr(len(raw)))
		return errno
	}
	return unix.EAFNOSUPPORT
}

// Tune sets the keepalive of a socket to a server. It is called once a session
// has lived for a moment: short ones need none.
func (o *Options) Tune(fd int) {
	idle := o.KeepaliveIdle()
	if idle < 0 {
		return
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1) == nil {
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(max(idle/time.Second, 1)))
	}
}

// KeepaliveIdle is the keepalive's idle time with the default filled in;
// negative: off.
func (o *Options) KeepaliveIdle() time.Duration { return orDefault(o.TCP.Keepalive, DefaultKeepalive) }

// zoneIndex is the interface index of an IPv6 zone; 0: none, or not there any more.
func zoneIndex(zone string) uint32 {
	if zone == "" {
		return 0
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n)
	}
	if ifc, err := net.InterfaceByName(zone); err == nil {
		return uint32(ifc.Index)
	}
	return 0
}

func socketError(fd int) unix.Errno {
	e, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return unix.EIO
	}
	return unix.Errno(e)
}
