package integration

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// udpTalk is clients that ask all the time, each at a moderate rate, and
// assert that all they ask is answered, in order, by one server.
type udpTalk struct {
	clients []*UDPClient
	asked   atomic.Int64
	stop    chan struct{}
	wg      sync.WaitGroup
}

// talkUDP starts clients; each has been answered once when it returns.
func talkUDP(t *testing.T, addr string, clients int) *udpTalk {
	t.Helper()
	talk := &udpTalk{stop: make(chan struct{})}
	for i := range clients {
		c := DialUDP(t, addr)
		name := c.Ask("hello")
		talk.clients = append(talk.clients, c)
		talk.wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-talk.stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
				text := fmt.Sprint("client ", i, " question ", n)
				if _, err := c.Write([]byte(text)); err != nil {
					t.Errorf("%s: %v", text, err)
					return
				}
				if got, err := c.Receive(); err != nil || got != name+" "+text {
					t.Errorf("%s: %s, %v; want the answer of %s", text, abridged(got), err, name)
					return
				}
				talk.asked.Add(1)
			}
		})
	}
	t.Cleanup(func() { talk.end() })
	return talk
}

func (talk *udpTalk) end() {
	select {
	case <-talk.stop:
	default:
		close(talk.stop)
	}
	talk.wg.Wait()
}

// Sessions go through any number of reloads: with the same id, from the same
// port towards the same server, and without the loss of a datagram, whatever
// changes around them.
func TestUDPSessionsSurviveReloads(t *testing.T) {
	const clients, reloads = 20, 100
	s := ServeUDPNames(t, 3, namedUDP)
	other := ServeUDP(t, echoUDP)
	second := fmt.Sprintf("listener \"udp\" \"second\" {\n address = [\"127.0.0.1:0\", \"[::1]:0\"]\n upstream = upstream.other\n}\n"+
		"upstream \"other\" {\n server \"a\" { address = %q }\n}\n", other.Addr())
	bodies := []string{
		oneUDP("", "", udpAddrs(s)...),
		oneUDP("", `balance = "least_conn"`, udpAddrs(s)...) + second,
		oneUDP("limits { connections = 1000 }\n timeouts { idle = \"5s\" }", `balance = "round_robin"`, udpAddrs(s)[1:]...),
		oneUDP("responses = 1", `balance = "maglev"`, udpAddrs(s)...) + second,
		strings.Replace(oneUDP("", "", udpAddrs(s)...), "upstream = upstream.app", "route \"all\" {\n upstream = upstream.app\n }", 1),
	}
	p := Start(t, bodies[0])
	addr := p.Addr("edge")
	talk := talkUDP(t, addr, clients)
	for i := range reloads {
		p.Reload(bodies[(i+1)%len(bodies)])
		if t.Failed() {
			break
		}
	}
	want := talk.asked.Load() + clients
	eventually(t, func() bool { return talk.asked.Load() >= want || t.Failed() }, func() string { return "questions are answered" })
	talk.end()
	asked := talk.asked.Load() + clients
	t.Logf("%d questions during %d reloads", asked, reloads)
	if got := p.Addr("edge"); got != addr {
		t.Errorf("the listener moved from %s to %s", addr, got)
	}
	var in, sources int
	for _, server := range s {
		in += len(server.Got())
		sources += len(server.Sources())
	}
	if in != int(asked) || sources != clients {
		t.Errorf("the servers got %d datagrams of %d sessions, want %d of %d", in, sources, asked, clients)
	}
	ids := map[string]bool{}
	var logged int64
	for _, c := range talk.clients {
		e := p.Session(c)
		ids[string(e.ID)] = true
		logged += e.DatagramsIn
		if e.DatagramsIn != e.DatagramsOut || e.Retries != 0 {
			t.Errorf("%+v", e)
		}
	}
	if len(ids) != clients || logged != asked {
		t.Errorf("%d ids with %d datagrams in the log, want %d with %d", len(ids), logged, clients, asked)
	}
	if drops := p.Metrics().Drops("edge"); len(drops) > 0 {
		t.Errorf("dropped %v", drops)
	}
}

// A reload changes what new sessions get: here `responses`, and the servers.
func TestUDPReloadIsForNewSessions(t *testing.T) {
	t.Parallel()
	s := ServeUDPNames(t, 2, namedUDP)
	p := Start(t, oneUDP("", "", s[0].Addr()))
	addr := p.Addr("edge")
	old := DialUDP(t, addr)
	old.Ask("one")
	p.Reload(strings.Replace(oneUDP("responses = 1", "", s[1].Addr()), `"s0"`, `"s1"`, 1))
	for range 3 {
		if got := old.Ask("two"); got != "s0" {
			t.Errorf("the old session is answered by %q", got)
		}
	}
	c := DialUDP(t, addr)
	if got := c.Ask("three"); got != "s1" {
		t.Errorf("a new session is answered by %q", got)
	}
	if e := p.Session(c); e.End != "responses_done" || e.Server != "s1" {
		t.Errorf("%+v", e)
	}
	if e := p.Session(old); e.End != "idle_timeout" || e.Server != "s0" || e.DatagramsIn != 4 {
		t.Errorf("%+v", e)
	}
}

// A listener that a reload takes out: its sessions go on until they end by
// themselves, and nobody else is taken. Put in again, it takes new ones.
func TestUDPReloadRemovesListener(t *testing.T) {
	t.Parallel()
	s := ServeUDP(t, namedUDP("app"))
	addr := fmt.Sprint("127.0.0.1:", FreePorts(t, 1))
	without := oneUDP("", "", s.Addr())
	with := without + fmt.Sprintf("listener \"udp\" \"second\" {\n address = %q\n timeouts { idle = \"4s\" }\n upstream = upstream.app\n}\n", addr)
	p := Start(t, with)
	old := DialUDP(t, addr)
	old.Ask("one")

	p.Reload(without)
	late := DialUDP(t, addr)
	for range 5 {
		late.Send("let me in")
		old.Ask("two") // has gone behind the other one through the same listener
	}
	late.ExpectNothing()
	if n := len(s.Sources()); n != 1 {
		t.Errorf("%d sessions at the server, want 1", n)
	}

	p.Reload(with)
	late.Ask("now")
	old.Ask("three")
	if n := len(s.Sources()); n != 2 {
		t.Errorf("%d sessions at the server, want 2", n)
	}

	p.Reload(without)
	for _, c := range []*UDPClient{old, late} {
		if e := p.Session(c); e.Listener != "second" || e.End != "idle_timeout" {
			t.Errorf("%+v", e)
		}
	}
	// With its last session the socket goes.
	eventually(t, func() bool {
		if _, err := old.Write([]byte("gone?")); errors.Is(err, syscall.ECONNREFUSED) {
			return true
		}
		old.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err := old.Read(make([]byte, 100))
		return errors.Is(err, syscall.ECONNREFUSED)
	}, func() string { return "the port of a removed listener is closed after its last session" })
}

// A listener that moves: sessions go on at the address where they began, new
// ones begin at the new one.
func TestUDPReloadMovesAddress(t *testing.T) {
	t.Parallel()
	s := ServeUDP(t, namedUDP("app"))
	first := FreePorts(t, 2)
	from, to := fmt.Sprint("127.0.0.1:", first), fmt.Sprint("127.0.0.1:", first+1)
	p := Start(t, udpAt(from, "", "", s.Addr()))
	talk := talkUDP(t, from, 3)
	p.Reload(udpAt(to, "", "", s.Addr()))
	late := DialUDP(t, from)
	late.Send("let me in")
	DialUDP(t, to).Ask("at the new address")
	want := talk.asked.Load() + 30
	eventually(t, func() bool { return talk.asked.Load() >= want || t.Failed() }, func() string { return "sessions go on" })
	late.ExpectNothing()
	if n := len(s.Sources()); n != 4 {
		t.Errorf("%d sessions at the server, want 4", n)
	}
	// And back again, while the old sessions live.
	p.Reload(udpAt(from, "", "", s.Addr()))
	late.Ask("now")
	talk.end()
	for _, c := range talk.clients {
		if e := p.Session(c); e.End != "idle_timeout" || e.DatagramsIn != e.DatagramsOut {
			t.Errorf("%+v", e)
		}
	}
}

// Sockets are in a group that the kernel hashes over: another number of
// workers would scatter sessions, so a reload does not change it.
func TestUDPReloadRefusesWorkers(t *testing.T) {
	t.Parallel()
	s := ServeUDP(t, namedUDP("app"))
	body := oneUDP("", "", s.Addr())
	p := Start(t, body)
	talk := talkUDP(t, p.Addr("edge"), 10)
	p.Expect("workers")
	for _, workers := range []int{3, 1} {
		p.head = strings.Replace(p.head, "workers = 2", fmt.Sprint("workers = ", workers), 1)
		from := len(p.Log())
		p.write(body)
		p.SignalReload()
		if log := p.Log()[from:]; !strings.Contains(log, "workers") || !strings.Contains(log, "restart") {
			t.Errorf("%d workers: nothing about them and a restart in the log: %s", workers, log)
		}
		want := talk.asked.Load() + 20
		eventually(t, func() bool { return talk.asked.Load() >= want || t.Failed() }, func() string { return "sessions go on" })
		m := p.Metrics()
		if !m.Has("edgeproxy_loop_sessions", "loop", "1") || m.Has("edgeproxy_loop_sessions", "loop", "2") {
			t.Errorf("the number of loops is not 2 after a reload with %d workers", workers)
		}
		p.head = strings.Replace(p.head, fmt.Sprint("workers = ", workers), "workers = 2", 1)
	}
	talk.end()
	if n := len(s.Sources()); n != 10 {
		t.Errorf("%d sessions at the server, want 10", n)
	}
	p.Reload(body)
}

// SIGTERM: sessions that are busy go on and are answered, silent ones end as
// drained, new ones are not taken, and the process ends with the last.
func TestUDPTerm(t *testing.T) {
	t.Parallel()
	s := ServeUDP(t, namedUDP("app"))
	p := Start(t, oneUDP("timeouts { idle = \"1h\" }", "", s.Addr()), WithProcess(`shutdown_timeout = "60s"`))
	addr := p.Addr("edge")
	silent := DialUDP(t, addr)
	silent.Ask("only one")
	talk := talkUDP(t, addr, 5)
	p.Signal(syscall.SIGTERM)
	eventually(t, func() bool { return p.note.count("STOPPING=1") == 1 }, func() string { return "STOPPING=1" })
	if e := p.Session(silent); e.End != "drained" || e.Phase != "relay" {
		t.Errorf("%+v", e)
	}
	late := DialUDP(t, addr)
	late.Send("let me in")
	want := talk.asked.Load() + 50
	eventually(t, func() bool { return talk.asked.Load() >= want || t.Failed() }, func() string { return "questions are answered while draining" })
	late.ExpectNothing()
	talk.end()
	begin := time.Now()
	p.AwaitExit()
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("it took %v to end after the last session fell silent", d)
	}
	for _, c := range talk.clients {
		if e := p.Session(c); e.End != "drained" || e.DatagramsIn != e.DatagramsOut {
			t.Errorf("%+v", e)
		}
	}
	if n := len(s.Sources()); n != 6 {
		t.Errorf("%d sessions at the server, want 6", n)
	}
}

// Sessions that do not fall silent are ended after shutdown_timeout.
func TestUDPTermUntilTimeout(t *testing.T) {
	t.Parallel()
	s := ServeUDP(t, echoUDP)
	p := Start(t, oneUDP("", "", s.Addr()), WithProcess(`shutdown_timeout = "3s"`))
	c := DialUDP(t, p.Addr("edge"))
	c.RoundTrip("hello")
	begin := time.Now()
	p.Signal(syscall.SIGTERM)
	go func() {
		for tick := time.NewTicker(50 * time.Millisecond); ; <-tick.C {
			if _, err := c.Write([]byte("still here")); err != nil {
				return // the process has gone, or the test
			}
			select {
			case <-p.exited:
				return
			default:
			}
		}
	}()
	p.AwaitExit()
	if d := time.Since(begin); d < 2950*time.Millisecond || d > 12*time.Second {
		t.Errorf("it took %v to end, want a little over 3 s", d)
	}
	if e := p.Session(c); e.End != "drained" || e.DatagramsIn < 10 {
		t.Errorf("%+v", e)
	}
}
