package sniff

import (
	"bufio"
	"bytes"
	"net/http"
	"strings"
	"testing"
)

// Sections are those of RFC 9112 if not said otherwise.
func TestRequestLine(t *testing.T) {
	t.Parallel()
	const unknown = "unknown"
	long := strings.Repeat("x", 8000)
	for _, test := range []struct {
		line string
		want string // "": HTTP
	}{
		{"GET / HTTP/1.1\r\n", ""},
		{"GET / HTTP/1.0\n", ""}, // 2.2: a lone LF
		{"GET / HTTP/1.9\r\n", ""},
		{"VERSION-CONTROL / HTTP/1.1\r\n", ""},
		{"M-SEARCH * HTTP/1.1\r\n", ""},
		{"get / HTTP/1.1\r\n", ""},   // a method, if none that is registered
		{"x!#~1 / HTTP/1.1\r\n", ""}, // RFC 9110, 5.6.2
		{strings.Repeat("X", 300) + " / HTTP/1.1\r\n", ""},
		{"GET /" + long + " HTTP/1.1\r\n", ""},
		{"GET /b\xc3\xbccher HTTP/1.1\r\n", ""},
		{"GET /HTTP/1.1 HTTP/1.1\r\n", ""},
		{"GET nonsense HTTP/1.1\r\n", ""}, // asked about only with Head
		{"\r\n\r\n\nGET / HTTP/1.1\r\n", ""},
		{"PRI * HTTP/2.0\r\n", ""}, // RFC 9113, 3.4
		{"SSH / HTTP/1.1\r\n", ""},

		// 3: what lenient servers would take is none, but not unknown either.
		{"GET  / HTTP/1.1\r\n", "malformed"},
		{"GET /  HTTP/1.1\r\n", "malformed"},
		{"GET\t/ HTTP/1.1\r\n", "malformed"},
		{"GET /\tHTTP/1.1\r\n", "malformed"},
		{"GET / HTTP/1.1 \r\n", "malformed"},
		{"GET / HTTP/1.1\r\r\n", "malformed"},
		{"GET / HTTP/1.10\r\n", "malformed"},
		{"GET / HTTP/1.\r\n", "malformed"},
		{"GET / HTTP/2.0\r\n", "malformed"},
		{"GET / HTTP/11\r\n", "malformed"},
		{"GET HTTP/1.1\r\n", "malformed"},
		{"GET  HTTP/1.1\r\n", "malformed"},
		{"GET /a b HTTP/1.1\r\n", "malformed"},
		{"GET / HTTP/1.1\rHost: a\r\n", "malformed"},
		{"GET / HTTP/1.1 HTTP/0.9\r\n", "malformed"},
		{"PRI * HTTP/2.0 \r\n", "malformed"},

		{"GET /\r\n", unknown}, // HTTP/0.9
		{"GET x\r\n", unknown},
		{"GET / http/1.1\r\n", unknown},
		{"OPTIONS * RTSP/1.0\r\n", unknown},
		{"INVITE sip:a@b SIP/2.0\r\n", unknown},
		{"EHLO example.com\r\n", unknown},
		{"GET/ HTTP/1.1\r\n", unknown},
		{" GET / HTTP/1.1\r\n", unknown},
		{"G(T / HTTP/1.1\r\n", unknown},
		{"GET\r\n", unknown},
		{"GET / HTTP/1.1\x00\r\n", unknown},
		{"GET /\x1b HTTP/1.1\r\n", unknown},
		{"GET /\x7f HTTP/1.1\r\n", unknown},
		{"\x00GET / HTTP/1.1\r\n", unknown},
	} {
		split := everySplit
		if len(test.line) > 1000 {
			split = func(_ testing.TB, b []byte, want Set) (answer, bool) {
				a, need := look(b, want)
				return a, need == 0
			}
		}
		got, decided := split(t, []byte(test.line), Set(0).With(HTTP))
		want := answer{protocol: HTTP}
		switch test.want {
		case unknown:
			want = answer{}
		case "malformed":
			want.err = errRequestLine
		}
		if !decided || got != want {
			t.Errorf("%.60q: %+v (decided: %v), want %q", test.line, got, decided, test.want)
		}
	}
}

func TestRequestHead(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		head, host, path string
		err              error
	}{
		{"GET /a?b HTTP/1.1\nHost: Example.COM\n\n", "example.com", "/a?b", nil},
		{"GET / HTTP/1.1\nHost:example.com.:8080\n\n", "example.com", "/", nil},
		{"GET / HTTP/1.1\nA: b\nhOST: \t a.b \t \nC: d\n\n", "a.b", "/", nil},
		{"GET / HTTP/1.1\nHost: a.b:\n\n", "a.b", "/", nil},
		{"GET / HTTP/1.1\nHost: 192.0.2.1:80\n\n", "192.0.2.1", "/", nil},
		{"GET / HTTP/1.1\nHost: [2001:DB8::1]:80\n\n", "2001:db8::1", "/", nil},
		{"GET / HTTP/1.1\nHost: [::1]\n\n", "::1", "/", nil},
		{"GET / HTTP/1.1\nHost:\n\n", "", "/", nil}, // 3.2: no authority
		{"GET / HTTP/1.0\n\n", "", "/", nil},
		{"GET / HTTP/1.1\nHosts: a\nX-Host: b\nHos: c\n\n", "", "/", nil},
		{"GET / HTTP/1.1\nA:\nB: \xff\x01\n\nHost: a\n\n", "", "/", nil}, // a body
		{"OPTIONS * HTTP/1.1\nHost: a\n\n", "a", "*", nil},
		{"PRI * HTTP/2.0\n", "", "", nil},

		// 3.2.2: the target wins.
		{"GET http://A.b/c HTTP/1.1\nHost: d.e\n\n", "a.b", "/c", nil},
		{"GET HTTPS://a.b.:443/c/d?e HTTP/1.1\n\n", "a.b", "/c/d?e", nil},
		{"GET http://a.b HTTP/1.1\nHost: a.b\n\n", "a.b", "/", nil},
		{"GET http://a.b?c HTTP/1.1\nHost: a.b\n\n", "a.b", "/", nil},
		{"GET http://[::1]:8080/x HTTP/1.1\nHost: a.b\n\n", "::1", "/x", nil},
		{"CONNECT a.b:443 HTTP/1.1\nHost: c.d\n\n", "a.b", "", nil}, // 3.2.3
		{"CONNECT [::1]:443 HTTP/1.1\n\n", "::1", "", nil},
		{"CONNECT /x HTTP/1.1\nHost: c.d\n\n", "c.d", "/x", nil}, // as net/rpc does
		{"CONNECT * HTTP/1.1\nHost: c.d\n\n", "", "", errHost},
		{"CONNECT :443 HTTP/1.1\nHost: c.d\n\n", "", "", errHost},
		{"GET http:///x HTTP/1.1\nHost: a.b\n\n", "", "", errTarget}, // RFC 9110, 4.2.1
		{"GET http://?x HTTP/1.1\nHost: a.b\n\n", "", "", errTarget},
		{"GET http://user@a.b/ HTTP/1.1\nHost: a.b\n\n", "", "", errHost}, // RFC 9110, 4.2.4
		{"GET http://a.b\\@c.d/ HTTP/1.1\nHost: a.b\n\n", "", "", errHost},
		{"GET http://a.b#c/ HTTP/1.1\nHost: a.b\n\n", "", "", errHost},
		{"GET http:/x HTTP/1.1\nHost: a.b\n\n", "", "", errTarget},
		{"GET ://a.b/ HTTP/1.1\nHost: a.b\n\n", "", "", errTarget},
		{"GET a/b://c HTTP/1.1\nHost: a.b\n\n", "", "", errTarget},
		{"GET x HTTP/1.1\nHost: a.b\n\n", "", "", errTarget},
		{"GET ** HTTP/1.1\nHost: a.b\n\n", "", "", errTarget},

		{"GET / HTTP/1.1\nHost: a.b\nHost: c.d\n\n", "", "", errHostTwice}, // 3.2
		{"GET / HTTP/1.1\nHost: a.b\nhost: a.b\n\n", "", "", errHostTwice},
		{"GET / HTTP/1.1\nHost:\nhost: a.b\n\n", "", "", errHostTwice},
		{"GET http://a.b/ HTTP/1.1\nHost: c\nHost: d\n\n", "", "", errHostTwice},
		{"GET http://a.b/ HTTP/1.1\nHost: c d\n\n", "", "", errHost},
		{"GET / HTTP/1.1\nHost: a.b\n c.d\n\n", "", "", errHeaderFolded}, // 5.2
		{"GET / HTTP/1.1\n Host: a.b\n\n", "", "", errHeaderFolded},
		{"GET / HTTP/1.1\nA: b\n\tc\nHost: a.b\n\n", "", "", errHeaderFolded},
		{"GET / HTTP/1.1\nHost : a.b\n\n", "", "", errHeader}, // 5.1
		{"GET / HTTP/1.1\nHost\n\n", "", "", errHeader},
		{"GET / HTTP/1.1\n: a.b\n\n", "", "", errHeader},
		{"GET / HTTP/1.1\nHo\x00st: a.b\n\n", "", "", errControl},
		{"GET / HTTP/1.1\nA: b\x00\nHost: a.b\n\n", "", "", errControl},
		{"GET / HTTP/1.1\nA: b\rHost: a.b\n\n", "", "", errControl}, // 2.2
		{"GET / HTTP/1.1\nHost: a.b\r\n\r\r\n\n", "", "", errControl},
		{"GET / HTTP/1.1\nHost: a.b, c.d\n\n", "", "", errHost},
		{"GET / HTTP/1.1\nHost: a.b c.d\n\n", "", "", errHost},
		{"GET / HTTP/1.1\nHost: a..b\n\n", "", "", errHost},
		{"GET / HTTP/1.1\nHost: .\n\n", "", "", errHost},
		{"GET / HTTP/1.1\nHost: a.b:x\n\n", "", "", errHost},
		{"GET / HTTP/1.1\nHost: a.b:1:2\n\n", "", "", errHost},
		{"GET / HTTP/1.1\nHost: a.b:123456\n\n", "", "", errHost},
		{"GET / HTTP/1.1\nHost: a%2eb\n\n", "", "", errHost},
		{"GET / HTTP/1.1\nHost: b\u00fccher.example\n\n", "", "", errHost},
		{"GET / HTTP/1.1\nHost: ::1\n\n", "", "", errHost},
		{"GET / HTTP/1.1\nHost: [::1\n\n", "", "", errHost},
		{"GET / HTTP/1.1\nHost: [::1]x\n\n", "", "", errHost},
		{"GET / HTTP/1.1\nHost: [fe80::1%25eth0]\n\n", "", "", errHost},
		{"GET / HTTP/1.1\nHost: [a.b]\n\n", "", "", errHost},
		{"GET / HTTP/1.1\nHost: http://a.b\n\n", "", "", errHost},
	} {
		want := answer{protocol: HTTP, host: test.host, path: test.path, err: test.err}
		for _, text := range []string{test.head, strings.ReplaceAll(test.head, "\n", "\r\n"), "\r\n" + test.head} {
			if got, decided := everySplit(t, []byte(text), all); !decided || got != want {
				t.Errorf("%q: %+v (decided: %v), want %+v", text, got, decided, want)
			}
		}
	}
}

// 16 KiB is taken, one byte more is refused.
func TestHeadBound(t *testing.T) {
	t.Parallel()
	const line, end = "GET / HTTP/1.1\r\n", "Host: a.b\r\n\r\n"
	fill := func(n int) string { return strings.Repeat("y", n) }
	for _, test := range []struct {
		text string
		want Set
		err  error
	}{
		{line + "X: " + fill(MaxHead-len(line)-len(end)-5) + "\r\n" + end, all, nil},
		{line + "X: " + fill(MaxHead-len(line)-len(end)-4) + "\r\n" + end, all, errHeadLong},
		{"GET /" + fill(MaxHead-15) + " HTTP/1.1\n", Set(0).With(HTTP), nil},
		{"GET /" + fill(MaxHead-14) + " HTTP/1.1\n", Set(0).With(HTTP), errHeadLong},
		{"GET /" + fill(MaxHead-15) + " HTTP/1.1\r\n", Set(0).With(HTTP), errHeadLong},
		{fill(MaxHead), Set(0).With(HTTP), errHeadLong},
		{strings.Repeat("\r\n", MaxHead/2), Set(0).With(HTTP), errHeadLong},
	} {
		whole, need := look([]byte(test.text), test.want)
		if need != 0 || whole.protocol != HTTP || whole.err != test.err {
			t.Errorf("%.30q, %d bytes: %+v, %d needed", test.text, len(test.text), whole, need)
		}
		for n := range len(test.text) {
			if n%97 != 0 && n < MaxHead-3 {
				continue // each look is at all that came before
			}
			got, need := look([]byte(test.text[:n]), test.want)
			if n < min(len(test.text), MaxHead) && need != n+1 || n >= MaxHead && got != whole {
				t.Errorf("%.30q, %d of %d bytes: %+v, %d needed", test.text, n, len(test.text), got, need)
			}
		}
	}
}

// FuzzRequest: the host that net/http would serve is the one we know, or we
// refuse; there is no request that gets by as something else.
func FuzzRequest(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b)
	}
	f.Add([]byte("GET http://a.b:80/c HTTP/1.1\r\nHost: d\r\n\r\n"))
	f.Add([]byte("CONNECT [::1]:443 HTTP/1.0\n\n"))
	f.Add([]byte("x * HTTP/1.1\nA: b\n c\nHost: d.e.\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= MaxHead {
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		a, need := look(b, Head)
		if need != 0 || a.protocol != HTTP {
			t.Fatalf("net/http has a request for %q, we: %+v, %d needed", r.Host, a, need)
		}
		if a.err != nil || r.Proto == "HTTP/2.0" {
			return
		}
		host := strings.ToLower(r.Host)
		if address, ok := strings.CutPrefix(host, "["); ok {
			host, _, _ = strings.Cut(address, "]")
		} else {
			host, _, _ = strings.Cut(host, ":")
			host = strings.TrimSuffix(host, ".")
		}
		if a.host != host {
			t.Fatalf("net/http: host %q, we: %+v", r.Host, a)
		}
		if path := r.URL.RequestURI(); a.path != "" && a.path[0] == '/' && !strings.HasPrefix(path, "/") {
			t.Fatalf("net/http: path %q, we: %+v", path, a)
		}
	})
}
