package quic

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"errors"
	"sync"
)

var (
	errPacket = errors.New("a QUIC Initial packet is malformed: its header and lengths do not fit the datagram")
	errOpen   = errors.New("a QUIC Initial packet cannot be opened with the keys of its connection id: it is damaged, or of a connection begun earlier")
	errBits   = errors.New("a QUIC Initial packet has reserved bits set")
)

// derivation is how a version gets from a connection id to keys.
type derivation struct {
	salt        []byte
	key, iv, hp string
}

var (
	// RFC 9001, section 5.2.
	derivation1 = derivation{
		salt: []byte{0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f, 0x0a},
		key:  label("quic key", keyLen), iv: label("quic iv", ivLen), hp: label("quic hp", keyLen),
	}
	// RFC 9369, sections 3.3.1 and 3.3.2.
	derivation2 = derivation{
		salt: []byte{0x0d, 0xed, 0xe3, 0xde, 0xf7, 0x00, 0xa6, 0xdb, 0x81, 0x93, 0x81, 0xbe, 0x6e, 0x26, 0x9d, 0xcb, 0xf9, 0xbd, 0x2e, 0xd9},
		key:  label("quicv2 key", keyLen), iv: label("quicv2 iv", ivLen), hp: label("quicv2 hp", keyLen),
	}
	clientIn = label("client in", sha256.Size)
)

const (
	keyLen    = 16 // AEAD_AES_128_GCM
	ivLen     = 12
	sampleLen = 16
	sampleAt  = 4 // from the packet number, as if that were of full length: RFC 9001, section 5.4.2
)

// label is HkdfLabel of RFC 8446, section 7.1, without context, and the counter
// that HKDF-Expand puts behind it.
func label(name string, n int) string {
	name = "tls13 " + name
	return string([]byte{byte(n >> 8), byte(n), byte(len(name))}) + name + "\x00\x01"
}

// keys open the Initial packets of a client.
type keys struct {
	aead cipher.AEAD
	mask cipher.Block // header protection
	iv   [ivLen]byte
}

// derive makes the keys for the connection id that the client has sent its first
// Initial packet to: RFC 9001, section 5.2.
func (k *keys) derive(version uint32, dcid []byte) error {
	d := &derivation1
	if version == Version2 {
		d = &derivation2
	}
	initial := hmac(d.salt, dcid, "")
	secret := hmac(initial[:], nil, clientIn)
	key, iv, hp := hmac(secret[:], nil, d.key), hmac(secret[:], nil, d.iv), hmac(secret[:], nil, d.hp)
	block, err := aes.NewCipher(key[:keyLen])
	if err != nil {
		return err
	}
	if k.aead, err = cipher.NewGCM(block); err != nil {
		return err
	}
	k.mask, err = aes.NewCipher(hp[:keyLen])
	copy(k.iv[:], iv[:])
	return err
}

// hmac is HMAC-SHA-256 of a short message in two pieces. With a salt and a
// connection id it is HKDF-Extract, with a secret and a label HKDF-Expand of up
// to 32 bytes (RFC 5869, section 2). crypto/hkdf says the same in 45
// allocations, and that would be most of what a flood of Initial packets costs.
func hmac(key, message []byte, info string) [sha256.Size]byte {
	const maxMessage = 64
	var inner [sha256.BlockSize + maxMessage]byte
	var outer [sha256.BlockSize + sha256.Size]byte
	copy(inner[:], key)
	copy(outer[:], key)
	for i := range sha256.BlockSize {
		inner[i] ^= 0x36
		outer[i] ^= 0x5c
	}
	b := append(append(inner[:sha256.BlockSize], message...), info...)
	sum := sha256.Sum256(b)
	copy(outer[sha256.BlockSize:], sum[:])
	return sha256.Sum256(outer[:])
}

// scratch is where a packet is opened: what came has to be sent on unchanged.
type scratch struct {
	mask  [sampleLen]byte
	nonce [ivLen]byte
	buf   []byte // the header without its protection, then the plain text
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// open removes the protection of a packet: RFC 9001, section 5.4. next is the
// packet number after the largest one so far. The payload is good until s is
// used again.
func (k *keys) open(h *Header, next uint64, s *scratch) (payload []byte, number uint64, err error) {
	p, at := h.packet, h.numberAt
	if len(p) < at+sampleAt+sampleLen {
		return nil, 0, errPacket
	}
	k.mask.Encrypt(s.mask[:], p[at+sampleAt:at+sampleAt+sampleLen])
	first := p[0] ^ s.mask[0]&0x0f
	n := int(first&3) + 1
	s.buf = append(s.buf[:0], p[:at+n]...)
	s.buf[0] = first
	var truncated uint64
	for i := range n {
		c := &s.buf[at+i]
		*c ^= s.mask[1+i]
		truncated = truncated<<8 | uint64(*c)
	}
	number = packetNumber(next, truncated, n)
	s.nonce = k.iv
	for i := range 8 {
		s.nonce[ivLen-1-i] ^= byte(number >> (8 * i))
	}
	s.buf, err = k.aead.Open(s.buf, s.nonce[:], p[at+n:], s.buf)
	if err != nil {
		return nil, 0, errOpen
	}
	if first&0x0c != 0 { // RFC 9000, section 17.2
		return nil, 0, errBits
	}
	return s.buf[at+n:], number, nil
}

// packetNumber finds the number nearest to next that ends in the n bytes given:
// RFC 9000, appendix A.3.
func packetNumber(next, truncated uint64, n int) uint64 {
	window := uint64(1) << (8 * n)
	candidate := next&^(window-1) | truncated
	switch {
	case candidate+window/2 <= next && candidate+window < 1<<62:
		return candidate + window
	case candidate > next+window/2 && candidate >= window:
		return candidate - window
	}
	return candidate
}
