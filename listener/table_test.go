package listener

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"edgeproxy/upstream"
)

func prefixes(s string) (out []netip.Prefix) {
	for _, p := range strings.Fields(s) {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// noGroups is the look-up of a configuration without upstreams.
func noGroups(string) *upstream.Group { return nil }

// groups makes a look-up of upstreams that have no server.
func groups(names ...string) func(string) *upstream.Group {
	var opts []upstream.Options
	for _, n := range names {
		opts = append(opts, upstream.Options{Name: n})
	}
	set, err := upstream.Prepare(&upstream.Env{Loops: 2}, nil, opts)
	if err != nil {
		panic(err)
	}
	return set.Group
}

func addr(s string) netip.Addr {
	if s == "unix" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func TestAllowed(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		allow, deny, in, out string
	}{
		{in: "10.0.0.1 ::1 fe80::1%2 unix"},
		{allow: "10.0.0.0/8", in: "10.0.0.0 10.255.255.255 unix", out: "11.0.0.0 9.255.255.255 ::1 fe80::1%2"},
		{deny: "10.1.0.0/16", in: "10.0.0.1 10.2.0.0 ::1", out: "10.1.0.0 10.1.255.255"},
		{allow: "10.0.0.0/8", deny: "10.1.0.0/16 10.3.0.0/16", in: "10.0.0.1", out: "10.1.0.1 10.3.0.1 192.0.2.1"},
		{allow: "10.1.0.0/16", deny: "10.0.0.0/8", in: "unix", out: "10.1.0.1 10.2.0.1"}, // deny wins, also over the narrower
		{allow: "0.0.0.0/0", in: "255.255.255.255 0.0.0.0", out: "::1"},
		{allow: "::/0", in: "::1 fe80::1%2", out: "127.0.0.1"},
		{allow: "fe80::/10", in: "fe80::1%2 fe80::1", out: "fec0::1 ::1"},
		{deny: "fe80::/10", in: "::1", out: "fe80::1%2 fe80::1"}, // a zone is no way around
		{deny: "::/0", in: "10.0.0.1", out: "fe80::1%2 ::1"},
		{deny: "192.0.2.1/32 2001:db8::1/128", in: "192.0.2.2 2001:db8::2", out: "192.0.2.1 2001:db8::1"},
	} {
		table := newTable(&Options{Allow: prefixes(test.allow), Deny: prefixes(test.deny)}, noGroups)
		for _, s := range strings.Fields(test.in) {
			if !table.allowed(addr(s)) {
				t.Errorf("allow %q, deny %q: %s is kept out", test.allow, test.deny, s)
			}
		}
		for _, s := range strings.Fields(test.out) {
			if table.allowed(addr(s)) {
				t.Errorf("allow %q, deny %q: %s is let in", test.allow, test.deny, s)
			}
		}
	}
}

func TestRoute(t *testing.T) {
	t.Parallel()
	ports := func(r ...PortRange) []PortRange { return r }
	o := &Options{Routes: []RouteOptions{
		{Name: "0", Match: []Match{{Source: prefixes("10.0.0.0/8"), Port: ports(PortRange{80, 80})}}},
		{Name: "1", Match: []Match{{Source: prefixes("10.1.0.0/16 fe80::/64")}, {Port: ports(PortRange{8000, 8010}, PortRange{9000, 9000})}}},
		{Name: "2", Match: []Match{{Source: prefixes("192.0.2.0/24")}, {Source: prefixes("10.0.0.0/8")}}},
		{Name: "3", Match: []Match{{Port: ports(PortRange{0, 0})}}},
	}}
	tests := []struct {
		source string
		port   uint16
		want   int
	}{
		{"10.0.0.1", 80, 0},
		{"10.1.0.1", 80, 0}, // the first one wins, though 1 matches too
		{"10.1.0.1", 81, 1},
		{"10.2.0.1", 81, 2},
		{"10.2.0.1", 8000, 1},
		{"198.51.100.1", 7999, -1},
		{"198.51.100.1", 8000, 1},
		{"198.51.100.1", 8010, 1},
		{"198.51.100.1", 8011, -1},
		{"198.51.100.1", 9000, 1},
		{"198.51.100.1", 80, -1},
		{"198.51.100.1", 65535, -1},
		{"fe80::1%2", 80, 1},
		{"192.0.2.255", 80, 2},
		{"::1", 80, -1},
		{"unix", 0, 3}, // no source matches it
	}
	table := newTable(o, noGroups)
	for _, test := range tests {
		if got := table.route(&facts{source: addr(test.source), port: test.port}); got != test.want {
			t.Errorf("%s to port %d: route %d, want %d", test.source, test.port, got, test.want)
		}
	}
	for _, m := range [][]Match{nil, {{}}, {{Port: ports(PortRange{1, 1})}, {}}} {
		all := newTable(&Options{Routes: []RouteOptions{{Match: m}}}, noGroups)
		if all.route(&facts{source: addr("10.0.0.1"), port: 80}) != 0 || all.route(&facts{}) != 0 {
			t.Errorf("a route with matches %v does not take all", m)
		}
	}
	if newTable(&Options{}, noGroups).route(&facts{source: addr("10.0.0.1"), port: 80}) != -1 {
		t.Error("a route was found where there is none")
	}
}

// Shares of 100 000 draws stay within five standard deviations.
func TestSplitShares(t *testing.T) {
	t.Parallel()
	const n = 100_000
	for _, weights := range [][]int{{1}, {0}, {1, 1}, {95, 5}, {1, 2, 3, 4}, {0, 7}, {7, 0}, {0, 3, 0, 1}, {1_000_000, 1}, {1_000_000, 1_000_000}} {
		o := RouteOptions{}
		var names []string
		total := 0
		for i, w := range weights {
			names = append(names, fmt.Sprint(i))
			o.Splits = append(o.Splits, Split{names[i], w})
			total += w
		}
		look := groups(names...)
		table := newTable(&Options{Routes: []RouteOptions{o}}, look)
		rnd := rand.New(rand.NewPCG(1, uint64(total)))
		got := map[*upstream.Group]int{}
		for range n {
			got[table.routes[0].group(rnd)]++
		}
		for i, w := range weights {
			share := float64(w) / float64(max(total, 1))
			if len(weights) == 1 {
				share = 1
			}
			tolerance := 5 * math.Sqrt(n*share*(1-share))
			if d := float64(got[look(names[i])]) - n*share; math.Abs(d) > tolerance {
				t.Errorf("weights %v: number %d got %d of %d", weights, i, got[look(names[i])], n)
			}
		}
	}
}

// Zero is the default, negative is off.
func TestTimeoutDefaults(t *testing.T) {
	t.Parallel()
	def := newTable(&Options{}, noGroups)
	if def.handshake != DefaultHandshake || def.idle != DefaultIdle || def.halfClose != DefaultHalfClose || def.lifetime != 0 {
		t.Errorf("defaults: %+v", def)
	}
	off := newTable(&Options{Timeouts: Timeouts{Handshake: -1, Idle: -1, HalfClose: -1, Lifetime: -1}}, noGroups)
	if off.handshake != 0 || off.idle != 0 || off.halfClose != 0 || off.lifetime != 0 {
		t.Errorf("off: %+v", off)
	}
	set := newTable(&Options{Timeouts: Timeouts{Handshake: 1, Idle: 2, HalfClose: 3, Lifetime: time.Hour}}, noGroups)
	if set.handshake != 1 || set.idle != 2 || set.halfClose != 3 || set.lifetime != time.Hour {
		t.Errorf("set: %+v", set)
	}
}
