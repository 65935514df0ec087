// Package quic reads as much of QUIC as it takes to choose a server for a
// connection and to stay with it: packet headers, and the ClientHello in a
// client's Initial packets. It is a pure codec of versions 1 (RFC 9000, RFC
// 9001) and 2 (RFC 9369); of other versions it knows what all have in common
// (RFC 8999). Initial packets are protected with keys that anybody on the path
// can derive; nothing beyond them is opened, and nothing is ever answered.
//
//  1. [Begins] tells from a datagram that belongs to no session whether it is
//     of a QUIC client. What is not, other versions of QUIC included, is to be
//     routed as something that names nobody.
//  2. The session gets a [Hello], which is shown this datagram and all that
//     follow, while the caller holds them, until the ClientHello is whole: a
//     post-quantum one takes two. An error means that it must not be routed.
//  3. It is routed by the name and the protocols in the hello, the datagrams
//     held are sent on as they came, and the Hello has done its work.
//  4. From the server's packets [ServerSCID] learns which connection ids are
//     its own, and from those [ServerID], if servers put one there. A client
//     that comes from another address is known again by the connection id it
//     sends to: [ParseLong], [ShortDCID].
package quic

import "encoding/binary"

// Versions whose Initial packets can be opened.
const (
	Version1 uint32 = 1
	Version2 uint32 = 0x6b3343cf
)

const (
	// MinDatagram is how long a datagram with an Initial packet is at least:
	// servers discard shorter ones (RFC 9000, section 14.1).
	MinDatagram = 1200
	// MaxConnID is the most bytes of a connection id in the versions known
	// (RFC 9000, section 17.2).
	MaxConnID = 20

	minFirstDCID = 8  // of a client's own choice: RFC 9000, section 7.2
	retryTag     = 16 // RFC 9001, section 5.8

	longHeader = 0x80 // RFC 8999, section 5.1
)

// PacketType is the type of a packet with a long header.
type PacketType uint8

const (
	Other              PacketType = iota // of a version that is not known
	VersionNegotiation                   // version 0: only servers send it
	Initial
	ZeroRTT
	Handshake
	Retry // only servers send it
)

// packetType: RFC 9000, section 17.2; RFC 9369, section 3.2.
func packetType(first byte, version uint32) PacketType {
	bits := PacketType(first >> 4 & 3)
	switch version {
	case 0:
		return VersionNegotiation
	case Version1:
		return Initial + bits
	case Version2: // the same ones, beginning with Retry
		return Initial + (bits-1)&3
	}
	return Other
}

// Header is the long header of a packet. Its slices point into the datagram.
type Header struct {
	Version uint32
	Type    PacketType
	// DCID and SCID are the connection ids of the receiver and of the sender:
	// at most MaxConnID bytes if the version is known, else 255.
	DCID, SCID []byte
	Token      []byte // of an Initial

	packet   []byte // up to its end, as far as it is known
	numberAt int    // where the protected packet number begins
}

// ParseLong reads the packet at the beginning of a datagram. It is not ok if
// that has no long header, or one that is malformed. rest is what is coalesced
// behind it (RFC 9000, section 12.2): more packets, or anything at all. The end
// of a packet is known if its version is, and unless it is a Retry.
//
// The fixed bit is not looked at: clients may grease it (RFC 9287).
func ParseLong(b []byte) (h Header, rest []byte, ok bool) {
	const fixed = 1 + 4 // first byte and version
	if len(b) < fixed || b[0]&longHeader == 0 {
		return Header{}, nil, false
	}
	h.Version = binary.BigEndian.Uint32(b[1:])
	h.Type = packetType(b[0], h.Version)
	h.packet = b
	s := b[fixed:]
	if h.DCID, s, ok = connID(s); !ok {
		return Header{}, nil, false
	}
	if h.SCID, s, ok = connID(s); !ok {
		return Header{}, nil, false
	}
	if h.Type == Other || h.Type == VersionNegotiation {
		return h, nil, true
	}
	if len(h.DCID) > MaxConnID || len(h.SCID) > MaxConnID {
		return Header{}, nil, false
	}
	if h.Type == Retry {
		return h, nil, len(s) >= retryTag
	}
	if h.Type == Initial {
		if h.Token, s, ok = vector(s); !ok {
			return Header{}, nil, false
		}
	}
	n, s, ok := varint(s)
	if !ok || n > uint64(len(s)) {
		return Header{}, nil, false
	}
	h.numberAt = len(b) - len(s)
	end := h.numberAt + int(n)
	h.packet = b[:end:end]
	return h, b[end:], true
}

// Begins reports whether a datagram begins a connection of a known version, as
// far as its first bytes tell: it is to be shown to a [Hello], which finds out
// whether it is well-formed. Besides an Initial packet it may have another one
// in front, be it that 0-RTT has overtaken it.
//
// A session may have been routed without a name because of what came first: a
// datagram of another version, or any other. If a datagram that begins a
// connection then went the same way, a client could evade conditions on names.
func Begins(b []byte) bool {
	if len(b) < 5 || b[0]&longHeader == 0 {
		return false
	}
	switch packetType(b[0], binary.BigEndian.Uint32(b[1:])) {
	case Initial, ZeroRTT, Handshake:
		return true
	}
	return false
}

// connID cuts off a connection id behind its length: RFC 8999, section 5.1.
func connID(s []byte) (id, rest []byte, ok bool) {
	if len(s) < 1 || len(s)-1 < int(s[0]) {
		return nil, nil, false
	}
	n := 1 + int(s[0])
	return s[1:n:n], s[n:], true
}

// varint cuts off a variable-length integer: RFC 9000, section 16.
func varint(s []byte) (v uint64, rest []byte, ok bool) {
	if len(s) == 0 {
		return 0, nil, false
	}
	n := 1 << (s[0] >> 6)
	if len(s) < n {
		return 0, nil, false
	}
	v = uint64(s[0] & 0x3f)
	for _, c := range s[1:n] {
		v = v<<8 | uint64(c)
	}
	return v, s[n:], true
}

// vector cuts off bytes behind their number, a variable-length integer.
func vector(s []byte) (b, rest []byte, ok bool) {
	n, s, ok := varint(s)
	if !ok || n > uint64(len(s)) {
		return nil, nil, false
	}
	return s[:n:n], s[n:], true
}
