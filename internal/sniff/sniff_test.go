package sniff

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// all is every protocol, with HTTP request heads.
const all = Set(1<<protocolCount-2) | Head

// answer is an Info that can be compared, and printed.
type answer struct {
	protocol   Protocol
	name, alpn string
	host, path string
	helloLen   int
	sslRequest bool
	err        error
}

func (in *Info) answer(err error) answer {
	a := answer{in.Protocol, string(in.ServerName), "", string(in.Host), string(in.Path), in.HelloLen, in.SSLRequest, err}
	for p := range in.ALPN.All() {
		a.alpn += string(p) + " "
	}
	a.alpn = strings.TrimSuffix(a.alpn, " ")
	return a
}

// look sniffs a copy of b; need is 0 if a is an answer.
func look(b []byte, want Set) (a answer, need int) {
	var in Info
	need, err := in.Sniff(bytes.Clone(b), want)
	return in.answer(err), need
}

func final(b []byte, want Set) answer {
	var in Info
	err := in.Final(bytes.Clone(b), want)
	return in.answer(err)
}

// decide feeds b as little as Sniff asks for, and returns the answer and how
// many bytes and looks it took; need is not 0 if all of b is not enough.
func decide(b []byte, want Set) (a answer, size, looks, need int) {
	for {
		a, need = look(b[:size], want)
		looks++
		if need == 0 || need > len(b) {
			return a, size, looks, need
		}
		size = need
	}
}

// everySplit looks at b cut off after each byte, and holds the answers and
// needs against what Sniff promises. It returns the answer, if there is one.
func everySplit(tb testing.TB, b []byte, want Set) (a answer, decided bool) {
	tb.Helper()
	whole, need := look(b, want)
	last := 0
	for n := range len(b) + 1 {
		got, need := look(b[:n], want)
		switch {
		case need == 0:
			if !decided && whole.err == nil && last > n {
				tb.Fatalf("%d bytes were asked for, but %d of %d are enough", last, n, len(b))
			}
			decided = true
			if got != whole {
				tb.Fatalf("the answer after %d of %d bytes is %+v, later %+v", n, len(b), got, whole)
			}
		case decided:
			tb.Fatalf("after %d of %d bytes it is open again", n, len(b))
		case got.err != nil:
			tb.Fatalf("after %d of %d bytes: an error and a need of %d", n, len(b), need)
		case need <= n || need < last || need > MaxHello:
			tb.Fatalf("after %d of %d bytes %d are needed, before %d", n, len(b), need, last)
		case got.protocol != Unknown && whole.protocol != got.protocol:
			tb.Fatalf("after %d of %d bytes it is surely %v, later %v", n, len(b), got.protocol, whole.protocol)
		}
		last = need
		if end := final(b[:n], want); need == 0 && end != whole {
			tb.Fatalf("after %d of %d bytes and the end it is %+v, without the end %+v", n, len(b), end, whole)
		} else if need != 0 && end.protocol != Unknown && end.err == nil {
			tb.Fatalf("after %d of %d bytes and the end it is %+v, without the end open", n, len(b), end)
		}
	}
	return whole, need == 0
}

func recorded(tb testing.TB, name string) []byte {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".hex"))
	if err != nil {
		tb.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		tb.Fatalf("%s: %v", name, err)
	}
	return b
}

// First flights of real clients.
func TestRecorded(t *testing.T) {
	t.Parallel()
	tests := map[string]answer{
		"openssl-tls13":      {protocol: TLS, name: "db.example.com", alpn: "h2 http/1.1"}, // typed as Db.Example.COM
		"openssl-tls12":      {protocol: TLS, name: "db.example.com"},
		"openssl-noname":     {protocol: TLS},
		"curl-h2":            {protocol: TLS, name: "web.example.com", alpn: "h2 http/1.1"},
		"curl-address":       {protocol: TLS, alpn: "h2 http/1.1"},
		"python-ssl":         {protocol: TLS, name: "mqtt.example.com", alpn: "mqtt"}, // sent with a trailing dot
		"python-ssl-address": {protocol: TLS},
		"curl-http1":         {protocol: HTTP, host: "web.example.com", path: "/a/b?c=d"},
		"curl-proxied":       {protocol: HTTP, host: "web.example.com", path: "/a"},
		"curl-connect":       {protocol: HTTP, host: "web.example.com"},
		"curl-h2c":           {protocol: HTTP},
		"curl-haproxy":       {protocol: Proxy},
		"curl-mqtt":          {protocol: MQTT},
		"curl-socks5":        {protocol: SOCKS5},
		"psql-plain":         {protocol: Postgres},
		"psql-ssl":           {protocol: Postgres, sslRequest: true},
		"redis-cli":          {protocol: Redis},
		"ssh":                {protocol: SSH},
	}
	files, _ := filepath.Glob("testdata/*.hex")
	if len(files) != len(tests) {
		t.Errorf("%d files, %d tests", len(files), len(tests))
	}
	for name, want := range tests {
		b := recorded(t, name)
		if want.protocol == TLS {
			want.helloLen = len(b)
		}
		for _, set := range []Set{all, Set(0).With(want.protocol) | all&(Head&^(1<<HTTP))} {
			if want.protocol != HTTP {
				set &^= Head &^ (1 << HTTP)
			}
			got, decided := everySplit(t, b, set)
			if !decided || got != want {
				t.Errorf("%s, looking for %b: %+v (decided: %v), want %+v", name, set, got, decided, want)
			}
		}
		// For those who do not ask for it, it is unknown, and nothing is wrong.
		if got, decided := everySplit(t, b, all&^Set(0).With(want.protocol)); !decided || got != (answer{}) {
			t.Errorf("%s, looking for others: %+v (decided: %v)", name, got, decided)
		}
	}
}

// Magic bytes, and what is nearly so.
func TestFirstBytes(t *testing.T) {
	t.Parallel()
	tests := []struct {
		bytes string
		want  Protocol
	}{
		{"SSH-", SSH},
		{"SSH-2.0-x\r\n", SSH},
		{"SSh-2.0-x\r\n", Unknown},
		{"SSL foo\r\n", Unknown},

		{"\x00\x00\x00\x09\x00\x03\x00\x00\x00", Postgres},
		{"\x00\x00\x00\x08\x00\x03\x00\x00", Postgres},
		{"\x00\x00\x27\x10\x00\x03\x00\x02", Postgres}, // 10000 bytes, protocol 3.2
		{"\x00\x00\x27\x11\x00\x03\x00\x00", Unknown},
		{"\x00\x00\x00\x07\x00\x03\x00\x00", Unknown},
		{"\x00\x01\x00\x09\x00\x03\x00\x00", Unknown},
		{"\x00\x00\x00\x09\x00\x02\x00\x00", Unknown}, // protocol 2
		{"\x00\x00\x00\x10\x04\xd2\x16\x2e", Postgres},
		{"\x00\x00\x00\x2c\x04\xd2\x16\x2e", Postgres}, // cancel with a key of 32 bytes: protocol 3.2
		{"\x00\x00\x00\x0f\x04\xd2\x16\x2e", Unknown},
		{"\x00\x00\x00\x08\x04\xd2\x16\x2f", Postgres},
		{"\x00\x00\x00\x09\x04\xd2\x16\x2f", Unknown},
		{"\x00\x00\x00\x08\x04\xd2\x16\x30", Postgres},
		{"\x00\x00\x00\x08\x04\xd2\x16\x31", Unknown},

		{"*1\r\n$4\r\nPING\r\n", Redis},
		{"*1048576\r\n$", Redis},
		{"*12345678\r\n$", Unknown},
		{"*\r\n$", Unknown},
		{"*1\r\n:", Unknown},
		{"*1\n$", Unknown},
		{"*-1\r\n$", Unknown},
		{"PING\r\n", Unknown}, // inline

		{"\x10\x0c\x00\x04MQTT", MQTT},
		{"\x10\xff\xff\xff\x7f\x00\x04MQTT", MQTT},
		{"\x10\xff\xff\xff\xff\x01\x00\x04MQTT", Unknown}, // MQTT 5, section 1.5.5: at most four bytes
		{"\x10\x8c\x00\x00\x06MQIsdp", MQTT},
		{"\x10\x0c\x00\x04MQTt", Unknown},
		{"\x10\x0c\x00\x05MQTT", Unknown},
		{"\x20\x0c\x00\x04MQTT", Unknown},

		{"\x03\x00\x00\x0b\x06\xe0\x00\x00\x00\x00\x00", RDP},
		{"\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00", RDP},
		{"\x03\x00\x00\x0a\x06\xe0", Unknown},
		{"\x03\x00\x00\x0b\x05\xe0", Unknown},
		{"\x03\x00\x00\x0b\x06\xd0", Unknown}, // connection confirm
		{"\x03\x01\x00\x0b\x06\xe0", Unknown},

		{"\x05\x01\x00", SOCKS5},
		{"\x05\x02\x00\x02", SOCKS5},
		{"\x05\x00\x00", Unknown}, // RFC 1928, section 3: 1 to 255 methods
		{"\x05\x01\xff", Unknown},
		{"\x04\x01\x00", Unknown}, // SOCKS4

		{"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", Proxy},
		{"PROXY TCP6 ", Proxy},
		{"PROXY UNKNOWN\r\n", Proxy},
		{"PROXY TCP5 192.0.2.1\r\n", Unknown},
		{"PROXY / HTTP/1.1\r\n\r\n", HTTP}, // no way around conditions on hosts
		{"\r\n\r\n\x00\r\nQUIT\n\x21", Proxy},
		{"\r\n\r\n\x00\r\nQUIt\n\x21", Unknown},
		{"\r\n\r\nGET / HTTP/1.1\r\n\r\n", HTTP},

		{"\x16\x02\x00\x00\x00\x01", Unknown},
		{"\x16\x04\x00\x40\x01\x01", Unknown},
		{"\x16\x02\x00\x00\x05\x02", Unknown},
		{"\x80\x2e\x01\x00\x02", Unknown},     // SSLv2 ClientHello
		{"\x80\x2e\x01\x03\x01", Unknown},     // … offering TLS
		{"\x14\x03\x03\x00\x01\x01", Unknown}, // change_cipher_spec
		{"\x15\x13\x03\x00\x02", Unknown},
		{"\x15\x03\x03\x00\x03", Unknown},
		{"\x00", Unknown}, {"\xff\xff", Unknown}, {"{}", Unknown},
		{"AMQP\x00\x00\x09\x01", Unknown},
	}
	for _, test := range tests {
		b := []byte(test.bytes)
		for _, set := range []Set{all, all &^ (Head &^ (1 << HTTP))} {
			got, decided := everySplit(t, b, set)
			if !decided && test.want == Unknown {
				got = final(b, set) // short ones
			}
			if got.protocol != test.want || got.err != nil || !decided && test.want != Unknown {
				t.Errorf("%q: %+v (decided: %v), want %v", test.bytes, got, decided, test.want)
			}
		}
		if got, decided := everySplit(t, b, 0); !decided || got != (answer{}) {
			t.Errorf("%q, looking for nothing: %+v", test.bytes, got)
		}
	}
}

// Each first byte is waited behind by those alone whose protocol begins so.
func TestEveryFirstByte(t *testing.T) {
	t.Parallel()
	const tokens = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	first := map[Protocol]string{
		TLS: "\x15\x16", HTTP: tokens + "\r\n", SSH: "S", Postgres: "\x00", Redis: "*", MQTT: "\x10", RDP: "\x03", SOCKS5: "\x05", Proxy: "P\r",
	}
	for c := range 256 {
		b := []byte{byte(c)}
		for p := TLS; p < protocolCount; p++ {
			a, need := look(b, Set(0).With(p))
			wait := strings.IndexByte(first[p], byte(c)) >= 0
			if a != (answer{}) || wait != (need == 2) || !wait && need != 0 {
				t.Errorf("%#x, looking for %v: %+v, %d needed", c, p, a, need)
			}
		}
	}
}

// Nothing is awaited for what nobody asks about, and only as long as it is
// open.
func TestNeed(t *testing.T) {
	t.Parallel()
	web := Set(0).With(TLS).With(HTTP)
	for _, test := range []struct {
		bytes string
		want  Set
		need  int
	}{
		{"", 0, 0},
		{"", web, 1},
		{"SS", Set(0).With(SSH), 3},
		{"SS", web, 3}, // a method, perhaps
		{"SS", Set(0).With(TLS), 0},
		{"PROXY", Set(0).With(Proxy), 6},
		{"PROXY ", Set(0).With(SSH), 0},
		{"\x16", web, 2},
		{"\x16\x03", web, 9}, // a record's and a message's header
		{"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", web, 5 + 512},
		{"\x16\x03\x01\x00\x01\x01", web, 6 + 5 + 3},
		{"\x16\x03\x01\x00\x04\x01\x00\x40\x00", web, 9 + 5 + 16384},
		{"\x16\x03\x01\x00\x04\x01\x00\x40\x01", web, 9 + 5 + 16384 + 5 + 1},
		{"GET / HTTP/1.1\r", web, 16},
		{"GET / HTTP/1.1\r\n", web, 0},
		{"GET / HTTP/1.1\r\n", web | Head, 17},
		{"GET", Set(0).With(TLS), 0},
	} {
		if _, need := look([]byte(test.bytes), test.want); need != test.need {
			t.Errorf("%q, looking for %b: %d needed, want %d", test.bytes, test.want, need, test.need)
		}
	}
}

// A stream that ends early is unknown as long as it may be, an error when it
// is surely something.
func TestFinal(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		bytes string
		want  answer
	}{
		{"", answer{}},
		{"S", answer{}},
		{"*3\r", answer{}},
		{"GET / HT", answer{}},
		{"\x16", answer{}},
		{"\x16\x03", answer{protocol: TLS, err: errHelloCut}},
		{"\x16\x01\x00\x00\x05", answer{}},
		{"\x16\x01\x00\x00\x05\x01", answer{protocol: TLS, err: errHelloCut}},
		{"GET / HTTP/1.1\n", answer{protocol: HTTP, err: errHeadCut}},
		{"GET / HTTP/1.1\nHost: a\n", answer{protocol: HTTP, err: errHeadCut}},
		{"GET / HTTP/1.1\nHost: a\n\n", answer{protocol: HTTP, host: "a", path: "/"}},
		{"\x05\x01", answer{}},
	} {
		if got := final([]byte(test.bytes), all); got != test.want {
			t.Errorf("%q: %+v, want %+v", test.bytes, got, test.want)
		}
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	if got := fmt.Sprint(Names()); got != "[tls http ssh postgres redis mqtt rdp socks5 proxy]" {
		t.Error(got)
	}
	for _, name := range Names() {
		if p, ok := ParseProtocol(name); !ok || p == QUIC { // which is not of streams
			t.Errorf("%q: %v, %v", name, p, ok)
		}
	}
	for p := Unknown; p < protocolCount; p++ {
		got, ok := ParseProtocol(p.String())
		if got != p || ok != (p != Unknown) {
			t.Errorf("%v: %v, %v", p, got, ok)
		}
	}
	for _, name := range []string{"", "mysql", "TLS", "unknown", "https"} {
		if p, ok := ParseProtocol(name); ok {
			t.Errorf("%q is %v", name, p)
		}
	}
	if Protocol(200).String() != "unknown" {
		t.Error("a protocol that is none has a name")
	}
}

// Not a parallel test: it counts what everybody allocates.
func TestNoAllocations(t *testing.T) {
	buf := make([]byte, MaxHello)
	var in Info
	messages := [][]byte{
		inRecords(capture(t, "db.example.com", "h2", "http/1.1"), 100), recorded(t, "curl-http1"), recorded(t, "curl-proxied"),
		recorded(t, "psql-ssl"), recorded(t, "ssh"), []byte("GET  / HTTP/1.1\r\n"), []byte("\x16\x03\x03\x00\x00"),
	}
	for i, b := range messages {
		if n := testing.AllocsPerRun(100, func() {
			c := buf[:copy(buf, b)]
			for n := range min(len(c), 20) {
				in.Sniff(c[:n], all)
			}
			in.Sniff(c, all)
			for p := range in.ALPN.All() {
				if len(p) == 0 {
					panic("empty")
				}
			}
		}); n != 0 {
			t.Errorf("message %d: %v allocations", i, n)
		}
	}
}

func seeds(f *testing.F) (all [][]byte) {
	files, _ := filepath.Glob("testdata/*.hex")
	for _, name := range files {
		all = append(all, recorded(f, strings.TrimSuffix(filepath.Base(name), ".hex")))
	}
	if len(all) == 0 {
		f.Fatal("no seeds")
	}
	return all
}

// FuzzSniff holds every split of anything against the contract of Sniff.
func FuzzSniff(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b, uint16(all))
	}
	f.Add([]byte("\x16\x02\x00\x00\x05\x01"), uint16(all))
	f.Add([]byte("\x15\x03\x01\x00\x02\x01\x00"), uint16(all))
	f.Fuzz(func(t *testing.T, b []byte, want uint16) {
		a, decided := everySplit(t, b[:min(len(b), 600)], Set(want))
		if !decided || a.protocol != Unknown && !Set(want).Has(a.protocol) {
			if decided {
				t.Fatalf("%+v is not in %b", a, want)
			}
			return
		}
		if a.err != nil && !slices.Contains(allErrors, a.err) {
			t.Fatal(a.err)
		}
	})
}

var allErrors = []error{
	errHelloCut, errHelloLong, errHelloRecord, errHelloAlert, errHelloType, errHelloLengths, errHelloTwice, errHelloSNI, errHelloName, errHelloALPN,
	errHeadCut, errHeadLong, errRequestLine, errTarget, errHeader, errHeaderFolded, errHost, errHostTwice, errControl,
}

func TestErrorsDiffer(t *testing.T) {
	t.Parallel()
	for i, e := range allErrors {
		for _, o := range allErrors[:i] {
			if errors.Is(e, o) || e.Error() == o.Error() {
				t.Errorf("%v is there twice", e)
			}
		}
	}
}

func BenchmarkSniff(b *testing.B) {
	messages := map[string][]byte{
		"hello":      capture(b, "db.example.com", "h2", "http/1.1"),
		"hello12":    recorded(b, "openssl-tls12"),
		"fragmented": inRecords(capture(b, "db.example.com"), 64),
		"request":    recorded(b, "curl-http1"),
		"ssh":        recorded(b, "ssh"),
		"unknown":    []byte("\xff\xfe\x00\x01"),
	}
	buf := make([]byte, MaxHello)
	for name, m := range messages {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var in Info
			for b.Loop() {
				if need, err := in.Sniff(buf[:copy(buf, m)], all); need != 0 || err != nil {
					b.Fatal(need, err)
				}
			}
		})
	}
}
