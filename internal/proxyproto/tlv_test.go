package proxyproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
	"strings"
	"testing"
)

// with makes a header with raw TLVs.
func with(t testing.TB, tlvs string) []byte {
	t.Helper()
	b := unhex(t, tlvs)
	header := AppendV2(nil, ap(source), ap(dest))
	binary.BigEndian.PutUint16(header[14:], uint16(12+len(b)))
	return append(header, b...)
}

func TestTLVs(t *testing.T) {
	t.Parallel()
	long := "05 0080 " + strings.Repeat("aa", 128)
	for _, c := range []struct {
		spec string
		tlvs string
		err  error
		want Header // text only
	}{
		{spec: "none"},
		{spec: "2.2.1 ALPN", tlvs: "01 0002 6832", want: Header{ALPN: []byte("h2")}},
		{spec: "2.2.2 authority", tlvs: "02 0003 612e62", want: Header{Authority: []byte("a.b")}},
		{spec: "2.2.2 authority, empty", tlvs: "02 0000", want: Header{Authority: []byte{}}},
		{spec: "2.2.4 NOOP is ignored", tlvs: "04 0000 04 0003 ffffff 02 0001 61 04 0000", want: Header{Authority: []byte("a")}},
		{spec: "2.2.5 unique ID, 128 bytes", tlvs: long, want: Header{UniqueID: bytes.Repeat([]byte{0xaa}, 128)}},
		{spec: "2.2.7 NETNS, passed on", tlvs: "30 0003 6e6574"},
		{spec: "2.2.8 custom types, of AWS, Azure and GCP, even twice", tlvs: "ea 0003 017670 ee 0005 0111223344 e0 0008 0000000000000001 ea 0000"},
		{spec: "2.2.6 SSL", tlvs: "20 000f 01 00000000 21 0007 544c5376312e33"},
		{spec: "2.2.6 SSL without more", tlvs: "20 0005 00 ffffffff"},

		{spec: "2.2 a type alone", tlvs: "02", err: errTLVOverrun},
		{spec: "2.2 half a length", tlvs: "02 00", err: errTLVOverrun},
		{spec: "2.2 a value that is missing (nginx accepts it)", tlvs: "02 0001", err: errTLVOverrun},
		{spec: "2.2 a value that reaches into the payload (HAProxy 488ee7fb6e)", tlvs: "02 0003 6162", err: errTLVOverrun},
		{spec: "2.2 the longest value", tlvs: "02 ffff 6162", err: errTLVOverrun},
		{spec: "2.2 a second one", tlvs: "04 0000 04 0001", err: errTLVOverrun},
		{spec: "2.2.5 unique ID, 129 bytes", tlvs: "05 0081 " + strings.Repeat("aa", 129), err: errUniqueID},
		{spec: "2.2.3 CRC32c, 3 bytes", tlvs: "03 0003 000000", err: errCRCLength},
		{spec: "2.2.3 CRC32c, 5 bytes", tlvs: "03 0005 0000000000", err: errCRCLength},
		{spec: "2.2.3 CRC32c, wrong (nginx accepts it)", tlvs: "03 0004 00000000", err: errCRC},
		{spec: "2.2.6 SSL, too short", tlvs: "20 0004 00 000000", err: errSSL},
		{spec: "2.2.6 SSL, a TLV within that reaches beyond", tlvs: "20 0008 01 00000000 21 0001 04 0000", err: errSSL},
		{spec: "2.2.6 SSL, half a TLV within", tlvs: "20 0007 01 00000000 2100", err: errSSL},
		{spec: "two authorities", tlvs: "02 0001 61 02 0001 61", err: errTLVTwice},
		{spec: "two ALPN", tlvs: "01 0000 01 0000", err: errTLVTwice},
		{spec: "two unique IDs", tlvs: "05 0000 05 0000", err: errTLVTwice},
		{spec: "two SSL", tlvs: "20 0005 0000000000 20 0005 0000000000", err: errTLVTwice},
	} {
		t.Run(c.spec, func(t *testing.T) {
			t.Parallel()
			header := with(t, c.tlvs)
			h := check(t, header, source, dest, c.err)
			if c.err != nil {
				return
			}
			if !bytes.Equal(h.Authority, c.want.Authority) || !bytes.Equal(h.ALPN, c.want.ALPN) || !bytes.Equal(h.UniqueID, c.want.UniqueID) {
				t.Errorf("authority %q, ALPN %q, unique ID %x", h.Authority, h.ALPN, h.UniqueID)
			}
			if !bytes.Equal(h.TLVs, header[28:]) {
				t.Errorf("TLVs %x, want %x", h.TLVs, header[28:])
			}
		})
	}
}

// Every type is taken, known or not, and cannot reach beyond the header.
func TestAllTypes(t *testing.T) {
	t.Parallel()
	for c := range 256 {
		header := with(t, "00 0005 0000000000")
		header[28] = byte(c)
		var h Header
		_, _, err := h.Parse(append(header, payload...))
		if want := map[Type]error{TypeCRC32C: errCRCLength}[Type(c)]; !errors.Is(err, want) {
			t.Errorf("type %#x: %v", c, err)
		}
		header[30]++
		if _, _, err := h.Parse(append(header, payload...)); !errors.Is(err, errTLVOverrun) {
			t.Errorf("type %#x, one byte too many: %v", c, err)
		}
	}
}

// What HAProxy 2.6 sent for a client with a certificate, with "proxy-v2-options
// ssl,cert-cn,ssl-cipher,cert-sig,cert-key,authority,crc32c,unique-id".
const fromHAProxy = sig + "21 11 0089 7f000001 7f000001 8b74 94df" +
	"03 0004 62577b15" +
	"01 0002 6832" +
	"02 000f 6170702e6578616d706c652e636f6d" +
	"05 0009 69642d313731362d30" +
	"20 0050 07 00000000" +
	"21 0007 544c5376312e33" +
	"22 000e 636c69656e742e6578616d706c65" +
	"25 0007 52534132303438" +
	"24 000a 5253412d534841323536" +
	"23 0016 544c535f4145535f3235365f47434d5f534841333834"

func TestHeaderOfHAProxy(t *testing.T) {
	t.Parallel()
	h := check(t, unhex(t, fromHAProxy), "127.0.0.1:35700", "127.0.0.1:38111", nil)
	want := SSL{Client: ClientSSL | ClientCertConn | ClientCertSess, Version: "TLSv1.3", CN: "client.example",
		Cipher: "TLS_AES_256_GCM_SHA384", SigAlg: "RSA-SHA256", KeyAlg: "RSA2048"}
	if s, ok := h.SSL(); !ok || s != want {
		t.Errorf("%+v, want %+v", s, want)
	}
	if !h.CRC || string(h.ALPN) != "h2" || string(h.Authority) != "app.example.com" || string(h.UniqueID) != "id-1716-0" {
		t.Errorf("checksum %v, ALPN %q, authority %q, unique ID %q", h.CRC, h.ALPN, h.Authority, h.UniqueID)
	}
}

// Section 2.2.3: the checksum is of the whole header, its own field counting
// as zero.
func TestChecksum(t *testing.T) {
	t.Parallel()
	b := AppendV2TLVs(nil, ap(source), ap(dest), &TLVs{Authority: "example.com", CRC: true, Keep: []byte{0xea, 0, 1, 7}})
	h := check(t, b, source, dest, nil)
	if !h.CRC {
		t.Error("the checksum was not seen")
	}
	zeroed := bytes.Clone(b)
	copy(zeroed[len(b)-4:], []byte{0, 0, 0, 0})
	if want := crc32.Checksum(zeroed, crc32.MakeTable(crc32.Castagnoli)); want != binary.BigEndian.Uint32(b[len(b)-4:]) {
		t.Errorf("checksum %x, want %#x", b[len(b)-4:], want)
	}
	// No bit of it may be changed: the sender's address least of all.
	for i := range len(b) * 8 {
		changed := bytes.Clone(b)
		changed[i/8] ^= 1 << (i % 8)
		n, _, err := h.Parse(changed)
		if n > 0 && !h.Local && h.CRC {
			t.Errorf("bit %d of byte %d was changed, and it still counts: %v", i%8, i/8, err)
		}
	}
}

func TestTwoChecksums(t *testing.T) {
	t.Parallel()
	header := with(t, "03 0004 00000000 03 0004 00000000")
	binary.BigEndian.PutUint32(header[31:], checksum(header, 31))
	check(t, header, "", "", errTLVTwice)
}

func TestSSL(t *testing.T) {
	t.Parallel()
	want := SSL{Client: ClientSSL | ClientCertConn | ClientCertSess, Verify: 0, Version: "TLSv1.3", CN: "Jürgen", Cipher: "TLS_AES_128_GCM_SHA256", SigAlg: "SHA256", KeyAlg: "RSA2048"}
	b := AppendV2TLVs(nil, ap(source), ap(dest), &TLVs{SSL: &want})
	h := check(t, b, source, dest, nil)
	if got, ok := h.SSL(); !ok || got != want {
		t.Errorf("got %+v, %v; want %+v", got, ok, want)
	}
	if _, ok := new(Header).SSL(); ok {
		t.Error("SSL out of nothing")
	}
	// Section 2.2.6 as bytes.
	b = AppendV2TLVs(nil, none, none, &TLVs{SSL: &SSL{Client: ClientSSL, Verify: 0x01020304, Version: "TLSv1.3", Cipher: "X"}})
	if want := unhex(t, sig+"21 00 0016 20 0013 01 01020304 21 0007 544c5376312e33 23 0001 58"); !bytes.Equal(b, want) {
		t.Errorf("got  %x\nwant %x", b, want)
	}
	// Types within that we do not know, such as a whole certificate, are skipped.
	header := with(t, "20 000f 07 00000000 28 0003 308200 22 0001 61")
	h = check(t, header, source, dest, nil)
	if s, _ := h.SSL(); s.CN != "a" || s.Client != 7 {
		t.Errorf("%+v", s)
	}
}

// What came in a client's header goes on to the server.
func TestKeep(t *testing.T) {
	t.Parallel()
	received := unhex(t, "04 0002 0000 02 0001 61 01 0002 6832 05 0001 75 20 0005 01 00000000 30 0001 6e ea 0001 01 03 0004 01020304")
	for _, c := range []struct {
		name string
		tlvs TLVs
		want []Type
	}{
		{"nothing of our own", TLVs{}, []Type{2, 1, 5, 0x20, 0x30, 0xea}},
		{"checksum anew", TLVs{CRC: true}, []Type{2, 1, 5, 0x20, 0x30, 0xea, 3}},
		{"own TLS, nothing agreed on", TLVs{SSL: &SSL{Client: ClientSSL}}, []Type{0x20, 2, 5, 0x30, 0xea}},
		{"own name", TLVs{Authority: "b"}, []Type{2, 1, 5, 0x20, 0x30, 0xea}},
		{"all of our own", TLVs{Authority: "b", ALPN: "h2", UniqueID: "v", SSL: &SSL{}}, []Type{1, 2, 5, 0x20, 0x30, 0xea}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.tlvs.Keep = received
			b := AppendV2TLVs([]byte("before"), ap(source), ap(dest), &c.tlvs)
			h := check(t, bytes.TrimPrefix(b, []byte("before")), source, dest, nil)
			var got []Type
			for kind := range Each(h.TLVs) {
				got = append(got, kind)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("types %#x, want %#x", got, c.want)
			}
			if c.tlvs.Authority != "" && string(h.Authority) != c.tlvs.Authority || c.tlvs.UniqueID != "" && string(h.UniqueID) != c.tlvs.UniqueID {
				t.Errorf("authority %q, unique ID %q", h.Authority, h.UniqueID)
			}
		})
	}
}

// What is too long is not sent, not even in part.
func TestBoundsOfTLVs(t *testing.T) {
	t.Parallel()
	most, more := strings.Repeat("x", 255), strings.Repeat("x", 256)
	full := TLVs{Authority: most, ALPN: most, UniqueID: most[:128], CRC: true,
		SSL: &SSL{Client: 7, Version: most, CN: most, Cipher: most, SigAlg: most, KeyAlg: most}}
	h := check(t, AppendV2TLVs(nil, ap(source), ap(dest), &full), source, dest, nil)
	if s, _ := h.SSL(); string(h.Authority) != most || string(h.ALPN) != most || string(h.UniqueID) != most[:128] || s != *full.SSL {
		t.Errorf("something is missing: %q", h.TLVs)
	}
	over := TLVs{Authority: more, ALPN: more, UniqueID: more[:129], SSL: &SSL{Version: more, CN: more, Cipher: more, SigAlg: more, KeyAlg: more}}
	if b := AppendV2TLVs(nil, ap(source), ap(dest), &over); len(b) != 16+12+3+5 {
		t.Errorf("%d bytes: %q", len(b), b)
	}
	// Received TLVs that no longer fit are left out, and others still sent.
	big := append([]byte{0xe0, 0x0f, 0xa0}, make([]byte, 4000)...)
	full.Keep = append(slices.Concat(big, []byte{0xea, 0, 0}, big[:3]), make([]byte, 4000)...)
	h = check(t, AppendV2TLVs(nil, ap(source), ap(dest), &full), source, dest, nil)
	var kinds []Type
	for kind := range Each(h.TLVs) {
		kinds = append(kinds, kind)
	}
	if !slices.Equal(kinds, []Type{1, 2, 5, 0x20, 0xea, 3}) {
		t.Errorf("types %#x", kinds)
	}
	for size := range 60 {
		keep := append([]byte{0xe0, byte((4030 + size) >> 8), byte(4030 + size)}, make([]byte, 4030+size)...)
		b := AppendV2TLVs(nil, ap(source), ap(dest), &TLVs{Keep: keep, CRC: true})
		if fits := 28+3+4030+size+7 <= MaxHeader; fits != (len(b) > 4000) || len(b) > MaxHeader {
			t.Errorf("a TLV of %d bytes: header of %d", 4030+size, len(b))
		}
	}
}
