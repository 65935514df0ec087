package integration

import (
	"io"
	"slices"
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
// direction, and another connection is not slowed down by it. A machine that
// is busy otherwise may hold it up, so of three tries one must reach the rate;
// none may exceed it.
func TestLimitBandwidth(t *testing.T) {
	t.Parallel()
	const rate, n = 4 << 20, 2 * (4 << 20)
	// The first quarter of a second fills the burst that a limit allows.
	timed := func(r io.Reader) float64 {
		if _, err := io.ReadFull(r, make([]byte, rate/4)); err != nil {
			return 0
		}
		begin := time.Now()
		got, _ := io.Copy(io.Discard, r)
		return float64(got) / time.Since(begin).Seconds()
	}
	check := func(t *testing.T, try func() []float64) {
		t.Helper()
		var all []float64
		for range 3 {
			rates := try()
			all = append(all, rates...)
			if most := slices.Max(rates); most > 1.15*rate {
				t.Fatalf("%.2f MiB/s, want at most %d + 15 %%", most/(1<<20), rate>>20)
			}
			if slices.Min(rates) > 0.85*rate {
				return
			}
		}
		t.Errorf("%.0f bytes per second, want %d ± 15 %%", all, rate)
	}
	t.Run("in", func(t *testing.T) {
		t.Parallel()
		in := make(chan float64, 2)
		s := Serve(t, func(c Conn) { in <- timed(c) })
		p := Start(t, oneUpstream(`limits { bandwidth_in = "4MiB/s" }`, "", s.Addr()))
		check(t, func() []float64 {
			for range 2 {
				go func(c Conn) {
					c.Write(make([]byte, n))
					c.CloseWrite()
				}(Dial(t, p.Addr("edge")))
			}
			return []float64{<-in, <-in}
		})
	})
	t.Run("out", func(t *testing.T) {
		t.Parallel()
		s := Serve(t, func(c Conn) { c.Write(make([]byte, n)) })
		p := Start(t, oneUpstream(`limits { bandwidth_out = "4MiB/s" }`, "", s.Addr()))
		check(t, func() []float64 { return []float64{timed(Dial(t, p.Addr("edge")))} })
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
