package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// names is a name server, and hears of events.
type names struct {
	mu     sync.Mutex
	addrs  map[string][]string
	events []string
}

func (n *names) set(host string, addrs ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.addrs == nil {
		n.addrs = map[string][]string{}
	}
	n.addrs[host] = addrs
}

var errNoName = errors.New("no such host")

func (n *names) lookup(_ context.Context, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	as, ok := n.addrs[host]
	if !ok || slices.Contains(as, "error") {
		return nil, errNoName
	}
	var out []netip.Addr
	for _, a := range as {
		out = append(out, netip.MustParseAddr(a))
	}
	return out, nil
}

func (n *names) ServerChanged(*Server, bool, error) {}

func (n *names) ServerResolved(s *Server, addr string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		addr = "error"
	}
	n.events = append(n.events, s.Name+" "+addr)
}

// told returns the events since it was last asked.
func (n *names) told() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.events
	n.events = nil
	return fmt.Sprint(e)
}

// useNames replaces the resolver. Tests that do are not parallel.
func useNames(t *testing.T) *names {
	n := &names{}
	before := lookup
	lookup = n.lookup
	t.Cleanup(func() { lookup = before })
	return n
}

func named(name, host string) ServerOptions {
	return ServerOptions{Name: name, Address: Address{Host: host, Port: 80}}
}

func TestResolve(t *testing.T) {
	n := useNames(t)
	s := newServer("web", named("a", "h"))
	for i, step := range []struct {
		answer  []string
		want    string // address in use afterwards; "": none
		changed bool
		err     bool
	}{
		{answer: []string{"error"}, err: true},
		{answer: nil, err: true},
		{answer: []string{"2001:db8::1", "10.0.0.9", "10.0.0.2"}, want: "10.0.0.2:80", changed: true},
		{answer: []string{"10.0.0.1", "10.0.0.2"}, want: "10.0.0.2:80"}, // stays while it is among the answers
		{answer: []string{"::ffff:10.0.0.2"}, want: "10.0.0.2:80"},
		{answer: []string{"error"}, want: "10.0.0.2:80", err: true},
		{answer: nil, want: "10.0.0.2:80", err: true},
		{answer: []string{"10.0.0.4", "10.0.0.3"}, want: "10.0.0.3:80", changed: true},
		{answer: []string{"2001:db8::2", "2001:db8::1"}, want: "[2001:db8::1]:80", changed: true},
	} {
		n.set("h", step.answer...)
		changed, err := s.resolve(t.Context())
		got := ""
		if e := s.endpoint.Load(); e != nil {
			got = e.text
		}
		if got != step.want || changed != step.changed || (err != nil) != step.err {
			t.Errorf("step %d, %v: in use %q, changed %v, %v", i, step.answer, got, changed, err)
		}
	}
	if s.AddressText() != "[2001:db8::1]:80" || s.stats(ServerOptions{}).Resolved != "[2001:db8::1]:80" {
		t.Error("the address in use is not the one told")
	}
}

func pickName(g *Group, now time.Duration) string {
	m := g.pick(&Dial{}, 0, int64(now))
	if m == nil {
		return "-"
	}
	m.Release()
	return m.Name
}

func TestKeepResolving(t *testing.T) {
	n := useNames(t)
	synctest.Test(t, func(t *testing.T) {
		set, _ := Prepare(&Env{Loops: 1, Events: n}, nil, []Options{{Name: "web", Resolve: time.Second, Servers: []ServerOptions{named("a", "h")}}})
		set.Commit(nil)
		defer set.Close()
		if got := n.told(); got != "[a error]" {
			t.Errorf("told at the start: %v", got)
		}
		g := set.Group("web")
		now := time.Duration(1)
		for i, step := range []struct {
			answer, told, picked string
		}{
			{"error", "[]", "-"}, // told already
			{"error", "[]", "-"},
			{"10.0.0.1", "[a 10.0.0.1:80]", "a"},
			{"10.0.0.1", "[]", "a"},
			{"error", "[a error]", "a"}, // the address stays
			{"error", "[]", "a"},
			{"10.0.0.1", "[a 10.0.0.1:80]", "a"}, // has one again
			{"10.0.0.2", "[a 10.0.0.2:80]", "a"},
		} {
			n.set("h", step.answer)
			time.Sleep(time.Second)
			synctest.Wait()
			now += time.Second
			if told, picked := n.told(), pickName(g, now); told != step.told || picked != step.picked {
				t.Errorf("step %d: told %v, picked %v", i, told, picked)
			}
		}
	})
}

// A look-up of a reload that is then given up changes servers which the
// running set uses too: that set must not overlook it.
func TestResolvedByAnotherSet(t *testing.T) {
	n := useNames(t)
	synctest.Test(t, func(t *testing.T) {
		env := &Env{Loops: 1, Events: n}
		o := Options{Name: "web", Servers: []ServerOptions{named("a", "h")}}
		set, _ := Prepare(env, nil, []Options{o})
		set.Commit(nil)
		defer set.Close()
		if got := pickName(set.Group("web"), 1); got != "-" {
			t.Errorf("picked %v before the name had an address", got)
		}
		n.set("h", "10.0.0.1")
		o.Retries = 7
		Prepare(env, set, []Options{o}) // and not committed
		if got := pickName(set.Group("web"), 1+2*rebuildPause); got != "a" {
			t.Errorf("picked %v", got)
		}
	})
}

// A start waits for name servers that do not answer, but not for long.
func TestFirstLookupIsBounded(t *testing.T) {
	n := useNames(t)
	lookup = func(ctx context.Context, _ string) ([]netip.Addr, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	synctest.Test(t, func(t *testing.T) {
		o := Options{Name: "web"}
		for i := range 200 {
			o.Servers = append(o.Servers, named(fmt.Sprint(i), fmt.Sprint("h", i)))
		}
		begun := time.Now()
		set, _ := Prepare(&Env{Loops: 1, Events: n}, nil, []Options{o})
		if d := time.Since(begun); d != firstLookup {
			t.Errorf("took %v", d)
		}
		set.Commit(nil)
		begun = time.Now()
		time.Sleep(DefaultResolve + time.Second) // a look-up is under way
		set.Close()
		if d := time.Since(begun); d != DefaultResolve+time.Second {
			t.Errorf("Close waited for a look-up: %v", d)
		}
	})
}
