package upstream

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	t.Parallel()
	ip := func(s string) Address { return Address{AddrPort: netip.MustParseAddrPort(s)} }
	long := strings.Repeat("x", 106)
	for in, want := range map[string]Address{
		"10.0.0.1:80":             ip("10.0.0.1:80"),
		"10.0.0.1:65535":          ip("10.0.0.1:65535"),
		"[::1]:80":                ip("[::1]:80"),
		"[::ffff:10.0.0.1]:80":    ip("10.0.0.1:80"), // RFC 4291 section 2.5.5.2: the same host
		"[fe80::1%eth0]:80":       ip("[fe80::1%eth0]:80"),
		"localhost:1":             {Host: "localhost", Port: 1},
		"Web-1.example.com.:8080": {Host: "Web-1.example.com.", Port: 8080},
		"app_db:5432":             {Host: "app_db", Port: 5432},
		"1and1.com:80":            {Host: "1and1.com", Port: 80},
		"unix:/run/app.sock":      {Unix: "/run/app.sock"},
		"unix:@app":               {Unix: "@app"},
		"unix:/" + long:           {Unix: "/" + long},
		"unix:/run/a:80":          {Unix: "/run/a:80"},
	} {
		got, err := ParseAddress(in)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", in, got, err, want)
			continue
		}
		if again, err := ParseAddress(got.String()); err != nil || again != got {
			t.Errorf("%q: its text %q reads as %+v, %v", in, got.String(), again, err)
		}
	}
}

// Every refusal names what is wrong, and what to write where that is not plain.
func TestParseAddressRefuses(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                                  "has no port",
		"web":                               `write "web:8080"`,
		"10.0.0.1":                          `write "10.0.0.1:8080"`,
		":80":                               "neither an IP address nor a host name",
		"10.0.0.1:0":                        "1–65535",
		"[::1]:0":                           "1–65535",
		"web:0":                             "from 1 to 65535",
		"web:":                              "from 1 to 65535",
		"web:65536":                         "from 1 to 65535",
		"web:-1":                            "from 1 to 65535",
		"web:+1":                            "from 1 to 65535",
		"web:http":                          "from 1 to 65535",
		"web:80 ":                           "from 1 to 65535",
		"::1:80":                            `"[::1]:80"`,
		"fe80::1:80":                        `"[fe80::1]:80"`,
		"[10.0.0.1]:80":                     "neither",
		"[::g]:80":                          "brackets",
		"300.1.2.3:80":                      "neither", // mistyped, not to be looked up
		"10.0.0:80":                         "neither",
		"a b:80":                            "neither",
		"http://web:80":                     "brackets",
		"unix:":                             "names no socket",
		"unix:@":                            "names no socket",
		"unix:run/app.sock":                 "absolute",
		"unix:/" + strings.Repeat("x", 107): "at most 107",
	} {
		if got, err := ParseAddress(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v; want an error with %q", in, got, err, want)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"10.0.0.1:80", "[::1%lo]:80", "web:80", "unix:@a", "[::ffff:1.2.3.4]:5", "a.:1", "[", "]:1", "::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err != nil {
			return
		}
		if again, err := ParseAddress(a.String()); err != nil || again != a {
			t.Errorf("%q: %+v, but its text %q reads as %+v, %v", s, a, a.String(), again, err)
		}
		if a.Unix == "" && newEndpointPort(a) == 0 {
			t.Errorf("%q: port 0", s)
		}
	})
}

func newEndpointPort(a Address) uint16 {
	if a.Host != "" {
		return a.Port
	}
	return a.AddrPort.Port()
}

// RFC 1123 section 2.1, RFC 1035 section 2.3.4.
func TestValidHost(t *testing.T) {
	t.Parallel()
	label := strings.Repeat("a", 63)
	name253 := label + "." + label + "." + label + "." + strings.Repeat("b", 61)
	for h, want := range map[string]bool{
		"a": true, "a.": true, "a-b.c": true, "0x7f.1": true, "x1": true, "_srv._tcp.web": true, label: true, name253: true, name253 + ".": true,
		"": false, ".": false, "a..": false, ".a": false, "a..b": false, "-a": false, "a-": false, "a.-b": false, "a.b-.c": false,
		label + "a": false, name253 + "b": false, "1": false, "1.2": false, "1.2.3.4.": false, "a,b": false, "ä": false, "a\x00": false, "*": false,
	} {
		if got := validHost(h); got != want {
			t.Errorf("%q: %v", h, got)
		}
	}
	for c := range 256 {
		b := byte(c)
		want := b == '_' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '-' || b == '.'
		if got := validHost("a" + string([]byte{b}) + "a"); got != want {
			t.Errorf("byte %#x: %v", c, got)
		}
	}
}
