package listener

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"edgeproxy/internal/sniff"
)

// naiveRoute is what route must find: the routes tried one by one.
func naiveRoute(o *Options, f *facts) int {
	for i := range o.Routes {
		r := &o.Routes[i]
		if f.tls != "" && r.TLS != f.tls {
			continue
		}
		if len(r.Match) == 0 || slices.ContainsFunc(r.Match, func(m Match) bool { return naiveMatch(r, &m, f) }) {
			return i
		}
	}
	return -1
}

func naiveMatch(r *RouteOptions, m *Match, f *facts) bool {
	info := f.info
	if info == nil {
		info = &sniff.Info{}
		if f.tls != "" {
			info.Protocol = sniff.TLS
		}
	}
	var offered []string
	for p := range info.ALPN.All() {
		offered = append(offered, string(p))
	}
	some := func(patterns []string, holds func(p string) bool) bool {
		return len(patterns) == 0 || slices.ContainsFunc(patterns, holds)
	}
	named := func(name string) func(string) bool {
		return func(p string) bool {
			if name == "" {
				return false
			}
			parent, wild := strings.CutPrefix(p, "*")
			return name == p || wild && len(name) > len(parent) && strings.HasSuffix(name, parent)
		}
	}
	return (len(m.Source) == 0 || slices.ContainsFunc(m.Source, func(p netip.Prefix) bool { return p.Contains(f.source) })) &&
		(len(m.Port) == 0 || slices.ContainsFunc(m.Port, func(p PortRange) bool { return p.From <= f.port && f.port <= p.To })) &&
		some(m.SNI, named(string(info.ServerName))) &&
		some(m.Host, named(string(info.Host))) &&
		some(m.Path, func(p string) bool { return len(info.Path) > 0 && strings.HasPrefix(string(info.Path), p) }) &&
		some(m.ALPN, func(p string) bool { return slices.Contains(offered, p) }) &&
		(len(m.Protocol) == 0 || slices.Contains(m.Protocol, info.Protocol)) &&
		(len(m.ClientName) == 0 || r.TLS != "" && f.tls == "" ||
			r.TLS != "" && slices.ContainsFunc(f.names, func(n string) bool { return some(m.ClientName, named(strings.ToLower(n))) }))
}

// lottery makes tables and sessions that have much in common.
type lottery struct{ *rand.Rand }

func (d lottery) one(of ...string) string { return of[d.IntN(len(of))] }

func (d lottery) chance(n int) bool { return d.IntN(n) == 0 }

func (d lottery) name() string {
	labels := make([]string, 1+d.IntN(4))
	for i := range labels {
		labels[i] = d.one("a", "b", "c")
	}
	return strings.Join(labels, ".")
}

func (d lottery) patterns() (out []string) {
	for range 1 + d.IntN(3) {
		p := d.name()
		if d.chance(3) {
			p = "*." + p
		}
		out = append(out, p)
	}
	return out
}

func (d lottery) alpn() string { return fmt.Sprint("p", d.IntN(1+d.IntN(100))) }

func (d lottery) match() (m Match) {
	if d.chance(4) {
		m.Source = prefixes(d.one("10.0.0.0/8", "10.1.0.0/16 ::/0", "0.0.0.0/0"))
	}
	if d.chance(4) {
		m.Port = []PortRange{{80, 80}, {443, uint16(443 + d.IntN(3))}}[d.IntN(2):]
	}
	if d.chance(2) {
		m.SNI = d.patterns()
	}
	if d.chance(5) {
		m.Host = d.patterns()
	}
	if d.chance(8) {
		m.Path = []string{d.one("/", "/a", "/b")}
	}
	if d.chance(5) {
		for range 1 + d.IntN(20) {
			m.ALPN = append(m.ALPN, d.alpn())
		}
	}
	if d.chance(5) {
		m.Protocol = []sniff.Protocol{sniff.TLS, sniff.HTTP, sniff.SSH, sniff.MQTT}[d.IntN(4):]
	}
	if d.chance(5) {
		m.ClientName = d.patterns()
	}
	return m
}

func (d lottery) options() *Options {
	o := &Options{Routes: make([]RouteOptions, d.IntN(20))}
	for i := range o.Routes {
		r := &o.Routes[i]
		r.TLS = d.one("", "p", "q")
		if d.chance(12) {
			continue
		}
		for range 1 + d.IntN(3) {
			r.Match = append(r.Match, d.match())
		}
	}
	return o
}

func (d lottery) facts() *facts {
	f := &facts{source: addr(d.one("10.0.0.1", "10.1.0.1", "192.0.2.1", "::1", "unix")), port: []uint16{80, 443, 444, 8080}[d.IntN(4)]}
	i := &sniff.Info{Protocol: []sniff.Protocol{sniff.Unknown, sniff.TLS, sniff.TLS, sniff.HTTP, sniff.SSH}[d.IntN(5)]}
	switch i.Protocol {
	case sniff.TLS:
		if !d.chance(4) {
			i.ServerName = []byte(d.name())
		}
		for range d.IntN(3) {
			p := d.alpn()
			i.ALPN = append(append(i.ALPN, byte(len(p))), p...)
		}
	case sniff.HTTP:
		if !d.chance(4) {
			i.Host, i.Path = []byte(d.name()), []byte(d.one("/", "/a/b", "/b", "*"))
		}
	}
	f.info = i
	return f
}

// seen is what is left of info if only want was sniffed for.
func seen(i sniff.Info, want sniff.Set) *sniff.Info {
	switch {
	case want == 0:
		return nil
	case !want.Has(i.Protocol):
		i = sniff.Info{}
	case want&sniff.Head != sniff.Head:
		i.Host, i.Path = nil, nil
	}
	return &i
}

// checkTable holds the look-up of a drawn table against the naive one, before
// and after termination, with all that can be known and with what sniffs asks for.
func checkTable(t *testing.T, seed uint64) {
	d := lottery{rand.New(rand.NewPCG(seed, 3))}
	o := d.options()
	table := newTable(o, noGroups)
	for range 30 {
		f := d.facts()
		fail := func(got, want int) {
			t.Helper()
			t.Fatalf("seed %d: route %d, want %d\n%+v\ninfo %+v\nroutes %+v", seed, got, want, f, f.info, o.Routes)
		}
		full := *f.info
		want := naiveRoute(o, f)
		if got := table.route(f); got != want {
			fail(got, want)
		}
		f.info = seen(full, table.sniffs(f))
		if got := table.route(f); got != want {
			fail(got, want)
		}
		if want < 0 || o.Routes[want].TLS == "" {
			continue
		}
		f.tls = o.Routes[want].TLS
		for range d.IntN(3) {
			f.names = append(f.names, strings.ToUpper(d.name()))
		}
		less := f.info
		f.info = &full
		want = naiveRoute(o, f)
		if got := table.route(f); got != want {
			fail(got, want)
		}
		if f.info = less; less == nil && full.Protocol != sniff.TLS {
			continue // a handshake has succeeded: it was TLS
		}
		if got := table.route(f); got != want {
			fail(got, want)
		}
	}
}

func TestRouteAgainstNaive(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3000) {
		checkTable(t, seed)
	}
}

func FuzzRoute(f *testing.F) {
	f.Add(uint64(1 << 32))
	f.Fuzz(checkTable)
}
