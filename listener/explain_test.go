package listener

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"edgeproxy/internal/sniff"
	"edgeproxy/upstream"
)

// question asks for what the facts say.
func question(f *facts, names []string) Question {
	q := Question{
		Source: netip.AddrPortFrom(f.source, 40000), Destination: netip.AddrPortFrom(addr("127.0.0.1"), f.port),
		SNI: string(f.info.ServerName), Host: string(f.info.Host), Path: string(f.info.Path),
	}
	for p := range f.info.ALPN.All() {
		q.ALPN = append(q.ALPN, string(p))
	}
	if f.info.Protocol != sniff.Unknown {
		q.Protocol = f.info.Protocol.String()
	}
	if f.info.Protocol == sniff.TLS {
		q.ClientNames = names
	}
	return q
}

// What explain says of drawn routes and sessions is what trying them one by one
// finds, route by route and match by match.
func TestExplainAgainstNaive(t *testing.T) {
	t.Parallel()
	for seed := range uint64(400) {
		d := lottery{rand.New(rand.NewPCG(seed, 4))}
		o := d.options()
		reverify := false
		for i := range o.Routes {
			r := &o.Routes[i]
			r.Name, r.Reject = fmt.Sprint("r", i), r.TLS == ""
			reverify = reverify || slices.ContainsFunc(r.Match, func(m Match) bool { return len(m.ClientName) > 0 })
		}
		for _, p := range []string{"127.0.0.1:80", "127.0.0.1:443-444", ":8080"} {
			as, err := ParseAddress(p)
			if err != nil {
				t.Fatal(err)
			}
			o.Addresses = append(o.Addresses, as...)
		}
		for range 10 {
			f := d.facts()
			if !f.source.IsValid() {
				continue
			}
			q := question(f, []string{strings.ToUpper(d.name())})
			e, err := Explain(o, nil, q)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			want := naiveRoute(o, f)
			if want >= 0 && o.Routes[want].TLS != "" && reverify && slices.Contains([]sniff.Protocol{sniff.TLS, sniff.Unknown}, f.info.Protocol) {
				f.tls, f.names = o.Routes[want].TLS, q.ClientNames
				want = naiveRoute(o, f)
			}
			if got := slices.IndexFunc(e.Routes, func(r RouteExplanation) bool { return r.Chosen }); got != want {
				t.Fatalf("seed %d: route %d, want %d\n%+v\n%+v", seed, got, want, q, e)
			}
			for i := range o.Routes {
				r, x := &o.Routes[i], &e.Routes[i]
				if f.tls != "" && r.TLS != f.tls {
					if x.Holds || len(x.Fails) != 1 {
						t.Errorf("seed %d: a route with another tls block: %+v", seed, x)
					}
					continue
				}
				holds := len(r.Match) == 0
				for j := range r.Match {
					one := naiveMatch(r, &r.Match[j], f)
					holds = holds || one
					if (x.Fails[j] == "") != one {
						t.Errorf("seed %d: match %d of route %d: %q, holds: %v\n%+v\n%+v", seed, j, i, x.Fails[j], one, r.Match[j], q)
					}
				}
				if x.Holds != holds {
					t.Errorf("seed %d: route %d: %+v, holds: %v", seed, i, x, holds)
				}
			}
		}
	}
}

func listening(addresses ...string) (all []Address) {
	for _, s := range addresses {
		as, err := ParseAddress(s)
		if err != nil {
			panic(err)
		}
		all = append(all, as...)
	}
	return all
}

func TestExplainSaysWhy(t *testing.T) {
	t.Parallel()
	o := &Options{
		Name: "edge", Addresses: listening("127.0.0.1:443", "127.0.0.1:8000-8001"),
		Allow: prefixes("10.0.0.0/8 fe80::/10"), Deny: prefixes("10.9.0.0/16"), AcceptProxy: prefixes("10.8.0.0/16"),
		Routes: []RouteOptions{
			{Name: "lan", Match: []Match{{Source: prefixes("10.1.0.0/16 10.2.0.0/16")}}, Splits: []Split{{"web", 3}, {"idle", 0}, {"none", 1}}},
			{Name: "port", Match: []Match{{Port: []PortRange{{8000, 8001}, {9, 9}}}}, Reject: true},
			{Name: "ssh", Match: []Match{{Protocol: []sniff.Protocol{sniff.SSH, sniff.RDP}}}, Splits: []Split{{"none", 1}}},
			{Name: "name", Match: []Match{{SNI: []string{"a.test", "b.test"}, ALPN: []string{"h2"}}, {Host: []string{"a.test"}, Path: []string{"/x"}}}, Splits: []Split{{"web", 1}}},
			{Name: "mutual", Match: []Match{{SNI: []string{"*.mtls.test"}, ClientName: []string{"joe"}}}, TLS: "p", Splits: []Split{{"web", 1}}},
			{Name: "tls", Match: []Match{{SNI: []string{"*.mtls.test"}}, {Protocol: []sniff.Protocol{sniff.HTTP}}}, TLS: "p", Splits: []Split{{"web", 1}}},
		},
	}
	address, err := upstream.ParseAddress("10.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	groups := []upstream.Options{{Name: "web", Servers: []upstream.ServerOptions{{Name: "a", Address: address}}}, {Name: "none"}, {Name: "idle"}}
	ask := func(q Question) *Explanation {
		t.Helper()
		if !q.Source.IsValid() {
			q.Source = netip.MustParseAddrPort("10.0.0.1:5")
		}
		if !q.Destination.IsValid() {
			q.Destination = netip.MustParseAddrPort("127.0.0.1:443")
		}
		e, err := Explain(o, groups, q)
		if err != nil {
			t.Fatalf("%+v: %v", q, err)
		}
		return e
	}
	from := netip.MustParseAddrPort
	for _, test := range []struct {
		q               Question
		route, end, why string
	}{
		{Question{Source: from("10.9.1.1:5")}, "", "denied", "source 10.9.1.1 is in 10.9.0.0/16 of deny"},
		{Question{Source: from("192.0.2.1:5")}, "", "denied", "source 192.0.2.1 is in no prefix of allow: 10.0.0.0/8 or fe80::/10"},
		{Question{Source: from("[::ffff:10.1.0.1]:5")}, "lan", "", ""},
		{Question{Source: from("[fe80::1%lo]:5")}, "", "no_route", "no route matches"},
		{Question{Destination: from("127.0.0.1:8001")}, "port", "denied", `route "port" rejects`},
		{Question{}, "", "no_route", "no route matches"},
		{Question{Protocol: "ssh"}, "ssh", "no_server", "no server has a weight"},
		{Question{SNI: "A.test.", ALPN: []string{"h2", "x"}}, "name", "", ""},
		{Question{SNI: "x.mtls.test"}, "tls", "", ""},
		{Question{SNI: "x.mtls.test", ClientNames: []string{"JOE"}}, "mutual", "", ""},
		{Question{Host: "a.test", Path: "/xy"}, "name", "", ""},
		{Question{Host: "b.test"}, "tls", "tls_failed", "tls.p terminates the session, but the client begins with http"},
	} {
		e := ask(test.q)
		if e.Route != test.route || e.End != test.end || e.Why != test.why {
			t.Errorf("%+v: route %q, %s: %s", test.q, e.Route, e.End, e.Why)
		}
		if (e.End == "") != (len(e.Upstreams) > 0) && e.End != "no_server" {
			t.Errorf("%+v: end %q, upstreams %+v", test.q, e.End, e.Upstreams)
		}
	}
	for _, test := range []struct {
		q     Question
		fails []string // of all matches of all routes, without those of mutual and tls
	}{
		{Question{SNI: "c.test", ALPN: []string{"h3", "h4"}}, []string{
			"source 10.0.0.1 is not in 10.1.0.0/16 or 10.2.0.0/16",
			"port 443 is not 8000-8001 or 9",
			"protocol tls is not ssh or rdp",
			"sni c.test is not a.test or b.test",
			"host: no HTTP/1 request names a host, asked for is a.test",
		}},
		{Question{SNI: "a.test", ALPN: []string{"h3", "h4"}}, []string{"", "", "", "alpn h3 and h4 is not h2", ""}},
		{Question{SNI: "a.test"}, []string{"", "", "", "alpn: the client offers no ALPN, asked for is h2", ""}},
		{Question{Host: "a.test", Path: "/y"}, []string{"", "", "", "sni: the client names no server, asked for is a.test or b.test", "path /y does not begin with /x"}},
		{Question{Host: "a.test"}, []string{"", "", "", "", "path: no HTTP/1 request has a path, asked for is /x"}},
	} {
		var got []string
		for _, r := range ask(test.q).Routes[:4] {
			got = append(got, r.Fails...)
		}
		for i, want := range test.fails {
			if want != "" && got[i] != want {
				t.Errorf("%+v: %q, want %q", test.q, got[i], want)
			}
		}
	}
	if e := ask(Question{SNI: "x.mtls.test", ClientNames: []string{"jim"}}); !slices.Equal(e.Routes[4].Fails, []string{"client_name jim is not joe"}) ||
		!strings.HasPrefix(e.Routes[3].Fails[0], "the session's TLS is terminated by tls.p already, not by none") {
		t.Errorf("%+v", e.Routes)
	}
	e := ask(Question{Source: from("10.1.0.1:5")})
	if len(e.Upstreams) != 2 || e.Upstreams[0].Percent != 75 || e.Upstreams[0].Server != "a" || e.Upstreams[1].Percent != 25 {
		t.Errorf("%+v", e.Upstreams)
	}
	if e := ask(Question{Source: from("10.8.0.1:5")}); len(e.Notes) != 1 || !strings.Contains(e.Notes[0], "PROXY header") {
		t.Errorf("%q", e.Notes)
	}
}

// Where nothing was said of the destination, the listener's only address will do.
func TestExplainDestination(t *testing.T) {
	t.Parallel()
	ports := []RouteOptions{{Match: []Match{{Port: []PortRange{{80, 80}}}}, Reject: true}}
	for _, test := range []struct {
		addresses   string
		routes      []RouteOptions
		network     Network
		destination string
		proxied     bool
		want        string // of the explanation, or of the error
		route       bool
	}{
		{"127.0.0.1:80", ports, TCP, "", false, "127.0.0.1:80", true},
		{":80", ports, UDP, "", false, ":80", true},
		{":80", ports, TCP, "192.0.2.1:80", false, "192.0.2.1:80", true},
		{"0.0.0.0:80", ports, TCP, "[2001:db8::1]:80", false, "listener \"l\" does not listen on [2001:db8::1]:80; its addresses are 0.0.0.0:80", false},
		{"127.0.0.1:80", ports, TCP, "127.0.0.1:81", false, "does not listen", false},
		{"127.0.0.1:80", ports, TCP, "127.0.0.1:81", true, "127.0.0.1:81", true}, // as the header has it
		{":80 :81", ports, TCP, "", false, "routes go by the port", false},
		{":80 :81", nil, TCP, "", false, ":80 or :81", false},
		{"unix:/run/x", ports, TCP, "", false, "unix:/run/x", false},
		{"unix:/run/x", ports, TCP, "127.0.0.1:80", false, "does not listen", false},
		{"systemd:x", ports, TCP, "127.0.0.1:80", false, "127.0.0.1:80", true},
		{"127.0.0.1:0", ports, TCP, "127.0.0.1:80", false, "127.0.0.1:80", true},
	} {
		o := &Options{Name: "l", Network: test.network, Addresses: listening(strings.Fields(test.addresses)...), Routes: test.routes}
		if test.proxied {
			o.AcceptProxy = prefixes("10.0.0.0/8")
		}
		q := Question{Source: netip.MustParseAddrPort("192.0.2.9:5")}
		if test.destination != "" {
			q.Destination = netip.MustParseAddrPort(test.destination)
		}
		e, err := Explain(o, nil, q)
		var bad *BadQuestion
		switch {
		case err != nil && (!errors.As(err, &bad) || bad.What != "destination" || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%+v: %v", test, err)
		case err == nil && (e.Destination != test.want || (e.End == "denied") != test.route):
			t.Errorf("%+v: %+v", test, e)
		}
	}
}

func TestExplainRefusesQuestions(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		network Network
		q       Question
		what    string
	}{
		{TCP, Question{Source: netip.AddrPort{}}, "source"},
		{TCP, Question{Protocol: "smtp"}, "protocol"},
		{TCP, Question{Protocol: "quic"}, "protocol"},
		{UDP, Question{Protocol: "tls"}, "protocol"},
		{UDP, Question{Host: "x"}, "protocol"},
		{TCP, Question{Protocol: "ssh", SNI: "x"}, "protocol"},
		{TCP, Question{Protocol: "ssh", Path: "/"}, "protocol"},
		{TCP, Question{SNI: "x", Host: "x"}, "host"},
		{TCP, Question{SNI: "192.0.2.1"}, "sni"},
		{TCP, Question{ALPN: []string{""}}, "alpn"},
		{TCP, Question{ALPN: []string{strings.Repeat("x", 256)}}, "alpn"},
	} {
		if test.what != "source" {
			test.q.Source = netip.MustParseAddrPort("192.0.2.9:5")
		}
		_, err := Explain(&Options{Network: test.network, Addresses: listening(":1")}, nil, test.q)
		var bad *BadQuestion
		if !errors.As(err, &bad) || bad.What != test.what {
			t.Errorf("%v %+v: %v", test.network, test.q, err)
		}
	}
	for network, want := range map[Network]string{TCP: "tls", UDP: "quic"} {
		q := Question{Source: netip.MustParseAddrPort("192.0.2.9:5"), SNI: "x"}
		if e, err := Explain(&Options{Network: network, Addresses: listening(":1")}, nil, q); err != nil || e.Protocol != want {
			t.Errorf("%v: %+v, %v", network, e, err)
		}
	}
}
