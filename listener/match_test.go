package listener

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"edgeproxy/internal/sniff"
)

func hello(name string, alpn ...string) *sniff.Info {
	i := &sniff.Info{Protocol: sniff.TLS, ServerName: []byte(name)}
	for _, p := range alpn {
		i.ALPN = append(append(i.ALPN, byte(len(p))), p...)
	}
	return i
}

// A wildcard stands for names below, at any depth, and not for the name itself.
func TestWildcards(t *testing.T) {
	t.Parallel()
	routes := []RouteOptions{
		{Match: []Match{{SNI: []string{"*.example.com"}, ALPN: []string{"h2"}}}},
		{Match: []Match{{SNI: []string{"x.example.com", "*.b.example.com"}}}},
		{Match: []Match{{SNI: []string{"*.example.com"}}}},
		{Match: []Match{{SNI: []string{"example.com"}, Host: []string{"example.com"}}}}, // never both
		{Match: []Match{{SNI: []string{"*.com"}}}},
		{Match: []Match{{Host: []string{"*.example.com", "192.0.2.1", "::1"}}}},
	}
	table := newTable(&Options{Routes: routes}, noGroups)
	for _, test := range []struct {
		info *sniff.Info
		want int
	}{
		{hello("a.example.com", "http/1.1", "h2"), 0},
		{hello("x.example.com", "h2"), 0},
		{hello("x.example.com"), 1},
		{hello("a.b.example.com"), 1},
		{hello("b.example.com"), 2},
		{hello("a.b.c.example.com"), 2},
		{hello("example.com"), 4},
		{hello("aexample.com"), 4},
		{hello("com"), -1},
		{hello(""), -1},
		{hello("", "h2"), -1},
		{&sniff.Info{Protocol: sniff.HTTP, Host: []byte("a.example.com")}, 5},
		{&sniff.Info{Protocol: sniff.HTTP, Host: []byte("example.com")}, -1},
		{&sniff.Info{Protocol: sniff.HTTP, Host: []byte("192.0.2.1")}, 5},
		{&sniff.Info{Protocol: sniff.HTTP, Host: []byte("::1")}, 5},
		{&sniff.Info{}, -1},
		{nil, -1},
	} {
		if got := table.route(&facts{info: test.info}); got != test.want {
			t.Errorf("%+v: route %d, want %d", test.info, got, test.want)
		}
	}
}

// Lesson: Traefik CVE-2026-48491, -53622, CVE-2022-23632. Case, a wildcard or a
// trailing dot told TLS policy and route apart. There is one look-up, of the
// normalised name, and the `tls` block is the route's.
func TestNameSpellings(t *testing.T) {
	t.Parallel()
	routes := []RouteOptions{
		{TLS: "strict", Match: []Match{{SNI: []string{"admin.example.com"}}}},
		{TLS: "lax", Match: []Match{{SNI: []string{"*.example.com"}}}},
		{TLS: "default"},
	}
	table := newTable(&Options{Routes: routes}, noGroups)
	for name, want := range map[string]string{
		"admin.example.com": "strict", "ADMIN.example.com": "strict", "admin.example.com.": "strict", "Admin.Example.COM.": "strict",
		"a.admin.example.com": "lax", "a.EXAMPLE.com.": "lax", "example.com": "default", "example.com.": "default",
	} {
		body := "\x03\x03" + strings.Repeat("r", 32) + "\x00\x00\x02\x13\x01\x01\x00"
		body += lengths(lengths2(0, lengths("\x00"+lengths(name))))
		b := append([]byte{22, 3, 1, 0, byte(len(body) + 4), 1, 0, 0, byte(len(body))}, body...)
		var info sniff.Info
		if need, err := info.Sniff(b, table.sniffs(&facts{})); need != 0 || err != nil {
			t.Fatalf("%q: %d bytes needed, %v", name, need, err)
		}
		f := facts{info: &info}
		n := table.route(&f)
		if got := routes[n].TLS; got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
		if f.tls = routes[n].TLS; table.route(&f) != n {
			t.Errorf("%q: another route after the handshake", name)
		}
	}
}

// lengths puts a vector behind its length, lengths2 behind a type as well.
func lengths(s string) string { return string([]byte{byte(len(s) >> 8), byte(len(s))}) + s }

func lengths2(kind byte, data string) string { return string([]byte{0, kind}) + lengths(data) }

// More protocols than a word has bits.
func TestManyProtocols(t *testing.T) {
	t.Parallel()
	var o Options
	for i := range 150 {
		o.Routes = append(o.Routes, RouteOptions{Match: []Match{{ALPN: []string{fmt.Sprint("p", i)}}}})
	}
	table := newTable(&o, noGroups)
	for i := range 150 {
		if got := table.route(&facts{info: hello("a.b", "other", fmt.Sprint("p", i))}); got != i {
			t.Errorf("p%d: route %d", i, got)
		}
	}
	if got := table.route(&facts{info: hello("a.b", "p150")}); got != -1 {
		t.Errorf("p150: route %d", got)
	}
}

// The names in a certificate are looked at after the handshake, and lead to
// another route of the same `tls` block only.
func TestClientNames(t *testing.T) {
	t.Parallel()
	routes := []RouteOptions{
		{TLS: "p", Match: []Match{{ClientName: []string{"admin"}, Port: []PortRange{{443, 443}}}}},
		{TLS: "q", Match: []Match{{ClientName: []string{"*.example.com"}}}},
		{TLS: "", Match: []Match{{ClientName: []string{"admin"}}}}, // never: nobody is asked for a certificate
		{},
		{TLS: "p", Match: []Match{{ClientName: []string{"*.example.com"}}}},
		{TLS: "p", Match: []Match{{SNI: []string{"a.b"}}}},
		{TLS: "p"},
	}
	table := newTable(&Options{Routes: routes}, noGroups)
	if !table.reverify {
		t.Error("a route asks for names")
	}
	for _, test := range []struct {
		port  uint16
		tls   string
		names string
		want  int
	}{
		{443, "", "", 0},
		{80, "", "", 1},
		{443, "p", "user Admin", 0},
		{80, "p", "Admin", 5},
		{443, "p", "a.example.com", 4},
		{443, "p", "", 5},
		{443, "q", "admin", -1},
		{443, "q", "x.y.EXAMPLE.com", 1},
		{443, "r", "admin", -1},
	} {
		f := &facts{port: test.port, tls: test.tls, names: strings.Fields(test.names), info: hello("a.b")}
		if got := table.route(f); got != test.want {
			t.Errorf("%+v: route %d, want %d", test, got, test.want)
		}
	}
	// Route 3 takes all that is passed through, but not who comes back.
	if want := table.sniffs(&facts{port: 80}); !want.Has(sniff.TLS) {
		t.Errorf("sniffs for %b", want)
	}
}

func TestBears(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, pattern string
		want          bool
	}{
		{"a.example.com", "a.example.com", true},
		{"A.Example.COM", "a.example.com", true},
		{"b.example.com", "a.example.com", false},
		{"a.example.com", "*.example.com", true},
		{"x.A.EXAMPLE.com", "*.example.com", true},
		{"example.com", "*.example.com", false},
		{".example.com", "*.example.com", false},
		{"*.example.com", "*.example.com", true},  // a wildcard certificate
		{"*.example.com", "a.example.com", false}, // proves no single name
		{"user@a.example.com", "*.example.com", false},
		{"user@a.example.com", "user@a.example.com", true},
		{"spiffe://a.example.com", "*.example.com", false},
		{"spiffe://example.com/Web", "spiffe://example.com/web", true},
		{"CN with spaces.example.com", "*.example.com", false},
		{"\u212aelvin", "kelvin", false}, // Unicode folds the Kelvin sign into k
		{"u\u017fer", "user", false},     // … and the long s into s
		{"", "", true},
		{"a", "*", false},
		{"a*", "*", false},
		{"*", "*", true},
	} {
		if got := bears([]string{"other", test.name}, []string{"none", test.pattern}); got != test.want {
			t.Errorf("%q, pattern %q: %v", test.name, test.pattern, got)
		}
	}
}

// Nobody is made to wait for first bytes that decide nothing: server-first
// protocols work beside routes by name.
func TestSniffs(t *testing.T) {
	t.Parallel()
	tlsSet, sshSet := sniff.Set(0).With(sniff.TLS), sniff.Set(0).With(sniff.SSH)
	port := []PortRange{{3306, 3306}}
	lan := prefixes("10.0.0.0/8")
	sni, host := Match{SNI: []string{"a.b"}}, Match{Path: []string{"/"}}
	ssh := Match{Protocol: []sniff.Protocol{sniff.SSH}}
	type rs []RouteOptions
	for i, test := range []struct {
		routes rs
		source string
		port   uint16
		want   sniff.Set
	}{
		{nil, "::1", 80, 0},
		{rs{{}}, "::1", 80, 0},
		{rs{{TLS: "p"}}, "::1", 80, 0},
		{rs{{TLS: "p", Match: []Match{{ClientName: []string{"a"}}}}, {TLS: "p"}}, "::1", 80, 0},
		{rs{{Match: []Match{sni}}}, "::1", 80, tlsSet},
		{rs{{Match: []Match{{ALPN: []string{"h2"}}}}}, "::1", 80, tlsSet},
		{rs{{Match: []Match{host}}}, "::1", 80, sniff.Head},
		{rs{{Match: []Match{ssh}}}, "::1", 80, sshSet},
		{rs{{Match: []Match{ssh, sni, host}}}, "::1", 80, sshSet | tlsSet | sniff.Head},
		{rs{{Match: []Match{sni}}, {}, {Match: []Match{ssh}}}, "::1", 80, tlsSet},
		{rs{{}, {Match: []Match{ssh}}}, "::1", 80, 0},
		{rs{{Match: []Match{{Port: port}}}, {Match: []Match{sni}}}, "::1", 3306, 0},
		{rs{{Match: []Match{{Port: port}}}, {Match: []Match{sni}}}, "::1", 443, tlsSet},
		{rs{{Match: []Match{sni}}, {Match: []Match{{Port: port}}}, {Match: []Match{ssh}}}, "::1", 3306, tlsSet},
		{rs{{Match: []Match{sni}}, {Match: []Match{{Port: port}}}, {Match: []Match{ssh}}}, "::1", 443, tlsSet | sshSet},
		{rs{{Match: []Match{{Source: lan, SNI: []string{"a"}}}}, {Match: []Match{ssh}}}, "10.0.0.1", 443, tlsSet | sshSet},
		{rs{{Match: []Match{{Source: lan, SNI: []string{"a"}}}}, {Match: []Match{ssh}}}, "::1", 443, sshSet},
		// Who is sent back by a certificate may come to a later route by name.
		{rs{{TLS: "p", Match: []Match{{ClientName: []string{"a"}}}}, {TLS: "p", Match: []Match{sni}}}, "::1", 80, tlsSet},
		{rs{{TLS: "p", Match: []Match{{ClientName: []string{"a"}}}}, {TLS: "q"}, {TLS: "p", Match: []Match{sni}}}, "::1", 80, tlsSet},
		{rs{{Match: []Match{{ClientName: []string{"a"}, SNI: []string{"a"}}}}}, "::1", 80, 0}, // never holds
	} {
		table := newTable(&Options{Routes: test.routes}, noGroups)
		if got := table.sniffs(&facts{source: addr(test.source), port: test.port}); got != test.want {
			t.Errorf("%d: %b, want %b", i, got, test.want)
		}
	}
}

func TestProxied(t *testing.T) {
	t.Parallel()
	table := newTable(&Options{AcceptProxy: prefixes("10.0.0.0/8 fe80::/10")}, noGroups)
	for a, want := range map[string]bool{"10.1.2.3": true, "11.1.2.3": false, "fe80::1%2": true, "::1": false, "unix": false} {
		if table.proxied(addr(a)) != want {
			t.Errorf("%s: %v", a, !want)
		}
	}
	if newTable(&Options{}, noGroups).proxied(addr("10.1.2.3")) {
		t.Error("trusted without a word")
	}
}

// byName makes n routes of one name each, every tenth a wildcard, and a last
// one for the rest.
func byName(n int) *Options {
	o := &Options{Routes: make([]RouteOptions, n+1)}
	for i := range n {
		name := fmt.Sprintf("host-%d.example.com", i)
		if i%10 == 9 {
			name = "*." + name
		}
		o.Routes[i] = RouteOptions{Name: fmt.Sprint(i), Match: []Match{{SNI: []string{name}}}}
	}
	return o
}

func TestManyNames(t *testing.T) {
	t.Parallel()
	const n = 100_000
	table := newTable(byName(n), noGroups)
	for i := 0; i < n; i += 997 {
		for name, want := range map[string]int{
			fmt.Sprintf("host-%d.example.com", i):     i,
			fmt.Sprintf("a.b.host-%d.example.com", i): i,
			fmt.Sprintf("host-%d.example.com", n+i):   n,
		} {
			if wild := i%10 == 9; want == i && wild != strings.HasPrefix(name, "a.") {
				want = n
			}
			if got := table.route(&facts{info: hello(name)}); got != want {
				t.Errorf("%s: route %d, want %d", name, got, want)
			}
		}
	}
	if len(table.steps) != 2 {
		t.Errorf("%d steps to tell that TLS is of interest", len(table.steps))
	}
}

// Not a parallel test: it counts what everybody allocates.
func TestRouteAllocates(t *testing.T) {
	table := newTable(&Options{Routes: []RouteOptions{
		{Match: []Match{{SNI: []string{"*.a.b", "c"}, ALPN: []string{"x"}}}}, {TLS: "p", Match: []Match{{ClientName: []string{"*.x"}}}}, {TLS: "p"},
	}}, noGroups)
	for _, f := range []*facts{{}, {info: hello("x.y.a.b", "h2", "http/1.1")}, {info: hello("c"), tls: "p", names: []string{"a", "b.x"}}} {
		if n := testing.AllocsPerRun(100, func() {
			table.sniffs(f)
			table.route(f)
		}); n != 0 {
			t.Errorf("%+v: %v allocations", f, n)
		}
	}
}

func BenchmarkRouteByName(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000} {
		table := newTable(byName(n), noGroups)
		names := make([]*sniff.Info, 512)
		for i := range names {
			k := i * max(n/len(names), 1) % n
			names[i] = hello(fmt.Sprintf("host-%d.example.com", k))
			if k%10 == 9 {
				names[i] = hello(fmt.Sprintf("www.host-%d.example.com", k))
			}
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			f, i := facts{source: netip.MustParseAddr("192.0.2.1"), port: 443}, 0
			for b.Loop() {
				f.info = names[i%len(names)]
				if i++; table.route(&f) < 0 || table.sniffs(&f) == 0 {
					b.Fatal("no route")
				}
			}
		})
		b.Run(fmt.Sprint(n, "/absent"), func(b *testing.B) {
			f := facts{info: hello("some.name.elsewhere.org")}
			for b.Loop() {
				if table.route(&f) != n {
					b.Fatal("another route")
				}
			}
		})
	}
}

func BenchmarkNewTable(b *testing.B) {
	o := byName(100_000)
	b.ReportAllocs()
	for b.Loop() {
		newTable(o, noGroups)
	}
}

func BenchmarkRoutePlain(b *testing.B) {
	for name, o := range map[string]*Options{
		"one":   {Routes: []RouteOptions{{}}},
		"three": {Routes: []RouteOptions{{Match: []Match{{Source: prefixes("10.0.0.0/8")}}}, {Match: []Match{{Port: []PortRange{{80, 80}}}}}, {}}},
	} {
		b.Run(name, func(b *testing.B) {
			table := newTable(o, noGroups)
			source := netip.MustParseAddr("192.0.2.1")
			for b.Loop() {
				f := facts{source: source, port: 443}
				if table.sniffs(&f) != 0 || table.route(&f) < 0 {
					b.Fatal("no route")
				}
			}
		})
	}
}
