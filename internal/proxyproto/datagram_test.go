package proxyproto

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	peer "github.com/pires/go-proxyproto"
)

// checkDatagram parses a header with payload behind it, with none, and cut off
// at each length; what was cut off must not be taken, nor awaited.
func checkDatagram(t *testing.T, header []byte, src, dst string, want error) Header {
	t.Helper()
	b := append(bytes.Clone(header), payload...)
	untouched := bytes.Clone(b)
	var h Header
	n, err := h.ParseDatagram(b)
	if !bytes.Equal(b, untouched) {
		t.Fatal("the bytes were changed")
	}
	if want != nil {
		if err != want || n != 0 {
			t.Fatalf("n=%d, error %v; want %v", n, err, want)
		}
		return h
	}
	if err != nil || n != len(header) {
		t.Fatalf("n=%d, error %v; want n=%d", n, err, len(header))
	}
	if got := fmt.Sprint(h.Source, h.Destination); got != fmt.Sprint(addr(src), addr(dst)) {
		t.Errorf("addresses %s, want %s and %s", got, src, dst)
	}
	for i := range header {
		var cut Header
		if n, err := cut.ParseDatagram(b[:i:i]); n != 0 || err == nil {
			t.Fatalf("%d bytes of %d: n=%d, error %v", i, len(header), n, err)
		}
	}
	var whole Header
	if n, err := whole.ParseDatagram(header[:len(header):len(header)]); n != len(header) || err != nil {
		t.Fatalf("empty payload: n=%d, error %v", n, err)
	}
	return h
}

// datagramHeaders are what differs from a header on a connection; all of
// v2Headers holds for datagrams, too.
var datagramHeaders = []struct {
	spec     string
	header   string
	src, dst string
	err      error
}{
	{spec: "2.2 UDP over IPv4", header: sig + "21 12 000c" + four, src: source, dst: dest},
	{spec: "2.2 UDP over IPv6", header: sig + "21 22 0024" + six, src: "[2001:db8::1]:65535", dst: "[2001:db8::2]:1"},
	{spec: "2.2 UDP over IPv6, IPv4-mapped", header: sig + "21 22 0024 00000000000000000000ffffc0000201 00000000000000000000ffffc0000202 0001 0002",
		src: "192.0.2.1:1", dst: "192.0.2.2:2"},
	{spec: "2.2 TCP over IPv4: must use the information provided", header: sig + "21 11 000c" + four, src: source, dst: dest},
	{spec: "2.2 UNIX datagram: falls back to UNSPEC", header: sig + "21 32 00d8" + strings.Repeat("2f", 216)},
	{spec: "2.2 UNSPEC: use the real endpoint addresses", header: sig + "21 00 0000"},
	{spec: "2.2 LOCAL: must accept, use the real endpoints", header: sig + "20 00 0000"},
	{spec: "2.2 LOCAL: discard the protocol block (Envoy CVE-2024-23327, HAProxy 488ee7fb6e)", header: sig + "20 12 0004 02ffff00"},
	{spec: "2.2 UDP over IPv4 with TLVs", header: sig + "21 12 0015" + four + "02 0003 612e62 ea 0000", src: source, dst: dest},

	{spec: "2 MUST not guess: no header", header: "abcd0100 0001", err: ErrNoDatagramHeader},
	{spec: "2 MUST not guess: a payload that is like one", header: "0d0a0d0a000d0a515549540b 21 12 000c" + four, err: ErrNoDatagramHeader},
	{spec: "2 MUST not guess: payload first", header: "00" + sig + "21 12 000c" + four, err: ErrNoDatagramHeader},
	{spec: "2.1 version 1", header: fmt.Sprintf("%x", "PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n"), err: errDatagramV1},
	{spec: "2.1 version 1, UNKNOWN", header: fmt.Sprintf("%x", "PROXY UNKNOWN\r\n"), err: errDatagramV1},
	{spec: "2 MUST NOT split: longer than the datagram", header: sig + "21 12 00ff" + four, err: errDatagramShort},
	{spec: "2 MUST NOT split: LOCAL", header: sig + "20 00 00ff", err: errDatagramShort},
	{spec: "2.2 too short for UDP over IPv4 (Envoy CVE-2024-23327)", header: sig + "21 12 000b c0000201 c6336402 1234 01", err: errV2Short},
	{spec: "2.2 too short for UDP over IPv6 (Envoy CVE-2024-23327)", header: sig + "21 22 000c" + four, err: errV2Short},
	{spec: "2.2 too short for UNIX datagram (Envoy CVE-2024-23327)", header: sig + "21 32 0000", err: errV2Short},
	{spec: "2.2 a TLV that reaches into the payload (HAProxy 488ee7fb6e)", header: sig + "21 12 0011" + four + "02 0003 6162", err: errTLVOverrun},
	{spec: "2.2 half a TLV at the end", header: sig + "21 12 000e" + four + "02 00", err: errTLVOverrun},
	{spec: "2.2.3 a wrong CRC32c", header: sig + "21 12 0013" + four + "03 0004 00000000", err: errCRC},
	{spec: "longer than we take", header: sig + "21 00 0ff1" + strings.Repeat("04 0000", 1360), err: errV2Long},
}

func TestParseDatagram(t *testing.T) {
	t.Parallel()
	for _, c := range datagramHeaders {
		t.Run(c.spec, func(t *testing.T) {
			t.Parallel()
			header := unhex(t, c.header)
			h := checkDatagram(t, header, c.src, c.dst, c.err)
			if c.err == nil && (h.Version != 2 || h.Local != (header[12] == 0x20) || h.Datagram != (!h.Local && header[13]&15 == 2)) {
				t.Errorf("version %d, local %v, datagram %v", h.Version, h.Local, h.Datagram)
			}
		})
	}
	for _, c := range v2Headers {
		t.Run("2.2 "+c.spec, func(t *testing.T) {
			t.Parallel()
			want := c.err
			if want == errNoHeader {
				want = ErrNoDatagramHeader
			}
			checkDatagram(t, unhex(t, c.header), c.src, c.dst, want)
		})
	}
}

// All values of the 13th and 14th byte together (section 2.2): "the receiver
// must only accept this value" of the version, "must drop connections
// presenting unexpected values" of the command, "must be rejected as invalid"
// of family and transport, which LOCAL leaves out of account.
func TestAllCommandsAndFamiliesOfDatagrams(t *testing.T) {
	t.Parallel()
	b := append([]byte(signature), 0, 0, 0, 216)
	b = append(b, bytes.Repeat([]byte{byte(TypeNoop), 0, 0}, 72)...) // TLVs, or any addresses
	for command := range 256 {
		for family := range 256 {
			b[12], b[13] = byte(command), byte(family)
			var want error
			switch {
			case command>>4 != 2:
				want = errV2Version
			case command&0xf > 1:
				want = errV2Command
			case command == v2Proxy && (family>>4 > 3 || family&0xf > 2):
				want = errV2Family
			}
			var h Header
			n, err := h.ParseDatagram(b)
			if err != want || err == nil && n != len(b) {
				t.Fatalf("%#x %#x: n=%d, error %v; want %v", command, family, n, err, want)
			}
			ip := command == v2Proxy && (family>>4 == 1 || family>>4 == 2) && family&0xf > 0
			if err == nil && (h.Source.IsValid() != ip || h.Datagram != (command == v2Proxy && family&0xf == 2)) {
				t.Fatalf("%#x %#x: %+v", command, family, h)
			}
		}
	}
}

// Nothing of one datagram's header is left when the next one is read: "the
// receiver MUST parse the header independently for each received datagram"
// (section 2).
func TestDatagramsAreIndependent(t *testing.T) {
	t.Parallel()
	full := AppendV2DatagramTLVs(nil, ap(source), ap(dest), &TLVs{Authority: "a", ALPN: "h3", UniqueID: "u", SSL: &SSL{}, CRC: true})
	for _, next := range [][]byte{AppendV2Local(nil), AppendV2Datagram(nil, none, none), AppendV2Datagram(nil, ap(dest), ap(source)), nil, []byte(payload)} {
		var reused, fresh Header
		if n, err := reused.ParseDatagram(full); n != len(full) || err != nil || !reused.CRC {
			t.Fatal(n, err, reused)
		}
		n, err := reused.ParseDatagram(next)
		wantN, wantErr := fresh.ParseDatagram(next)
		if n != wantN || err != wantErr || fmt.Sprintf("%#v", reused) != fmt.Sprintf("%#v", fresh) {
			t.Errorf("%q: n=%d, error %v, %+v; want n=%d, error %v, %+v", next, n, err, reused, wantN, wantErr, fresh)
		}
	}
}

func TestAppendV2Datagram(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		spec       string
		src, local netip.AddrPort
		want       string
	}{
		{"2.2 UDP over IPv4, 12 bytes", ap("192.0.2.1:4660"), ap("198.51.100.2:443"), "21 12 000c c0000201 c6336402 1234 01bb"},
		{"2.2 UDP over IPv6, 36 bytes", ap("[2001:db8::1]:65535"), ap("[2001:db8::2]:1"), "21 22 0024" + six},
		{"dual stack: both mapped", ap("[::ffff:192.0.2.1]:1"), ap("[::ffff:192.0.2.2]:2"), "21 12 000c c0000201 c0000202 0001 0002"},
		{"mixed: source promoted", ap("192.0.2.1:1"), ap("[2001:db8::2]:2"), "21 22 0024 00000000000000000000ffffc0000201 20010db8000000000000000000000002 0001 0002"},
		{"mixed: destination promoted", ap("[2001:db8::2]:2"), ap("192.0.2.1:1"), "21 22 0024 20010db8000000000000000000000002 00000000000000000000ffffc0000201 0002 0001"},
		{"link-local: no zone", ap("[fe80::1%eth0]:1"), ap("[fe80::2%eth0]:2"), "21 22 0024 fe800000000000000000000000000001 fe800000000000000000000000000002 0001 0002"},
		{"2.2 UNSPEC", none, ap("192.0.2.1:1"), "21 00 0000"},
	} {
		t.Run(c.spec, func(t *testing.T) {
			t.Parallel()
			got := AppendV2Datagram([]byte{0xaa}, c.src, c.local)
			if want := unhex(t, "aa"+sig+c.want); !bytes.Equal(got, want) {
				t.Errorf("got  %x\nwant %x", got, want)
			}
			if len(got) > 1+MaxDatagramHeader {
				t.Errorf("%d bytes, above MaxDatagramHeader", len(got)-1)
			}
			if tlvs := AppendV2DatagramTLVs([]byte{0xaa}, c.src, c.local, &TLVs{}); !bytes.Equal(got, tlvs) {
				t.Errorf("with no TLVs %x, without %x", tlvs, got)
			}
		})
	}
	longest := AppendV2Datagram(nil, ap("[2001:db8::1]:65535"), ap("[2001:db8::2]:1"))
	if len(longest) != MaxDatagramHeader || MaxDatagramHeader != 16+36 {
		t.Errorf("MaxDatagramHeader is %d, and the longest header %d", MaxDatagramHeader, len(longest))
	}
}

// TLVs are the same on datagrams and connections, but for the checksum, which
// goes over the transport, too.
func TestTLVsOfDatagrams(t *testing.T) {
	t.Parallel()
	for _, crc := range []bool{false, true} {
		tlvs := &TLVs{Authority: "a.b", ALPN: "h3", Keep: unhex(t, "ea 0003 017670"), CRC: crc}
		b := AppendV2DatagramTLVs([]byte("before"), ap(source), ap(dest), tlvs)
		h := checkDatagram(t, b[len("before"):], source, dest, nil)
		if !h.Datagram || h.CRC != crc || string(h.Authority) != "a.b" || string(h.ALPN) != "h3" {
			t.Errorf("%+v", h)
		}
		stream := AppendV2TLVs([]byte("before"), ap(source), ap(dest), tlvs)
		differ := 0
		for i := range b {
			if b[i] != stream[i] {
				differ++
			}
		}
		if len(b) != len(stream) || !crc && differ != 1 {
			t.Errorf("%d bytes differ:\n%x\n%x", differ, b, stream)
		}
	}
}

func TestDatagramsAllocateNothing(t *testing.T) {
	buf := make([]byte, 0, MaxHeader)
	src, dst := ap(source), ap(dest)
	tlvs := &TLVs{Authority: "a.b", Keep: unhex(t, "ea 0003 017670"), CRC: true}
	full := AppendV2DatagramTLVs(nil, src, dst, tlvs)
	bad := slices.Concat(full[:len(full)-1], []byte{full[len(full)-1] + 1})
	var h Header
	if n := testing.AllocsPerRun(100, func() {
		for _, b := range [][]byte{full, bad, full[:40], full[:3], nil} {
			h.ParseDatagram(b)
		}
		AppendV2Datagram(buf, src, dst)
		AppendV2DatagramTLVs(buf, src, dst, tlvs)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzParseDatagram holds the reader of datagrams against that of connections,
// and against github.com/pires/go-proxyproto.
func FuzzParseDatagram(f *testing.F) {
	for _, c := range datagramHeaders {
		f.Add(append(unhex(f, c.header), payload...))
		f.Add(unhex(f, c.header))
	}
	for _, c := range v2Headers {
		f.Add(append(unhex(f, c.header), payload...))
	}
	f.Add(AppendV2DatagramTLVs(nil, ap(source), ap(dest), &TLVs{Authority: "a.b", SSL: &SSL{Client: ClientSSL}, CRC: true}))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = b[:min(len(b), 65507)]
		untouched := bytes.Clone(b)
		var h, stream Header
		n, err := h.ParseDatagram(b)
		if !bytes.Equal(b, untouched) {
			t.Fatal("the bytes were changed")
		}
		if (n > 0) == (err != nil) || n > len(b) || n > 0 && n != v2Fixed+int(binary.BigEndian.Uint16(b[14:])) {
			t.Fatalf("%x: n=%d, error %v", b, n, err)
		}
		begins := bytes.HasPrefix(b, []byte(signature)) || bytes.HasPrefix(b, []byte("PROXY "))
		if (err == ErrNoDatagramHeader) == begins {
			t.Fatalf("%x: error %v", b, err)
		}
		// What a connection begins with, and needs nothing more, is a datagram's
		// header, if it is of version 2.
		streamN, _, _ := stream.Parse(b)
		if stream.Version == 2 && streamN != n || n > 0 && fmt.Sprintf("%#v", h) != fmt.Sprintf("%#v", stream) {
			t.Fatalf("%x: %d bytes, %+v; on a connection %d bytes, %+v", b, n, h, streamN, stream)
		}
		if n > 0 {
			for _, short := range []int{n - 1, v2Fixed - 1, len(signature), 0} {
				var cut Header
				if n, err := cut.ParseDatagram(b[:short]); n != 0 || err == nil {
					t.Fatalf("%x: n=%d, error %v", b[:short], n, err)
				}
			}
			if sent := AppendV2Datagram(nil, h.Source, h.Destination); h.Datagram && h.Source.IsValid() && len(sent) <= n {
				var again Header
				if m, err := again.ParseDatagram(append(sent, b[n:]...)); m != len(sent) || err != nil || !again.Datagram || again.Source != h.Source || again.Destination != h.Destination {
					t.Fatalf("%x: n=%d, error %v, %+v; want %+v", sent, m, err, again, h)
				}
			}
		}
		theirs, rest, theirErr := peer.ParseUDPDatagram(b)
		if n > 0 && theirErr == nil {
			if len(rest) != len(b)-n {
				t.Fatalf("%x: their payload has %d bytes, ours %d", b, len(rest), len(b)-n)
			}
			if theirs.TransportProtocol.IsDatagram() != h.Datagram && !h.Local {
				t.Fatalf("%x: they read %v", b, theirs.TransportProtocol)
			}
		}
		// They take version 1, which knows no UDP.
		if err != errDatagramV1 {
			compare(t, b, &h, n, err)
		}
	})
}

func BenchmarkParseDatagram(b *testing.B) {
	for name, header := range map[string][]byte{
		"ipv4":     AppendV2Datagram(nil, ap(source), ap(dest)),
		"ipv6":     AppendV2Datagram(nil, ap("[2001:db8::1]:65535"), ap("[2001:db8::2]:1")),
		"ipv4+crc": AppendV2DatagramTLVs(nil, ap(source), ap(dest), &TLVs{CRC: true}),
	} {
		datagram := append(header, payload...)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var h Header
			for b.Loop() {
				h.ParseDatagram(datagram)
			}
		})
	}
}
