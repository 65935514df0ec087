package quic

import "encoding/binary"

// ShortDCID returns the first n bytes of the connection id of a packet with a
// short header, which does not say how long it is (RFC 8999, section 5.2). It
// is not ok if b has a long header, or is too short.
func ShortDCID(b []byte, n int) (id []byte, ok bool) {
	if len(b) < 1+n || n < 1 || b[0]&longHeader != 0 {
		return nil, false
	}
	return b[1 : 1+n : 1+n], true
}

// ServerSCID returns the connection id that a server has chosen for itself,
// from the long header of a packet that it has sent: the client sends to it from
// then on. That of a Retry is as good as others: until the server answers again
// the client's Initial packets, and the keys of those, are of that id (RFC 9000,
// section 7.2). It is true of all versions, unless it is longer than MaxConnID.
//
// It is not ok if the server goes without an id, and for Version Negotiation,
// which repeats what the client has chosen.
func ServerSCID(b []byte) (id []byte, ok bool) {
	const fixed = 1 + 4
	if len(b) < fixed || b[0]&longHeader == 0 || binary.BigEndian.Uint32(b[1:]) == 0 {
		return nil, false
	}
	_, s, ok := connID(b[fixed:])
	if !ok {
		return nil, false
	}
	if id, _, ok = connID(s); !ok || len(id) == 0 || len(id) > MaxConnID {
		return nil, false
	}
	return id, true
}

// unroutable is the value of the three highest bits of a connection id whose
// server has no configuration for load balancers.
const unroutable = 0b111

// ServerID returns the server id of n bytes in a connection id that a server
// has made by the plaintext algorithm of QUIC-LB
// (draft-ietf-quic-load-balancers-21): it stands behind the first byte. It is
// not ok if the id is too short, or marked as one that tells nothing.
func ServerID(cid []byte, n int) (id []byte, ok bool) {
	if len(cid) < 1+n || n < 1 || cid[0]>>5 == unroutable {
		return nil, false
	}
	return cid[1 : 1+n : 1+n], true
}
