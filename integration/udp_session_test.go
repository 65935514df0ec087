package integration

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

func TestUDPIdleTimeout(t *testing.T) {
	t.Parallel()
	s := ServeUDP(t, echoUDP)
	p := Start(t, oneUDP(`timeouts { idle = "1500ms" }`, "", s.Addr()))
	once := DialUDP(t, p.Addr("edge"))
	once.RoundTrip("x")
	e := p.Session(once)
	if e.End != "idle_timeout" || e.Phase != "relay" {
		t.Errorf("ended with %s in %s", e.End, e.Phase)
	}
	took(t, e, 1490*time.Millisecond, 5*time.Second)
	// The same client begins another session.
	once.RoundTrip("y")
	if len(s.Sources()) != 2 {
		t.Errorf("the server saw %v, want two sessions", s.Sources())
	}

	// Datagrams in either direction keep a session: the server's …
	c := DialUDP(t, p.Addr("edge"))
	c.RoundTrip("hello")
	got := s.Got()
	session := got[len(got)-1].From
	for range 30 {
		time.Sleep(100 * time.Millisecond) // a server that has something to tell now and then
		s.Push(session, "tick")
		c.Expect("tick")
	}
	// … and the client's.
	for range 30 {
		time.Sleep(100 * time.Millisecond) // a client that thinks
		c.RoundTrip("still here")
	}
	if e := p.Session(c); e.End != "idle_timeout" || e.DatagramsIn != 31 || e.DatagramsOut != 61 {
		t.Errorf("%+v", e)
	}
	if ends := p.Metrics().Ends("edge"); ends["idle_timeout"] != 3 {
		t.Errorf("ends %v", ends)
	}
}

// Without a word in the file a session may be idle for 30 s: it is still there
// after far more than those of others (3 s, 1 s).
func TestUDPIdleTimeoutOfDefault(t *testing.T) {
	t.Parallel()
	s := ServeUDP(t, echoUDP)
	p := Start(t, oneUDP("timeouts {}", "", s.Addr()), WithProcess(`shutdown_timeout = "1s"`))
	c := DialUDP(t, p.Addr("edge"))
	c.RoundTrip("x")
	time.Sleep(6 * time.Second) // that nothing happens meanwhile is the point
	c.RoundTrip("y")
	if len(s.Sources()) != 1 {
		t.Errorf("the server saw %v, want one session", s.Sources())
	}
	p.Term()
}

func TestUDPLifetime(t *testing.T) {
	t.Parallel()
	s := ServeUDP(t, echoUDP)
	p := Start(t, oneUDP(`timeouts { lifetime = "700ms" }`, "", s.Addr()))
	c := DialUDP(t, p.Addr("edge"))
	// Busy all the time. An answer that comes after the end is lost.
	eventually(t, func() bool {
		c.Send("x")
		c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		c.Read(make([]byte, 10))
		return len(s.Sources()) == 3
	}, func() string { return "a third session" })
	for _, e := range p.AccessLog(3) {
		if e.End != "lifetime" || e.Phase != "relay" || e.Source != c.Source() {
			t.Errorf("%+v", e)
		}
		took(t, e, 690*time.Millisecond, 5*time.Second)
	}
	if ends := p.Metrics().Ends("edge"); ends["lifetime"] != 3 {
		t.Errorf("ends %v", ends)
	}
}

// With responses a session ends when each datagram of the client has had so
// many answers; the next one may go to another server.
func TestUDPResponses(t *testing.T) {
	t.Parallel()
	for _, responses := range []int{1, 3} {
		t.Run(fmt.Sprint(responses), func(t *testing.T) {
			t.Parallel()
			s := []*UDPServer{ServeUDP(t, timesUDP(responses)), ServeUDP(t, timesUDP(responses))}
			p := Start(t, oneUDP(fmt.Sprintf("responses = %d", responses), `balance = "round_robin"`, udpAddrs(s)...))
			c := DialUDP(t, p.Addr("edge"))
			const rounds = 10
			for i := range rounds {
				text := fmt.Sprint("request ", i)
				c.Send(text)
				for j := range responses {
					c.Expect(fmt.Sprint(j, " ", text))
				}
				p.Await(float64(i+1), "edgeproxy_session_ends_total", "reason", "responses_done")
			}
			for i, server := range s {
				if n, sources := len(server.Got()), len(server.Sources()); n != rounds/2 || sources != rounds/2 {
					t.Errorf("server %d got %d datagrams of %d sessions, want %d of as many", i, n, sources, rounds/2)
				}
			}
			for _, e := range p.AccessLog(rounds) {
				if e.End != "responses_done" || e.Phase != "relay" || e.DatagramsIn != 1 || e.DatagramsOut != int64(responses) {
					t.Errorf("%+v", e)
				}
			}
		})
	}
}

// Answers that are owed to datagrams still under way keep a session, and
// silence ends it by time.
func TestUDPResponsesOfSeveralRequests(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var waiting []string
	s := ServeUDP(t, func(d Datagram) (out []string) {
		mu.Lock()
		defer mu.Unlock()
		if waiting = append(waiting, d.Payload); len(waiting) == 5 { // answers only then, all of them
			out, waiting = waiting, nil
		}
		return out
	})
	p := Start(t, oneUDP("responses = 1", "", s.Addr()))
	c := DialUDP(t, p.Addr("edge"))
	for range 3 {
		for i := range 5 {
			c.Send(fmt.Sprint(i))
		}
		for i := range 5 {
			c.Expect(fmt.Sprint(i))
		}
	}
	p.Await(3, "edgeproxy_session_ends_total", "reason", "responses_done")
	for i := range 4 {
		c.Send(fmt.Sprint(i))
	}
	for i, want := range []Entry{
		{End: "responses_done", DatagramsIn: 5, DatagramsOut: 5}, {End: "responses_done", DatagramsIn: 5, DatagramsOut: 5},
		{End: "responses_done", DatagramsIn: 5, DatagramsOut: 5}, {End: "idle_timeout", DatagramsIn: 4},
	} {
		if e := p.AccessLog(4)[i]; e.End != want.End || e.DatagramsIn != want.DatagramsIn || e.DatagramsOut != want.DatagramsOut {
			t.Errorf("session %d: %+v, want %+v", i, e, want)
		}
	}
}

// With requests so many datagrams make a session. The next one begins another,
// while the answers of the first still find the client.
func TestUDPRequests(t *testing.T) {
	t.Parallel()
	s := ServeUDPNames(t, 2, namedUDP)
	p := Start(t, oneUDP("requests = 3", `balance = "round_robin"`, udpAddrs(s)...))
	c := DialUDP(t, p.Addr("edge"))
	counts := map[string]int{}
	for i := range 12 {
		counts[c.Ask(fmt.Sprint(i))]++
	}
	if counts["s0"] != 6 || counts["s1"] != 6 {
		t.Errorf("answers of %v, want 6 of each", counts)
	}
	for i, server := range s {
		for from, n := range server.Sources() {
			if n != 3 {
				t.Errorf("server %d got %d datagrams of the session from %v, want 3", i, n, from)
			}
		}
		server.Push(server.Got()[0].From, "late") // of a session that has had its requests
		c.Expect("late")
	}
	for _, e := range p.AccessLog(4) {
		if e.End != "idle_timeout" || e.DatagramsIn != 3 || e.Source != c.Source() {
			t.Errorf("%+v", e)
		}
	}
}

// A train that the kernel hands over in one piece is still counted datagram by
// datagram.
func TestUDPRequestsOfATrain(t *testing.T) {
	t.Parallel()
	s := ServeUDP(t, echoUDP)
	p := Start(t, oneUDP("requests = 4", "", s.Addr()))
	c := DialUDP(t, p.Addr("edge"))
	text := randomText(950)
	c.SendTrain(100, text)
	received := map[string]bool{} // sessions are not in order among each other
	for range 10 {
		got, err := c.Receive()
		if err != nil {
			t.Fatal(err)
		}
		received[got] = true
	}
	for i := range 10 {
		if d := text[100*i : min(100*i+100, len(text))]; !received[d] {
			t.Errorf("datagram %d did not come back", i)
		}
	}
	counts := map[int64]int{}
	for _, e := range p.AccessLog(3) {
		counts[e.DatagramsIn]++
	}
	if counts[4] != 2 || counts[2] != 1 {
		t.Errorf("sessions by their datagrams: %v, want two of 4 and one of 2", counts)
	}
}
