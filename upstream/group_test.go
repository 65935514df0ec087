package upstream

import (
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"edgeproxy/balance"
)

// server is a server that no test connects to.
func server(name string, o ServerOptions) ServerOptions {
	a, err := ParseAddress("unix:@" + name)
	if err != nil {
		panic(err)
	}
	o.Name, o.Address = name, a
	return o
}

func newTestGroup(o Options, loops int) *Group {
	if o.Name == "" {
		o.Name = "web"
	}
	g := newGroup(&Env{Loops: loops, Events: nobody{}}, o, nil)
	for _, m := range g.members {
		m.group.Store(g)
	}
	return g
}

// nobody hears of no event.
type nobody struct{}

func (nobody) ServerChanged(*Server, bool, error)    {}
func (nobody) ServerResolved(*Server, string, error) {}

func (g *Group) setUp(name string, up bool) {
	for _, m := range g.members {
		if m.Name == name {
			m.Server.setUp(&Env{Events: nobody{}}, up, nil)
		}
	}
}

// picks leases n servers at the loop time now, and returns how many of each.
// With keep they stay leased.
func (g *Group) picks(n int, now int64, keep bool) map[string]int {
	got := map[string]int{}
	for range n {
		m := g.pick(&Dial{}, 0, now)
		if m == nil {
			got["-"]++
			continue
		}
		got[m.Name]++
		if !keep {
			m.Release()
		}
	}
	return got
}

func (g *Group) active() (sum int64) {
	for _, m := range g.members {
		sum += m.Active()
	}
	return sum
}

var policies = []balance.Policy{balance.Random, balance.RoundRobin, balance.LeastConn}

func TestPickWhoIsEligible(t *testing.T) {
	t.Parallel()
	type S = ServerOptions
	tests := []struct {
		name    string
		servers []ServerOptions
		down    []string
		panic   float64
		tried   []string
		want    []string // who may get sessions, all of them must
	}{
		{name: "all", servers: []S{server("a", S{}), server("b", S{}), server("c", S{})}, want: []string{"a", "b", "c"}},
		{name: "nobody configured", want: []string{"-"}},
		{name: "negative weight takes none", servers: []S{server("a", S{Weight: -1}), server("b", S{})}, want: []string{"b"}},
		{name: "only negative weights", servers: []S{server("a", S{Weight: -1})}, want: []string{"-"}},
		{name: "negative weight not in panic either", servers: []S{server("a", S{Weight: -1}), server("b", S{})}, down: []string{"b"}, panic: 1, want: []string{"b"}},
		{name: "down", servers: []S{server("a", S{}), server("b", S{})}, down: []string{"a"}, want: []string{"b"}},
		{name: "all down", servers: []S{server("a", S{}), server("b", S{})}, down: []string{"a", "b"}, want: []string{"-"}},
		{name: "lowest tier only", servers: []S{server("a", S{Tier: 2}), server("b", S{Tier: 1}), server("c", S{Tier: 1})}, want: []string{"b", "c"}},
		{name: "next tier when the lower is down", servers: []S{server("a", S{Tier: 2}), server("b", S{}), server("c", S{Tier: 1})}, down: []string{"b"}, want: []string{"c"}},
		{name: "next tier when the lower has no weight", servers: []S{server("a", S{Tier: 7}), server("b", S{Weight: -1})}, want: []string{"a"}},
		{name: "next tier when the lower was tried", servers: []S{server("a", S{Tier: 1}), server("b", S{})}, tried: []string{"b"}, want: []string{"a"}},
		{name: "tried are left out", servers: []S{server("a", S{}), server("b", S{}), server("c", S{})}, tried: []string{"a", "b"}, want: []string{"c"}},
		{name: "all tried", servers: []S{server("a", S{})}, tried: []string{"a"}, want: []string{"-"}},
		{name: "at the threshold: no panic", servers: []S{server("a", S{}), server("b", S{}), server("c", S{}), server("d", S{})}, down: []string{"a", "b"}, panic: 0.5, want: []string{"c", "d"}},
		{name: "below the threshold: panic", servers: []S{server("a", S{}), server("b", S{}), server("c", S{}), server("d", S{})}, down: []string{"a", "b", "c"}, panic: 0.5, want: []string{"a", "b", "c", "d"}},
		{name: "all down, no threshold", servers: []S{server("a", S{}), server("b", S{})}, down: []string{"a", "b"}, panic: 0, want: []string{"-"}},
		{name: "threshold of all", servers: []S{server("a", S{}), server("b", S{})}, down: []string{"b"}, panic: 1, want: []string{"a", "b"}},
		{name: "threshold counts servers with a weight", servers: []S{server("a", S{}), server("b", S{}), server("c", S{Weight: -1}), server("d", S{Weight: -1})}, down: []string{"b"}, panic: 0.5, want: []string{"a"}},
		{name: "panic keeps to the lowest tier", servers: []S{server("a", S{}), server("b", S{Tier: 1})}, down: []string{"a", "b"}, panic: 0.5, want: []string{"a"}},
	}
	for _, test := range tests {
		for _, p := range policies {
			t.Run(test.name+"/"+p.String(), func(t *testing.T) {
				t.Parallel()
				g := newTestGroup(Options{Balance: p, Servers: test.servers, PanicThreshold: test.panic}, 1)
				for _, d := range test.down {
					g.setUp(d, false)
				}
				d := &Dial{}
				for _, name := range test.tried {
					for _, m := range g.members {
						if m.Name == name {
							d.tried[d.ntried] = m.Server
							d.ntried++
						}
					}
				}
				got := map[string]bool{}
				for range 300 {
					if m := g.pick(d, 0, 1); m != nil {
						got[m.Name] = true
						m.Release()
					} else {
						got["-"] = true
					}
				}
				want := map[string]bool{}
				for _, n := range test.want {
					want[n] = true
				}
				if !maps.Equal(got, want) {
					t.Errorf("got %v, want %v", got, want)
				}
				if n := g.active(); n != 0 {
					t.Errorf("%d leases left", n)
				}
			})
		}
	}
}

// The default weight is 1, not 0; the rest is package balance's.
func TestPickByWeight(t *testing.T) {
	t.Parallel()
	g := newTestGroup(Options{Balance: balance.RoundRobin, Servers: []ServerOptions{
		server("a", ServerOptions{}), server("b", ServerOptions{Weight: 3}), server("c", ServerOptions{Weight: -5}),
	}}, 1)
	if got := g.picks(400, 1, false); got["a"] != 100 || got["b"] != 300 {
		t.Error(got)
	}
}

func TestPickFullServers(t *testing.T) {
	t.Parallel()
	for _, p := range policies {
		g := newTestGroup(Options{Balance: p, Servers: []ServerOptions{
			server("a", ServerOptions{MaxConnections: 3}), server("b", ServerOptions{MaxConnections: 5, Weight: 100}),
			server("c", ServerOptions{MaxConnections: 2, Tier: 1}),
		}}, 1)
		if got, want := g.picks(8, 1, true), map[string]int{"a": 3, "b": 5}; !maps.Equal(got, want) {
			t.Errorf("%v: %v, want %v", p, got, want)
		}
		if got, want := g.picks(4, 1, true), map[string]int{"c": 2, "-": 2}; !maps.Equal(got, want) {
			t.Errorf("%v: when the first tier is full: %v, want %v", p, got, want)
		}
		g.members[0].Release()
		if m := g.pick(&Dial{}, 0, 1); m == nil || m.Name != "a" {
			t.Errorf("%v: a place that became free is not taken", p)
		}
		if n := g.active(); n != 10 {
			t.Errorf("%v: %d leases, want 10", p, n)
		}
	}
}

// Loops look at the load and lease in two steps; max_connections holds all the same.
func TestLeasesOfManyLoops(t *testing.T) {
	t.Parallel()
	const loops, rounds = 8, 2000
	limits := []int{1, 2, 5}
	for _, p := range policies {
		o := Options{Balance: p}
		for i, n := range limits {
			o.Servers = append(o.Servers, server(fmt.Sprint("s", i), ServerOptions{MaxConnections: n}))
		}
		g := newTestGroup(o, loops)
		held := make([]atomic.Int64, len(limits)) // leases that somebody thinks to have
		index := map[*Server]int{}
		for i, m := range g.members {
			index[m.Server] = i
		}
		var got atomic.Int64
		var wg sync.WaitGroup
		for loop := range loops {
			wg.Go(func() {
				d := &Dial{}
				for now := range int64(rounds) {
					m := g.pick(d, loop, now+1)
					if m == nil {
						continue
					}
					got.Add(1)
					i := index[m.Server]
					if n := held[i].Add(1); n > int64(limits[i]) {
						t.Errorf("%v: %d leases of %d", p, n, limits[i])
					}
					held[i].Add(-1)
					m.Release()
				}
			})
		}
		wg.Wait()
		if n := g.active(); n != 0 {
			t.Errorf("%v: %d leases left", p, n)
		}
		if got.Load() < rounds {
			t.Errorf("%v: only %d leases given", p, got.Load())
		}
	}
}

// A view is built anew only every rebuildPause, but who goes down is out at once.
func TestPickAfterChange(t *testing.T) {
	t.Parallel()
	const ms = int64(time.Millisecond)
	for _, p := range policies {
		g := newTestGroup(Options{Balance: p, Servers: []ServerOptions{server("a", ServerOptions{}), server("b", ServerOptions{})}}, 2)
		at := func(now int64, want ...string) {
			t.Helper()
			got := g.picks(100, now, false)
			for _, w := range want {
				if got[w] == 0 {
					t.Errorf("%v: nothing to %q at %d ms: %v", p, w, now/ms, got)
				}
				delete(got, w)
			}
			if len(got) > 0 {
				t.Errorf("%v: at %d ms also %v", p, now/ms, got)
			}
		}
		at(1*ms, "a", "b")
		g.setUp("a", false)
		at(1*ms, "b")
		at(30*ms, "b") // built without it
		g.setUp("a", true)
		at(31*ms, "b")      // the view is 1 ms old
		at(51*ms, "a", "b") // 21 ms
		g.setUp("a", false)
		g.setUp("b", false)
		at(52*ms, "-") // built at once, as it had nobody
		g.setUp("b", true)
		at(52*ms, "b") // likewise: an empty view does not wait
		// The other loop has its own view.
		if m := g.pick(&Dial{}, 1, 1*ms); m == nil || m.Name != "b" {
			t.Errorf("%v: loop 1 picked %v", p, m)
		}
	}
}

// Within the pause, too, panic begins when nobody else is left.
func TestPanicBeginsAtOnce(t *testing.T) {
	t.Parallel()
	g := newTestGroup(Options{PanicThreshold: 0.1, Servers: []ServerOptions{server("a", ServerOptions{}), server("b", ServerOptions{})}}, 1)
	g.picks(1, 1, false)
	g.setUp("a", false)
	g.setUp("b", false)
	if got := g.picks(100, 2, false); got["a"] == 0 || got["b"] == 0 || got["-"] != 0 {
		t.Error(got)
	}
	g.setUp("a", true)
	if got := g.picks(100, 2+int64(rebuildPause)+1, false); got["a"] != 100 {
		t.Errorf("after the end of the panic: %v", got)
	}
}
