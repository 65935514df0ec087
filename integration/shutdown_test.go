package integration

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// SIGTERM under load loses no request in flight: what a server has received
// is answered, connections that stay are served until their clients leave, and
// the process ends when the last has gone.
func TestTermUnderLoad(t *testing.T) {
	var received, answered atomic.Int64
	s := Serve(t, func(c Conn) {
		for in := bufio.NewScanner(c); in.Scan(); {
			received.Add(1)
			time.Sleep(5 * time.Millisecond) // a server that works on it
			fmt.Fprintf(c, "s0 %s\n", in.Text())
		}
	})
	p := Start(t, oneUpstream("", "", s.Addr()), WithProcess(`shutdown_timeout = "60s"`))
	addr := p.Addr("edge")
	var termed atomic.Bool
	var refused, lost atomic.Int64
	short := StartLoad(t, 8, func() error {
		_, err := ask(addr, "ping")
		if err == nil {
			answered.Add(1)
			return nil
		}
		if termed.Load() && errors.Is(err, syscall.ECONNREFUSED) {
			refused.Add(1)
			return nil
		}
		// Never accepted: a reset by the kernel, of a connection that was in
		// the queue when the socket closed, is told apart by what the server
		// received.
		lost.Add(1)
		return fmt.Errorf("after the signal: %v: %w", termed.Load(), err)
	})
	var stay sync.WaitGroup
	for range 20 {
		c := Dial(t, addr)
		stay.Go(func() {
			defer c.Close()
			in := bufio.NewReader(c)
			for i := 0; i < 30 || !termed.Load(); i++ {
				fmt.Fprintf(c, "%d\n", i)
				if line, err := in.ReadString('\n'); line != fmt.Sprintf("s0 %d\n", i) {
					t.Errorf("request %d of a connection that stays: %q, %v", i, line, err)
					return
				}
				answered.Add(1)
			}
		})
	}
	short.AwaitRequests(t, 100)
	termed.Store(true)
	p.Signal(syscall.SIGTERM)
	eventually(t, func() bool { return refused.Load() > 0 }, func() string { return "new connections are refused" })
	failures := short.Stop()
	stay.Wait()
	p.AwaitExit()
	if r, a := received.Load(), answered.Load(); r != a {
		t.Errorf("the server received %d requests, clients got %d answers", r, a)
	}
	for _, err := range failures {
		t.Errorf("a request failed: %v", err)
	}
	if stopping := p.note.count("STOPPING=1"); stopping != 1 {
		t.Errorf("%d times STOPPING=1", stopping)
	}
}

// Sessions that do not end by themselves are closed after shutdown_timeout.
func TestTermDrainsUntilTimeout(t *testing.T) {
	t.Parallel()
	p := Start(t, oneUpstream("", "", Serve(t, echo).Addr()), WithProcess(`shutdown_timeout = "2s"`))
	var held []Conn
	for range 5 {
		c := Dial(t, p.Addr("edge"))
		RoundTrip(t, c, "hello")
		held = append(held, c)
	}
	begin := time.Now()
	p.Signal(syscall.SIGTERM)
	addr := held[0].RemoteAddr().String()
	// A SYN that came while the queues were emptied is refused at its second
	// try, after a second.
	eventually(t, func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	}, func() string { return "new connections are refused" })
	RoundTrip(t, held[0], "served while draining")
	p.AwaitExit()
	if d := time.Since(begin); d < 1950*time.Millisecond || d > 12*time.Second {
		t.Errorf("it took %v to end, want a little over 2 s", d)
	}
	for _, c := range held {
		ExpectGone(t, c)
	}
	drained := 0
	for _, e := range p.AccessLog(5) {
		switch {
		case e.BytesIn == 0: // one that only tried whether the listener is still open
		case e.End == "drained" && e.Phase == "relay":
			drained++
		default:
			t.Errorf("%+v, want drained", e)
		}
	}
	if drained != len(held) {
		t.Errorf("%d of %d sessions were logged as drained", drained, len(held))
	}
}

// A second signal ends it at once.
func TestTermTwice(t *testing.T) {
	t.Parallel()
	for _, second := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(second.String(), func(t *testing.T) {
			t.Parallel()
			p := Start(t, oneUpstream("", "", Serve(t, echo).Addr()), WithProcess(`shutdown_timeout = "10m"`))
			c := Dial(t, p.Addr("edge"))
			RoundTrip(t, c, "hello")
			p.Signal(syscall.SIGTERM)
			eventually(t, func() bool { return p.note.count("STOPPING=1") == 1 }, func() string { return "STOPPING=1" })
			RoundTrip(t, c, "still here")
			begin := time.Now()
			p.Signal(second)
			p.AwaitExit()
			if d := time.Since(begin); d > 5*time.Second {
				t.Errorf("it took %v to end after the second signal", d)
			}
			ExpectGone(t, c)
		})
	}
}

// With nothing to wait for it ends at once, by SIGINT as by SIGTERM.
func TestTermIdle(t *testing.T) {
	t.Parallel()
	p := Start(t, oneUpstream("", "", Serve(t, echo).Addr()), WithProcess(`shutdown_timeout = "10m"`))
	begin := time.Now()
	p.Signal(syscall.SIGINT)
	p.AwaitExit()
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("it took %v to end", d)
	}
}

// A transfer in flight at SIGTERM is completed.
func TestTermCompletesTransfer(t *testing.T) {
	t.Parallel()
	const n = 128 * streamBlock
	content := newStream(7)
	s := Serve(t, func(c Conn) { content.Send(c, n) })
	p := Start(t, oneUpstream("", "", s.Addr()), WithProcess(`shutdown_timeout = "60s"`))
	c := Dial(t, p.Addr("edge"))
	first := make([]byte, streamPage)
	if _, err := io.ReadFull(c, first); err != nil {
		t.Fatal(err)
	}
	p.Signal(syscall.SIGTERM)
	eventually(t, func() bool { return p.note.count("STOPPING=1") == 1 }, func() string { return "STOPPING=1" })
	if err := content.Verify(io.MultiReader(bytes.NewReader(first), c), n); err != nil {
		t.Error(err)
	}
	c.Close()
	p.AwaitExit()
}
