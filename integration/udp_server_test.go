package integration

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// serverOf returns the server with a name of [ServeUDPNames].
func serverOf(t testing.TB, s []*UDPServer, name string) *UDPServer {
	t.Helper()
	for i := range s {
		if name == fmt.Sprint("s", i) {
			return s[i]
		}
	}
	t.Fatalf("no server %q", name)
	return nil
}

// The first datagram of a client is not lost when the server chosen for it is
// not there: another one gets it.
func TestUDPFirstDatagramFindsAServer(t *testing.T) {
	t.Parallel()
	s := ServeUDP(t, namedUDP("good"))
	p := Start(t, oneUDP("", `balance = "round_robin"`, refusedUDP(t), s.Addr(), refusedUDP(t)))
	addr := p.Addr("edge")
	retried := 0
	for i := range 30 {
		c := DialUDP(t, addr)
		if got := c.Ask(fmt.Sprint("only ", i)); got != "good" {
			t.Errorf("client %d was answered by %q", i, got)
		}
	}
	for _, e := range p.AccessLog(30) {
		if e.Server != "s1" || e.DatagramsIn != 1 || e.DatagramsOut != 1 {
			t.Errorf("%+v", e)
		}
		if e.Retries > 0 {
			retried++
		}
	}
	if retried < 10 {
		t.Errorf("%d of 30 sessions had to look for another server, want two thirds", retried)
	}
	if got := len(s.Got()); got != 30 {
		t.Errorf("the server got %d datagrams, want each of 30 once", got)
	}
	m := p.Metrics()
	for _, server := range []string{"s0", "s2"} {
		if n := m.Sum("edgeproxy_server_failures_total", "server", server, "reason", "refused"); n < 5 {
			t.Errorf("%s has refused %v times by its metric", server, n)
		}
	}
}

// Nobody is there: a client's datagram is tried with the servers there are, and
// then given up. It does not go round between them for ever.
func TestUDPAllServersRefuse(t *testing.T) {
	t.Parallel()
	p := Start(t, oneUDP("", "", refusedUDP(t), refusedUDP(t), refusedUDP(t)))
	c := DialUDP(t, p.Addr("edge"))
	for range 5 {
		c.Send("is anybody there")
		time.Sleep(200 * time.Millisecond) // time for it to go round
	}
	m := p.Metrics()
	if n := m.Sum("edgeproxy_server_failures_total", "reason", "refused"); n < 1 || n > 5*10 {
		t.Errorf("5 datagrams were refused %v times", n)
	}
	e := p.Session(c)
	if e.DatagramsIn != 5 || e.DatagramsOut != 0 || e.End != "idle_timeout" {
		t.Errorf("%+v", e)
	}
}

// A server that is gone in the middle of a session: by the second datagram
// after that at the latest another server answers, and the session is still
// the same one.
func TestUDPServerKilled(t *testing.T) {
	t.Parallel()
	s := ServeUDPNames(t, 3, namedUDP)
	p := Start(t, oneUDP("", "", udpAddrs(s)...))
	c := DialUDP(t, p.Addr("edge"))
	first := c.Ask("one")
	if again := c.Ask("two"); again != first {
		t.Fatalf("answered by %q, then by %q", first, again)
	}
	victim := serverOf(t, s, first)
	victim.Stop()
	c.Send("perhaps lost")
	p.Await(1, "edgeproxy_server_failures_total", "reason", "refused")
	c.Send("not lost")
	second, err := c.Receive()
	if strings.HasSuffix(second, " perhaps lost") {
		second, err = c.Receive()
	}
	second, rest, _ := strings.Cut(second, " ")
	if err != nil || second == first || rest != "not lost" {
		t.Fatalf("answered by %q with %q, %v; want another than %q", second, rest, err, first)
	}
	// It stays there when the first one comes back.
	victim.Restart()
	for range 5 {
		if got := c.Ask("three"); got != second {
			t.Errorf("answered by %q, then by %q", second, got)
		}
	}
	if n := len(serverOf(t, s, second).Sources()); n != 1 {
		t.Errorf("%d sessions at the second server, want 1", n)
	}
	e := p.Session(c)
	if e.Server != second || e.Retries != 1 || e.DatagramsIn != 9 || e.End != "idle_timeout" {
		t.Errorf("%+v", e)
	}
}

// on_down = "keep": the session waits for its server to come back.
func TestUDPServerKilledKeep(t *testing.T) {
	t.Parallel()
	s := ServeUDPNames(t, 3, namedUDP)
	p := Start(t, oneUDP("", `on_down = "keep"`, udpAddrs(s)...))
	c := DialUDP(t, p.Addr("edge"))
	name := c.Ask("one")
	server := serverOf(t, s, name)
	server.Stop()
	for i := range 5 {
		c.Send("lost")
		p.Await(float64(i+1), "edgeproxy_server_failures_total", "server", name, "reason", "refused")
	}
	c.ExpectNothing()
	server.Restart()
	if got := c.Ask("two"); got != name {
		t.Errorf("answered by %q, then by %q", name, got)
	}
	if n := len(server.Sources()); n != 1 {
		t.Errorf("the server saw %d sources, want the same one before and after", n)
	}
	if e := p.Session(c); e.Server != name || e.Retries != 0 {
		t.Errorf("%+v", e)
	}
}

const checkedByUDP = `
 health "udp" {
  send     = "check"
  expect   = "check"
  interval = "500ms"
  timeout  = "500ms"
  rise     = 1
  fall     = 1
 }
`

// Health by datagrams: a server that is there but does not answer gets no new
// sessions; on_down says what becomes of those it has.
func TestUDPHealth(t *testing.T) {
	t.Parallel()
	for onDown, attr := range map[string]string{"move": "", "keep": `on_down = "keep"`, "close": `on_down = "close"`} {
		t.Run(onDown, func(t *testing.T) {
			t.Parallel()
			var mute [2]atomic.Bool
			var s [2]*UDPServer
			for i := range s {
				named := namedUDP(fmt.Sprint("s", i))
				s[i] = ServeUDP(t, func(d Datagram) []string {
					if mute[i].Load() {
						return nil
					}
					return named(d)
				})
			}
			p := Start(t, oneUDP("timeouts { idle = \"10s\" }", attr+checkedByUDP, s[0].Addr(), s[1].Addr()), WithProcess(`shutdown_timeout = "1s"`))
			p.awaitUp("s0", true)
			p.awaitUp("s1", true)
			addr := p.Addr("edge")
			c := DialUDP(t, addr)
			name := c.Ask("one")
			victim, other := 0, "s1"
			if name == "s1" {
				victim, other = 1, "s0"
			}
			mute[victim].Store(true)
			p.awaitUp(name, false)
			for range 5 {
				if got := DialUDP(t, addr).Ask("new"); got != other {
					t.Errorf("a new session went to %q, which is down", got)
				}
			}
			if onDown == "close" {
				if e := p.Session(c); e.End != "server_down" || e.Phase != "relay" || e.Server != name {
					t.Errorf("%+v", e)
				}
			}
			if onDown == "keep" {
				c.Send("unheard")
				eventually(t, func() bool {
					return slices.ContainsFunc(s[victim].Got(), func(d Datagram) bool { return d.Payload == "unheard" })
				}, func() string { return "what is sent to a server that is down gets there" })
				mute[victim].Store(false)
				p.awaitUp(name, true)
				if got := c.Ask("two"); got != name {
					t.Errorf("answered by %q, want %q", got, name)
				}
				// Probes come from sources of their own; what matters is that
				// ours sent both.
				sent := map[string]bool{}
				for _, d := range s[victim].Got() {
					if d.Payload == "unheard" || d.Payload == "two" || d.Payload == "one" {
						sent[d.From.String()] = true
					}
				}
				if len(sent) != 1 {
					t.Errorf("the session came from %v, want one source", sent)
				}
				p.Term()
				return
			}
			if got := c.Ask("two"); got != other {
				t.Errorf("answered by %q, want %q", got, other)
			}
			mute[victim].Store(false)
			p.awaitUp(name, true)
			if got := c.Ask("three"); got != other {
				t.Errorf("answered by %q, want %q", got, other)
			}
			if onDown == "move" {
				p.Term()
				if e := p.Session(c); e.Server != other || e.DatagramsIn != 3 || e.DatagramsOut != 3 {
					t.Errorf("%+v", e)
				}
				return
			}
			p.Term()
		})
	}
}

// With no server to go to datagrams are dropped, and count.
func TestUDPNoServer(t *testing.T) {
	t.Parallel()
	s := ServeUDP(t, echoUDP)
	p := Start(t, oneUDP("", checkedByUDP, s.Addr()))
	p.awaitUp("s0", true)
	addr := p.Addr("edge")
	c := DialUDP(t, addr)
	c.RoundTrip("hello")
	s.Stop()
	p.awaitUp("s0", false)
	late := DialUDP(t, addr)
	for i := range 5 {
		late.Send("is anybody there")
		p.AwaitDrops(i+1, "no_server")
	}
	s.Restart()
	p.awaitUp("s0", true)
	late.RoundTrip("there you are")
	c.RoundTrip("me too")
	if n := len(p.AccessLog(2)); n != 2 {
		t.Errorf("%d sessions, want 2", n)
	}
}

// max_connections of a server counts sessions.
func TestUDPMaxConnectionsOfServer(t *testing.T) {
	t.Parallel()
	s := ServeUDPNames(t, 2, namedUDP)
	body := oneUDP("", "", udpAddrs(s)...)
	for _, a := range udpAddrs(s) {
		body = strings.Replace(body, fmt.Sprintf("{ address = %q }", a), fmt.Sprintf("{\n  address = %q\n  max_connections = 2\n }", a), 1)
	}
	p := Start(t, body)
	addr := p.Addr("edge")
	counts := map[string]int{}
	for range 4 {
		counts[DialUDP(t, addr).Ask("x")]++
	}
	if counts["s0"] != 2 || counts["s1"] != 2 {
		t.Errorf("sessions %v, want 2 of each", counts)
	}
	late := DialUDP(t, addr)
	late.Send("let me in")
	p.AwaitDrops(1, "no_server")
	p.Await(0, "edgeproxy_server_sessions_active")
	late.Ask("now there is room")
}
