package integration

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// checked is a server that answers health checks with a status that the test
// sets, and other requests with its name.
type checked struct {
	*Server
	status atomic.Int64
	body   atomic.Value // string
	probes atomic.Int64
	last   atomic.Value // *http.Request
}

func serveChecked(t testing.TB, name string) *checked {
	c := &checked{}
	c.status.Store(200)
	c.body.Store("ok")
	c.Server = Serve(t, func(conn Conn) {
		r := bufio.NewReader(conn)
		first, err := r.Peek(4)
		if err != nil {
			return
		}
		if string(first) == "NAME" {
			fmt.Fprintln(conn, name)
			discard(conn)
			return
		}
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		c.last.Store(req)
		c.probes.Add(1)
		body := c.body.Load().(string)
		fmt.Fprintf(conn, "HTTP/1.1 %d Whatever\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", c.status.Load(), len(body), body)
	})
	return c
}

func (p *Proxy) awaitUp(server string, up bool) {
	p.t.Helper()
	want := 0.0
	if up {
		want = 1
	}
	p.Await(want, "edgeproxy_server_up", "upstream", "app", "server", server)
}

const httpHealth = `balance = "round_robin"
 health "http" {
  path          = "/healthz"
  host          = "app.example.com"
  expect_status = "200-299"
  expect_body   = "ok"
  interval      = "100ms"
  timeout       = "2s"
  rise          = 2
  fall          = 3
 }
`

// A server whose checks fail gets no new session from that moment on, and
// gets them again when its checks pass; in between the other one serves.
func TestHealthHTTP(t *testing.T) {
	t.Parallel()
	a, b := serveChecked(t, "s0"), serveChecked(t, "s1")
	p := Start(t, oneUpstream("", httpHealth, a.Addr(), b.Addr()))
	addr := p.Addr("edge")
	names := func() map[string]int {
		got := map[string]int{}
		for range 10 {
			name, err := ask(addr, "NAME")
			if err != nil {
				t.Error(err)
			}
			got[name]++
		}
		return got
	}
	p.awaitUp("s0", true)
	p.awaitUp("s1", true)
	if got := names(); got["s0"] == 0 || got["s1"] == 0 {
		t.Errorf("with both up: %v", got)
	}
	if r := a.last.Load().(*http.Request); r.Host != "app.example.com" || r.URL.Path != "/healthz" || r.Method != "GET" {
		t.Errorf("the check asks for %s http://%s%s", r.Method, r.Host, r.URL.Path)
	}

	for _, fault := range []struct {
		name   string
		set    func()
		repair func()
	}{
		{"status 500", func() { a.status.Store(500) }, func() { a.status.Store(200) }},
		{"redirect", func() { a.status.Store(302) }, func() { a.status.Store(201) }},
		{"wrong body", func() { a.body.Store("no") }, func() { a.body.Store("all is ok") }},
		{"gone", a.Stop, a.Restart},
	} {
		before := a.probes.Load()
		fault.set()
		p.awaitUp("s0", false)
		if n := a.probes.Load() - before; fault.name != "gone" && n < 3 {
			t.Errorf("%s: down after %d failed checks, want 3", fault.name, n)
		}
		if got := names(); got["s0"] > 0 {
			t.Errorf("%s: a server that is down took %d sessions", fault.name, got["s0"])
		}
		before = a.probes.Load()
		fault.repair()
		p.awaitUp("s0", true)
		if n := a.probes.Load() - before; n < 2 {
			t.Errorf("%s: up after %d passed checks, want 2", fault.name, n)
		}
		if got := names(); got["s0"] == 0 {
			t.Errorf("%s: no session for a server that is up again", fault.name)
		}
	}
	m := p.Metrics()
	if n := m.Sum("edgeproxy_health_checks_total", "server", "s0"); n < 20 {
		t.Errorf("edgeproxy_health_checks_total is %v", n)
	}
}

// A TCP check sends and expects.
func TestHealthTCP(t *testing.T) {
	t.Parallel()
	var healthy atomic.Bool
	healthy.Store(true)
	s := Serve(t, func(c Conn) {
		line, _ := bufio.NewReader(c).ReadString('\n')
		switch {
		case line == "PING\r\n" && healthy.Load():
			io.WriteString(c, "+PONG\r\n")
		case line == "PING\r\n":
			io.WriteString(c, "-LOADING\r\n")
		default:
			io.WriteString(c, "name\n")
		}
	})
	const check = ` health "tcp" {
  send     = "PING\r\n"
  expect   = "+PONG"
  interval = "100ms"
  rise     = 1
  fall     = 2
 }`
	p := Start(t, oneUpstream("", check, s.Addr()))
	p.awaitUp("s0", true)
	if got, err := ask(p.Addr("edge"), "NAME"); got != "name" {
		t.Errorf("%q, %v", got, err)
	}
	healthy.Store(false)
	p.awaitUp("s0", false)
	ExpectGone(t, Dial(t, p.Addr("edge")))
	p.LastEnd(2, "no_server", "connect")
	healthy.Store(true)
	p.awaitUp("s0", true)
	if got, err := ask(p.Addr("edge"), "NAME"); got != "name" {
		t.Errorf("%q, %v", got, err)
	}
}

// A plain TCP check is a connect, and a server that is refused goes down.
func TestHealthTCPConnect(t *testing.T) {
	t.Parallel()
	s := ServeNames(t, 2, named)
	const check = "health \"tcp\" {\n interval = \"100ms\"\n fall = 2\n rise = 1\n}"
	p := Start(t, oneUpstream("", check, addrs(s)...))
	s[1].Stop()
	p.awaitUp("s1", false)
	for range 10 {
		if got := fetchName(t, p.Addr("edge")); got != "s0" {
			t.Errorf("%q", got)
		}
	}
	for _, e := range p.AccessLog(10) {
		if e.Retries > 0 {
			t.Errorf("a server that is down was tried: %+v", e)
		}
	}
	s[1].Restart()
	p.awaitUp("s1", true)
}

// Live sessions of a server that goes down go on, or are closed, as on_down says.
func TestHealthOnDown(t *testing.T) {
	t.Parallel()
	for _, onDown := range []string{"keep", "close"} {
		t.Run(onDown, func(t *testing.T) {
			t.Parallel()
			a, b := serveChecked(t, "s0"), serveChecked(t, "s1")
			p := Start(t, oneUpstream("", httpHealth+"on_down = \""+onDown+"\"\n", a.Addr(), b.Addr()), WithWorkers(2))
			held := map[string][]Conn{}
			for range 8 {
				c := Dial(t, p.Addr("edge"))
				Send(t, c, "NAME\n")
				name := ReadLine(t, c)
				held[name] = append(held[name], c)
			}
			if len(held) != 2 {
				t.Fatalf("held %v", counts(held))
			}
			a.status.Store(503)
			p.awaitUp("s0", false)
			if onDown == "close" {
				for _, c := range held["s0"] {
					ExpectGone(t, c)
				}
				for _, e := range p.AccessLog(len(held["s0"])) {
					if e.End != "server_down" || e.Phase != "relay" || e.Server != "s0" {
						t.Errorf("%+v", e)
					}
				}
			}
			kept := held["s1"]
			if onDown == "keep" {
				kept = append(kept, held["s0"]...)
			}
			for _, c := range kept {
				Send(t, c, "more") // discarded by the server
				c.CloseWrite()
				ExpectEOF(t, c)
			}
			for _, e := range p.AccessLog(8) {
				if want := "client_closed"; e.End != want && (onDown == "keep" || e.Server == "s1") {
					t.Errorf("%+v, want %s", e, want)
				}
			}
		})
	}
}

// When fewer servers than panic_threshold are usable, health is ignored;
// without one, sessions end with no_server.
func TestHealthPanicThreshold(t *testing.T) {
	t.Parallel()
	for threshold, serves := range map[string]bool{"0%": false, "50%": true} {
		t.Run(threshold, func(t *testing.T) {
			t.Parallel()
			a, b := serveChecked(t, "s0"), serveChecked(t, "s1")
			attrs := httpHealth
			if serves {
				attrs += fmt.Sprintf("panic_threshold = %q\n", threshold)
			}
			p := Start(t, oneUpstream("", attrs, a.Addr(), b.Addr()))
			a.status.Store(500)
			b.status.Store(500)
			p.awaitUp("s0", false)
			p.awaitUp("s1", false)
			if serves {
				if got, err := ask(p.Addr("edge"), "NAME"); !strings.HasPrefix(got, "s") {
					t.Errorf("%q, %v", got, err)
				}
				return
			}
			ExpectGone(t, Dial(t, p.Addr("edge")))
			p.LastEnd(1, "no_server", "connect")
		})
	}
}
