// Package tlsrecord is the record layer of a TLS session after its handshake:
// it seals and opens records in the caller's buffers, follows KeyUpdates, and
// judges what is not application data. It knows TLS 1.3 (RFC 8446) and the
// AEAD suites of TLS 1.2 (RFC 5246, 5288, 7905), in both roles, and no sockets.
//
// The life of a session here:
//
//  1. crypto/tls has done the handshake; New13 or New12 takes the secrets its
//     key log gave away, and the sequence numbers at which both sides are.
//  2. Incoming: Size says how long the record at the head of a buffer is, Open
//     decrypts it. Application data is for the caller, anything else goes to
//     Control.
//  3. Outgoing: if Due, AppendDue comes first; then Seal, in place.
//  4. When nothing moves for a while, Shed drops the expanded keys, which are
//     most of the memory; the next record makes them anew.
//  5. An error of Size, Open or Control is an *AlertError. It ends the session:
//     AppendAlert tells the peer, unless the alert was the peer's. After an
//     error, or after the event Closed, nothing more may be opened. AppendAlert
//     with close_notify ends our own direction. Wipe clears the keys.
//
// With kernel TLS the kernel seals and opens, and this package follows: Keys
// gives the keys to set, Control and Data take what the kernel has opened, and
// AppendKeyUpdate makes what the kernel is to seal.
//
// A Conn belongs to one event loop: its methods must not run concurrently, not
// even in different directions. On the data path nothing allocates.
package tlsrecord

import (
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"math"
)

// Sizes, in bytes.
const (
	HeaderLen    = 5
	MaxPlaintext = 1 << 14 // of one record (RFC 8446, section 5.1)
	MaxHeader    = HeaderLen + explicitLen
	MaxTrailer   = 1 + tagLen // the inner content type of TLS 1.3 and the tag

	// MaxRecord is the longest record that can be valid. The RFCs let a
	// receiver assume more (2^14 + 256 and 2^14 + 2048 bytes after the
	// header), but every AEAD here adds a fixed number of bytes, and the
	// padding of TLS 1.3 counts towards the limit of its plaintext (RFC 8446,
	// section 5.4): what is longer is an overflow before it is decrypted.
	MaxRecord = HeaderLen + explicitLen + MaxPlaintext + tagLen

	explicitLen = 8 // the explicit nonce of AES-GCM in TLS 1.2 (RFC 5288, section 3)
	tagLen      = 16
	ivLen       = 12
)

// Content types (RFC 8446, section 5.1).
const (
	ChangeCipherSpec = 20
	Alert            = 21
	Handshake        = 22
	ApplicationData  = 23
)

// recordVersion is what the header of every record says after a handshake:
// that of TLS 1.2, in TLS 1.3 as well (RFC 8446, section 5.1).
const recordVersion = 0x0303

// Role says which end of the session we are.
type Role uint8

const (
	Server Role = iota
	Client
)

// Conn is the record layer of one session. Make it with New13 or New12.
type Conn struct {
	// RekeyAfter is the number of records sealed with one key after which Due
	// asks for a KeyUpdate. New13 sets it to what the suite bears; otherwise
	// there is none.
	RekeyAfter uint64

	in, out half
	p       *params

	skip    uint32 // bytes that the incoming handshake message still lacks; while its header is incomplete, the length so far; 0 between messages
	msgType uint8  // of that message
	msgLen  uint8  // bytes of its header that have come; 0: between messages
	request uint8  // body of an incoming KeyUpdate

	useless   uint8 // records and messages in a row without application data
	role      Role
	updateDue bool // the peer has asked for a KeyUpdate

	ad [8 + HeaderLen]byte // additional data of TLS 1.2; on the stack it would escape
}

// half is one direction.
type half struct {
	aead   cipher.AEAD // nil: to be made from key
	seq    uint64      // of the next record
	iv     [ivLen]byte // after the salt of AES-GCM in TLS 1.2 comes room for the explicit nonce
	key    [maxKey]byte
	secret [maxSecret]byte // traffic secret of TLS 1.3
}

// maxSeq is the largest sequence number a Conn takes over. It leaves 2^63
// records, which no session lives to see, so that Seal needs no error.
const maxSeq = math.MaxInt64

// Header is the number of bytes a sealed record has before its plaintext.
func (c *Conn) Header() int { return int(c.p.header) }

// Trailer is the number of bytes a sealed record has after its plaintext.
func (c *Conn) Trailer() int { return int(c.p.trailer) }

// Seal makes a record of the n ≤ MaxPlaintext bytes at buf[Header():], in
// place, and returns it: buf[:Header()+n+Trailer()]. It panics if buf has no
// room for that, or after 2^64 records.
func (c *Conn) Seal(typ byte, buf []byte, n int) []byte {
	h, p := &c.out, c.p
	if uint(n) > MaxPlaintext {
		panic("tlsrecord: plaintext too long for a record")
	}
	if h.seq == math.MaxUint64 {
		panic("tlsrecord: sequence numbers used up") // RFC 8446, section 5.3: they must not wrap
	}
	if h.aead == nil {
		h.aead = p.mustAEAD(&h.key)
	}
	head := int(p.header)
	buf = buf[:head+n+int(p.trailer)]
	length := len(buf) - HeaderLen
	text := buf[head : head+n]
	ad := buf[:HeaderLen]
	buf[0], buf[1], buf[2], buf[3], buf[4] = typ, recordVersion>>8, recordVersion&0xff, byte(length>>8), byte(length)
	if p.tls13 {
		buf[0] = ApplicationData
		text = buf[head : head+n+1]
		text[n] = typ
	} else {
		ad = c.ad12(h.seq, typ, n)
	}
	if p.explicit {
		// The explicit nonce is the sequence number: unique without state of
		// its own, as RFC 5288, section 3 proposes.
		binary.BigEndian.PutUint64(buf[HeaderLen:], h.seq)
		binary.BigEndian.PutUint64(h.iv[ivLen-8:], h.seq)
		h.aead.Seal(text[:0], h.iv[:], text, ad)
	} else {
		h.maskIV()
		h.aead.Seal(text[:0], h.iv[:], text, ad)
		h.maskIV()
	}
	h.seq++
	return buf
}

// Size is the length, header included, of the record that b begins with; 0 if
// the header is incomplete.
func (c *Conn) Size(b []byte) (int, error) {
	if len(b) < HeaderLen {
		return 0, nil
	}
	p := c.p
	n := int(b[3])<<8 | int(b[4])
	switch {
	case b[0] != ApplicationData && (p.tls13 || b[0] != Handshake && b[0] != Alert):
		// A change_cipher_spec is dropped only until Finished (RFC 8446,
		// section 5); in TLS 1.2 it would begin a renegotiation.
		return 0, unexpected("record of type %d", b[0])
	case b[1] != recordVersion>>8 || b[2] != recordVersion&0xff:
		return 0, &AlertError{Alert: AlertProtocolVersion, Reason: fmt.Sprintf("record of version %#02x%02x", b[1], b[2])}
	case n > int(p.maxLen):
		return 0, &AlertError{Alert: AlertRecordOverflow, Reason: fmt.Sprintf("record of %d bytes, %d are allowed", n, p.maxLen)}
	case n < int(p.minLen):
		return 0, &AlertError{Alert: AlertBadRecordMAC, Reason: fmt.Sprintf("record of %d bytes, too short to be authentic", n)}
	}
	return HeaderLen + n, nil
}

// Open decrypts rec, which is exactly one record as Size delimits it. The
// plaintext goes to dst[:0], whose capacity should be at least len(rec) and
// which must not overlap rec; or, if dst is nil, it replaces the ciphertext in
// rec. Application data may be empty. Records of other types are for Control.
// If the record is not authentic, what was at its destination is lost.
func (c *Conn) Open(dst, rec []byte) (typ byte, plain []byte, err error) {
	n, err := c.Size(rec)
	if err != nil {
		return 0, nil, err
	}
	h, p := &c.in, c.p
	switch {
	case n == 0 || n != len(rec):
		return 0, nil, &AlertError{Alert: AlertInternalError, Reason: "not one whole record"}
	case h.seq == math.MaxUint64:
		return 0, nil, &AlertError{Alert: AlertInternalError, Reason: "sequence numbers used up"}
	case h.aead == nil:
		h.aead = p.mustAEAD(&h.key)
	}
	typ = rec[0]
	body := rec[p.header:]
	if dst == nil {
		dst = body
	}
	ad := rec[:HeaderLen]
	if !p.tls13 {
		ad = c.ad12(h.seq, typ, len(body)-tagLen)
	}
	if p.explicit {
		copy(h.iv[ivLen-explicitLen:], rec[HeaderLen:])
		plain, err = h.aead.Open(dst[:0], h.iv[:], body, ad)
	} else {
		h.maskIV()
		plain, err = h.aead.Open(dst[:0], h.iv[:], body, ad)
		h.maskIV()
	}
	if err != nil {
		return 0, nil, &AlertError{Alert: AlertBadRecordMAC, Reason: "bad record MAC"}
	}
	h.seq++
	if p.tls13 {
		// The type is the last byte that is not padding.
		i := len(plain) - 1
		for ; i >= 0 && plain[i] == 0; i-- {
		}
		if i < 0 {
			return 0, nil, unexpected("record that is nothing but padding")
		}
		typ, plain = plain[i], plain[:i]
	}
	switch typ {
	case ApplicationData:
		if err := c.Data(len(plain)); err != nil {
			return 0, nil, err
		}
	case Alert, Handshake:
	default:
		return 0, nil, unexpected("record of inner type %d", typ)
	}
	return typ, plain, nil
}

// maskIV turns the IV into the nonce of the next record and back (RFC 8446,
// section 5.3; RFC 7905, section 2).
func (h *half) maskIV() {
	low := h.iv[ivLen-8:]
	binary.BigEndian.PutUint64(low, binary.BigEndian.Uint64(low)^h.seq)
}

// ad12 is the additional data of TLS 1.2 for n bytes of plaintext (RFC 5246,
// section 6.2.3.3).
func (c *Conn) ad12(seq uint64, typ byte, n int) []byte {
	binary.BigEndian.PutUint64(c.ad[:], seq)
	c.ad[8], c.ad[9], c.ad[10], c.ad[11], c.ad[12] = typ, recordVersion>>8, recordVersion&0xff, byte(n>>8), byte(n)
	return c.ad[:]
}

// Shed drops the expanded keys of both directions. The next record in each
// makes them anew.
func (c *Conn) Shed() {
	c.in.aead, c.out.aead = nil, nil
}

// Wipe overwrites the keys and secrets. (The expanded keys are left to the
// garbage collector: their owners, the standard library's ciphers, offer no
// way to clear them.) To seal or open after that is a mistake, and panics.
func (c *Conn) Wipe() {
	c.in, c.out = half{}, half{}
	c.p = &wiped
	c.updateDue, c.RekeyAfter = false, math.MaxUint64
}
