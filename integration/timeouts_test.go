package integration

import (
	"io"
	"strings"
	"testing"
	"time"
)

func took(t *testing.T, e Entry, least, most time.Duration) {
	t.Helper()
	if d := time.Duration(e.DurationMS * float64(time.Millisecond)); d < least || d > most {
		t.Errorf("the session lasted %v, want %v to %v", d, least, most)
	}
}

func TestTimeoutIdle(t *testing.T) {
	t.Parallel()
	p := Start(t, oneUpstream(`timeouts { idle = "600ms" }`, "", Serve(t, echo).Addr()))
	// A client that connects and says nothing, and one that stops talking.
	silent, once := Dial(t, p.Addr("edge")), Dial(t, p.Addr("edge"))
	RoundTrip(t, once, "x")
	ExpectGone(t, silent)
	ExpectGone(t, once)
	for i := range 2 {
		p.LastEnd(i+1, "idle_timeout", "relay")
		took(t, p.AccessLog(2)[i], 590*time.Millisecond, 5*time.Second)
	}

	// Bytes in either direction keep it alive.
	busy := Dial(t, p.Addr("edge"))
	begin := time.Now()
	for time.Since(begin) < 1500*time.Millisecond {
		RoundTrip(t, busy, "still here")
		time.Sleep(100 * time.Millisecond) // a client that thinks
	}
	busy.Close()
	p.LastEnd(3, "client_closed", "relay")
}

// A client that receives without ever sending is not idle.
func TestTimeoutIdleOneDirection(t *testing.T) {
	t.Parallel()
	s := Serve(t, func(c Conn) {
		for range 15 {
			io.WriteString(c, "tick")
			time.Sleep(100 * time.Millisecond) // a slow server
		}
	})
	p := Start(t, oneUpstream(`timeouts { idle = "600ms" }`, "", s.Addr()))
	c := Dial(t, p.Addr("edge"))
	Expect(t, c, strings.Repeat("tick", 15))
	ExpectEOF(t, c)
	c.Close()
	p.LastEnd(1, "server_closed", "relay")
}

func TestTimeoutLifetime(t *testing.T) {
	t.Parallel()
	p := Start(t, oneUpstream(`timeouts { lifetime = "700ms" }`, "", Serve(t, echo).Addr()))
	c := Dial(t, p.Addr("edge"))
	for {
		if _, err := c.Write([]byte("x")); err != nil {
			break
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			break
		}
		time.Sleep(5 * time.Millisecond) // a client that thinks
	}
	e := p.LastEnd(1, "lifetime", "relay")
	took(t, e, 690*time.Millisecond, 5*time.Second)
}

func TestTimeoutHalfClose(t *testing.T) {
	t.Parallel()
	t.Run("the client has finished, the server does not", func(t *testing.T) {
		t.Parallel()
		done := make(chan struct{})
		s := Serve(t, func(c Conn) { discard(c); <-done })
		t.Cleanup(func() { close(done) }) // before the server waits for its handlers
		p := Start(t, oneUpstream(`timeouts { half_close = "500ms" }`, "", s.Addr()))
		c := Dial(t, p.Addr("edge"))
		c.CloseWrite()
		ExpectGone(t, c)
		took(t, p.LastEnd(1, "half_close_timeout", "relay"), 490*time.Millisecond, 5*time.Second)
	})
	t.Run("the server has finished, the client does not", func(t *testing.T) {
		t.Parallel()
		s := Serve(t, func(c Conn) { c.CloseWrite(); discard(c) })
		p := Start(t, oneUpstream(`timeouts { half_close = "500ms" }`, "", s.Addr()))
		ExpectEOF(t, Dial(t, p.Addr("edge")))
		p.LastEnd(1, "half_close_timeout", "relay")
	})
	t.Run("bytes the other way count", func(t *testing.T) {
		t.Parallel()
		s := Serve(t, func(c Conn) {
			discard(c)
			for range 12 {
				io.WriteString(c, "tick")
				time.Sleep(100 * time.Millisecond) // a slow server
			}
		})
		p := Start(t, oneUpstream(`timeouts { half_close = "600ms" }`, "", s.Addr()))
		c := Dial(t, p.Addr("edge"))
		c.CloseWrite()
		Expect(t, c, strings.Repeat("tick", 12))
		ExpectEOF(t, c)
		p.LastEnd(1, "client_closed", "relay")
	})
}

// With a server that hangs in connect, whichever is shorter ends the session:
// the time for one attempt, or that for all of the way to a server.
func TestTimeoutConnectAndHandshake(t *testing.T) {
	t.Parallel()
	hanging := Hanging(t)
	t.Run("connect_timeout", func(t *testing.T) {
		t.Parallel()
		p := Start(t, oneUpstream("", "connect_timeout = \"300ms\"\n retries = 1", hanging))
		ExpectGone(t, Dial(t, p.Addr("edge")))
		e := p.LastEnd(1, "connect_timeout", "connect")
		took(t, e, 590*time.Millisecond, 5*time.Second)
		if e.Retries != 1 || e.Server != "s0" || e.Error == "" {
			t.Errorf("%+v", e)
		}
		if n := p.Metrics().Sum("edgeproxy_server_failures_total", "server", "s0", "reason", "timeout"); n != 2 {
			t.Errorf("%v failures by timeout, want 2", n)
		}
	})
	t.Run("handshake", func(t *testing.T) {
		t.Parallel()
		p := Start(t, oneUpstream(`timeouts { handshake = "400ms" }`, `connect_timeout = "20s"`, hanging))
		ExpectGone(t, Dial(t, p.Addr("edge")))
		took(t, p.LastEnd(1, "handshake_timeout", "connect"), 390*time.Millisecond, 5*time.Second)
	})
	t.Run("the client leaves meanwhile", func(t *testing.T) {
		t.Parallel()
		p := Start(t, oneUpstream(`timeouts { handshake = "25s" }`, "connect_timeout = \"25s\"", hanging))
		c := Dial(t, p.Addr("edge"))
		p.Await(1, "edgeproxy_sessions_active")
		reset(c)
		took(t, p.LastEnd(1, "client_reset", "connect"), 0, 10*time.Second)
	})
}
