// Package traffic is the two ends of a benchmark: a backend that answers, and
// a client that asks and measures.
//
// Both are epoll loops over raw system calls, because a goroutine per
// connection would cost about as much as the proxy between them, and with few
// CPUs the proxy would then not be what limits. Both check the bytes:
//
//  1. The client sends a request: a header that says how long the answer is to
//     be and where in the pattern it starts, then filler from the pattern.
//  2. The backend compares the filler with the pattern and answers from it.
//  3. The client compares the answer: all of it if it is small, every
//     sixteenth read of a long one, and always its length.
//
// A request is never sent before the answer to the one before has arrived.
//
// The client can speak TLS: crypto/tls does the handshakes, each in a coroutine
// of the client's loop, and internal/tlsrecord the rest. Both are the same for
// every proxy. The backend speaks none. For routing by name there are requests
// that are a ClientHello; the backend answers them in the clear.
package traffic

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
)

const (
	magic      = 0x65706231
	headerSize = 24
	maxRequest = 16 << 10

	// The pattern repeats after a prime number of bytes, so that a piece lost or
	// doubled at a power of two shows at the next comparison.
	patternPeriod = 65521
	// What one read or write moves at most: half of a usual L2 cache, because
	// the ends are to cost as little as possible.
	chunk = 256 << 10
)

// pattern holds chunk bytes from every offset below patternPeriod.
var pattern = func() []byte {
	var seed [32]byte
	copy(seed[:], "edgeproxy benchmark pattern")
	p := make([]byte, patternPeriod+chunk)
	rand.NewChaCha8(seed).Read(p[:patternPeriod])
	copy(p[patternPeriod:], p)
	for n := 2 * patternPeriod; n < len(p); n += patternPeriod {
		copy(p[n:], p[:patternPeriod])
	}
	return p
}()

// patternAt is the pattern from the pos-th byte of an answer that starts at offset.
func patternAt(offset uint32, pos int64) []byte {
	at := (int64(offset) + pos) % patternPeriod
	return pattern[at : at+chunk]
}

type header struct {
	size   uint32 // of the request, with this header
	close  bool   // the backend closes after the answer
	offset uint32 // in the pattern, of filler and answer
	answer uint64 // bytes
}

// appendRequest appends a whole request to b.
func appendRequest(b []byte, h header) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint32(b, magic)
	b = binary.BigEndian.AppendUint32(b, h.size)
	b = binary.BigEndian.AppendUint64(b, h.answer)
	b = binary.BigEndian.AppendUint32(b, h.offset)
	var flags uint32
	if h.close {
		flags = 1
	}
	b = binary.BigEndian.AppendUint32(b, flags)
	return append(b, patternAt(h.offset, 0)[:int(h.size)-(len(b)-start)]...)
}

// parseRequest reads a request from the start of b. It returns false when more
// bytes are needed.
func parseRequest(b []byte) (h header, whole bool, err error) {
	if len(b) > 0 && b[0] == helloFirst {
		return parseHello(b)
	}
	if len(b) < headerSize {
		return h, false, nil
	}
	if m := binary.BigEndian.Uint32(b); m != magic {
		return h, false, fmt.Errorf("request starts with %#x, not %#x", m, magic)
	}
	h.size = binary.BigEndian.Uint32(b[4:])
	h.answer = binary.BigEndian.Uint64(b[8:])
	h.offset = binary.BigEndian.Uint32(b[16:])
	flags := binary.BigEndian.Uint32(b[20:])
	h.close = flags == 1
	switch {
	case flags > 1:
		return h, false, fmt.Errorf("request claims flags %#x", flags)
	case h.size < headerSize || h.size > maxRequest:
		return h, false, fmt.Errorf("request claims a size of %d bytes", h.size)
	case h.offset >= patternPeriod:
		return h, false, fmt.Errorf("request claims pattern offset %d", h.offset)
	case len(b) < int(h.size):
		return h, false, nil
	case len(b) > int(h.size):
		return h, false, fmt.Errorf("%d bytes after a request that has not been answered", len(b)-int(h.size))
	}
	if filler := b[headerSize:]; !bytes.Equal(filler, patternAt(h.offset, 0)[:len(filler)]) {
		return h, false, errors.New("request arrived with other bytes than were sent")
	}
	return h, true, nil
}

// Ask makes one request for a short answer over c, with blocking calls: to see
// whether a path works, not to measure it.
func Ask(c net.Conn) error { return ask(c, appendRequest) }

// AskWithHello is Ask with a request that is a ClientHello.
func AskWithHello(c net.Conn) error { return ask(c, appendHello) }

func ask(c net.Conn, appendTo func([]byte, header) []byte) error {
	h := header{size: 100, answer: 256, offset: 7}
	if _, err := c.Write(appendTo(nil, h)); err != nil {
		return err
	}
	answer := make([]byte, h.answer)
	if _, err := io.ReadFull(c, answer); err != nil {
		return err
	}
	if !bytes.Equal(answer, patternAt(h.offset, 0)[:h.answer]) {
		return errors.New("answer arrived with other bytes than were sent")
	}
	return nil
}
