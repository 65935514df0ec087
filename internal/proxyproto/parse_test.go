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
	{spec: "UNKNOWN: must not tolerate a single CR", line: "PROXY UNKNOWN\rx" + strings.Repeat("x", 107), err: errV1Long},
	{spec: "CRLF is not found in the first 107 characters", line: "PROXY UNKNOWN " + strings.Repeat("f", 92) + "\r\n", err: errV1Long},
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
