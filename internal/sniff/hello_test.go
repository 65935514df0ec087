package sniff

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// script is a peer that has said all it will say.
type script struct {
	in  io.Reader
	out *bytes.Buffer
}

func (s script) Read(b []byte) (int, error) { return s.in.Read(b) }
func (s script) Write(b []byte) (int, error) {
	if s.out == nil {
		return len(b), nil
	}
	return s.out.Write(b)
}
func (script) Close() error                     { return nil }
func (script) LocalAddr() net.Addr              { return nil }
func (script) RemoteAddr() net.Addr             { return nil }
func (script) SetDeadline(time.Time) error      { return nil }
func (script) SetReadDeadline(time.Time) error  { return nil }
func (script) SetWriteDeadline(time.Time) error { return nil }

// captureConfig returns the first flight of crypto/tls.
func captureConfig(tb testing.TB, c *tls.Config) []byte {
	tb.Helper()
	var out bytes.Buffer
	c.InsecureSkipVerify = true
	if err := tls.Client(script{strings.NewReader(""), &out}, c).Handshake(); !errors.Is(err, io.EOF) {
		tb.Fatal(err)
	}
	return out.Bytes()
}

func capture(tb testing.TB, name string, alpn ...string) []byte {
	return captureConfig(tb, &tls.Config{ServerName: name, NextProtos: alpn})
}

// inRecords puts what is in the one record b into records of n bytes.
func inRecords(b []byte, n int) (out []byte) {
	return records(b[recordHeader:], slices.Repeat([]int{n}, len(b)/n+1)...)
}

// records puts a message into records of the given sizes, the rest into one more.
func records(message []byte, sizes ...int) (out []byte) {
	for _, n := range append(sizes, len(message)) {
		if n = min(n, len(message)); n > 0 {
			out = append(append(out, recordHandshake, 3, 1, byte(n>>8), byte(n)), message[:n]...)
			message = message[n:]
		}
	}
	return out
}

func u8(b string) string  { return string([]byte{byte(len(b))}) + b }
func u16(b string) string { return string(binary.BigEndian.AppendUint16(nil, uint16(len(b)))) + b }

func ext(kind uint16, data string) string {
	return string(binary.BigEndian.AppendUint16(nil, kind)) + u16(data)
}

func sni(name string) string { return ext(extServerName, u16("\x00"+u16(name))) }

// message is a ClientHello with the body given.
func message(body string) []byte {
	n := len(body)
	return append([]byte{clientHello, byte(n >> 16), byte(n >> 8), byte(n)}, body...)
}

const (
	fixedPart = "\x03\x0301234567890123456789012345678901"
	prelude   = fixedPart + "\x00" + "\x00\x02\x13\x01" + "\x01\x00" // no session ID, one suite, no compression
)

func withExtensions(exts ...string) []byte { return message(prelude + u16(strings.Join(exts, ""))) }

func TestHelloShapes(t *testing.T) {
	t.Parallel()
	long := strings.Repeat(strings.Repeat("a", 49)+".", 5) + "com"
	for _, c := range []*tls.Config{
		{}, {ServerName: "example.com"}, {ServerName: "EXAMPLE.com"}, {ServerName: long},
		{ServerName: "a.b", MaxVersion: tls.VersionTLS12}, {ServerName: "a.b", MinVersion: tls.VersionTLS13},
		{ServerName: "a.b", CurvePreferences: []tls.CurveID{tls.X25519}}, {ServerName: "a.b", SessionTicketsDisabled: true},
		{ServerName: "a.b", NextProtos: []string{"h2", "http/1.1", strings.Repeat("x", 255)}},
		{ServerName: "a.b", NextProtos: slices.Repeat([]string{strings.Repeat("y", 200)}, 300)}, // 60 KB, several records
	} {
		b := captureConfig(t, c)
		want := answer{protocol: TLS, name: strings.ToLower(c.ServerName), alpn: strings.Join(c.NextProtos, " "), helloLen: len(b)}
		split := everySplit
		if len(b) > 4096 {
			split = func(_ testing.TB, b []byte, want Set) (answer, bool) {
				a, size, _, need := decide(b, want)
				return a, need == 0 && size == len(b)
			}
		}
		if got, decided := split(t, b, all); !decided || got != want {
			t.Errorf("%v %v: %+v (decided: %v)", c.ServerName, len(c.NextProtos), got, decided)
		}
	}
}

// Lesson: Traefik CVE-2026-32305. A ClientHello split over records gave an
// empty name, and the default configuration. RFC 8446, section 5.1: records
// of any size, and the hello waits for all of them.
func TestHelloOverRecords(t *testing.T) {
	t.Parallel()
	hello := capture(t, "db.example.com", "h2")
	want := answer{protocol: TLS, name: "db.example.com", alpn: "h2"}
	if len(hello) < 1400 {
		t.Fatalf("a hello of %d bytes is not post-quantum", len(hello))
	}
	check := func(b []byte, why string, n int) {
		t.Helper()
		want.helloLen = len(b)
		got, size, looks, need := decide(b, all)
		if got != want || size != len(b) || need != 0 {
			t.Fatalf("%s %d: %+v after %d of %d bytes", why, n, got, size, len(b))
		}
		// A record at a time would be an invitation to waste our time.
		if looks > 60 {
			t.Errorf("%s %d: %d looks", why, n, looks)
		}
		// What follows is not part of it.
		if got, need := look(append(bytes.Clone(b), "\x17\x03\x03\x00\x01x"...), all); got != want || need != 0 {
			t.Fatalf("%s %d, with more behind: %+v", why, n, got)
		}
	}
	for n := 1; n < len(hello)-recordHeader; n++ {
		check(records(hello[recordHeader:], n), "two records, the first of", n)
		check(records(hello[recordHeader:], 1, n), "three records, the second of", n)
	}
	for n := 1; n < 70; n++ {
		check(inRecords(hello, n), "records of", n)
	}
	small := withExtensions(sni("a.example.com"), ext(extALPN, u16(u8("h2"))))
	for n := 1; n < len(small); n++ {
		for _, b := range [][]byte{records(small, n), records(small, slices.Repeat([]int{n}, 100)...)} {
			if a, decided := everySplit(t, b, all); !decided || a.name != "a.example.com" || a.alpn != "h2" {
				t.Fatalf("%d: %+v", n, a)
			}
		}
	}
}

// 64 KiB is taken, one byte more is refused as soon as its length is known.
func TestHelloBound(t *testing.T) {
	t.Parallel()
	pad := func(n int) []byte { // a hello of n bytes with its four records
		n -= 4*recordHeader + messageHeader + len(prelude) + 2 + len(sni("a.b")) + 4
		return withExtensions(sni("a.b"), ext(21, strings.Repeat("\x00", n)))
	}
	for _, sizes := range [][]int{{recordMax, recordMax, recordMax}, {1, recordMax, recordMax}, {4, recordMax - 20, recordMax}} {
		if sizes[0] != recordMax { // three more must hold the rest
			sizes = append(sizes, recordMax)
		}
		fits := MaxHello - (len(sizes)+1-4)*recordHeader
		b := records(pad(fits), sizes...)
		if len(b) != MaxHello {
			t.Fatalf("%v: %d bytes", sizes, len(b))
		}
		if got, size, _, _ := decide(b, all); got != (answer{protocol: TLS, name: "a.b", helloLen: MaxHello}) || size != MaxHello {
			t.Errorf("%v: %+v after %d bytes", sizes, got, size)
		}
		b = records(pad(fits+1), sizes...)
		got, size, _, _ := decide(b, all)
		if got != (answer{protocol: TLS, err: errHelloLong}) {
			t.Errorf("%v: one byte too many: %+v after %d bytes", sizes, got, size)
		}
	}
	if got, need := look(records(pad(MaxHello + 1000))[:9], all); got.err != errHelloLong || need != 0 {
		t.Errorf("far too long: %+v, %d needed", got, need)
	}
	// Tiny records make a short hello long.
	if got, _, looks, _ := decide(records(pad(12000), slices.Repeat([]int{1}, 12000)...), all); got.err != errHelloLong || looks > 60 {
		t.Errorf("in records of one byte: %+v after %d looks", got, looks)
	}
}

// RFC 6066, section 3, and what names look like.
func TestServerName(t *testing.T) {
	t.Parallel()
	const bad = "\x00bad"
	label := strings.Repeat("a", 63)
	name253 := strings.Repeat(label+".", 3) + strings.Repeat("b", 61)
	for name, want := range map[string]string{
		"example.com": "example.com", "EXAMPLE.Com": "example.com", "example.com.": "example.com",
		"localhost": "localhost", "_sip._tcp.example.com": "_sip._tcp.example.com", "xn--bcher-kva.example": "xn--bcher-kva.example",
		"1.2.3": "1.2.3", "1.2.3.4.5": "1.2.3.4.5", "256.1.1.1": "256.1.1.1", "1.2.3.a": "1.2.3.a",
		"192.0.2.1": "", "192.0.2.1.": "", "0.0.0.0": "", "2001:db8::1": "", "::": "", "::ffff:192.0.2.1": "",
		label + ".com": label + ".com", label + "a.com": bad, name253: name253, name253 + ".": name253, name253 + "b": bad,
		"": bad, ".": bad, "..": bad, "example.com..": bad, ".example.com": bad, "a..b": bad, "a\x00.b": bad, "a\x00": bad,
		"*.example.com": bad, "exa mple.com": bad, "a/b": bad, "a:443": bad, "[::1]": bad, "fe80::1%eth0": bad, "b\u00fccher.example": bad,
		"a\r\nb": bad, "user@example.com": bad, "exam\x7fple": bad,
	} {
		got, decided := everySplit(t, records(withExtensions(sni(name))), all)
		if !decided || got.protocol != TLS || (want == bad) != (got.err != nil) || want != bad && got.name != want {
			t.Errorf("%q: %+v, want %q", name, got, want)
		}
	}
	for c := range 256 { // every byte inside a name
		got, _ := look(records(withExtensions(sni("a"+string([]byte{byte(c)})+"b"))), all)
		ok := c == '-' || c == '_' || c == '.' || c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z' && c < 0x80
		if ok != (got.err == nil) {
			t.Errorf("byte %#x: %+v", c, got)
		}
	}
}

func TestMalformedHello(t *testing.T) {
	t.Parallel()
	alpn := ext(extALPN, u16(u8("h2")))
	whole := withExtensions(sni("a.b"), alpn)
	interrupted := func(header string) []byte {
		b := records(whole, 20)
		return slices.Concat(b[:25], []byte(header), b[25:])
	}
	for why, test := range map[string]struct {
		bytes []byte
		want  error
	}{
		"RFC 8446, 5.1: an empty record first":          {[]byte("\x16\x03\x01\x00\x00"), errHelloRecord},
		"5.1: an empty record between":                  {interrupted("\x16\x03\x01\x00\x00"), errHelloRecord},
		"5.1: a record of 2^14+1":                       {[]byte("\x16\x03\x01\x40\x01"), errHelloRecord},
		"5.1: an alert between":                         {interrupted("\x15\x03\x01\x00\x02\x01\x5a"), errHelloRecord},
		"5.1: change_cipher_spec between":               {interrupted("\x14\x03\x03\x00\x01\x01"), errHelloRecord},
		"5.1: application data between":                 {interrupted("\x17\x03\x03\x00\x01x"), errHelloRecord},
		"an alert ahead, as crypto/tls skips it":        {slices.Concat([]byte("\x15\x03\x01\x00\x02\x01\x5a"), records(whole)), errHelloAlert},
		"4: a ServerHello":                              {[]byte("\x16\x03\x01\x00\x04\x02\x00\x00\x00"), errHelloType},
		"4: a HelloRequest":                             {[]byte("\x16\x03\x01\x00\x01\x00"), errHelloType},
		"4: a key exchange in pieces":                   {[]byte("\x16\x03\x01\x00\x01\x10\x16\x03\x01\x00\x03\x00\x00\x00"), errHelloType},
		"4.1.2: nothing":                                {records(message("")), errHelloLengths},
		"4.1.2: less than version and random":           {records(message(fixedPart[:33])), errHelloLengths},
		"4.1.2: no session ID":                          {records(message(fixedPart)), errHelloLengths},
		"4.1.2: a session ID over the end":              {records(message(fixedPart + "\x05abcd")), errHelloLengths},
		"4.1.2: no suites":                              {records(message(fixedPart + "\x00")), errHelloLengths},
		"4.1.2: suites over the end":                    {records(message(fixedPart + "\x00\x00\x03ab")), errHelloLengths},
		"4.1.2: no compression":                         {records(message(fixedPart + "\x00\x00\x02\x13\x01")), errHelloLengths},
		"4.1.2: half a length of extensions":            {records(message(prelude + "\x00")), errHelloLengths},
		"4.1.2: extensions over the end":                {records(message(prelude + "\x00\x01")), errHelloLengths},
		"4.1.2: bytes after the extensions":             {records(message(prelude + "\x00\x00x")), errHelloLengths},
		"4.2: half an extension":                        {records(withExtensions("\x00")), errHelloLengths},
		"4.2: an extension without length":              {records(withExtensions("\x00\x17")), errHelloLengths},
		"4.2: an extension over the end":                {records(withExtensions("\x00\x17\x00\x01")), errHelloLengths},
		"4.2: a name twice":                             {records(withExtensions(sni("a.b"), alpn, sni("a.b"))), errHelloTwice},
		"4.2: ALPN twice":                               {records(withExtensions(alpn, sni("a.b"), alpn)), errHelloTwice},
		"RFC 6066, 3: an empty extension, as servers's": {records(withExtensions(ext(0, ""))), errHelloSNI},
		"3: an empty list":                              {records(withExtensions(ext(0, u16("")))), errHelloSNI},
		"3: an empty name":                              {records(withExtensions(sni(""))), errHelloSNI},
		"3: a list over the end":                        {records(withExtensions(ext(0, "\x00\x07\x00\x00\x03a.b"))), errHelloSNI},
		"3: bytes after the list":                       {records(withExtensions(ext(0, u16("\x00"+u16("a.b"))+"x"))), errHelloSNI},
		"3: a name over the end of the list":            {records(withExtensions(ext(0, u16("\x00\x00\x04a.b")))), errHelloSNI},
		"3: a type alone":                               {records(withExtensions(ext(0, u16("\x00")))), errHelloSNI},
		"3: two host names":                             {records(withExtensions(ext(0, u16("\x00"+u16("a.b")+"\x00"+u16("c.d"))))), errHelloSNI},
		"3: an address, then a name":                    {records(withExtensions(ext(0, u16("\x00"+u16("::1")+"\x00"+u16("c.d"))))), errHelloSNI},
		"RFC 7301, 3.1: an empty extension":             {records(withExtensions(ext(16, ""))), errHelloALPN},
		"3.1: an empty list of protocols":               {records(withExtensions(ext(16, u16("")))), errHelloALPN},
		"3.1: an empty protocol":                        {records(withExtensions(ext(16, u16(u8("h2")+u8(""))))), errHelloALPN},
		"3.1: a protocol over the end":                  {records(withExtensions(ext(16, u16("\x03h2")))), errHelloALPN},
		"3.1: bytes after the protocols":                {records(withExtensions(ext(16, u16(u8("h2"))+"x"))), errHelloALPN},
	} {
		got, decided := everySplit(t, test.bytes, all)
		if want := (answer{protocol: TLS, err: test.want}); !decided || got != want {
			t.Errorf("%s: %+v (decided: %v), want %v", why, got, decided, test.want)
		}
	}
	// Every cut of the message, with all lengths around it right: never a
	// hello that names nobody, but for where the extensions begin.
	for n := range len(whole) - messageHeader {
		body := string(whole[messageHeader:][:n])
		if got, _ := look(records(message(body)), all); got.err == nil && n != len(prelude) {
			t.Errorf("cut after %d bytes: %+v", n, got)
		}
	}
}

// What is odd, but clear.
func TestUnusualHello(t *testing.T) {
	t.Parallel()
	name := sni("a.b")
	grease := ext(0x0a0a, "") + ext(0xfafa, "\x00")
	for why, test := range map[string]struct {
		bytes []byte
		want  string
	}{
		"no extensions (RFC 5246, 7.4.1.2)":              {records(message(prelude)), ""},
		"empty extensions":                               {records(withExtensions()), ""},
		"GREASE (RFC 8701)":                              {records(withExtensions(grease, name, ext(0xbaba, "x"))), "a.b"},
		"Encrypted Client Hello: the outer name":         {records(withExtensions(ext(0xfe0d, "\x00\x01\x02"), name)), "a.b"},
		"another type of name (RFC 6066, 3)":             {records(withExtensions(ext(0, u16("\x07"+u16("x")+"\x00"+u16("a.b"))))), "a.b"},
		"another message in the record":                  {records(append(withExtensions(name), "\x0b\x00\x00\x00"...)), "a.b"},
		"record version 3.0":                             {bytes.Replace(records(withExtensions(name)), []byte("\x16\x03\x01"), []byte("\x16\x03\x00"), 1), "a.b"},
		"record version 3.255":                           {bytes.Replace(records(withExtensions(name)), []byte("\x16\x03\x01"), []byte("\x16\x03\xff"), 1), "a.b"},
		"record version 2.1 (RFC 8446, 5.1: is ignored)": {bytes.Replace(records(withExtensions(name)), []byte("\x16\x03\x01"), []byte("\x16\x02\x01"), 1), "a.b"},
	} {
		got, decided := everySplit(t, test.bytes, all)
		if !decided || got.err != nil || got.protocol != TLS || got.name != test.want {
			t.Errorf("%s: %+v (decided: %v), want %q", why, got, decided, test.want)
		}
	}
}

// theirs is what crypto/tls makes of a stream; false: it sees no ClientHello.
func theirs(b []byte) (name string, alpn []string, ok bool) {
	stop := errors.New("stop")
	c := tls.Server(script{bytes.NewReader(b), nil}, &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			name, alpn, ok = h.ServerName, h.SupportedProtos, true
			return nil, stop
		},
	})
	c.Handshake()
	return name, alpn, ok
}

// FuzzHello: whom crypto/tls would serve, we know by the same name, or refuse;
// there is no hello that gets by as something else.
func FuzzHello(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b)
	}
	hello := capture(f, "db.example.com", "h2", "http/1.1")
	f.Add(hello)
	f.Add(inRecords(hello, 100))
	f.Add(slices.Concat([]byte("\x15\x03\x01\x00\x02\x01\x5a"), hello))
	f.Add(records(withExtensions(sni("A.b"), ext(43, "\x02\x03\x04"), ext(extALPN, u16(u8("x")+u8("y"))))))
	f.Add(records(withExtensions(sni("192.0.2.1"), sni("192.0.2.1")), 3))
	f.Add(bytes.Replace(hello, []byte("\x16\x03\x01"), []byte("\x16\x00\x01"), 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		name, alpn, ok := theirs(b)
		if !ok {
			return
		}
		a, need := look(b, all)
		switch {
		case need != 0 || a.protocol != TLS:
			t.Fatalf("crypto/tls has a hello for %q, we: %+v, %d needed", name, a, need)
		case a.err == errHelloName, a.err == errHelloAlert, a.err == errHelloRecord, a.err == errHelloLong:
			return // we are stricter there
		case a.err != nil:
			t.Fatalf("crypto/tls has a hello for %q, we: %v", name, a.err)
		}
		name = strings.ToLower(name)
		if _, err := netip.ParseAddr(name); err == nil || strings.Contains(name, ":") {
			name = ""
		}
		if a.name != name || a.alpn != strings.Join(alpn, " ") {
			t.Fatalf("crypto/tls: %q %q, we: %+v", name, alpn, a)
		}
	})
}
