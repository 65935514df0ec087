package upstream

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"edgeproxy/balance"
)

func fleet(n int) []ServerOptions {
	servers := make([]ServerOptions, n)
	for i := range servers {
		servers[i] = server(fmt.Sprint("s", i), ServerOptions{})
	}
	return servers
}

// nthClient is the nth of many.
func nthClient(n int) Client {
	return Client{
		Source: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)}), uint16(1024+n)),
		Local:  netip.MustParseAddrPort("198.51.100.1:443"),
	}
}

// nameFor is the server that a client is given, on one loop.
func (g *Group) nameFor(c Client, loop int, now int64) string {
	m := g.pick(&Dial{client: c}, loop, now)
	if m == nil {
		return "-"
	}
	m.Release()
	return m.Name
}

var hashing = []balance.Policy{balance.Maglev, balance.RingHash}

// All that a client has may change but what the group hashes on.
func TestHashOn(t *testing.T) {
	t.Parallel()
	tests := []struct {
		on      HashOn
		matters func(c *Client, n int)
		changes func(c *Client, n int)
	}{
		{HashSource,
			func(c *Client, n int) { c.Source = netip.AddrPortFrom(nthClient(n).Source.Addr(), 1) },
			func(c *Client, n int) {
				c.Source = netip.AddrPortFrom(c.Source.Addr(), uint16(n))
				c.SNI, c.Local = fmt.Sprint(n), nthClient(n).Source
			}},
		{HashSourcePort,
			func(c *Client, n int) { c.Source = netip.AddrPortFrom(c.Source.Addr(), uint16(n)) },
			func(c *Client, n int) { c.SNI, c.Local = fmt.Sprint(n), nthClient(n).Source }},
		{HashSNI,
			func(c *Client, n int) { c.SNI = fmt.Sprintf("%d.example.com", n) },
			func(c *Client, n int) { c.Source, c.Local = nthClient(n).Source, nthClient(n).Source }},
		{HashSNI, // … and without a name
			func(c *Client, n int) { c.SNI, c.Source = "", nthClient(n).Source },
			func(c *Client, n int) { c.Source = netip.AddrPortFrom(c.Source.Addr(), uint16(n)) }},
		{HashDestination,
			func(c *Client, n int) { c.Local = nthClient(n).Source },
			func(c *Client, n int) { c.SNI, c.Source = fmt.Sprint(n), nthClient(n).Source }},
		{HashDestination, // … its port, too
			func(c *Client, n int) { c.Local = netip.AddrPortFrom(c.Local.Addr(), uint16(n)) },
			func(c *Client, n int) { c.SNI, c.Source = fmt.Sprint(n), nthClient(n).Source }},
	}
	for _, p := range hashing {
		for i, test := range tests {
			g := newTestGroup(Options{Balance: p, HashOn: test.on, Servers: fleet(5)}, 2)
			got := map[string]bool{}
			for n := range 200 {
				c := nthClient(0)
				test.matters(&c, n)
				want := g.nameFor(c, 0, 1)
				got[want] = true
				for k := range 5 {
					test.changes(&c, k)
					if name := g.nameFor(c, 1, 1); name != want {
						t.Fatalf("%v by %s (%d): %s, then %s for %+v", p, HashOns[test.on], i, want, name, c)
					}
				}
			}
			if len(got) != 5 {
				t.Errorf("%v by %s (%d): only %v", p, HashOns[test.on], i, got)
			}
		}
	}
}

// A client is the same whichever kind of socket took it, and through whichever
// link it came.
func TestHashIgnoresTheFormOfAddresses(t *testing.T) {
	t.Parallel()
	for _, pair := range [][2]string{
		{"192.0.2.1:5", "[::ffff:192.0.2.1]:5"},
		{"[fe80::1%lo]:5", "[fe80::1]:5"},
	} {
		a, b := Client{Source: netip.MustParseAddrPort(pair[0])}, Client{Source: netip.MustParseAddrPort(pair[1])}
		for on := range HashOns {
			if HashOn(on) == HashDestination {
				a.Local, b.Local = a.Source, b.Source
			}
			if a.key(HashOn(on)) != b.key(HashOn(on)) {
				t.Errorf("%v differ by %s", pair, HashOns[on])
			}
		}
	}
}

// Unix sockets have no addresses: their clients are spread by weight.
func TestHashWithoutAnAddress(t *testing.T) {
	t.Parallel()
	for _, p := range hashing {
		for on := range HashOns {
			g := newTestGroup(Options{Balance: p, HashOn: HashOn(on), Servers: fleet(3)}, 1)
			got := map[string]int{}
			for range 3000 {
				got[g.nameFor(Client{}, 0, 1)]++
			}
			for name, n := range got {
				if len(got) != 3 || n < 700 {
					t.Errorf("%v by %s: %s has %d of %v", p, HashOns[on], name, n, got)
				}
			}
		}
	}
}

// A server that goes down moves only its own clients; when it is back they
// are, too. Full and tried servers are no different.
func TestHashMovesOnlyTheClientsOfWhoIsGone(t *testing.T) {
	t.Parallel()
	const clients = 500
	for _, p := range hashing {
		servers := fleet(4)
		servers[1].MaxConnections = 1
		g := newTestGroup(Options{Balance: p, Servers: servers}, 1)
		all := func(now int64) []string {
			names := make([]string, clients)
			for n := range names {
				names[n] = g.nameFor(nthClient(n), 0, now)
			}
			return names
		}
		now := int64(1)
		first := all(now)
		without := func(what, gone string) {
			t.Helper()
			heirs := map[string]int{}
			for n, name := range all(now) {
				switch {
				case first[n] == gone:
					heirs[name]++
				case name != first[n]:
					t.Errorf("%v, %s: client %d moved from %s to %s", p, what, n, first[n], name)
				}
			}
			if heirs[gone] > 0 || len(heirs) != 3 {
				t.Errorf("%v, %s: the clients of %s went to %v", p, what, gone, heirs)
			}
		}
		g.setUp("s0", false)
		without("before the view is built anew", "s0")
		now += int64(rebuildPause) + 1
		without("afterwards", "s0")
		g.setUp("s0", true)
		now += int64(rebuildPause) + 1
		if !slices.Equal(all(now), first) {
			t.Errorf("%v: after all are up again some are elsewhere", p)
		}
		g.member("s1").lease(1)
		without("full", "s1")
		g.member("s1").Release()
		for n := range clients {
			d := &Dial{client: nthClient(n)}
			d.tried[0], d.ntried = g.member(first[n]).Server, 1
			if m := g.pick(d, 0, now); m == nil || m.Name == first[n] {
				t.Errorf("%v: client %d tries %v again", p, n, m)
			} else {
				m.Release()
			}
		}
	}
}

// In panic the table is what it always is.
func TestHashInPanic(t *testing.T) {
	t.Parallel()
	for _, p := range hashing {
		g := newTestGroup(Options{Balance: p, Servers: fleet(4), PanicThreshold: 0.5}, 1)
		h := newTestGroup(Options{Balance: p, Servers: fleet(4)}, 1)
		for _, name := range []string{"s0", "s1", "s2"} {
			g.setUp(name, false)
		}
		for n := range 300 {
			if a, b := g.nameFor(nthClient(n), 0, 1), h.nameFor(nthClient(n), 0, 1); a != b {
				t.Fatalf("%v: client %d has %s, was %s's", p, n, a, b)
			}
		}
	}
}

func TestHashTiers(t *testing.T) {
	t.Parallel()
	for _, p := range hashing {
		servers := fleet(6)
		for i := range servers {
			servers[i].Tier = i / 3 * 7
		}
		g := newTestGroup(Options{Balance: p, Servers: servers}, 1)
		got := func(now int64) map[string]bool {
			names := map[string]bool{}
			for n := range 300 {
				names[g.nameFor(nthClient(n), 0, now)] = true
			}
			return names
		}
		if names := got(1); !maps.Equal(names, map[string]bool{"s0": true, "s1": true, "s2": true}) {
			t.Errorf("%v: %v", p, names)
		}
		for i := range 3 {
			g.setUp(fmt.Sprint("s", i), false)
		}
		for _, now := range []int64{1, 2 + int64(rebuildPause)} {
			if names := got(now); !maps.Equal(names, map[string]bool{"s3": true, "s4": true, "s5": true}) {
				t.Errorf("%v: with the first tier down: %v", p, names)
			}
		}
	}
}

// A reload keeps the tables of tiers whose servers and weights are the same,
// and builds the others anew.
func TestTablesSurviveReloads(t *testing.T) {
	t.Parallel()
	env, _ := newEnv(t)
	a := Options{Name: "web", Balance: balance.Maglev, Servers: []ServerOptions{at("a", "10.0.0.1:80", 0), at("b", "10.0.0.2:80", 0), at("z", "10.0.0.3:80", 1)}}
	one := commit(t, env, nil, a)
	change := func(f func(o *Options)) *Group {
		o := a
		o.Servers = slices.Clone(a.Servers)
		f(&o)
		s, err := Prepare(env, one, []Options{o})
		if err != nil {
			t.Fatal(err)
		}
		return s.Group("web")
	}
	was := one.Group("web")
	for _, test := range []struct {
		what        string
		change      func(o *Options)
		first, last bool // whether the tables of the tiers are the same ones
	}{
		{"another on_down", func(o *Options) { o.OnDown = CloseSessions }, true, true},
		{"another hash_on", func(o *Options) { o.HashOn = HashSNI }, true, true},
		{"a limit", func(o *Options) { o.Servers[0].MaxConnections = 3 }, true, true},
		{"an address", func(o *Options) { o.Servers[0].Address = at("", "10.0.0.9:80", 0).Address }, true, true},
		{"the default weight in words", func(o *Options) { o.Servers[0].Weight = 1 }, true, true},
		{"a weight", func(o *Options) { o.Servers[0].Weight = 2 }, false, true},
		{"a name", func(o *Options) { o.Servers[2].Name = "y" }, true, false},
		{"the policy", func(o *Options) { o.Balance = balance.RingHash }, false, false},
		{"one more", func(o *Options) { o.Servers = append(o.Servers, at("c", "10.0.0.4:80", 0)) }, false, true},
	} {
		g := change(test.change)
		if first, last := g.keyed[0].table == was.keyed[0].table, g.keyed[1].table == was.keyed[1].table; first != test.first || last != test.last {
			t.Errorf("%s: tables kept: %v and %v, want %v and %v", test.what, first, last, test.first, test.last)
		}
	}
	if g := change(func(o *Options) { o.Balance = balance.Random }); g.keyed != nil {
		t.Error("a policy that does not hash has tables")
	}
}

// What explain says is what then happens, also to those whose server is down.
func TestExplainNamesWhoIsPicked(t *testing.T) {
	t.Parallel()
	for _, p := range hashing {
		servers := append(fleet(4), server("z", ServerOptions{Tier: 1}), server("idle", ServerOptions{Weight: -1}))
		servers[3].Weight = 7
		o := Options{Name: "web", Balance: p, HashOn: HashSourcePort, Servers: servers}
		g, sketch := newTestGroup(o, 1), Sketch(o)
		for n := range 100 {
			e := sketch.Explain(nthClient(n))
			if name := g.nameFor(nthClient(n), 0, 1); name != e.Server || e.Key != "source "+nthClient(n).Source.String() {
				t.Fatalf("%v: client %d has %s: %+v", p, n, name, e)
			}
			g.setUp(e.Server, false)
			if name := g.nameFor(nthClient(n), 0, 1); name != e.Next {
				t.Errorf("%v: without it client %d has %s: %+v", p, n, name, e)
			}
			g.setUp(e.Server, true)
		}
		e := sketch.Explain(nthClient(0))
		if len(e.Tiers) != 2 || len(e.Tiers[0].Servers) != 4 || e.Tiers[0].Servers[3].Percent != 70 || e.Tiers[1].Servers[0].Percent != 100 {
			t.Errorf("%v: %+v", p, e.Tiers)
		}
		if f := e.Tiers[0].Table; f == nil || f.Fingerprint != g.keyed[0].table.Fingerprint() || f.Slots < 1000 || f.Bytes < 4000 {
			t.Errorf("%v: %+v", p, f)
		}
	}
}

func TestExplainWhatIsNotDecidedYet(t *testing.T) {
	t.Parallel()
	host, err := ParseAddress("app.example.com:80")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		o            Options
		client       Client
		server, next string
	}{
		{Options{Servers: fleet(2)}, nthClient(1), "", ""},
		{Options{Servers: fleet(1)}, nthClient(1), "s0", ""},
		{Options{Servers: []ServerOptions{server("a", ServerOptions{}), server("z", ServerOptions{Tier: 2})}}, nthClient(1), "a", "z"},
		{Options{Servers: append(fleet(2), server("z", ServerOptions{Tier: 2}))}, nthClient(1), "", ""},
		{Options{Balance: balance.Maglev, Servers: fleet(2)}, Client{}, "", ""},
		{Options{Balance: balance.Maglev, HashOn: HashDestination, Servers: fleet(2)}, Client{Source: nthClient(1).Source}, "", ""},
		{Options{Balance: balance.Maglev}, nthClient(1), "", ""},
		{Options{Servers: []ServerOptions{{Name: "a", Address: host}}}, nthClient(1), "a", ""}, // not looked up
	} {
		if e := Sketch(test.o).Explain(test.client); e.Server != test.server || e.Next != test.next {
			t.Errorf("%+v: %+v", test.o, e)
		}
	}
}
