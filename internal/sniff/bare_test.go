package sniff

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

// bare is what Hello makes of a message without records.
func bare(b []byte) (a answer, need int) {
	var in Info
	need, err := in.Hello(bytes.Clone(b))
	return in.answer(err), need
}

// sameAsInRecords holds Hello, for each beginning of a message, against what
// Sniff says of the same bytes in records.
func sameAsInRecords(tb testing.TB, message []byte) answer {
	tb.Helper()
	whole, need := bare(message)
	if want, wantNeed := look(records(message, slices.Repeat([]int{recordMax}, 4)...), all); len(message) > 0 {
		want.protocol, want.helloLen = QUIC, whole.helloLen
		if (need == 0) != (wantNeed == 0) || need == 0 && whole != want {
			tb.Fatalf("bare: %+v (%d needed), in records: %+v (%d needed)", whole, need, want, wantNeed)
		}
	}
	decided, last := false, 0
	for n := range len(message) + 1 {
		b := bytes.Clone(message[:n])
		var in Info
		need, err := in.Hello(b)
		got := in.answer(err)
		switch {
		case got.protocol != QUIC:
			tb.Fatalf("after %d of %d bytes it is %v", n, len(message), got.protocol)
		case need == 0 && got != whole:
			tb.Fatalf("after %d of %d bytes it is %+v, later %+v", n, len(message), got, whole)
		case need == 0:
			decided = true
		case decided:
			tb.Fatalf("after %d of %d bytes it is open again", n, len(message))
		case err != nil || got != (answer{protocol: QUIC}):
			tb.Fatalf("after %d of %d bytes: %+v, %d needed", n, len(message), got, need)
		case need <= n || need < last || need > MaxHello:
			tb.Fatalf("after %d of %d bytes %d are needed, before %d", n, len(message), need, last)
		case !bytes.Equal(b, message[:n]):
			tb.Fatalf("after %d of %d bytes it is spoiled, but not decided", n, len(message))
		}
		last = need
	}
	return whole
}

// RFC 9001, section 4.1.3: CRYPTO frames carry handshake messages without
// records. The rules are the same, and so is what is found.
func TestHelloWithoutRecords(t *testing.T) {
	t.Parallel()
	hello := capture(t, "DB.example.com.", "h3", "h2")[recordHeader:]
	want := answer{protocol: QUIC, name: "db.example.com", alpn: "h3 h2", helloLen: len(hello)}
	if got := sameAsInRecords(t, hello); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := sameAsInRecords(t, append(bytes.Clone(hello), "\x01\x00\x00\x00"...)); got != want {
		t.Errorf("with more behind it: %+v, want %+v", got, want)
	}
	alpn := ext(extALPN, u16(u8("h3")))
	for why, test := range map[string]struct {
		message []byte
		name    string
		err     error
	}{
		"nothing yet":                       {nil, "", nil},
		"an IPv4 address":                   {withExtensions(sni("192.0.2.1"), alpn), "", nil},
		"an IPv6 address":                   {withExtensions(sni("2001:db8::1"), alpn), "", nil},
		"no name":                           {withExtensions(alpn), "", nil},
		"CVE-2026-48491: case and dot":      {withExtensions(sni("A.eXample.COM.")), "a.example.com", nil},
		"a name that is none":               {withExtensions(sni("a..b")), "", errHelloName},
		"a name twice":                      {withExtensions(sni("a.b"), sni("a.b")), "", errHelloTwice},
		"an empty name":                     {withExtensions(sni("")), "", errHelloSNI},
		"an empty protocol":                 {withExtensions(ext(extALPN, u16(u8("")))), "", errHelloALPN},
		"an extension over the end":         {withExtensions("\x00\x17\x00\x01"), "", errHelloLengths},
		"a ServerHello":                     {[]byte("\x02\x00\x00\x00"), "", errHelloType},
		"a hello in a record of TLS on TCP": {records(hello), "", errHelloType},
		"an empty hello":                    {message(""), "", errHelloLengths},
		"a name before, garbage behind":     {withExtensions(sni("a.b"), "\x00"), "", errHelloLengths},
	} {
		if got := sameAsInRecords(t, test.message); got.err != test.err || got.name != test.name {
			t.Errorf("%s: %+v", why, got)
		}
	}
}

// MaxHello bytes are taken, one more is refused as soon as the length is known.
func TestBareHelloBound(t *testing.T) {
	t.Parallel()
	pad := func(n int) []byte {
		n -= messageHeader + len(prelude) + 2 + len(sni("a.b")) + 4
		return withExtensions(sni("a.b"), ext(21, strings.Repeat("\x00", n)))
	}
	if b := pad(MaxHello); len(b) != MaxHello {
		t.Fatal(len(b))
	} else if got, need := bare(b); need != 0 || got != (answer{protocol: QUIC, name: "a.b", helloLen: MaxHello}) {
		t.Errorf("%+v, %d needed", got, need)
	} else if got, need := bare(b[:messageHeader]); need != MaxHello || got.err != nil {
		t.Errorf("%+v, %d needed", got, need)
	}
	for _, head := range []string{"\x01\x00\xff\xfd", "\x01\x01\x00\x00", "\x01\xff\xff\xff"} {
		if got, need := bare([]byte(head)); need != 0 || got != (answer{protocol: QUIC, err: errHelloLong}) {
			t.Errorf("%x: %+v, %d needed", head, got, need)
		}
	}
}

func FuzzBareHello(f *testing.F) {
	hello := capture(f, "db.example.com", "h3")[recordHeader:]
	f.Add(hello)
	f.Add(hello[:100])
	f.Add(withExtensions(sni("A.b."), ext(extALPN, u16(u8("x")+u8("y")))))
	f.Add(withExtensions(sni("::1"), "\x00"))
	f.Add([]byte("\x01\x00\xff\xfd"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 4096 { // each beginning is looked at
			sameAsInRecords(t, b)
		}
	})
}
