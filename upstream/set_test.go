package upstream

import (
	"fmt"
	"testing"
	"time"

	"edgeproxy/health"
)

// verdicts hears of changes as "name up" or "name down".
type verdicts chan string

func (v verdicts) ServerChanged(s *Server, up bool, _ error) {
	if up {
		v <- s.Name + " up"
	} else {
		v <- s.Name + " down"
	}
}

func (verdicts) ServerResolved(*Server, string, error) {}

func newEnv(t *testing.T) (*Env, verdicts) {
	v := make(verdicts, 100)
	checks := health.NewScheduler()
	t.Cleanup(checks.Close)
	return &Env{Loops: 2, Checks: checks, Events: v}, v
}

func (g *Group) member(name string) *member {
	for _, m := range g.members {
		if m.Name == name {
			return m
		}
	}
	return nil
}

// commit prepares and commits, and closes the set when the test ends.
func commit(t *testing.T, env *Env, old *Set, opts ...Options) *Set {
	s, _ := Prepare(env, old, opts)
	s.Commit(old)
	t.Cleanup(s.Close)
	return s
}

func TestServersSurviveReloads(t *testing.T) {
	t.Parallel()
	env, _ := newEnv(t)
	web := Options{Name: "web", Servers: []ServerOptions{at("a", "10.0.0.1:80", 0), at("b", "10.0.0.2:80", 0), at("c", "10.0.0.3:80", 0)}}
	db := Options{Name: "db", Servers: []ServerOptions{at("a", "10.0.0.1:80", 0)}}
	one := commit(t, env, nil, web, db)
	if one.Group("nobody") != nil || one.Group("web") == nil {
		t.Error("Group looks up wrongly")
	}
	was := one.Group("web")
	was.member("a").lease(0)
	was.member("a").sessions.Add(7)
	was.connect.Observe(time.Millisecond)

	changed := web
	changed.Servers = []ServerOptions{
		at("c", "10.0.0.9:80", 0), // moved: another server
		at("b", "10.0.0.2:80", 1), // of another tier: the same
		at("a", "10.0.0.1:80", 0),
		at("a2", "10.0.0.1:80", 0), // renamed: another
	}
	changed.OnDown = CloseSessions
	two, _ := Prepare(env, one, []Options{db, changed})
	if got := was.member("a").OnDown(); got != OnDownDefault {
		t.Error("a prepared set is in force before Commit")
	}
	two.Commit(one)
	t.Cleanup(two.Close)
	now := two.Group("web")
	if two.Group("db") != one.Group("db") {
		t.Error("an unchanged group is another one")
	}
	if now == was {
		t.Fatal("a changed group is the same one")
	}
	for name, same := range map[string]bool{"a": true, "b": true, "c": false} {
		if got := now.member(name).Server == was.member(name).Server; got != same {
			t.Errorf("%s: the same server: %v", name, got)
		}
	}
	a := now.member("a")
	if a.Active() != 1 || a.stats(a.opts).Sessions != 7 || count(now) != 1 {
		t.Error("something of a kept server was forgotten")
	}
	if a.OnDown() != CloseSessions {
		t.Error("a kept server follows the old options")
	}
	if now.member("a2").Server == a.Server || one.Group("db").member("a").Server == a.Server {
		t.Error("servers of the same address share their state")
	}
	stats := two.Stats()
	if len(stats) != 2 || stats[0].Name != "db" || stats[1].Name != "web" || stats[1].Servers[1].Name != "b" {
		t.Errorf("stats are not in the order of the configuration: %+v", stats)
	}
	if was.member("c").OnDown() != OnDownDefault {
		t.Error("a removed server follows the new options")
	}
}

// Prepare of a changed configuration that is given up leaves no trace.
func TestPreparedSetIsGivenUp(t *testing.T) {
	t.Parallel()
	env, _ := newEnv(t)
	o := Options{Name: "web", Servers: []ServerOptions{at("a", "10.0.0.1:80", 0)}}
	one := commit(t, env, nil, o)
	o.OnDown = CloseSessions
	o.Health = []health.Options{{Interval: time.Hour}}
	Prepare(env, one, []Options{o})
	m := one.Group("web").member("a")
	if m.watching != nil || m.OnDown() != OnDownDefault || m.group.Load() != one.Group("web") {
		t.Error("Prepare has changed a running server")
	}
}

// Verdicts reach the group that is in force.
func TestCommitMovesVerdicts(t *testing.T) {
	t.Parallel()
	env, events := newEnv(t)
	o := Options{Name: "web", Servers: []ServerOptions{at("a", "10.0.0.1:80", 0), at("b", "10.0.0.2:80", 0)}}
	one := commit(t, env, nil, o)
	one.Group("web").picks(1, 1, false)
	o.Retries = 5
	two := commit(t, env, one, o)
	g := two.Group("web")
	sv := g.member("a").Server
	sv.setUp(env, false, nil)
	g.picks(1, 1, false)
	sv.setUp(env, true, nil)
	sv.setUp(env, true, nil) // no news
	if got := g.picks(50, 1+2*int64(rebuildPause), false); got["a"] == 0 {
		t.Errorf("after a came up: %v", got)
	}
	if got := []string{<-events, <-events}; fmt.Sprint(got) != "[a down a up]" || len(events) != 0 {
		t.Errorf("events %v and %d more", got, len(events))
	}
}

func TestChecksFollowReloads(t *testing.T) {
	env, events := newEnv(t)
	l := listen(t, "tcp", "127.0.0.1:0")
	hourly := []health.Options{{Interval: time.Hour, Fall: 1}}
	closed := closedPort(t)
	o := Options{Name: "web", Health: hourly, Servers: []ServerOptions{
		at("down", closed, 0), at("gone", closed, 0), at("up", l.Addr().String(), 0),
	}}
	one := commit(t, env, nil, o)
	got := map[string]bool{<-events: true, <-events: true}
	if !got["down down"] || !got["gone down"] {
		t.Fatal(got)
	}
	g := one.Group("web")
	down, gone, up := g.member("down").Server, g.member("gone").Server, g.member("up").Server
	if !up.Up() || down.Up() {
		t.Error("wrong verdicts")
	}
	if st := down.stats(ServerOptions{}); st.Checks.Failed != 1 || st.LastErr == "" || st.Up {
		t.Errorf("%+v", st)
	}
	watching := down.watching

	// One server removed, the rest unchanged but for something else.
	o.Retries, o.Servers = 9, []ServerOptions{o.Servers[0], o.Servers[2]}
	two := commit(t, env, one, o)
	if gone.watching != nil {
		t.Error("a removed server is still checked")
	}
	if down.watching != watching || down.Up() {
		t.Error("unchanged checks have begun anew")
	}

	// Other checks: what was known stays known until they say otherwise.
	o.Health = []health.Options{{Interval: time.Hour, Fall: 1, Rise: 2}}
	three := commit(t, env, two, o)
	if down.watching == watching || down.Up() {
		t.Error("changed checks forget that the server was down")
	}

	// None: servers count as up, and that is told.
	o.Health = nil
	four := commit(t, env, three, o)
	if got := <-events; got != "down up" || !down.Up() || down.watching != nil || up.watching != nil {
		t.Errorf("event %q, up %v", got, down.Up())
	}

	// The whole upstream is removed; checked again before that.
	o.Health = hourly
	five := commit(t, env, four, o)
	if got := <-events; got != "down down" {
		t.Error(got)
	}
	commit(t, env, five, Options{Name: "other"})
	if down.watching != nil || up.watching != nil || five.Group("web").resolving != nil {
		t.Error("a removed upstream is still checked or looked up")
	}
}
