package proxyproto

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// payload follows the headers of these tests. It looks like another header,
// which must not be taken for part of the first.
const payload = "PROXY TCP4 1.1.1.1 2.2.2.2 3 4\r\n\r\n\r\n\x00\r\nQUIT\n"

const mapped = "0000:0000:0000:0000:0000:ffff:" // and an IPv4 address

const longest6 = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"

// v1Lines are lines of version 1 and what they say, or why they are refused.
var v1Lines = []struct {
	spec     string
	line     string
	src, dst string
	err      error
}{
	{spec: "the example", line: "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", src: "192.168.0.1:56324", dst: "192.168.0.11:443"},
	{spec: "TCP/IPv4, 56 chars", line: "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", src: "255.255.255.255:65535", dst: "255.255.255.255:65535"},
	{spec: "TCP/IPv4, shortest", line: "PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", src: "0.0.0.0:0", dst: "0.0.0.0:0"},
	{spec: "TCP/IPv6, 104 chars", line: "PROXY TCP6 " + longest6 + " " + longest6 + " 65535 65535\r\n", src: "[" + longest6 + "]:65535", dst: "[" + longest6 + "]:65535"},
	{spec: "TCP/IPv6, shortest", line: "PROXY TCP6 :: :: 0 0\r\n", src: "[::]:0", dst: "[::]:0"},
	{spec: "upper or lower case", line: "PROXY TCP6 2001:DB8::aBcD 2001:0db8:0000:0000:0000:0000:0000:0001 1 2\r\n", src: "[2001:db8::abcd]:1", dst: "[2001:db8::1]:2"},
	{spec: "IPv4-mapped, as HAProxy and nginx send it", line: "PROXY TCP6 ::ffff:127.0.0.1 ::ffff:127.0.0.2 44442 38101\r\n", src: "127.0.0.1:44442", dst: "127.0.0.2:38101"},
	{spec: "IPv4-mapped in hexadecimal", line: "PROXY TCP6 ::ffff:c000:2ff 2001:db8::1 5 6\r\n", src: "192.0.2.255:5", dst: "[2001:db8::1]:6"},
	{spec: "the longest line that is no worst case, 107 chars", line: "PROXY TCP6 " + mapped + "255.255.255.25 " + mapped + "1.1.1.1 65535 65535\r\n",
		src: "255.255.255.25:65535", dst: "1.1.1.1:65535"},
	{spec: "UNKNOWN, short form", line: "PROXY UNKNOWN\r\n"},
	{spec: "UNKNOWN, worst case, 107 chars", line: "PROXY UNKNOWN " + longest6 + " " + longest6 + " 65535 65535\r\n"},
	{spec: "UNKNOWN: must ignore anything presented before the CRLF", line: "PROXY UNKNOWN \x00\xff\n\r PROXY tcp4 99999\r\r\n"},

	{spec: "a string identifying the protocol", line: "PROXX TCP4 1.1.1.1 2.2.2.2 1 2\r\n", err: errNoHeader},
	{spec: "… in upper case", line: "proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n", err: errNoHeader},
	{spec: "… in upper case throughout", line: "Proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n", err: errNoHeader},
	{spec: "exactly one space after PROXY", line: "PROXY  TCP4 1.1.1.1 2.2.2.2 1 2\r\n", err: errV1Family},
	{spec: "exactly one space after PROXY, no tab", line: "PROXY\tTCP4 1.1.1.1 2.2.2.2 1 2\r\n", err: errNoHeader},
	{spec: "only TCP4 and TCP6 are allowed", line: "PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n", err: errV1Family},
	{spec: "only TCP4 and TCP6 are allowed, no others", line: "PROXY TCP5 1.1.1.1 2.2.2.2 1 2\r\n", err: errV1Family},
	{spec: "only TCP4 and TCP6 are allowed, in upper case", line: "PROXY tcp4 1.1.1.1 2.2.2.2 1 2\r\n", err: errV1Family},
	{spec: "UNKNOWN in upper case", line: "PROXY unknown\r\n", err: errV1Family},
	{spec: "no longer word than UNKNOWN", line: "PROXY UNKNOWNS\r\n", err: errV1Family},
	{spec: "no longer word than TCP4", line: "PROXY TCP44 1.1.1.1 2.2.2.2 1 2\r\n", err: errV1Family},
	{spec: "no protocol at all", line: "PROXY \r\n", err: errV1Family},
	{spec: "no addresses at all", line: "PROXY TCP4 \r\n", err: errV1Line},
	{spec: "nothing after the protocol", line: "PROXY TCP4\r\n", err: errV1Family},
	{spec: "exactly one space before the source", line: "PROXY TCP4  1.1.1.1 2.2.2.2 1 2\r\n", err: errV1Line},
	{spec: "exactly one space before the destination", line: "PROXY TCP4 1.1.1.1  2.2.2.2 1 2\r\n", err: errV1Line},
	{spec: "exactly one space before the source port", line: "PROXY TCP4 1.1.1.1 2.2.2.2  1 2\r\n", err: errV1Line},
	{spec: "exactly one space before the destination port", line: "PROXY TCP4 1.1.1.1 2.2.2.2 1  2\r\n", err: errV1Port},
	{spec: "no space before CRLF", line: "PROXY TCP4 1.1.1.1 2.2.2.2 1 2 \r\n", err: errV1Port},
	{spec: "a port is missing", line: "PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n", err: errV1Line},
	{spec: "a field too many", line: "PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n", err: errV1Port},
	{spec: "exactly 4 integers, not 3", line: "PROXY TCP4 1.1.1 2.2.2.2 1 2\r\n", err: errV1Address},
	{spec: "exactly 4 integers, not 5", line: "PROXY TCP4 1.1.1.1.1 2.2.2.2 1 2\r\n", err: errV1Address},
	{spec: "in the range [0..255]", line: "PROXY TCP4 1.1.1.1 2.2.2.256 1 2\r\n", err: errV1Address},
	{spec: "exactly one dot", line: "PROXY TCP4 1.1..1 2.2.2.2 1 2\r\n", err: errV1Address},
	{spec: "heading zeroes of addresses", line: "PROXY TCP4 01.1.1.1 2.2.2.2 1 2\r\n", err: errV1Address},
	{spec: "decimal representation", line: "PROXY TCP4 0x1.1.1.1 2.2.2.2 1 2\r\n", err: errV1Line},
	{spec: "TCP4 dictates the format", line: "PROXY TCP4 ::1 ::2 1 2\r\n", err: errV1Line},
	{spec: "TCP6 dictates the format", line: "PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n", err: errV1Address},
	{spec: "matches the same family", line: "PROXY TCP6 2001:db8::1 2.2.2.2 1 2\r\n", err: errV1Address},
	{spec: "sets of 4 hexadecimal digits", line: "PROXY TCP6 2001:db8::00001 ::1 1 2\r\n", err: errV1Address},
	{spec: "hexadecimal digits", line: "PROXY TCP6 2001:db8::g ::1 1 2\r\n", err: errV1Line},
	{spec: "one double colon sequence", line: "PROXY TCP6 2001::db8::1 ::1 1 2\r\n", err: errV1Address},
	{spec: "exactly 128 bits, not less", line: "PROXY TCP6 1:2:3:4:5:6:7 ::1 1 2\r\n", err: errV1Address},
	{spec: "exactly 128 bits, not more", line: "PROXY TCP6 1:2:3:4:5:6:7:8:9 ::1 1 2\r\n", err: errV1Address},
	{spec: "no zone", line: "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", err: errV1Line},
	{spec: "no brackets", line: "PROXY TCP6 [::1] [::2] 1 2\r\n", err: errV1Line},
	{spec: "port in the range [0..65535] (HAProxy reads this as 0)", line: "PROXY TCP4 1.1.1.1 2.2.2.2 65536 2\r\n", err: errV1Port},
	{spec: "port in the range [0..65535], long", line: "PROXY TCP4 1.1.1.1 2.2.2.2 1 18446744073709551617\r\n", err: errV1Port},
	{spec: "heading zeroes of ports", line: "PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n", err: errV1Port},
	{spec: "heading zeroes of ports, zero", line: "PROXY TCP4 1.1.1.1 2.2.2.2 1 00\r\n", err: errV1Port},
	{spec: "no sign of a port", line: "PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n", err: errV1Line},
	{spec: "decimal port", line: "PROXY TCP6 ::1 ::2 f 2\r\n", err: errV1Port},
	{spec: "must not tolerate a single LF", line: "PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n", err: errV1Line},
	{spec: "must not tolerate a single CR", line: "PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r", err: errV1Line},
	{spec: "must not tolerate a single CR, nor two", line: "PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\r\n", err: errV1Line},
	{spec: "UNKNOWN: must not tolerate a single LF", line: "PROXY UNKNOWN\n", err: errV1Family},
	{spec: "UNKNOWN: must not tolerate a single CR", line: "PROXY UNKNOWN\rx\r\n", err: errV1Family},
	{spec: "UNKNOWN: must not tolerate a single CR to end a longer line", line: "PROXY UNKNOWN x\r" + strings.Repeat("x", 107), err: errV1Long},
	{spec: "CRLF is not found in the first 107 characters", line: "PROXY UNKNOWN " + strings.Repeat("f", 92) + "\r\n", err: errV1Long},
	{spec: "CRLF is not found in the first 107 characters, but in 108", line: "PROXY TCP6 " + mapped + "255.255.255.255 " + mapped + "1.1.1.1 65535 65535\r\n", err: errV1Long},
	{spec: "CRLF is not found in the first 107 characters, addresses", line: "PROXY TCP6 " + strings.Repeat(" ", 95) + "\r\n", err: errV1Long},
}

func TestParseV1(t *testing.T) {
	t.Parallel()
	for _, c := range v1Lines {
		t.Run("2.1: "+c.spec, func(t *testing.T) {
			t.Parallel()
			check(t, []byte(c.line), c.src, c.dst, c.err)
		})
	}
}

// check parses a header in one piece with payload after it, and byte by byte.
func check(t *testing.T, header []byte, src, dst string, want error) Header {
	t.Helper()
	b := append(bytes.Clone(header), payload...)
	untouched := bytes.Clone(b)
	var h Header
	n, need, err := h.Parse(b)
	if !bytes.Equal(b, untouched) {
		t.Fatal("the bytes were changed")
	}
	if want != nil {
		if !errors.Is(err, want) || n != 0 || need != 0 {
			t.Fatalf("n=%d, need=%d, error %v; want %v", n, need, err, want)
		}
		refusedOnce(t, b)
		return h
	}
	if err != nil || n != len(header) || need != 0 {
		t.Fatalf("n=%d, need=%d, error %v; want n=%d", n, need, err, len(header))
	}
	if got := fmt.Sprint(h.Source, h.Destination); got != fmt.Sprint(addr(src), addr(dst)) {
		t.Errorf("addresses %s, want %s and %s", got, src, dst)
	}
	// Every split, as of a peer that sends byte by byte.
	least := 0
	for i := range header {
		var part Header
		n, need, err := part.Parse(b[:i:i])
		if n != 0 || err != nil {
			t.Fatalf("%d bytes of %d: n=%d, error %v", i, len(header), n, err)
		}
		if need <= i || need > len(header) || need < least {
			t.Fatalf("%d bytes of %d: need=%d, was %d", i, len(header), need, least)
		}
		least = need
	}
	return h
}

// refusedOnce checks that what is refused is refused for good: an error at
// some length is one at each greater length, and none comes after a header.
func refusedOnce(t *testing.T, b []byte) {
	t.Helper()
	refused := false
	for i := range len(b) + 1 {
		var h Header
		n, need, err := h.Parse(b[:i:i])
		switch {
		case n > 0, refused && err == nil:
			t.Fatalf("%q: n=%d, need=%d, error %v, after it was refused: %v", b[:i], n, need, err, refused)
		case err == nil && need <= i:
			t.Fatalf("%q: needs %d bytes", b[:i], need)
		}
		refused = err != nil
	}
}

func addr(s string) netip.AddrPort {
	if s == "" {
		return netip.AddrPort{}
	}
	return ap(s)
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	sig    = "0d0a0d0a000d0a515549540a "
	four   = " c0000201 c6336402 1234 01bb "
	six    = " 20010db8000000000000000000000001 20010db8000000000000000000000002 ffff 0001 "
	source = "192.0.2.1:4660"
	dest   = "198.51.100.2:443"
)

// v2Headers are headers of version 2 and what they say, or why they are
// refused.
var v2Headers = []struct {
	spec     string
	header   string // hexadecimal
	src, dst string
	err      error
}{
	{spec: "TCP over IPv4", header: sig + "21 11 000c" + four, src: source, dst: dest},
	{spec: "TCP over IPv6", header: sig + "21 21 0024" + six, src: "[2001:db8::1]:65535", dst: "[2001:db8::2]:1"},
	{spec: "TCP over IPv6, IPv4-mapped", header: sig + "21 21 0024 00000000000000000000ffffc0000201 00000000000000000000ffffc0000202 0001 0002",
		src: "192.0.2.1:1", dst: "192.0.2.2:2"},
	// What was relayed came over UDP; a resolver in front may well relay it
	// over TCP. "The receiver must then use the information provided in the
	// protocol block" holds for it, too.
	{spec: "UDP over IPv4", header: sig + "21 12 000c" + four, src: source, dst: dest},
	{spec: "UDP over IPv6", header: sig + "21 22 0024" + six, src: "[2001:db8::1]:65535", dst: "[2001:db8::2]:1"},
	{spec: "UNIX stream, 216 bytes", header: sig + "21 31 00d8" + strings.Repeat("2f", 216)},
	{spec: "UNIX datagram, 216 bytes", header: sig + "21 32 00d8" + strings.Repeat("00", 216)},
	{spec: "UNSPEC, free to accept and use the real endpoints", header: sig + "21 00 0000"},
	{spec: "UNSPEC with TLVs", header: sig + "21 00 0006 02 0003 616263"},
	{spec: "AF_INET, transport UNSPEC: should ignore address information", header: sig + "21 10 000c" + four},
	{spec: "AF_UNSPEC, transport STREAM: should ignore address information", header: sig + "21 01 0000"},
	{spec: "length beyond the addresses, TLVs", header: sig + "21 11 0011" + four + "01 0002 6832", src: source, dst: dest},
	{spec: "LOCAL must be accepted", header: sig + "20 00 0000"},
	{spec: "LOCAL: must not assume zero is presented", header: sig + "20 11 000c" + four},
	{spec: "LOCAL: must use the real endpoints, fewer bytes than the family has (Envoy CVE-2024-23327)", header: sig + "20 11 0003 010203"},
	{spec: "LOCAL: discard the protocol block, which is no addresses and no TLVs (HAProxy 488ee7fb6e)", header: sig + "20 31 0004 02ffff00"},
	{spec: "LOCAL: the family is ignored", header: sig + "20 ff 0000"},

	{spec: "signature", header: "0d0a0d0a000d0a515549540b 21 11 000c" + four, err: errNoHeader},
	{spec: "the length is too short for AF_INET (Envoy CVE-2024-23327)", header: sig + "21 11 0000", err: errV2Short},
	{spec: "the length is too short for AF_INET by one", header: sig + "21 11 000b c0000201 c6336402 1234 01", err: errV2Short},
	{spec: "the length is too short for AF_INET6 by one", header: sig + "21 21 0023" + six, err: errV2Short},
	{spec: "the length is too short for AF_UNIX by one (Envoy CVE-2024-23327)", header: sig + "21 31 00d7" + strings.Repeat("00", 215), err: errV2Short},
	{spec: "the length is too short for AF_INET, transport UNSPEC", header: sig + "21 10 000b c0000201 c6336402 1234 01", err: errV2Short},
	{spec: "longer than we take", header: sig + "21 00 0ff1" + "04 0fee" + strings.Repeat("00", 4096-16-3+1), err: errV2Long},
	{spec: "longer than we take, LOCAL", header: sig + "20 00 ffff", err: errV2Long},
}

func TestParseV2(t *testing.T) {
	t.Parallel()
	for _, c := range v2Headers {
		t.Run("2.2: "+c.spec, func(t *testing.T) {
			t.Parallel()
			header := unhex(t, c.header)
			h := check(t, header, c.src, c.dst, c.err)
			if c.err != nil {
				return
			}
			if h.Version != 2 || h.Local != (header[12] == 0x20) || h.Datagram != (!h.Local && header[13]&15 == 2) {
				t.Errorf("version %d, local %v, datagram %v", h.Version, h.Local, h.Datagram)
			}
			if h.Local && (h.TLVs != nil || h.Authority != nil) {
				t.Errorf("TLVs of a LOCAL header: %x", h.TLVs)
			}
		})
	}
}

// A header as long as we take ends exactly there.
func TestLongestHeader(t *testing.T) {
	t.Parallel()
	for _, command := range []byte{v2Local, v2Proxy} {
		b := append([]byte(signature), command, 0, 0x0f, 0xf0, byte(TypeNoop), 0x0f, 0xed)
		check(t, append(b, make([]byte, MaxHeader-len(b))...), "", "", nil)
	}
}

func TestFirstByte(t *testing.T) {
	t.Parallel()
	for c := range 256 {
		var h Header
		n, need, err := h.Parse([]byte{byte(c)})
		want := map[int]int{'P': 15, '\r': 16}[c]
		if n != 0 || need != want || (err == nil) != (want > 0) {
			t.Errorf("%#x: n=%d, need=%d, error %v; want to need %d", c, n, need, err, want)
		}
	}
}

// "The highest four bits contains the version […] the receiver must only
// accept this value"; "Receivers must drop connections presenting unexpected
// values here" (section 2.2).
func TestAllVersionsAndCommands(t *testing.T) {
	t.Parallel()
	for c := range 256 {
		var want error
		switch {
		case c>>4 != 2:
			want = errV2Version
		case c&0xf > 1:
			want = errV2Command
		}
		check(t, append([]byte(signature), byte(c), 0, 0, 0), "", "", want)
	}
}

// "Other values are unspecified […] and must be rejected as invalid by
// receivers" of family and transport; LOCAL's "is ignored" (section 2.2).
func TestAllFamilies(t *testing.T) {
	t.Parallel()
	for c := range 256 {
		header := append([]byte(signature), v2Proxy, byte(c), 0, 216)
		header = append(header, make([]byte, 216)...) // TLVs of type 0 where it is no addresses
		var want error
		var end string
		switch family, transport := c>>4, c&0xf; {
		case family > 3 || transport > 2:
			want = errV2Family
		case family == 1 && transport > 0:
			end = "0.0.0.0:0"
		case family == 2 && transport > 0:
			end = "[::]:0"
		}
		check(t, header, end, end, want)
		header[12] = v2Local
		check(t, header, "", "", nil)
	}
}

// All bytes that a line of version 1 may be disturbed by, at each place.
func TestAnyByteInALine(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n", "PROXY TCP6 2001:db8::1 ::2 3 4\r\n", "PROXY UNKNOWN\r\n"} {
		for i := range line {
			for c := range 256 {
				b := []byte(line)
				b[i] = byte(c)
				var h Header
				n, need, err := h.Parse(b)
				src, dst, oracle := readV1(b)
				if unknown := strings.HasPrefix(string(b), "PROXY UNKNOWN "); unknown {
					continue // whatever follows, it is ignored
				}
				if oracle == nil && (err != nil || n != len(b) || h.Source != unmapped(src) || h.Destination != unmapped(dst)) {
					t.Errorf("%q: n=%d, error %v, %v %v; want %v %v", b, n, err, h.Source, h.Destination, src, dst)
				}
				// Without its end a line may still become one.
				if open := i >= len(line)-2 && c == '\r'; oracle != nil && err == nil && !open && need == 0 {
					t.Errorf("%q: n=%d, need=%d, want an error: %v", b, n, need, oracle)
				}
			}
		}
	}
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	if !a.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func TestParsingAllocatesNothing(t *testing.T) {
	headers := [][]byte{
		[]byte("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"),
		[]byte("PROXY TCP6 2001:db8::1 ::ffff:1.2.3.4 56324 443\r\n"),
		[]byte("PROXY UNKNOWN\r\n"),
		[]byte("PROXY TCP4 192.168.0."),
		[]byte("GET / HTTP/1.1\r\n"),
		AppendV2(nil, ap(source), ap(dest)),
		AppendV2Local(nil),
		AppendV2TLVs(nil, ap(source), ap(dest), &TLVs{Authority: "example.com", ALPN: "h2", SSL: &SSL{Client: ClientSSL, Version: "TLSv1.3"}, CRC: true}),
	}
	var h Header
	for _, b := range headers {
		if n := testing.AllocsPerRun(100, func() { h.Parse(b) }); n != 0 {
			t.Errorf("%q: %v allocations", b, n)
		}
	}
	n := 0
	if allocs := testing.AllocsPerRun(100, func() {
		for range Each(h.TLVs) {
			n++
		}
	}); allocs != 0 {
		t.Errorf("Each: %v allocations", allocs)
	}
	buf := make([]byte, 0, MaxHeader)
	src, dst := ap(source), ap(dest)
	tlvs := &TLVs{Authority: "example.com", SSL: &SSL{Client: ClientSSL}, Keep: h.TLVs, CRC: true}
	if allocs := testing.AllocsPerRun(100, func() { AppendV2TLVs(buf, src, dst, tlvs) }); allocs != 0 {
		t.Errorf("AppendV2TLVs: %v allocations", allocs)
	}
}

func BenchmarkParse(b *testing.B) {
	for name, header := range map[string][]byte{
		"v1":     []byte("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"),
		"v2":     AppendV2(nil, ap(source), ap(dest)),
		"v2+crc": AppendV2TLVs(nil, ap(source), ap(dest), &TLVs{Authority: "example.com", CRC: true}),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var h Header
			for b.Loop() {
				h.Parse(header)
			}
		})
	}
}
