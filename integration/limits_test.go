package integration

import (
	"io"
	"math"
	"strings"
	"testing"
	"time"
)

func TestLimitConnections(t *testing.T) {
	t.Parallel()
	p := Start(t, oneUpstream("limits { connections = 3 }", "", Serve(t, named("app")).Addr()))
	addr := p.Addr("edge")
	var held []Conn
	for range 3 {
		c := Dial(t, addr)
		ReadLine(t, c)
		held = append(held, c)
	}
	for i := range 5 {
		ExpectGone(t, Dial(t, addr))
		p.LastEnd(i+1, "limited", "accept")
	}
	for _, c := range held {
		RoundTrip(t, c, "not disturbed")
	}
	held[0].Close()
	p.AccessLog(6)
	if got := fetchName(t, addr); got != "app" {
		t.Errorf("after one has left: %q", got)
	}
	if ends := p.Metrics().Ends("edge"); ends["limited"] != 5 {
		t.Errorf("ends %v, want 5 times limited", ends)
	}
}

func TestLimitConnectionsPerSource(t *testing.T) {
	t.Parallel()
	p := Start(t, oneUpstream("limits { connections_per_source = 2 }", "", Serve(t, named("app")).Addr()))
	addr := p.Addr("edge")
	var held []Conn
	for _, source := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.2"} {
		c := DialFrom(t, source, addr)
		ReadLine(t, c)
		held = append(held, c)
	}
	ExpectGone(t, DialFrom(t, "127.0.0.1", addr))
	ReadLine(t, DialFrom(t, "127.0.0.3", addr))
	p.LastEnd(1, "limited", "accept")
	held[0].Close()
	p.AccessLog(2)
	ReadLine(t, DialFrom(t, "127.0.0.1", addr))
}

// Of connections as fast as they can be made, the rate and one second's burst
// pass at most, and the rate at least.
func TestLimitRate(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limit   string
		sources []string
	}{
		"listener":   {`rate = "20/s"`, []string{"127.0.0.1"}},
		"per source": {`rate_per_source = "20/s"`, []string{"127.0.0.1", "127.0.0.2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := Start(t, oneUpstream("limits { "+c.limit+" }", "", Serve(t, named("app")).Addr()))
			addr := p.Addr("edge")
			for _, source := range c.sources {
				begin := time.Now()
				passed, limited := 0, 0
				for limited < 50 {
					conn := DialFrom(t, source, addr)
					if b, _ := io.ReadFull(conn, make([]byte, 4)); b == 4 {
						passed++
					} else {
						limited++
					}
					conn.Close()
				}
				seconds := time.Since(begin).Seconds()
				if most := 20*(seconds+1) + 1; float64(passed) > most || passed < 1 {
					t.Errorf("from %s %d passed in %.2f s, want 1 to %.0f", source, passed, seconds, most)
				}
			}
			if ends := p.Metrics().Ends("edge"); ends["limited"] < 50*len(c.sources) {
				t.Errorf("ends %v", ends)
			}
			// It recovers.
			eventually(t, func() bool { _, err := ask(addr, "x"); return err == nil },
				func() string { return "a connection passes again" })
		})
	}
}

// The bandwidth of one connection is the configured one within 15 %, in each
// direction, and another connection is not slowed down by it.
func TestLimitBandwidth(t *testing.T) {
	t.Parallel()
	const rate, n = 4 << 20, 3 * (4 << 20)
	in := make(chan time.Duration, 2)
	sink := Serve(t, func(c Conn) {
		io.ReadFull(c, make([]byte, rate/4))
		begin := time.Now()
		io.Copy(io.Discard, c)
		in <- time.Since(begin)
	})
	source := Serve(t, func(c Conn) {
		io.ReadFull(c, make([]byte, 1))
		c.Write(make([]byte, n))
	})
	check := func(t *testing.T, took time.Duration, bytes float64) {
		t.Helper()
		if got := bytes / took.Seconds(); math.Abs(got-rate) > 0.15*rate {
			t.Errorf("%.2f MiB/s, want %d ± 15 %%", got/(1<<20), rate>>20)
		}
	}
	t.Run("in", func(t *testing.T) {
		t.Parallel()
		p := Start(t, oneUpstream(`limits { bandwidth_in = "4MiB/s" }`, "", sink.Addr()))
		for range 2 {
			go func(c Conn) {
				c.Write(make([]byte, n))
				c.CloseWrite()
			}(Dial(t, p.Addr("edge")))
		}
		// The first quarter second fills the burst that a limit allows.
		for range 2 {
			check(t, <-in, n-rate/4)
		}
	})
	t.Run("out", func(t *testing.T) {
		t.Parallel()
		p := Start(t, oneUpstream(`limits { bandwidth_out = "4MiB/s" }`, "", source.Addr()))
		c := Dial(t, p.Addr("edge"))
		Send(t, c, "x")
		if _, err := io.ReadFull(c, make([]byte, rate/4)); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		got, err := io.Copy(io.Discard, c)
		if err != nil {
			t.Fatal(err)
		}
		check(t, time.Since(begin), float64(got))
	})
	t.Run("the other direction is free", func(t *testing.T) {
		t.Parallel()
		p := Start(t, oneUpstream(`limits { bandwidth_out = "1KiB/s" }`, "", Serve(t, discard).Addr()))
		c := Dial(t, p.Addr("edge"))
		Send(t, c, strings.Repeat("x", 32<<20))
		c.CloseWrite()
		ExpectEOF(t, c)
		if e := p.AccessLog(1)[0]; e.BytesIn != 32<<20 {
			t.Errorf("%d bytes in", e.BytesIn)
		}
	})
}
