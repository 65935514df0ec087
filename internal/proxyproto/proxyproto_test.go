package proxyproto

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var none netip.AddrPort

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestV1(t *testing.T) {
	for _, c := range []struct {
		spec       string
		src, local netip.AddrPort
		want       string
	}{
		{"2.1: the example of a header", ap("192.168.0.1:56324"), ap("192.168.0.11:443"), "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"},
		{"2.1: TCP/IPv4, longest: 56 characters", ap("255.255.255.255:65535"), ap("255.255.255.255:65535"), "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"},
		{"2.1: ports without leading zeroes", ap("10.0.0.1:0"), ap("10.0.0.2:1"), "PROXY TCP4 10.0.0.1 10.0.0.2 0 1\r\n"},
		{"2.1: TCP/IPv6", ap("[2001:db8::1]:1"), ap("[2001:db8:0:0:1:0:0:1]:65535"), "PROXY TCP6 2001:db8::1 2001:db8::1:0:0:1 1 65535\r\n"},
		{"2.1: TCP/IPv6, longest: 104 characters", ap("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"), ap("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
			"PROXY TCP6 " + strings.Repeat("ffff:", 7) + "ffff " + strings.Repeat("ffff:", 7) + "ffff 65535 65535\r\n"},
		{"2.1: hexadecimal digits and colons only, no zone", ap("[fe80::1%eth0]:5"), ap("[fe80::2%lo]:6"), "PROXY TCP6 fe80::1 fe80::2 5 6\r\n"},
		{"2.1: unspecified address", ap("[::]:5"), ap("[::1]:6"), "PROXY TCP6 :: ::1 5 6\r\n"},
		{"dual stack: both mapped", ap("[::ffff:10.0.0.1]:5"), ap("[::ffff:10.0.0.2]:6"), "PROXY TCP4 10.0.0.1 10.0.0.2 5 6\r\n"},
		{"dual stack: one mapped", ap("[::ffff:10.0.0.1]:5"), ap("10.0.0.2:6"), "PROXY TCP4 10.0.0.1 10.0.0.2 5 6\r\n"},
		{"mixed: source promoted, no dotted part", ap("192.0.2.255:5"), ap("[2001:db8::1]:6"), "PROXY TCP6 ::ffff:c000:2ff 2001:db8::1 5 6\r\n"},
		{"mixed: destination promoted", ap("[2001:db8::1]:6"), ap("0.0.0.0:5"), "PROXY TCP6 2001:db8::1 ::ffff:0:0 6 5\r\n"},
		{"2.1: UNKNOWN, unix client", none, ap("192.0.2.1:5"), "PROXY UNKNOWN\r\n"},
		{"2.1: UNKNOWN, unix listener", ap("192.0.2.1:5"), none, "PROXY UNKNOWN\r\n"},
		{"2.1: UNKNOWN, both", none, none, "PROXY UNKNOWN\r\n"},
	} {
		t.Run(c.spec, func(t *testing.T) {
			got := string(AppendV1([]byte("before"), c.src, c.local))
			if got != "before"+c.want {
				t.Errorf("got  %q\nwant %q", got, "before"+c.want)
			}
			if len(c.want) > MaxV1 {
				t.Errorf("%d bytes long, more than the %d of section 2.1", len(c.want), MaxV1)
			}
		})
	}
}

func TestV2(t *testing.T) {
	const sig = "0d0a0d0a000d0a515549540a "
	for _, c := range []struct {
		spec string
		got  []byte
		want string
	}{
		{"2.2: TCP over IPv4, 12 bytes", AppendV2(nil, ap("192.0.2.1:4660"), ap("198.51.100.2:443")), sig + "21 11 000c c0000201 c6336402 1234 01bb"},
		{"2.2: TCP over IPv6, 36 bytes", AppendV2(nil, ap("[2001:db8::1]:65535"), ap("[2001:db8::2]:1")),
			sig + "21 21 0024 20010db8000000000000000000000001 20010db8000000000000000000000002 ffff 0001"},
		{"dual stack: both mapped", AppendV2(nil, ap("[::ffff:192.0.2.1]:1"), ap("[::ffff:192.0.2.2]:2")), sig + "21 11 000c c0000201 c0000202 0001 0002"},
		{"mixed: source promoted", AppendV2(nil, ap("192.0.2.1:1"), ap("[2001:db8::2]:2")),
			sig + "21 21 0024 00000000000000000000ffffc0000201 20010db8000000000000000000000002 0001 0002"},
		{"mixed: destination promoted", AppendV2(nil, ap("[2001:db8::2]:2"), ap("192.0.2.1:1")),
			sig + "21 21 0024 20010db8000000000000000000000002 00000000000000000000ffffc0000201 0002 0001"},
		{"2.2: UNSPEC, unix client", AppendV2(nil, none, ap("192.0.2.1:1")), sig + "21 00 0000"},
		{"2.2: UNSPEC, unix listener", AppendV2(nil, ap("192.0.2.1:1"), none), sig + "21 00 0000"},
		{"2.2: LOCAL, UNSPEC", AppendV2Local(nil), sig + "20 00 0000"},
		{"appends", AppendV2Local([]byte{0xaa}), "aa" + sig + "20 00 0000"},
	} {
		t.Run(c.spec, func(t *testing.T) {
			want, err := hex.DecodeString(strings.ReplaceAll(c.want, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(c.got, want) {
				t.Errorf("got  %x\nwant %x", c.got, want)
			}
		})
	}
}

func TestNothingIsAllocated(t *testing.T) {
	buf := make([]byte, 0, MaxV1)
	four, six := ap("192.0.2.1:1"), ap("[2001:db8::2]:2")
	if n := testing.AllocsPerRun(100, func() {
		for _, src := range []netip.AddrPort{four, six, none} {
			AppendV1(buf, src, six)
			AppendV2(buf, src, four)
		}
		AppendV2Local(buf)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzRoundTrip reads what was written with a reader made from the
// specification alone.
func FuzzRoundTrip(f *testing.F) {
	for _, seed := range [][2]string{
		{"\xc0\x00\x02\x01", "\xc6\x33\x64\x02"}, {"0123456789abcdef", "\xc0\x00\x02\x01"},
		{strings.Repeat("\x00", 16), strings.Repeat("\xff", 16)}, {strings.Repeat("\x00", 10) + "\xff\xff\x01\x02\x03\x04", "\x7f\x00\x00\x01"}, {"", "\x7f\x00\x00\x01"},
	} {
		f.Add([]byte(seed[0]), uint16(1), []byte(seed[1]), uint16(65535))
	}
	f.Fuzz(func(t *testing.T, src []byte, srcPort uint16, local []byte, localPort uint16) {
		a, _ := netip.AddrFromSlice(src)
		b, _ := netip.AddrFromSlice(local)
		s, l := netip.AddrPortFrom(a, srcPort), netip.AddrPortFrom(b, localPort)
		for _, c := range []struct {
			header []byte
			read   func([]byte) (netip.AddrPort, netip.AddrPort, error)
		}{{AppendV1(nil, s, l), readV1}, {AppendV2(nil, s, l), readV2}} {
			gs, gl, err := c.read(c.header)
			if err != nil {
				t.Fatalf("%q: %v", c.header, err)
			}
			if !s.IsValid() || !l.IsValid() {
				if gs.IsValid() || gl.IsValid() {
					t.Fatalf("%q: addresses out of nothing", c.header)
				}
				continue
			}
			if gs.Addr().Unmap() != a.Unmap() || gl.Addr().Unmap() != b.Unmap() || gs.Port() != srcPort || gl.Port() != localPort {
				t.Fatalf("%q reads as %v, %v; want %v, %v", c.header, gs, gl, s, l)
			}
			if a.Unmap().Is4() && b.Unmap().Is4() && !gs.Addr().Is4() {
				t.Fatalf("%q: IPv4 was not sent as IPv4", c.header)
			}
		}
	})
}

var v1Line = regexp.MustCompile(`^PROXY (TCP4|TCP6) ([0-9a-fA-F.:]+) ([0-9a-fA-F.:]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\r\n$`)

func readV1(h []byte) (src, local netip.AddrPort, err error) {
	if string(h) == "PROXY UNKNOWN\r\n" {
		return none, none, nil
	}
	if len(h) > 107 {
		return none, none, errors.New("2.1: more than 107 bytes")
	}
	m := v1Line.FindStringSubmatch(string(h))
	if m == nil {
		return none, none, errors.New("2.1: not a header")
	}
	var ends [2]netip.AddrPort
	for i := range ends {
		a, err := netip.ParseAddr(m[2+i])
		if err != nil {
			return none, none, err
		}
		if a.Is4() != (m[1] == "TCP4") || a.Is6() && strings.Contains(m[2+i], ".") {
			return none, none, fmt.Errorf("2.1: %s is not of family %s", m[2+i], m[1])
		}
		port, err := strconv.ParseUint(m[4+i], 10, 16)
		if err != nil {
			return none, none, err
		}
		ends[i] = netip.AddrPortFrom(a, uint16(port))
	}
	return ends[0], ends[1], nil
}

func readV2(h []byte) (src, local netip.AddrPort, err error) {
	if len(h) < 16 || !bytes.Equal(h[:12], []byte{0x0D, 0x0A, 0x0D, 0x0A, 0x00, 0x0D, 0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A}) {
		return none, none, errors.New("2.2: no signature")
	}
	if h[12] != 0x21 {
		return none, none, fmt.Errorf("2.2: version and command %#x", h[12])
	}
	body := h[16:]
	if int(binary.BigEndian.Uint16(h[14:])) != len(body) {
		return none, none, errors.New("2.2: wrong length")
	}
	size := 0
	switch {
	case h[13] == 0x00 && len(body) == 0:
		return none, none, nil
	case h[13] == 0x11 && len(body) == 12:
		size = 4
	case h[13] == 0x21 && len(body) == 36:
		size = 16
	default:
		return none, none, fmt.Errorf("2.2: family %#x with %d bytes", h[13], len(body))
	}
	a, _ := netip.AddrFromSlice(body[:size])
	b, _ := netip.AddrFromSlice(body[size : 2*size])
	ports := body[2*size:]
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(ports)), netip.AddrPortFrom(b, binary.BigEndian.Uint16(ports[2:])), nil
}
