package health

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

var errBad = errors.New("bad")

// script is a fake probe: it gives its results in order, the last one for ever.
type script struct {
	mu      sync.Mutex
	results []error
	starts  []time.Duration
	begun   time.Time
	takes   time.Duration
}

func (p *script) probe(ctx context.Context, _ *Options, _ Target) error {
	p.mu.Lock()
	p.starts = append(p.starts, time.Since(p.begun))
	err := p.results[0]
	if len(p.results) > 1 {
		p.results = p.results[1:]
	}
	p.mu.Unlock()
	select {
	case <-time.After(p.takes):
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func somewhere() (Target, bool) { return Target{Network: "tcp", Address: "192.0.2.1:1"}, true }

func TestReports(t *testing.T) {
	type report struct {
		up, changed bool
		err         error
	}
	good, bad := error(nil), errBad
	for _, c := range []struct {
		name    string
		known   State
		results []error
		want    []report
	}{
		{"one success confirms", Unknown, []error{good, bad, bad, good, bad, bad, bad, good, good},
			[]report{{true, false, good}, {true, false, bad}, {true, false, bad}, {true, false, good}, {true, false, bad}, {true, false, bad}, {false, true, bad}, {false, false, good}, {true, true, good}}},
		{"one failure is enough at first", Unknown, []error{bad, good, bad, good, good},
			[]report{{false, true, bad}, {false, false, good}, {false, false, bad}, {false, false, good}, {true, true, good}}},
		{"known to be up", Up, []error{bad, bad, bad}, []report{{true, false, bad}, {true, false, bad}, {false, true, bad}}},
		{"known to be down", Down, []error{good, good}, []report{{false, false, good}, {true, true, good}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &script{results: c.results, begun: time.Now(), takes: 3 * time.Millisecond}
				s := newScheduler(p.probe)
				defer s.Close()
				var got []report
				done := make(chan struct{})
				w := s.Add([]Options{{}}, somewhere, c.known, func(r Report) {
					if r.Duration != p.takes || r.Check != "tcp" {
						t.Errorf("report %+v", r)
					}
					if got = append(got, report{r.Up, r.Changed, r.Err}); len(got) == len(c.want) {
						close(done)
					}
				})
				<-done
				w.Stop()
				if !slices.Equal(got, c.want) {
					t.Errorf("got  %v\nwant %v", got, c.want)
				}
			})
		})
	}
}

func TestRhythm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &script{results: []error{nil}, begun: time.Now()}
		s := newScheduler(p.probe)
		defer s.Close()
		s.Add([]Options{{Interval: 10 * time.Second}}, somewhere, Unknown, func(Report) {})
		time.Sleep(time.Hour)
		synctest.Wait()
		if p.starts[0] != 0 {
			t.Errorf("first probe after %v, want at once", p.starts[0])
		}
		least, most, sum := time.Hour, time.Duration(0), time.Duration(0)
		for i := range p.starts[1:] {
			d := p.starts[i+1] - p.starts[i]
			least, most, sum = min(least, d), max(most, d), sum+d
		}
		if least < 9*time.Second || most > 11*time.Second+tick {
			t.Errorf("between %v and %v apart, want 9–11 s", least, most)
		}
		if least > 9500*time.Millisecond || most < 10500*time.Millisecond {
			t.Errorf("between %v and %v apart: no jitter", least, most)
		}
		if mean := sum / time.Duration(len(p.starts)-1); mean < 9800*time.Millisecond || mean > 10200*time.Millisecond {
			t.Errorf("%v apart on average, want 10 s", mean)
		}
	})
}

func TestProbesOfOneCheckDoNotOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &script{results: []error{nil}, begun: time.Now(), takes: 3 * time.Second}
		s := newScheduler(p.probe)
		defer s.Close()
		s.Add([]Options{{Interval: time.Second, Timeout: time.Minute}}, somewhere, Unknown, func(Report) {})
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if want := []time.Duration{0, 3 * time.Second, 6 * time.Second, 9 * time.Second}; !slices.Equal(p.starts, want) {
			t.Errorf("started at %v, want %v", p.starts, want)
		}
	})
}

func TestAllChecksMustPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tcpFails, httpFails atomic.Bool
		s := newScheduler(func(_ context.Context, o *Options, _ Target) error {
			if o.Kind == TCP && tcpFails.Load() || o.Kind == HTTP && httpFails.Load() {
				return errBad
			}
			return nil
		})
		defer s.Close()
		var up atomic.Bool
		var flips []string
		up.Store(true)
		s.Add([]Options{{Kind: TCP, Fall: 1, Rise: 1}, {Kind: HTTP, Fall: 1, Rise: 1}}, somewhere, Unknown, func(r Report) {
			if r.Changed != (up.Swap(r.Up) != r.Up) {
				t.Errorf("%+v says the wrong thing about a change", r)
			}
			if r.Changed {
				flips = append(flips, fmt.Sprint(r.Check, r.Up))
			}
		})
		for _, step := range []struct{ tcp, http, up bool }{
			{false, false, true}, {true, false, false}, {true, true, false}, {false, true, false}, {false, false, true},
		} {
			tcpFails.Store(step.tcp)
			httpFails.Store(step.http)
			time.Sleep(6 * time.Second)
			synctest.Wait()
			if up.Load() != step.up {
				t.Errorf("%+v: up is %v", step, up.Load())
			}
		}
		if want := []string{"tcpfalse", "httptrue"}; !slices.Equal(flips, want) {
			t.Errorf("flips %v, want %v", flips, want)
		}
	})
}

func TestUnresolvedServerIsNotJudged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &script{results: []error{errBad}, begun: time.Now()}
		s := newScheduler(p.probe)
		defer s.Close()
		var resolved atomic.Bool
		reports := make(chan Report, 1)
		s.Add([]Options{{Interval: time.Minute}}, func() (Target, bool) { return Target{}, resolved.Load() }, Unknown, func(r Report) {
			select {
			case reports <- r:
			default:
			}
		})
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(reports) > 0 || len(p.starts) > 0 {
			t.Error("a server without an address was probed")
		}
		resolved.Store(true)
		at := time.Now()
		if r := <-reports; r.Up || !r.Changed {
			t.Errorf("first report %+v", r)
		}
		if took := time.Since(at); took > 1100*time.Millisecond {
			t.Errorf("first probe %v after the address was known", took)
		}
	})
}

func TestManyBeginSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &script{results: []error{nil}, begun: time.Now(), takes: time.Millisecond}
		s := newScheduler(p.probe)
		defer s.Close()
		const n = 5000
		for range n {
			s.Add([]Options{{}}, somewhere, Unknown, func(Report) {})
		}
		time.Sleep(550 * time.Millisecond)
		synctest.Wait()
		if len(p.starts) < n {
			t.Errorf("%d of %d have begun after a tenth of the interval", len(p.starts), n)
		}
		at := func(from, to time.Duration) (count int) {
			p.mu.Lock()
			defer p.mu.Unlock()
			for _, d := range p.starts {
				if d >= from && d < to {
					count++
				}
			}
			return count
		}
		if c := at(0, 50*time.Millisecond); c > n/5 {
			t.Errorf("%d begin in the first 50 ms", c)
		}
		time.Sleep(20 * time.Second)
		for from := 6 * time.Second; from < 15*time.Second; from += time.Second {
			if c := at(from, from+time.Second); c < n/5*7/10 || c > n/5*13/10 {
				t.Errorf("%d probes in the second from %v, want about %d", c, from, n/5)
			}
		}
	})
}

func TestProbesInFlightAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most, total atomic.Int64
		s := newScheduler(func(ctx context.Context, o *Options, _ Target) error {
			total.Add(1)
			if n := now.Add(1); n > most.Load() {
				most.Store(n) // racy, but all of them start long before any ends
			}
			defer now.Add(-1)
			<-ctx.Done()
			return ctx.Err()
		})
		defer s.Close()
		for range 3 * MaxProbes {
			s.Add([]Options{{Interval: 2 * time.Second, Timeout: 2 * time.Second}}, somewhere, Unknown, func(Report) {})
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if most.Load() != MaxProbes {
			t.Errorf("%d probes at one time, want %d", most.Load(), MaxProbes)
		}
		// Every slot is used again as soon as it is free, and none is lost.
		if total.Load() < 5*MaxProbes {
			t.Errorf("%d probes in 11 s, want at least %d", total.Load(), 5*MaxProbes)
		}
	})
}

func TestStop(t *testing.T) {
	t.Run("breaks off a probe and is silent", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := &script{results: []error{nil}, takes: time.Second}
			s := newScheduler(p.probe)
			defer s.Close()
			w := s.Add([]Options{{}}, somewhere, Unknown, func(Report) { t.Error("report after Stop") })
			time.Sleep(time.Millisecond)
			w.Stop()
			w.Stop()
			synctest.Wait()
			if s.inFlight != 0 || len(s.queue) != 0 || s.fresh != 0 {
				t.Errorf("left over: %d in flight, %d queued, %d fresh", s.inFlight, len(s.queue), s.fresh)
			}
			time.Sleep(time.Minute)
		})
	})
	t.Run("waits for a report", func(t *testing.T) {
		s := newScheduler((&script{results: []error{nil}}).probe)
		defer s.Close()
		inside, finish := make(chan struct{}), make(chan struct{})
		finished := false
		w := s.Add([]Options{{}}, somewhere, Unknown, func(Report) {
			close(inside)
			<-finish
			finished = true
		})
		<-inside
		go func() {
			for range 1000 {
				runtime.Gosched() // let Stop come first
			}
			close(finish)
		}()
		w.Stop()
		if !finished {
			t.Error("Stop did not wait for the report")
		}
	})
	t.Run("within a report, its own and another's", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newScheduler((&script{results: []error{nil}}).probe)
			defer s.Close()
			var ws [2]*Watch
			var both sync.WaitGroup
			both.Add(2)
			ready := make(chan struct{})
			count := 0
			var mu sync.Mutex
			for i := range ws {
				ws[i] = s.Add([]Options{{}, {Kind: HTTP}}, somewhere, Unknown, func(Report) {
					<-ready
					mu.Lock()
					count++
					mu.Unlock()
					both.Done()
					both.Wait() // both are within a report now
					ws[1-i].Stop()
					ws[i].Stop()
				})
			}
			close(ready)
			time.Sleep(time.Minute)
			synctest.Wait()
			if count != 2 {
				t.Errorf("%d reports, want one of each", count)
			}
		})
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &script{results: []error{nil}, takes: time.Second}
		s := newScheduler(p.probe)
		for range 50 {
			s.Add([]Options{{}}, somewhere, Unknown, func(Report) { t.Error("report of a probe that was broken off") })
		}
		time.Sleep(10 * time.Millisecond)
		s.Close()
		s.Add([]Options{{}}, somewhere, Unknown, func(Report) { t.Error("report after Close") }).Stop()
		s.Close()
	})
}

// TestConcurrentUse is for the race detector.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	s := newScheduler(func(context.Context, *Options, Target) error { return nil })
	var g sync.WaitGroup
	for range 4 {
		g.Go(func() {
			for range 100 {
				var stopped atomic.Bool
				reported := make(chan struct{}, 100)
				w := s.Add([]Options{{Interval: time.Millisecond}, {Interval: time.Millisecond}}, somewhere, Up, func(Report) {
					if stopped.Load() {
						t.Error("report after Stop")
					}
					select {
					case reported <- struct{}{}:
					default:
					}
				})
				<-reported
				<-reported
				w.Stop()
				stopped.Store(true)
			}
		})
	}
	g.Wait()
	s.Close()
	if s.inFlight != 0 || s.fresh != 0 {
		t.Errorf("left over: %d in flight, %d fresh", s.inFlight, s.fresh)
	}
}

// BenchmarkTenThousandServers runs 10 000 checks at the default interval for a
// few seconds, with a probe that costs nothing, and reports the share of one
// core that takes.
func BenchmarkTenThousandServers(b *testing.B) {
	var probes atomic.Int64
	s := newScheduler(func(context.Context, *Options, Target) error { probes.Add(1); return nil })
	defer s.Close()
	for range 10000 {
		s.Add([]Options{{}}, somewhere, Unknown, func(Report) {})
	}
	time.Sleep(2 * time.Second)
	const span = 6 * time.Second
	for b.Loop() {
		probes.Store(0)
		cpu := cpuTime(b)
		time.Sleep(span)
		b.ReportMetric(100*(cpuTime(b)-cpu).Seconds()/span.Seconds(), "%core")
		b.ReportMetric(float64(probes.Load())/span.Seconds(), "probes/s")
	}
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
