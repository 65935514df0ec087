package proxyproto

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"unsafe"
)

// MaxHeader is the length of the longest header that is accepted, and sent.
// The specification wants headers of both versions to fit in 536 bytes
// (section 2), but sets no bound for version 2, whose length field reaches
// 64 KiB. 4 KiB has room for a client certificate among the TLVs, which is the
// largest thing senders put there, and is what nginx accepts.
const MaxHeader = 4096

// Header is a header that was received. Slices point into the bytes it was
// parsed from.
type Header struct {
	Version uint8 // 1 or 2
	// Local marks a connection that the sender makes for itself, such as a
	// health check (version 2, command LOCAL). It says nothing else: the
	// addresses are those of the connection, and TLVs are not looked at.
	Local bool
	// Datagram says that what is relayed came to the sender as datagrams. A
	// sender that came by them otherwise than it passes them on, say from TCP
	// to UDP, says so; the addresses are true in any case.
	Datagram bool
	// CRC says that there was a checksum (it was right).
	CRC bool
	// Source and Destination are the ends of the connection that is relayed;
	// both or none are valid. Without them the connection's own count
	// (section 2.1, "UNKNOWN"; section 2.2, "UNSPEC"). An IPv4-mapped address
	// is given as the IPv4 address that it is.
	Source, Destination netip.AddrPort

	Authority []byte // section 2.2.2: the name that the client asked for
	ALPN      []byte // section 2.2.1
	UniqueID  []byte // section 2.2.5: at most 128 bytes
	TLVs      []byte // all of them as they came; see [Each] and [TLVs.Keep]

	ssl []byte // value of PP2_TYPE_SSL, checked
}

// syntaxError is what is wrong with a header. As a constant it costs nothing
// to report, be it a thousand times a second.
type syntaxError string

func (e syntaxError) Error() string { return "PROXY header: " + string(e) }

const (
	errNoHeader  syntaxError = `the connection begins neither with "PROXY " nor with the signature of version 2; is the peer set up to send a header?`
	errV1Family  syntaxError = "version 1 knows the protocols TCP4, TCP6 and UNKNOWN only"
	errV1Line    syntaxError = `the line of version 1 is not "PROXY TCP4|TCP6 source destination source-port destination-port" with single spaces, CR and LF`
	errV1Long    syntaxError = "the line of version 1 does not end within 107 bytes"
	errV1Address syntaxError = "an address is not one of the family that the line of version 1 says"
	errV1Port    syntaxError = "a port is not a decimal number from 0 to 65535 without leading zeroes"
	errV2Version syntaxError = "the signature of version 2 is followed by another version"
	errV2Command syntaxError = "the command is neither LOCAL nor PROXY"
	errV2Family  syntaxError = "unknown address family or transport protocol"
	errV2Short   syntaxError = "too short for the addresses of its family"
	errV2Long    syntaxError = "longer than 4096 bytes"
)

// Parse reads the header that b begins with, b being what has come so far. One
// of its results is set:
//
//   - n > 0: a whole header, of n bytes, is in h. What follows is payload.
//   - need > len(b): b is the beginning of a header, and none that begins so
//     is shorter than need bytes in all. Never above [MaxHeader].
//   - err: no header begins so. This is told as early as keywords, lengths and
//     characters make it certain.
//
// That a header may come in pieces is what section 2 recommends ("The receiver
// may be tolerant to partial headers").
func (h *Header) Parse(b []byte) (n, need int, err error) {
	*h = Header{}
	if len(b) > 0 && b[0] != 'P' {
		return h.parseV2(b)
	}
	return h.parseV1(b)
}

// begins reports whether b is the beginning of word, or word of b.
func begins(b []byte, word string) bool {
	n := min(len(b), len(word))
	return string(b[:n]) == word[:n]
}

// v1Begin begins each version 1 header (section 2.1).
const v1Begin = "PROXY "

// Lengths of the shortest lines of version 1.
const (
	leastUnknown = len("PROXY UNKNOWN\r\n")
	leastTCP6    = len("PROXY TCP6 :: :: 0 0\r\n")
	leastTCP4    = len("PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n")
)

// parseV1 follows section 2.1.
func (h *Header) parseV1(b []byte) (n, need int, err error) {
	if !begins(b, v1Begin) {
		return 0, 0, errNoHeader
	}
	if len(b) < len(v1Begin) {
		return 0, leastUnknown, nil
	}
	h.Version = 1
	const tcp4, tcp6, unknown = "TCP4 ", "TCP6 ", "UNKNOWN"
	switch family := b[len(v1Begin):]; {
	case begins(family, unknown):
		if len(family) <= len(unknown) {
			return 0, leastUnknown, nil
		}
		return parseUnknown(b)
	case begins(family, tcp6):
		if len(family) < len(tcp6) {
			return 0, leastTCP6, nil // "TCP" may become TCP4 still, whose lines are longer
		}
		return h.parseTCP(b, isIPv6, leastTCP6)
	case begins(family, tcp4):
		if len(family) < len(tcp4) {
			return 0, leastTCP4, nil
		}
		return h.parseTCP(b, isIPv4, leastTCP4)
	}
	return 0, 0, errV1Family
}

// parseUnknown looks for the end of the line: "the receiver must ignore
// anything presented before the CRLF is found".
func parseUnknown(b []byte) (n, need int, err error) {
	if rest := b[len("PROXY UNKNOWN"):]; rest[0] != ' ' && !begins(rest, "\r\n") {
		return 0, 0, errV1Family
	}
	if i := bytes.Index(b[:min(len(b), MaxV1)], crlf); i >= 0 {
		return i + len(crlf), 0, nil
	}
	return v1Needs(b, leastUnknown)
}

var crlf = []byte("\r\n")

// v1Needs is the answer where the line has not ended.
func v1Needs(b []byte, least int) (n, need int, err error) {
	need = len(b) + len(crlf)
	if b[len(b)-1] == '\r' {
		need--
	}
	if need > MaxV1 {
		return 0, 0, errV1Long
	}
	return 0, max(need, least), nil
}

// parseTCP reads the line of a family whose addresses consist of certain
// characters.
func (h *Header) parseTCP(b []byte, address func(byte) bool, least int) (n, need int, err error) {
	const start = len("PROXY TCPx ")
	end := start
	for end < len(b) && (address(b[end]) || b[end] == ' ') {
		if end++; end > MaxV1-len(crlf) {
			return 0, 0, errV1Long
		}
	}
	switch tail := b[end:]; {
	case !begins(tail, "\r\n"):
		return 0, 0, errV1Line
	case len(tail) < len(crlf):
		return v1Needs(b, least)
	}
	source, rest, _ := bytes.Cut(b[start:end], []byte{' '})
	destination, rest, _ := bytes.Cut(rest, []byte{' '})
	sourcePort, destinationPort, ok := bytes.Cut(rest, []byte{' '})
	if !ok || len(source) == 0 || len(destination) == 0 || len(sourcePort) == 0 || len(destinationPort) == 0 {
		return 0, 0, errV1Line
	}
	if h.Source, err = v1End(source, sourcePort, least == leastTCP4); err != nil {
		return 0, 0, err
	}
	if h.Destination, err = v1End(destination, destinationPort, least == leastTCP4); err != nil {
		return 0, 0, err
	}
	return end + len(crlf), 0, nil
}

func isIPv4(c byte) bool { return '0' <= c && c <= '9' || c == '.' }

// isIPv6 admits dots: the dotted form of IPv4-mapped addresses is not among
// what section 2.1 describes, but HAProxy and nginx send it for the IPv4
// clients of a dual-stack socket.
func isIPv6(c byte) bool {
	return isIPv4(c) || c == ':' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// v1End reads one end of the connection. The address is not empty, and made of
// characters that isIPv4 or isIPv6 admits: it has no zone.
func v1End(address, port []byte, is4 bool) (netip.AddrPort, error) {
	// ParseAddr keeps hold of its argument in errors and zones only, and
	// neither leaves this function.
	a, err := netip.ParseAddr(unsafe.String(&address[0], len(address)))
	if err != nil || a.Is4() != is4 {
		return netip.AddrPort{}, errV1Address
	}
	if port[0] == '0' && len(port) > 1 || len(port) > 5 {
		return netip.AddrPort{}, errV1Port
	}
	p := 0
	for _, c := range port {
		if c < '0' || c > '9' {
			return netip.AddrPort{}, errV1Port
		}
		p = p*10 + int(c-'0')
	}
	if p > 65535 {
		return netip.AddrPort{}, errV1Port
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), nil
}

// v2Fixed is the length of a version 2 header's part that all have: signature,
// version and command, family and transport, and how much follows.
const v2Fixed = 16

// parseV2 follows section 2.2.
func (h *Header) parseV2(b []byte) (n, need int, err error) {
	if !begins(b, signature) {
		return 0, 0, errNoHeader
	}
	h.Version = 2
	if len(b) > 12 {
		switch b[12] {
		case v2Local:
			h.Local = true
		case v2Proxy:
		default:
			if b[12]>>4 != 2 {
				return 0, 0, errV2Version
			}
			return 0, 0, errV2Command
		}
	}
	// The family of LOCAL "is ignored". Otherwise "other values […] must be
	// rejected as invalid" of either half.
	if len(b) > 13 && !h.Local && (b[13]>>4 > familyUnix || b[13]&0xf > transportDgram) {
		return 0, 0, errV2Family
	}
	if len(b) < v2Fixed {
		return 0, v2Fixed, nil
	}
	n = v2Fixed + int(binary.BigEndian.Uint16(b[14:]))
	family, transport := b[13]>>4, b[13]&0xf
	switch {
	case n > MaxHeader:
		return 0, 0, errV2Long
	case !h.Local && n < v2Fixed+addressLength[family]:
		return 0, 0, errV2Short
	case len(b) < n:
		return 0, n, nil
	case h.Local:
		return n, 0, nil // "must […] discard the protocol block"
	}
	addresses := b[v2Fixed:]
	h.TLVs = b[v2Fixed+addressLength[family] : n : n]
	switch {
	case transport == unspec || family == unspec || family == familyUnix:
		// "The receiver should ignore address information"; nor is there any
		// use for the paths of unix sockets.
	case family == familyIPv4:
		h.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte(addresses)), binary.BigEndian.Uint16(addresses[8:]))
		h.Destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte(addresses[4:])), binary.BigEndian.Uint16(addresses[10:]))
	case family == familyIPv6:
		h.Source = netip.AddrPortFrom(netip.AddrFrom16([16]byte(addresses)).Unmap(), binary.BigEndian.Uint16(addresses[32:]))
		h.Destination = netip.AddrPortFrom(netip.AddrFrom16([16]byte(addresses[16:])).Unmap(), binary.BigEndian.Uint16(addresses[34:]))
	}
	h.Datagram = transport == transportDgram
	if err := h.parseTLVs(b[:n]); err != nil {
		return 0, 0, err
	}
	return n, 0, nil
}

// addressLength is how much the addresses of a family take. Section 2.2 knows
// none for AF_UNSPEC: what follows are TLVs, as HAProxy sends them.
var addressLength = [...]int{0, ipv4Length, ipv6Length, unixLength}
