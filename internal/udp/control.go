package udp

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Control messages as cmsg(3) lays them out: a header, the value, and room up
// to the next word.

const (
	word      = int(unsafe.Sizeof(uintptr(0)))
	cmsgStart = (unix.SizeofCmsghdr + word - 1) &^ (word - 1)
	sizeofInt = 4
)

// receiveControl is room for all that a socket of ours may be told about one
// datagram: both kinds of PKTINFO (IPv4 on a dual-stack socket comes with
// both), both kinds of TOS, UDP_GRO and SO_RXQ_OVFL, 168 bytes in all.
type receiveControl [192 / 8]uint64

// sendControl is room for one PKTINFO, one TOS and UDP_SEGMENT.
type sendControl [96 / 8]uint64

// told is what the control messages of a datagram said.
type told struct {
	local    Local
	segment  int
	tos      uint8
	dropped  uint32
	overflow bool // dropped was there
	many     bool // sent to more than one host
}

// parse reads the first size bytes. They come from the kernel; a length that
// makes no sense ends the reading.
func (c *receiveControl) parse(size int, t *told) {
	base := unsafe.Pointer(c)
	size = min(size, len(c)*8)
	for at := 0; at+cmsgStart <= size; {
		h := (*unix.Cmsghdr)(unsafe.Add(base, at))
		n := int(h.Len) - cmsgStart
		if n < 0 || n > size-at-cmsgStart {
			return
		}
		value := unsafe.Add(base, at+cmsgStart)
		at += cmsgStart + (n+word-1)&^(word-1)
		switch {
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && n >= sizeofInt:
			t.segment = int(*(*int32)(value))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && n >= 1:
			t.tos = *(*uint8)(value)
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && n >= sizeofInt:
			t.tos = uint8(*(*int32)(value))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && n >= unix.SizeofInet4Pktinfo:
			info := (*unix.Inet4Pktinfo)(value)
			t.local.setIPv4(info)
			t.many = info.Addr != info.Spec_dst
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && n >= unix.SizeofInet6Pktinfo:
			// Of IPv4 it comes before IP_PKTINFO, which knows more.
			info := (*unix.Inet6Pktinfo)(value)
			t.local.setIPv6(info)
			t.many = info.Addr[0] == 0xff // RFC 4291 section 2.7
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_RXQ_OVFL && n >= sizeofInt:
			t.dropped, t.overflow = *(*uint32)(value), true
		}
	}
}

// build writes the control messages of a send and returns their size. local may
// be nil, tos and segment zero: then there is none of that kind.
func (c *sendControl) build(ipv4 bool, local *Local, tos uint8, segment int) int {
	size := 0
	if local != nil {
		if local.isIPv4() {
			info := (*unix.Inet4Pktinfo)(c.put(&size, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo))
			*info = unix.Inet4Pktinfo{Spec_dst: [4]byte(local.IP[len(mappedPrefix):])}
		} else {
			info := (*unix.Inet6Pktinfo)(c.put(&size, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo))
			*info = unix.Inet6Pktinfo{Addr: local.IP, Ifindex: local.Interface}
		}
	}
	if tos != 0 {
		level, kind := int32(unix.IPPROTO_IPV6), int32(unix.IPV6_TCLASS)
		if ipv4 {
			level, kind = unix.IPPROTO_IP, unix.IP_TOS
		}
		*(*int32)(c.put(&size, level, kind, sizeofInt)) = int32(tos)
	}
	if segment != 0 {
		*(*uint16)(c.put(&size, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)) = uint16(segment)
	}
	return size
}

// put appends the header of a control message and returns where its value goes.
func (c *sendControl) put(size *int, level, kind int32, n int) unsafe.Pointer {
	at := unsafe.Add(unsafe.Pointer(c), *size)
	h := (*unix.Cmsghdr)(at)
	h.Level, h.Type = level, kind
	h.SetLen(cmsgStart + n)
	*size += cmsgStart + (n+word-1)&^(word-1)
	return unsafe.Add(at, cmsgStart)
}
