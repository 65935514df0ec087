package quic

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"edgeproxy/internal/sniff"
)

// packet is one that tests make.
type packet struct {
	version          uint32 // 0: Version1
	kind             PacketType
	dcid, scid       []byte
	token            []byte
	number           uint64
	numberLen        int    // 0: 4
	keysOf           []byte // nil: dcid
	reserved         byte
	greased          bool // the fixed bit is cleared
	payload          []byte
	size             int // of the packet at least: padded
	lengthIsTooGreat int
}

// wire seals an Initial packet; others have their payload as it is.
func (p packet) wire(tb testing.TB) []byte {
	tb.Helper()
	if p.version == 0 {
		p.version = Version1
	}
	if p.numberLen == 0 {
		p.numberLen = 4
	}
	if p.keysOf == nil {
		p.keysOf = p.dcid
	}
	bits := p.kind - Initial
	if p.version == Version2 {
		bits = (bits + 1) & 3
	}
	b := []byte{0xc0 | byte(bits)<<4 | p.reserved<<2 | byte(p.numberLen-1)}
	if p.greased {
		b[0] &^= 0x40
	}
	b = binary.BigEndian.AppendUint32(b, p.version)
	b = append(append(b, byte(len(p.dcid))), p.dcid...)
	b = append(append(b, byte(len(p.scid))), p.scid...)
	if p.kind == Initial {
		b = append(appendVarint(b, len(p.token)), p.token...)
	}
	var k keys
	if err := k.derive(p.version, p.keysOf); err != nil {
		tb.Fatal(err)
	}
	const lengthLen = 4
	payload := bytes.Clone(p.payload)
	if n := p.size - len(b) - lengthLen - p.numberLen - k.aead.Overhead() - len(payload); n > 0 {
		payload = append(payload, make([]byte, n)...)
	}
	length := p.numberLen + len(payload)
	if p.kind == Initial {
		length += k.aead.Overhead()
	}
	b = binary.BigEndian.AppendUint32(b, 2<<30|uint32(length+p.lengthIsTooGreat))
	at := len(b)
	for i := range p.numberLen {
		b = append(b, byte(p.number>>(8*(p.numberLen-1-i))))
	}
	if p.kind != Initial {
		return append(b, payload...)
	}
	nonce := k.iv
	for i := range 8 {
		nonce[len(nonce)-1-i] ^= byte(p.number >> (8 * i))
	}
	b = k.aead.Seal(b, nonce[:], payload, b)
	if len(b) < at+sampleAt+sampleLen {
		tb.Fatal("too short for a sample")
	}
	mask := make([]byte, sampleLen)
	k.mask.Encrypt(mask, b[at+sampleAt:])
	b[0] ^= mask[0] & 0x0f
	for i := range p.numberLen {
		b[at+i] ^= mask[1+i]
	}
	return b
}

// firstID is the connection id of RFC 9001, appendix A.
var firstID = []byte{0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08}

// initial is a datagram with one Initial packet of firstID.
func initial(tb testing.TB, number uint64, frames ...[]byte) []byte {
	tb.Helper()
	return packet{kind: Initial, dcid: firstID, number: number, payload: slices.Concat(frames...), size: MinDatagram}.wire(tb)
}

func appendVarint(b []byte, n int) []byte {
	switch {
	case n < 1<<6:
		return append(b, byte(n))
	case n < 1<<14:
		return binary.BigEndian.AppendUint16(b, 1<<14|uint16(n))
	case n < 1<<30:
		return binary.BigEndian.AppendUint32(b, 2<<30|uint32(n))
	}
	return binary.BigEndian.AppendUint64(b, 3<<62|uint64(n))
}

func crypto(offset int, data []byte) []byte {
	b := appendVarint(appendVarint([]byte{frameCrypto}, offset), len(data))
	return append(b, data...)
}

// clientHello is what crypto/tls sends over QUIC.
func clientHello(tb testing.TB, name string, alpn ...string) []byte {
	tb.Helper()
	c := tls.QUICClient(&tls.QUICConfig{TLSConfig: &tls.Config{
		ServerName: name, NextProtos: alpn, MinVersion: tls.VersionTLS13, InsecureSkipVerify: true,
	}})
	defer c.Close()
	c.SetTransportParameters([]byte{0x01, 0x02, 0x67, 0x10})
	if err := c.Start(context.Background()); err != nil {
		tb.Fatal(err)
	}
	for {
		switch e := c.NextEvent(); e.Kind {
		case tls.QUICWriteData:
			return bytes.Clone(e.Data)
		case tls.QUICNoEvent:
			tb.Fatal("no ClientHello")
		}
	}
}

// smallHello is a ClientHello of some 80 bytes with a name and h3.
func smallHello(name string) []byte {
	u16 := func(b string) string { return string(binary.BigEndian.AppendUint16(nil, uint16(len(b)))) + b }
	exts := "\x00\x00" + u16(u16("\x00"+u16(name))) + "\x00\x10" + u16(u16("\x02h3"))
	body := "\x03\x03" + strings.Repeat("r", 32) + "\x00" + "\x00\x02\x13\x01" + "\x01\x00" + u16(exts)
	return append([]byte{1, 0, byte(len(body) >> 8), byte(len(body))}, body...)
}

// answer is what a Hello has found out.
type answer struct {
	done     bool
	protocol sniff.Protocol
	name     string
	alpn     string
	err      error
}

func quicFor(name, alpn string) answer {
	return answer{done: true, protocol: sniff.QUIC, name: name, alpn: alpn}
}

func refused(err error) answer { return answer{protocol: sniff.QUIC, err: err} }

var (
	waiting = answer{protocol: sniff.QUIC}
	unknown = answer{done: true}
)

// show gives datagrams to h until it is decided.
func show(tb testing.TB, h *Hello, datagrams ...[]byte) (a answer) {
	tb.Helper()
	for _, b := range datagrams {
		var info sniff.Info
		before := bytes.Clone(b)
		done, err := h.Datagram(b, &info)
		if !bytes.Equal(b, before) {
			tb.Fatal("the datagram was changed")
		}
		a = answer{done: done, protocol: info.Protocol, name: string(info.ServerName), err: err}
		for p := range info.ALPN.All() {
			a.alpn += " " + string(p)
		}
		a.alpn = strings.TrimPrefix(a.alpn, " ")
		if done && err != nil || !done && a.name+a.alpn != "" {
			tb.Fatalf("%+v", a)
		}
		if done || err != nil {
			break
		}
	}
	return a
}

// fresh shows datagrams to a new Hello.
func fresh(tb testing.TB, datagrams ...[]byte) answer {
	tb.Helper()
	return show(tb, new(Hello), datagrams...)
}

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func recorded(tb testing.TB, name string) []byte {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".hex"))
	if err != nil {
		tb.Fatal(err)
	}
	return unhex(tb, string(text))
}
