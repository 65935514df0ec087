package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

// request is one connection with one request on it.
func request(addr string) func() error {
	return func() error {
		answer, err := ask(addr, "ping")
		if err == nil && !strings.HasSuffix(answer, " ping") {
			err = fmt.Errorf("answer %q", answer)
		}
		return err
	}
}

// conversation is a connection that stays and carries requests.
func conversation(addr string, requests int) func() error {
	return func() error {
		c, err := connect(addr)
		if err != nil {
			return err
		}
		defer c.Close()
		for i := range requests {
			line := fmt.Sprintf("request %d", i)
			if _, err := io.WriteString(c, line+"\n"); err != nil {
				return err
			}
			answer := make([]byte, len("s0 ")+len(line)+1)
			if _, err := io.ReadFull(c, answer); err != nil {
				return fmt.Errorf("request %d of a connection: %w", i, err)
			}
			if !strings.HasSuffix(string(answer), line+"\n") {
				return fmt.Errorf("answer %q to %q", answer, line)
			}
		}
		return nil
	}
}

func assertNoFailures(t *testing.T, l *Load) {
	t.Helper()
	if failures := l.Stop(); len(failures) > 0 {
		t.Errorf("%d of %d requests failed, the first with: %v", len(failures), l.Requests(), failures[0])
	}
}

// SIGHUP 200 times under load fails no request: connections wait in the
// queues of sockets that stay open, live ones go on.
func TestReloadUnderLoad(t *testing.T) {
	s := ServeNames(t, 3, func(name string) func(Conn) { return lines(name, 0) })
	bodies := []string{
		oneUpstream("", "", addrs(s)...),
		oneUpstream("", `balance = "least_conn"`, addrs(s[:2])...),
		oneUpstream("timeouts { idle = \"5m\" }\n limits { connections = 100000 }", `balance = "round_robin"`, addrs(s[1:])...),
		strings.Replace(oneUpstream("", "", addrs(s)...), "upstream = upstream.app",
			"route \"all\" {\n upstream = upstream.app\n }", 1),
	}
	p := Start(t, bodies[0])
	addr := p.Addr("edge")
	short, long := StartLoad(t, 4, request(addr)), StartLoad(t, 4, conversation(addr, 200))
	for i := range 200 {
		p.Reload(bodies[(i+1)%len(bodies)])
	}
	short.AwaitRequests(t, 50)
	assertNoFailures(t, short)
	assertNoFailures(t, long)
	t.Logf("%d short and %d long connections", short.Requests(), long.Requests())
	if got := p.Addr("edge"); got != addr {
		t.Errorf("the listener moved from %s to %s", addr, got)
	}
	// Signals that come faster than they can be served are not lost either.
	for range 50 {
		p.Signal(syscall.SIGHUP)
	}
	p.Reload(bodies[0])
	if got, err := ask(addr, "ping"); err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// A reload changes what new sessions get; live ones, counters, and the loads
// that least_conn goes by, survive.
func TestReloadKeepsWhatLives(t *testing.T) {
	t.Parallel()
	s := ServeNames(t, 3, named)
	p := Start(t, oneUpstream("", `balance = "least_conn"`, addrs(s[:2])...))
	addr := p.Addr("edge")
	held := hold(t, addr, 10)
	for _, c := range held["s1"] {
		c.Close()
	}
	p.AccessLog(5)
	before := p.Metrics()

	p.Reload(oneUpstream("timeouts { idle = \"2h\" }", `balance = "least_conn"`, addrs(s)...))
	for _, c := range held["s0"] {
		RoundTrip(t, c, "still alive")
	}
	after := p.Metrics()
	for _, name := range []string{"edgeproxy_sessions_total", "edgeproxy_session_ends_total", "edgeproxy_server_sessions_total",
		"edgeproxy_sessions_active", "edgeproxy_server_sessions_active"} {
		if a, b := before.Sum(name), after.Sum(name); a != b {
			t.Errorf("%s went from %v to %v", name, a, b)
		}
	}
	// s0 still has its 5, so the next ones go to s1 and the new s2.
	if got := counts(hold(t, addr, 8)); got["s1"] != 4 || got["s2"] != 4 {
		t.Errorf("%v, want 4 for s1 and s2 each", got)
	}

	// A server that is taken out keeps its sessions and gets no new ones.
	p.Reload(oneUpstream("", `balance = "least_conn"`, addrs(s[:1])...))
	for _, c := range held["s0"] {
		RoundTrip(t, c, "still alive")
	}
	if got := fetchName(t, addr); got != "s0" {
		t.Errorf("%q, want s0", got)
	}
}

// Routes of a live session are those of its beginning; those of a new one are
// the new ones.
func TestReloadChangesRoutes(t *testing.T) {
	t.Parallel()
	s := ServeNames(t, 2, named)
	body := func(i int) string {
		return fmt.Sprintf("listener \"tcp\" \"edge\" {\n address = \"127.0.0.1:0\"\n upstream = upstream.u%d\n}\nupstream \"u%[1]d\" {\n server \"a\" { address = %[2]q }\n}\n", i, s[i].Addr())
	}
	p := Start(t, body(0))
	addr := p.Addr("edge")
	c := Dial(t, addr)
	if got := ReadLine(t, c); got != "s0" {
		t.Fatal(got)
	}
	p.Reload(body(1))
	if got := fetchName(t, addr); got != "s1" {
		t.Errorf("new session: %q, want s1", got)
	}
	RoundTrip(t, c, "the old upstream is gone from the file, its session is not")
	c.Close()
	for _, e := range p.AccessLog(2) {
		if want := map[string]string{"u0": s[0].Addr(), "u1": s[1].Addr()}[e.Upstream]; e.ServerAddress != want {
			t.Errorf("%+v", e)
		}
	}
	p.Reload(body(0))
}

// A configuration with an error changes nothing, is logged with its place,
// and shows in the gauge until a good one comes.
func TestReloadRefusesInvalid(t *testing.T) {
	t.Parallel()
	s := Serve(t, named("app"))
	good := oneUpstream("", "", s.Addr())
	p := Start(t, good)
	addr := p.Addr("edge")
	held := Dial(t, addr)
	ReadLine(t, held)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, bad := range map[string]struct{ body, says string }{
		"syntax":            {good + "listener \"tcp\" {", "edge.hcl"},
		"unknown attribute": {strings.Replace(good, "upstream =", "upstraem =", 1), "upstraem"},
		"unknown reference": {strings.Replace(good, "upstream.app", "upstream.apq", 1), "apq"},
		"empty":             {"listener \"tcp\" \"edge\" {}", "edge"},
		// Found only when sockets are opened, with all else prepared.
		"port in use": {good + fmt.Sprintf("listener \"tcp\" \"second\" {\n address = [\"127.0.0.1:0\", %q]\n upstream = upstream.app\n}\n", taken.Addr()), taken.Addr().String()},
	} {
		log := p.ReloadFails(bad.body)
		if !strings.Contains(log, bad.says) {
			t.Errorf("%s: nothing about %q in the log: %s", name, bad.says, log)
		}
		RoundTrip(t, held, "not disturbed")
		if got := fetchName(t, addr); got != "app" {
			t.Errorf("%s: afterwards %q", name, got)
		}
	}
	if err := os.Remove(p.file); err != nil {
		t.Fatal(err)
	}
	p.SignalReload()
	if p.Metrics().Sum("edgeproxy_config_last_reload_successful") != 0 {
		t.Error("a reload without a file was successful")
	}
	stamp := p.Metrics().Sum("edgeproxy_config_last_reload_success_timestamp_seconds")
	p.Reload(good)
	if now := p.Metrics().Sum("edgeproxy_config_last_reload_success_timestamp_seconds"); now < stamp || stamp < 1.7e9 {
		t.Errorf("the time of the last good reload went from %v to %v", stamp, now)
	}
}

// Listeners that a reload adds open, those it removes close to new
// connections and let live sessions go on.
func TestReloadAddsAndRemovesListeners(t *testing.T) {
	t.Parallel()
	s := Serve(t, named("app"))
	one := oneUpstream("", "", s.Addr())
	two := one + "listener \"tcp\" \"second\" {\n address = [\"127.0.0.1:0\", \"[::1]:0\"]\n upstream = upstream.app\n}\n"
	p := Start(t, one)
	addr := p.Addr("edge")
	for range 3 {
		p.Reload(two)
		if got := p.Addr("edge"); got != addr {
			t.Fatalf("the first listener moved to %s", got)
		}
		second := p.Addrs("second")
		held := Dial(t, second[0])
		ReadLine(t, held)
		if got := fetchName(t, second[1]); got != "app" {
			t.Errorf("%q", got)
		}
		p.Reload(two)
		if again := p.Addrs("second"); again[0] != second[0] || again[1] != second[1] {
			t.Errorf("the listener with port 0 moved from %q to %q", second, again)
		}
		p.Reload(one)
		for _, a := range second {
			if c, err := net.Dial("tcp", a); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("a removed listener's address %s: %v %v", a, c, err)
			}
		}
		RoundTrip(t, held, "not disturbed")
		held.Close()
	}
	if got := fetchName(t, addr); got != "app" {
		t.Errorf("%q", got)
	}
}

// A listener that changes its address opens the new one and closes the old.
func TestReloadMovesAddress(t *testing.T) {
	t.Parallel()
	s := Serve(t, named("app"))
	first := FreePorts(t, 3)
	body := func(from, to int) string {
		return strings.Replace(oneUpstream("", "", s.Addr()), "127.0.0.1:0", fmt.Sprintf("127.0.0.1:%d-%d", from, to), 1)
	}
	p := Start(t, body(first, first+1))
	p.Reload(body(first+1, first+2))
	for i, open := range []bool{false, true, true} {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", first+i))
		if (err == nil) != open {
			t.Errorf("port %d of the range: %v, want it open: %v", i, err, open)
		}
		if err == nil {
			ReadLine(t, c.(Conn))
			c.Close()
		}
	}
}

// An address that is narrowed or widened overlaps with itself for a moment:
// the old socket goes only when the new one is there, and no connection is
// lost on the way.
func TestReloadWidensAddress(t *testing.T) {
	t.Parallel()
	s := ServeNames(t, 1, func(name string) func(Conn) { return lines(name, 0) })
	text := oneUpstream("", "", addrs(s)...)
	p := Start(t, text)
	_, port, err := net.SplitHostPort(p.Addr("edge"))
	if err != nil {
		t.Fatal(err)
	}
	load := StartLoad(t, 4, request(net.JoinHostPort("127.0.0.1", port)))
	for _, host := range []string{"0.0.0.0", "", "127.0.0.1", "0.0.0.0"} {
		load.AwaitRequests(t, 50)
		p.Reload(strings.Replace(text, `"127.0.0.1:0"`, fmt.Sprintf("%q", host+":"+port), 1))
	}
	load.AwaitRequests(t, 50)
	assertNoFailures(t, load)
}
