package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// clientsBeyond opens more connections than the proxy may take at a time and
// asserts that it waits rather than drops or spins: the first ones are served
// without disturbance, the others as those leave.
func clientsBeyond(t *testing.T, p *Proxy, clients, least, most int) {
	t.Helper()
	addr := p.Addr("edge")
	waiting := make(chan Conn, clients)
	answered := make(chan Conn, clients)
	for i := range clients {
		c := Dial(t, addr)
		msg := fmt.Sprintf("client %d", i)
		Send(t, c, msg)
		waiting <- c
		go func() {
			got := make([]byte, len(msg))
			if n, err := c.Read(got); err != nil || string(got[:n]) != msg {
				t.Errorf("client %d: %q, %v", i, got[:n], err)
			}
			answered <- c
		}()
	}
	served := make([]Conn, 0, clients)
	for range least {
		served = append(served, <-answered)
	}
	// Full. Waiting costs nothing.
	begin := cpuTime(t, p.Pid())
	time.Sleep(1500 * time.Millisecond)
	if used := cpuTime(t, p.Pid()) - begin; used > 300*time.Millisecond {
		t.Errorf("%v of CPU in 1.5 s of waiting for room", used)
	}
	for len(answered) > 0 {
		served = append(served, <-answered)
	}
	if len(served) > most {
		t.Errorf("%d clients were served at a time, want ≤ %d", len(served), most)
	}
	for _, c := range served[:10] {
		RoundTrip(t, c, "not disturbed")
	}
	for done := 0; done < clients; done++ {
		if len(served) == 0 {
			select {
			case c := <-answered:
				served = append(served, c)
			case <-time.After(patience):
				t.Fatalf("%d of %d clients were served, then no more\n%v", done, clients, p.Metrics().Ends("edge"))
			}
		}
		served[0].Close()
		served = served[1:]
	}
	p.AccessLog(clients)
	if ends := p.Metrics().Ends("edge"); ends["client_closed"] != clients {
		t.Errorf("ends %v, want %d times client_closed", ends, clients)
	}
}

func TestMoreClientsThanMaxConnections(t *testing.T) {
	t.Parallel()
	p := Start(t, oneUpstream("", "", Serve(t, echo).Addr()), WithProcess("max_connections = 50"))
	clientsBeyond(t, p, 200, 50, 50)
}

// With as many connections allowed as there are descriptors at all, none are
// left for the servers: accept(2) and socket(2) fail with EMFILE.
func TestMoreClientsThanDescriptors(t *testing.T) {
	t.Parallel()
	t.Run("default", func(t *testing.T) {
		t.Parallel()
		p := Start(t, oneUpstream("", "", Serve(t, echo).Addr()), WithNoFile(256))
		if !strings.Contains(p.Log(), "max_connections") {
			t.Errorf("the limit in force is not printed at the start:\n%s", p.Log())
		}
		clientsBeyond(t, p, 400, 50, 128)
	})
	t.Run("max_connections too high", func(t *testing.T) {
		t.Parallel()
		p := Start(t, oneUpstream("", "", Serve(t, echo).Addr()), WithNoFile(256), WithProcess("max_connections = 100000"))
		clientsBeyond(t, p, 400, 50, 128)
	})
}
