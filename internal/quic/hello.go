package quic

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"

	"edgeproxy/internal/sniff"
)

var (
	errNoInitial = errors.New("the QUIC client does not begin with an Initial packet: its connection was begun earlier, or elsewhere")
	errSmall     = errors.New("a QUIC Initial packet comes in a datagram of less than 1200 bytes")
	errShortID   = errors.New("a QUIC client's first connection id is shorter than 8 bytes")
	errCoalesced = errors.New("a datagram has QUIC packets of several connections or versions")
	errPackets   = errors.New("the QUIC client sends too many Initial packets for one ClientHello")
	errEmpty     = errors.New("a QUIC Initial packet has no frames")
	errFrame     = errors.New("a QUIC Initial packet has a frame that must not be there")
	errFrameCut  = errors.New("a QUIC Initial packet ends inside a frame")
)

// maxPackets bounds the Initial packets of one attempt that are opened. 64 KiB
// take 57 of them.
const maxPackets = 128

// Hello opens the Initial packets with which a client begins a connection, and
// puts the ClientHello together. The zero value is ready to be used, for one
// connection attempt. It holds what has arrived of the hello, and nothing else.
//
// What makes servers disagree about a client's words is an error: CRYPTO frames
// that contradict each other, packets of several connections in one datagram,
// Initial packets in datagrams that are too short. What all servers drop is
// ignored: a packet number that was there before, and what is not of this attempt.
type Hello struct {
	keys    keys
	version uint32
	dcid    [MaxConnID]byte // that the keys are of
	dcidLen uint8
	begun   bool  // there was a datagram
	keyed   bool  // there was an Initial packet
	opened  uint8 // Initial packets
	stream  stream
	numbers []uint64 // of packets whose frames were read
	next    uint64   // the largest of them plus one
}

// Datagram looks at the next datagram of a client that is not routed yet. b is
// not changed, and not kept.
//
// Once it is done, info says by what the client is to be routed, and is good as
// long as h. A Protocol of Unknown says that the first datagram was none of
// QUIC, or of a version that is not known; see [Begins]. Until it is done
// more datagrams are needed: of info, only Protocol counts then.
//
// An error means that the client must not be routed at all: it may be
// understood by a server in another way than here, or not at all. This goes
// for a first datagram that has Initial packets to a connection id that some
// server has chosen, but did not tell in a Retry: the keys are of the id that
// the client had chosen itself, and cannot be known any more.
//
// A later datagram to another connection id is ignored: it belongs to another
// attempt from the same port, or is a forgery, and has no say in where
// this one goes. So is a later one that is not of QUIC.
func (h *Hello) Datagram(b []byte, info *sniff.Info) (done bool, err error) {
	*info = sniff.Info{}
	if !h.begun && !Begins(b) {
		return true, nil
	}
	info.Protocol = sniff.QUIC
	if err := h.packets(b); err != nil {
		return false, err
	}
	h.begun = true
	return h.stream.hello(info)
}

// Again looks at a datagram of a client that is routed already, or that sends
// to a connection id that some server has issued. The Initial packets of a
// connection are sealed with keys of the id that the client began it with;
// those that open with keys of the id they are sent to begin one: the same, if
// they are sent again or answer a Retry, or another one, which may ask for
// another name. What does not open begins nothing at a server, and is ignored.
//
// Opened says that something did. Done and info are those of Datagram. Of an h
// that has opened something, nothing opens for another connection id: that is
// an error.
func (h *Hello) Again(b []byte, info *sniff.Info) (opened, done bool, err error) {
	*info = sniff.Info{}
	h.begun = true
	for rest := b; len(rest) > 0; {
		p, next, ok := ParseLong(rest)
		if !ok {
			break
		}
		rest = next
		if p.Type != Initial {
			continue
		}
		one := Hello{}
		if !h.keyed || h.owns(&p) {
			one = *h
		}
		switch err := one.initial(&p, max(len(b), MinDatagram)); {
		case err == errOpen || err == errPacket:
			continue
		case err != nil:
			return true, false, err
		case h.keyed && !h.owns(&p):
			return true, false, errCoalesced
		}
		*h = one
		opened = true
	}
	if !opened {
		return false, false, nil
	}
	info.Protocol = sniff.QUIC
	done, err = h.stream.hello(info)
	return true, done, err
}

// packets walks through what is coalesced in a datagram.
func (h *Hello) packets(b []byte) error {
	early := h.begun
	var dcid []byte
	for rest := b; len(rest) > 0; {
		p, next, ok := ParseLong(rest)
		switch first := len(rest) == len(b); {
		case !ok && first && !h.begun:
			return errPacket
		case !ok: // padding behind the last packet, or not of QUIC
			return nil
		case first && h.keyed && !h.owns(&p):
			return nil
		case first:
			dcid = p.DCID
		case p.Type == Other, p.Type == VersionNegotiation:
			return nil
		case !bytes.Equal(p.DCID, dcid): // must not be: RFC 9000, section 12.2
			return errCoalesced
		}
		switch p.Type {
		case Initial:
			if err := h.initial(&p, len(b)); err != nil {
				return err
			}
		case ZeroRTT:
			early = true
		}
		rest = next
	}
	if !h.keyed && !early {
		return errNoInitial
	}
	return nil
}

// owns reports whether p is of the attempt that the keys are of.
func (h *Hello) owns(p *Header) bool {
	return p.Version == h.version && bytes.Equal(p.DCID, h.dcid[:h.dcidLen])
}

// initial opens an Initial packet in a datagram of the given size.
func (h *Hello) initial(p *Header, size int) error {
	if size < MinDatagram {
		return errSmall
	}
	if !h.keyed {
		if len(p.DCID) < minFirstDCID && len(p.Token) == 0 { // without a Retry it is the client's choice
			return errShortID
		}
		if err := h.keys.derive(p.Version, p.DCID); err != nil {
			return err
		}
		h.keyed, h.version, h.dcidLen = true, p.Version, uint8(copy(h.dcid[:], p.DCID))
	}
	if !h.owns(p) {
		return errCoalesced
	}
	if h.opened == maxPackets {
		return errPackets
	}
	h.opened++
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	payload, number, err := h.keys.open(p, h.next, s)
	if err != nil {
		return err
	}
	if slices.Contains(h.numbers, number) { // RFC 9000, section 12.3
		return nil
	}
	h.numbers = append(h.numbers, number)
	h.next = max(h.next, number+1)
	return h.frames(payload)
}

// Types of frames that may be in an Initial packet: RFC 9000, section 12.4.
const (
	framePadding = 0x00
	framePing    = 0x01
	frameACK     = 0x02
	frameACKECN  = 0x03
	frameCrypto  = 0x06
	frameClose   = 0x1c
)

// frames reads the payload of an Initial packet: RFC 9000, section 19.
func (h *Hello) frames(b []byte) error {
	if len(b) == 0 { // section 12.4
		return errEmpty
	}
	for len(b) > 0 {
		kind := b[0] // longer forms of these types are not allowed
		b = b[1:]
		ok := true
		switch kind {
		case framePadding:
			b = skipPadding(b)
		case framePing:
		case frameACK, frameACKECN:
			b, ok = skipACK(b, kind == frameACKECN)
		case frameCrypto: // section 19.6
			var offset uint64
			var data []byte
			if offset, b, ok = varint(b); !ok {
				break
			}
			if data, b, ok = vector(b); !ok {
				break
			}
			if offset+uint64(len(data)) > sniff.MaxHello {
				return errLong
			}
			if err := h.stream.add(int(offset), data); err != nil {
				return err
			}
		case frameClose: // section 19.19: error, type of frame, reason
			if b, ok = skipVarints(b, 2); ok {
				_, b, ok = vector(b)
			}
		default:
			return errFrame
		}
		if !ok {
			return errFrameCut
		}
	}
	return nil
}

func skipPadding(b []byte) []byte {
	for len(b) >= 8 && binary.NativeEndian.Uint64(b) == 0 {
		b = b[8:]
	}
	for len(b) > 0 && b[0] == framePadding {
		b = b[1:]
	}
	return b
}

// skipACK: section 19.3.
func skipACK(b []byte, ecn bool) (rest []byte, ok bool) {
	if b, ok = skipVarints(b, 2); !ok { // largest acknowledged, delay
		return nil, false
	}
	ranges, b, ok := varint(b)
	if !ok || ranges > uint64(len(b)) {
		return nil, false
	}
	fields := 1 + 2*int(ranges)
	if ecn {
		fields += 3
	}
	return skipVarints(b, fields)
}

func skipVarints(b []byte, n int) (rest []byte, ok bool) {
	for range n {
		if _, b, ok = varint(b); !ok {
			return nil, false
		}
	}
	return b, true
}
