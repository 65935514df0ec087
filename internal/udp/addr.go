package udp

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Addr is a peer as the kernel writes it: a sockaddr_in or sockaddr_in6, and
// zeros behind it. It is comparable, so it may be part of a map's key: equal
// peers of one socket have equal Addrs.
type Addr [unix.SizeofSockaddrInet6]byte

// Where things stand in both kinds of sockaddr (ip(7), ipv6(7)).
const (
	offsetPort  = 2
	offsetIPv4  = 4
	offsetIPv6  = 8
	offsetScope = 24
)

// mappedPrefix begins an IPv4 address as an IPv6 socket has it, RFC 4291
// section 2.5.5.2.
var mappedPrefix = [12]byte{10: 0xff, 11: 0xff}

// AddrFrom is ap as a socket of its family wants it: an IPv4-mapped address is
// for IPv6 sockets that take IPv4 as well, a plain one for IPv4 sockets. A zone
// becomes the scope id; one that is no interface is left out.
func AddrFrom(ap netip.AddrPort) Addr {
	var a Addr
	ip := ap.Addr()
	binary.BigEndian.PutUint16(a[offsetPort:], ap.Port())
	if ip.Is4() {
		binary.NativeEndian.PutUint16(a[:], unix.AF_INET)
		ip4 := ip.As4()
		copy(a[offsetIPv4:], ip4[:])
		return a
	}
	binary.NativeEndian.PutUint16(a[:], unix.AF_INET6)
	ip6 := ip.As16()
	copy(a[offsetIPv6:], ip6[:])
	binary.NativeEndian.PutUint32(a[offsetScope:], scope(ip.Zone()))
	return a
}

// AddrPort is the peer for people and for comparisons across sockets: IPv4
// without its IPv6 mapping, a link-local IPv6 address with its interface's
// index as zone.
func (a *Addr) AddrPort() netip.AddrPort {
	port := binary.BigEndian.Uint16(a[offsetPort:])
	switch a.family() {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(a[offsetIPv4:])), port)
	case unix.AF_INET6:
		ip := netip.AddrFrom16([16]byte(a[offsetIPv6:])).Unmap()
		return netip.AddrPortFrom(zoned(ip, binary.NativeEndian.Uint32(a[offsetScope:])), port)
	default:
		return netip.AddrPort{}
	}
}

// Len is how many bytes of it are the sockaddr.
func (a *Addr) Len() uint32 {
	if a.family() == unix.AF_INET {
		return unix.SizeofSockaddrInet4
	}
	return unix.SizeofSockaddrInet6
}

func (a *Addr) family() uint16 { return binary.NativeEndian.Uint16(a[:]) }

// speaksIPv4 reports whether packets to it are IPv4 packets, whatever the socket.
func (a *Addr) speaksIPv4() bool {
	return a.family() == unix.AF_INET || [12]byte(a[offsetIPv6:]) == mappedPrefix
}

// Local is where a datagram was sent to, or is to leave from (RFC 3542 section
// 6.2, ip(7) IP_PKTINFO). The zero value: the socket is bound to one address,
// and the kernel fills it in; or the datagram was sent to an IPv6 multicast
// group, which no reply can have as its source.
type Local struct {
	IP        [16]byte // IPv4 as IPv4-mapped
	Interface uint32   // index; only with link-local IPv6, which is ambiguous without
}

// Addr is the address, without IPv6 mapping, with the interface as zone; the
// zero Local's is not valid.
func (l *Local) Addr() netip.Addr {
	if *l == (Local{}) {
		return netip.Addr{}
	}
	return zoned(netip.AddrFrom16(l.IP).Unmap(), l.Interface)
}

func (l *Local) isIPv4() bool { return [12]byte(l.IP[:]) == mappedPrefix }

// setIPv4 is from struct in_pktinfo. Spec_dst is the address that the kernel
// would answer from: where the packet was sent to or, of a broadcast, the
// interface's own.
func (l *Local) setIPv4(info *unix.Inet4Pktinfo) {
	*l = Local{}
	copy(l.IP[:], mappedPrefix[:])
	copy(l.IP[len(mappedPrefix):], info.Spec_dst[:])
}

// setIPv6 is from struct in6_pktinfo.
func (l *Local) setIPv6(info *unix.Inet6Pktinfo) {
	*l = Local{}
	if info.Addr[0] == 0xff {
		return
	}
	l.IP = info.Addr
	if info.Addr[0] == 0xfe && info.Addr[1]&0xc0 == 0x80 { // fe80::/10, RFC 4291 section 2.5.6
		l.Interface = info.Ifindex
	}
}

func zoned(ip netip.Addr, index uint32) netip.Addr {
	if index == 0 || !ip.Is6() {
		return ip
	}
	return ip.WithZone(strconv.FormatUint(uint64(index), 10))
}

func scope(zone string) uint32 {
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

// sockaddr is what a system call takes; nil is none.
func (a *Addr) sockaddr() (unsafe.Pointer, uint32) {
	if a == nil {
		return nil, 0
	}
	return unsafe.Pointer(a), a.Len()
}
