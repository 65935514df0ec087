package quic

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"
)

// RFC 9000, section 17.2, table 5, and RFC 9369, section 3.2.
func TestPacketTypes(t *testing.T) {
	t.Parallel()
	types := map[uint32][4]PacketType{
		0:          {VersionNegotiation, VersionNegotiation, VersionNegotiation, VersionNegotiation},
		Version1:   {Initial, ZeroRTT, Handshake, Retry},
		Version2:   {Retry, Initial, ZeroRTT, Handshake},
		0x00000002: {}, 0x0a1a2a3a: {}, 0xff00001d: {}, 0xffffffff: {},
	}
	for version, want := range types {
		for first := range 256 {
			b := []byte{byte(first), byte(version >> 24), byte(version >> 16), byte(version >> 8), byte(version)}
			if got, want := packetType(byte(first), version), want[first>>4&3]; got != want {
				t.Errorf("version %#x, first byte %#x: type %d, want %d", version, first, got, want)
			}
			begins := first >= 0x80 && slices.Contains([]PacketType{Initial, ZeroRTT, Handshake}, want[first>>4&3])
			if Begins(b) != begins || Begins(b[:4]) {
				t.Errorf("version %#x, first byte %#x: begins a connection: %v, want %v", version, first, Begins(b), begins)
			}
			b = append(b, 3, 'd', 's', 't', 3, 's', 'r', 'c', 0, 0)
			b = append(b, make([]byte, retryTag)...)
			h, _, ok := ParseLong(b)
			if ok != (first >= 0x80) || ok && (h.Type != want[first>>4&3] || h.Version != version || string(h.DCID) != "dst" || string(h.SCID) != "src") {
				t.Errorf("version %#x, first byte %#x: %+v, %v", version, first, h, ok)
			}
			id, ok := ServerSCID(b)
			if ok != (first >= 0x80 && version != 0) || ok && string(id) != "src" {
				t.Errorf("version %#x, first byte %#x: id of the server %q, %v", version, first, id, ok)
			}
			if id, ok := ShortDCID(b, 8); ok != (first < 0x80) || ok && !bytes.Equal(id, b[1:9]) {
				t.Errorf("first byte %#x: id %q, %v", first, id, ok)
			}
		}
	}
}

// RFC 8999, section 5.1: connection ids of other versions have up to 255 bytes;
// RFC 9000, section 17.2: of the ones known, 20.
func TestConnectionIDLengths(t *testing.T) {
	t.Parallel()
	ids := bytes.Repeat([]byte("i"), 256)
	for _, version := range []string{"\x00\x00\x00\x00", "\x00\x00\x00\x01", "\x6b\x33\x43\xcf", "\x1a\x2a\x3a\x4a"} {
		for dcid := range 256 {
			for _, scid := range []int{0, 1, 8, 20, 21, 255} {
				b := slices.Concat([]byte("\xe0"), []byte(version), []byte{byte(dcid)}, ids[:dcid], []byte{byte(scid)}, ids[:scid], make([]byte, 20))
				known := version == "\x00\x00\x00\x01" || version == "\x6b\x33\x43\xcf"
				h, _, ok := ParseLong(b)
				if want := !known || dcid <= MaxConnID && scid <= MaxConnID; ok != want || ok && (len(h.DCID) != dcid || len(h.SCID) != scid) {
					t.Errorf("version %x, %d and %d bytes: %v", version, dcid, scid, ok)
				}
				id, ok := ServerSCID(b)
				if want := version != "\x00\x00\x00\x00" && scid > 0 && scid <= MaxConnID; ok != want || ok && len(id) != scid {
					t.Errorf("version %x, %d and %d bytes: id of the server of %d, %v", version, dcid, scid, len(id), ok)
				}
			}
		}
	}
}

// Every cut of a header is malformed, and of a packet as well.
func TestTruncatedHeaders(t *testing.T) {
	t.Parallel()
	for _, kind := range []PacketType{Initial, ZeroRTT, Handshake} {
		for _, version := range []uint32{Version1, Version2} {
			b := packet{version: version, kind: kind, dcid: firstID, scid: []byte("client"), token: make([]byte, 70), payload: make([]byte, 40)}.wire(t)
			for n := range b {
				if h, _, ok := ParseLong(b[:n]); ok {
					t.Errorf("type %d of version %#x, %d of %d bytes: %+v", kind, version, n, len(b), h)
				}
			}
			more := append(bytes.Clone(b), "more"...)
			h, rest, ok := ParseLong(more)
			if !ok || string(rest) != "more" || h.Type != kind || len(h.packet) != len(b) || cap(h.packet) != len(b) {
				t.Errorf("type %d of version %#x: %+v, %q left, %v", kind, version, h, rest, ok)
			}
			if wantToken := kind == Initial; wantToken != (len(h.Token) == 70) {
				t.Errorf("type %d of version %#x: a token of %d bytes", kind, version, len(h.Token))
			}
		}
	}
	retry := unhex(t, "ff000000010008f067a5502a4262b504a265ba2eff4d829058fb3f0f2496ba")
	for n := range retry {
		if _, _, ok := ParseLong(retry[:n]); ok {
			t.Errorf("%d bytes of a Retry", n)
		}
	}
	for n := range 5 + 1 + 1 + 8 {
		if id, ok := ServerSCID(retry[:n]); ok {
			t.Errorf("%d bytes of a Retry: %x", n, id)
		}
	}
}

// RFC 9000, section 16 and appendix A.1.
func TestVarint(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text string
		want uint64
	}{
		{"c2197c5eff14e88c", 151288809941952652}, {"9d7f3e7d", 494878333}, {"7bbd", 15293}, {"25", 37}, {"4025", 37},
		{"00", 0}, {"3f", 63}, {"ffffffffffffffff", 1<<62 - 1},
	} {
		b := unhex(t, test.text)
		for n := range b {
			if _, _, ok := varint(b[:n]); ok {
				t.Errorf("%s: %d bytes are enough", test.text, n)
			}
		}
		if v, rest, ok := varint(append(b, 7)); !ok || v != test.want || len(rest) != 1 {
			t.Errorf("%s: %d, %d bytes left, %v", test.text, v, len(rest), ok)
		}
	}
}

func TestShortDCID(t *testing.T) {
	t.Parallel()
	b := []byte("\x41abcdefgh")
	for n := -1; n < 12; n++ {
		id, ok := ShortDCID(b, n)
		if want := n >= 1 && n <= 8; ok != want || ok && string(id) != "abcdefgh"[:n] {
			t.Errorf("%d bytes: %q, %v", n, id, ok)
		}
	}
	if id, ok := ShortDCID(nil, 1); ok {
		t.Errorf("of nothing: %q", id)
	}
}

// draft-ietf-quic-load-balancers-21: 3 bits of config rotation, of which 0b111
// says that there is no configuration; the server id of the plaintext algorithm
// follows the first byte.
func TestServerID(t *testing.T) {
	t.Parallel()
	for first := range 256 {
		cid := append([]byte{byte(first)}, "0123456789abcdefghi"...)
		for n := -1; n <= 21; n++ {
			id, ok := ServerID(cid, n)
			if want := n >= 1 && n <= 19 && first < 0xe0; ok != want || ok && string(id) != string(cid[1:1+n]) {
				t.Errorf("first byte %#x, %d bytes: %q, %v", first, n, id, ok)
			}
		}
	}
	if id, ok := ServerID(nil, 1); ok {
		t.Errorf("of nothing: %q", id)
	}
}

// hmac does what crypto/hkdf does, for all that goes into it here.
func TestKeyDerivation(t *testing.T) {
	t.Parallel()
	for n := range MaxConnID + 1 {
		for _, d := range []*derivation{&derivation1, &derivation2} {
			dcid := bytes.Repeat([]byte{0x7c}, n)
			want, err := hkdf.Extract(sha256.New, dcid, d.salt)
			if err != nil {
				t.Fatal(err)
			}
			got := hmac(d.salt, dcid, "")
			if !bytes.Equal(got[:], want) {
				t.Errorf("extracted from %d bytes: %x, want %x", n, got, want)
			}
			for _, info := range []string{clientIn, d.key, d.iv, d.hp} {
				size := int(info[1])
				expanded, err := hkdf.Expand(sha256.New, want, info[:len(info)-1], size) // it counts itself
				if err != nil {
					t.Fatal(err)
				}
				if got := hmac(want, nil, info); !bytes.Equal(got[:size], expanded) {
					t.Errorf("%q: %x, want %x", info, got[:size], expanded)
				}
			}
		}
	}
}

// FuzzParseLong: what is parsed lies inside the datagram, and what one function
// says of a packet, others say too.
func FuzzParseLong(f *testing.F) {
	for _, name := range []string{"rfc9001-client-initial", "rfc9369-client-initial", "rfc9001-server-initial", "rfc9369-server-initial"} {
		f.Add(recorded(f, name))
	}
	f.Add([]byte("\xc0\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"))
	f.Add([]byte("\xff\x00\x00\x00\x01\x00\x08\xf0\x67\xa5\x50\x2a\x42\x62\xb5token0123456789abcdef"))
	f.Add([]byte("\xd0\x00\x00\x00\x01\x01a\x01b\x02cd\xe0\x6b\x33\x43\xcf\x01a\x01b\x40\x02cd"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for rest := b; len(rest) > 0; {
			h, next, ok := ParseLong(rest)
			id, okServer := ServerSCID(rest)
			if !ok {
				if _, short := ShortDCID(rest, 1); short && (okServer || Begins(rest)) {
					t.Fatal("a long and a short header")
				}
				return
			}
			if len(next) >= len(rest) || len(h.packet)+len(next) != len(rest) || h.numberAt > len(h.packet) {
				t.Fatalf("%d of %d bytes left: %+v", len(next), len(rest), h)
			}
			if want := h.Version != 0 && len(h.SCID) > 0 && len(h.SCID) <= MaxConnID; okServer != want || want && !bytes.Equal(id, h.SCID) {
				t.Fatalf("%x, %v: %+v", id, okServer, h)
			}
			if (h.Version == Version1 || h.Version == Version2) != (h.Type >= Initial) || Begins(rest) != (h.Type >= Initial && h.Type != Retry) {
				t.Fatalf("%+v, begins: %v", h, Begins(rest))
			}
			if s := fmt.Sprintf("%s%s%s", h.DCID, h.SCID, h.Token); len(s) > len(h.packet)-7 {
				t.Fatalf("%+v: more than there is", h)
			}
			rest = next
		}
	})
}

// FuzzHello: a datagram is never changed, and a name is never found but where
// the one who wrote it has the keys: the fuzzer, which does not, finds none that
// is not in a seed.
func FuzzHello(f *testing.F) {
	f.Add(recorded(f, "rfc9001-client-initial"), []byte{})
	f.Add(recorded(f, "rfc9369-client-initial"), []byte("\x40"))
	f.Add(initial(f, 0, crypto(0, small[:40])), initial(f, 1, crypto(40, small[40:])))
	f.Add(initial(f, 0, crypto(40, small[40:])), initial(f, 0, crypto(0, small)))
	f.Add(packet{kind: ZeroRTT, dcid: firstID, payload: make([]byte, 50)}.wire(f), initial(f, 1, crypto(0, small)))
	f.Add(slices.Concat(packet{kind: Handshake, dcid: firstID}.wire(f), initial(f, 1, crypto(0, small))), []byte("x"))
	f.Add([]byte("\xc0\x1a\x2a\x3a\x4a\x00\x00"), initial(f, 0, crypto(0, small)))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var h Hello
		got := show(t, &h, a, b)
		if got.done && got.protocol != 0 && got != smallWant && got != quicFor("example.com", "alpn") {
			t.Fatalf("%+v", got)
		}
	})
}
