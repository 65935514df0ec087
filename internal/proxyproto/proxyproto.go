// Package proxyproto reads and writes headers of the PROXY protocol, versions 1
// and 2, as its specification (HAProxy's doc/proxy-protocol.txt, edition of
// 2026-04-27) says in sections 2, 2.1 and 2.2. The header is the first thing
// sent on a connection to a server and tells it the addresses of the connection
// that is relayed; in version 2, by TLVs, also what was learned of it.
//
// [Header.Parse] reads one from bytes that may have come in pieces and were
// peeked at: it says how many to consume. [AppendV1], [AppendV2],
// [AppendV2TLVs] and [AppendV2Local] write them.
//
// Of UDP, section 2 says that header and payload must be in one datagram, and
// that each datagram's header is read for itself. [Header.ParseDatagram] reads
// one, [AppendV2Datagram] writes one; both know version 2 only, as version 1
// has no word for UDP (section 2.1).
//
// A header that is sent has one address family for both ends. Both versions,
// and those of datagrams, treat pairs of addresses alike:
//
//   - IPv4 on both ends, be it IPv4-mapped (a dual-stack socket's view of an
//     IPv4 client), is sent as IPv4.
//   - IPv4 on one end only is sent as an IPv4-mapped IPv6 address, which loses
//     nothing, instead of as "unknown", which loses both.
//   - Where an end has no IP address (a unix socket), the header says that the
//     addresses are unknown; the server then goes by those of the connection.
//   - Zones of link-local addresses are not sent: there is no place for them.
package proxyproto

import (
	"encoding/binary"
	"net/netip"
	"strconv"
)

// MaxV1 is the length of the longest version 1 header, CRLF included
// (section 2.1).
const MaxV1 = 107

// signature begins each version 2 header (section 2.2).
const signature = "\r\n\r\n\x00\r\nQUIT\n"

// Bytes 13 and 14 of a version 2 header (section 2.2): version and command;
// address family and transport, in halves.
const (
	v2Local = 0x20
	v2Proxy = 0x21

	unspec          = 0x0
	familyIPv4      = 0x1
	familyIPv6      = 0x2
	familyUnix      = 0x3
	transportStream = 0x1
	transportDgram  = 0x2
)

// Lengths of the addresses and ports that follow (section 2.2).
const (
	ipv4Length = 2*4 + 2*2
	ipv6Length = 2*16 + 2*2
	unixLength = 2 * 108
)

// AppendV1 appends a version 1 header for a TCP connection from src that was
// accepted on local: "PROXY TCP4", "PROXY TCP6" or "PROXY UNKNOWN".
func AppendV1(dst []byte, src, local netip.AddrPort) []byte {
	s, l, family := sameFamily(src, local)
	switch family {
	case familyIPv4:
		dst = append(dst, "PROXY TCP4 "...)
	case familyIPv6:
		dst = append(dst, "PROXY TCP6 "...)
	default:
		return append(dst, "PROXY UNKNOWN\r\n"...)
	}
	dst = appendText(dst, s)
	dst = append(dst, ' ')
	dst = appendText(dst, l)
	dst = append(dst, ' ')
	dst = strconv.AppendUint(dst, uint64(src.Port()), 10)
	dst = append(dst, ' ')
	dst = strconv.AppendUint(dst, uint64(local.Port()), 10)
	return append(dst, '\r', '\n')
}

// AppendV2 appends a version 2 header, command PROXY, for a TCP connection
// from src that was accepted on local.
func AppendV2(dst []byte, src, local netip.AddrPort) []byte {
	return appendV2(dst, src, local, transportStream)
}

func appendV2(dst []byte, src, local netip.AddrPort, transport byte) []byte {
	s, l, family := sameFamily(src, local)
	dst = append(dst, signature...)
	switch family {
	case familyIPv4:
		a, b := s.As4(), l.As4()
		dst = append(dst, v2Proxy, family<<4|transport, 0, ipv4Length)
		dst = append(append(dst, a[:]...), b[:]...)
	case familyIPv6:
		a, b := s.As16(), l.As16()
		dst = append(dst, v2Proxy, family<<4|transport, 0, ipv6Length)
		dst = append(append(dst, a[:]...), b[:]...)
	default:
		return append(dst, v2Proxy, unspec, 0, 0)
	}
	dst = binary.BigEndian.AppendUint16(dst, src.Port())
	return binary.BigEndian.AppendUint16(dst, local.Port())
}

// AppendV2Local appends a version 2 header, command LOCAL: the connection is
// the proxy's own, such as a health check.
func AppendV2Local(dst []byte) []byte {
	dst = append(dst, signature...)
	return append(dst, v2Local, unspec, 0, 0)
}

func sameFamily(src, local netip.AddrPort) (s, l netip.Addr, family byte) {
	s, l = src.Addr().Unmap(), local.Addr().Unmap()
	switch {
	case !s.IsValid() || !l.IsValid():
		return s, l, unspec
	case s.Is4() && l.Is4():
		return s, l, familyIPv4
	}
	return netip.AddrFrom16(s.As16()), netip.AddrFrom16(l.As16()), familyIPv6
}

// appendText writes an address in the form that section 2.1 allows: unlike
// what netip prints, an IPv4-mapped one has no dotted part, and none a zone.
func appendText(dst []byte, a netip.Addr) []byte {
	if a.Is4In6() {
		b := a.As16()
		dst = append(dst, "::ffff:"...)
		dst = strconv.AppendUint(dst, uint64(binary.BigEndian.Uint16(b[12:])), 16)
		dst = append(dst, ':')
		return strconv.AppendUint(dst, uint64(binary.BigEndian.Uint16(b[14:])), 16)
	}
	return a.AppendTo(dst)
}
