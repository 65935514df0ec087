package traffic

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// ServerName is what TLS clients ask for, and what routes by name look for.
const ServerName = "bench.example"

const (
	// The size that browsers without post-quantum key exchange pad theirs to
	// (RFC 7685).
	helloSize = 517
	// The random follows the record's header, the message's and the version.
	helloRandom = 5 + 4 + 2
	// What a ClientHello begins with (RFC 8446, section 5.1): no request does.
	helloFirst = 22
)

// hello is a ClientHello of TLS 1.3, as a record. Its random is free: there, a
// client puts the header of a request.
var hello = makeHello()

// makeHello makes a hello that a server accepts, with the algorithms that the
// benchmark pins. Its key is nobody's: whoever sends it cannot go on.
func makeHello() []byte {
	u16 := binary.BigEndian.AppendUint16
	var ext []byte
	extension := func(typ uint16, body ...byte) {
		ext = append(u16(u16(ext, typ), uint16(len(body))), body...)
	}
	name := append(u16([]byte{0}, uint16(len(ServerName))), ServerName...)
	extension(0, append(u16(nil, uint16(len(name))), name...)...)      // server_name
	extension(10, 0, 2, 0, 29)                                         // supported_groups: X25519
	extension(13, 0, 4, 4, 3, 8, 4)                                    // signature_algorithms: ECDSA with P-256, RSA-PSS
	extension(43, 2, 3, 4)                                             // supported_versions: 1.3
	extension(45, 1, 1)                                                // psk_key_exchange_modes: with (EC)DHE
	extension(51, append([]byte{0, 36, 0, 29, 0, 32}, fill(32)...)...) // key_share: X25519

	body := []byte{3, 3}
	body = append(body, fill(32)...)             // random
	body = append(append(body, 32), fill(32)...) // session id, as for middleboxes (RFC 8446, appendix D.4)
	body = append(body, 0, 2, 0x13, 0x01, 1, 0)  // TLS_AES_128_GCM_SHA256; no compression
	const headers = 5 + 4
	padding := helloSize - headers - len(body) - 2 - len(ext) - 4
	extension(21, make([]byte, padding)...)
	body = append(u16(body, uint16(len(ext))), ext...)

	record := u16([]byte{helloFirst, 3, 1}, uint16(4+len(body)))
	record = append(record, 1, 0)
	return append(u16(record, uint16(len(body))), body...)
}

// fill makes bytes that are not all the same.
func fill(n int) []byte { return bytes.Clone(pattern[:n]) }

// appendHello appends a hello that is at the same time a request.
func appendHello(b []byte, h header) []byte {
	start := len(b)
	b = append(b, hello...)
	h.size = headerSize
	appendRequest(b[:start+helloRandom], h)
	return b
}

// parseHello reads a request from a hello. It returns false when more bytes are
// needed.
func parseHello(b []byte) (h header, whole bool, err error) {
	switch {
	case len(b) < helloSize:
		return h, false, nil
	case len(b) > helloSize:
		return h, false, fmt.Errorf("%d bytes after a ClientHello that has not been answered", len(b)-helloSize)
	}
	const random = helloRandom + headerSize
	if !bytes.Equal(b[:helloRandom], hello[:helloRandom]) || !bytes.Equal(b[random:], hello[random:]) {
		return h, false, errors.New("ClientHello arrived with other bytes than were sent")
	}
	return parseRequest(b[helloRandom:random])
}
