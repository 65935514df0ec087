package listener

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const second = int64(time.Second)

// leaky is the oracle: a bucket of one second's worth that runs out at the
// rate, ITU-T I.371 annex A's other form of the same algorithm.
type leaky struct {
	interval, burst int64
	level, last     int64 // ns of the rate that are still in the bucket, at last
}

func (l *leaky) take(now int64) bool {
	level := max(l.level-(now-l.last), 0)
	if level > l.burst {
		return false
	}
	l.level, l.last = level+l.interval, now
	return true
}

func TestRateAgainstLeakyBucket(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, rate := range []float64{0.01, 0.5, 1, 1.5, 2, 3, 7, 10, 99.9, 1000, 5000, 1e6, 1e9} {
		interval := int64(1e9 / rate)
		oracle := leaky{interval: interval, burst: max(second-interval, 0)}
		var b bucket
		r := newRule(rate)
		now := int64(1)
		for i := range 20_000 {
			switch rnd.IntN(10) {
			case 0: // a pause
				now += rnd.Int64N(3 * max(second, interval))
			case 1, 2, 3: // at the same moment
			default:
				now += rnd.Int64N(2*interval + 1)
			}
			if got, want := b.take(r, now), oracle.take(now); got != want {
				t.Fatalf("%v/s: arrival %d at %d ns: %v, want %v", rate, i, now, got, want)
			}
		}
	}
}

func TestRateOverTime(t *testing.T) {
	t.Parallel()
	for _, rate := range []float64{1, 2, 3, 7, 10, 333, 1000} {
		var b bucket
		r := newRule(rate)
		burst := 0
		for b.take(r, second) {
			burst++
		}
		if burst != int(rate) {
			t.Errorf("%v/s: %d at once", rate, burst)
		}
		n := 0
		for now := second + 1; now <= 11*second; now += second / 3000 {
			if b.take(r, now) {
				n++
			}
		}
		if d := math.Abs(float64(n) - 10*rate); d > 1 {
			t.Errorf("%v/s: %d in ten seconds", rate, n)
		}
	}
	for _, rate := range []float64{0, -1} {
		var b bucket
		for range 1000 {
			if !b.take(newRule(rate), 1) {
				t.Fatalf("a rate of %v is no limit", rate)
			}
		}
	}
}

// However small, a rate never turns into none at all by overflow.
func TestTinyRates(t *testing.T) {
	t.Parallel()
	for _, rate := range []float64{1e-3, 1e-9, 1e-12, 1e-100, math.SmallestNonzeroFloat64} {
		var b bucket
		r := newRule(rate)
		if !b.take(r, second) {
			t.Errorf("%v/s: the first one is kept out", rate)
		}
		for now := 2 * second; now < 900*second; now += 100 * second {
			if b.take(r, now) {
				t.Errorf("%v/s: a second one after %v", rate, time.Duration(now))
			}
		}
	}
}

func TestNoLimiterWithoutLimits(t *testing.T) {
	t.Parallel()
	if newLimiter(Limits{}) != nil || newLimiter(Limits{Connections: 5, BandwidthIn: 1, BandwidthOut: 1}) != nil {
		t.Error("a limiter for nothing")
	}
}

func TestConnectionsPerSource(t *testing.T) {
	t.Parallel()
	l := newLimiter(Limits{ConnectionsPerSource: 2})
	enter := func(s, want string) {
		t.Helper()
		if got := l.enter(addr(s), second); got != want {
			t.Errorf("%s: %q, want %q", s, got, want)
		}
	}
	const full = "connections_per_source"
	enter("10.0.0.1", "")
	enter("10.0.0.1", "")
	enter("10.0.0.1", full)
	enter("10.0.0.2", "") // IPv4 counts by address
	l.leave(addr("10.0.0.1"), second)
	enter("10.0.0.1", "")
	enter("10.0.0.1", full)
	// IPv6 counts by /64 (RFC 6177: what one site has at least).
	enter("2001:db8:1:2::1", "")
	enter("2001:db8:1:2:ffff:ffff:ffff:ffff", "")
	enter("2001:db8:1:2::3", full)
	enter("2001:db8:1:3::1", "")
	enter("2001:db8:1:1:ffff:ffff:ffff:ffff", "")
	enter("fe80::1%2", "")
	enter("fe80::2%2", "")
	enter("fe80::3%2", full)
	for range 10 {
		enter("unix", "") // has no source
	}
	l.leave(addr("unix"), second)
	for _, s := range []string{"10.0.0.1", "10.0.0.1", "10.0.0.2", "2001:db8:1:2::1", "2001:db8:1:2::1", "2001:db8:1:3::1", "2001:db8:1:1::", "fe80::9%2", "fe80::1%2"} {
		l.leave(addr(s), second)
	}
	if n := l.sources(); n != 0 {
		t.Errorf("%d sources are remembered", n)
	}
}

func (l *limiter) sources() (n int) {
	for i := range l.shards {
		n += len(l.shards[i].sources)
	}
	return n
}

func TestRates(t *testing.T) {
	t.Parallel()
	l := newLimiter(Limits{Rate: 10, RatePerSource: 3})
	count := func(s string, n int, now int64) map[string]int {
		got := map[string]int{}
		for range n {
			which := l.enter(addr(s), now)
			got[which]++
			if which == "" {
				l.leave(addr(s), now)
			}
		}
		return got
	}
	// A source far beyond its own limit does not use up the others' share.
	if got := count("10.0.0.1", 1000, second); got[""] != 3 || got["rate_per_source"] != 997 {
		t.Error(got)
	}
	for i := range 2 {
		if got := count(fmt.Sprint("10.0.1.", i), 3, second); got[""] != 3 {
			t.Error(got)
		}
	}
	if got := count("10.0.0.9", 3, second); got[""] != 1 || got["rate"] != 2 {
		t.Error(got)
	}
	// A source that leaves is not forgotten before its rate allows.
	if got := count("10.0.0.1", 5, second+second/2); got[""] != 1 {
		t.Error(got)
	}
	// Unix clients have no source, but count for the listener.
	if got := count("unix", 20, 10*second); got[""] != 10 || got["rate"] != 10 {
		t.Error(got)
	}
}

// A refused session takes no place: only those let in are given back.
func TestRefusedTakesNoPlace(t *testing.T) {
	t.Parallel()
	for _, limits := range []Limits{{ConnectionsPerSource: 5, Rate: 1}, {ConnectionsPerSource: 5, RatePerSource: 1}, {ConnectionsPerSource: 1}} {
		l := newLimiter(limits)
		a := addr("10.0.0.1")
		if l.enter(a, second) != "" {
			t.Fatal("the first one is kept out")
		}
		for range 10 {
			if l.enter(a, second) == "" {
				t.Fatal("let in beyond the limit")
			}
		}
		l.leave(a, 100*second)
		if n := l.sources(); n != 0 {
			t.Errorf("%+v: %d sources are remembered", limits, n)
		}
	}
}

// Sources that came once must not be remembered for ever.
func TestSweepBoundsMemory(t *testing.T) {
	t.Parallel()
	l := newLimiter(Limits{RatePerSource: 10})
	most := 0
	const perSecond, total = 20_000, 300_000
	var b [4]byte
	for i := range total {
		binary.BigEndian.PutUint32(b[:], uint32(i))
		a, now := netip.AddrFrom4(b), second+int64(i)*second/perSecond
		if l.enter(a, now) != "" {
			t.Fatal("a new source is kept out")
		}
		l.leave(a, now) // its rate is still to be kept, for 100 ms
		if i%1000 == 0 {
			most = max(most, l.sources())
		}
	}
	if limit := len(l.shards)*1024 + 1024; most > limit {
		t.Errorf("%d sources remembered of %d, %d at most", most, perSecond/10, limit)
	}
	// Those with sessions stay.
	keep := newLimiter(Limits{ConnectionsPerSource: 1})
	for i := range 40_000 {
		binary.BigEndian.PutUint32(b[:], uint32(i))
		keep.enter(netip.AddrFrom4(b), second)
	}
	if n := keep.sources(); n != 40_000 {
		t.Errorf("%d of 40000 sources with a session are left", n)
	}
}

func TestLimiterFromManyLoops(t *testing.T) {
	t.Parallel()
	const loops, rounds, limit = 8, 3000, 3
	l := newLimiter(Limits{ConnectionsPerSource: limit})
	var inside [40]atomic.Int64
	var wg sync.WaitGroup
	for loop := range loops {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(3, uint64(loop)))
			var held []int
			for i := range int64(rounds) {
				if n := rnd.IntN(len(inside)); l.enter(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), i) == "" {
					if inside[n].Add(1) > limit {
						t.Errorf("more than %d sessions of source %d", limit, n)
					}
					held = append(held, n)
				}
				for len(held) > 0 && (rnd.IntN(2) == 0 || i == rounds-1) {
					n := held[len(held)-1]
					held = held[:len(held)-1]
					inside[n].Add(-1)
					l.leave(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), i)
				}
			}
		})
	}
	wg.Wait()
	if n := l.sources(); n != 0 {
		t.Errorf("%d sources are remembered", n)
	}
}

// The rate of the listener holds for all loops together, whose clocks differ a little.
func TestRateFromManyLoops(t *testing.T) {
	t.Parallel()
	l := newLimiter(Limits{Rate: 500})
	var in atomic.Int64
	var wg sync.WaitGroup
	for loop := range int64(8) {
		wg.Go(func() {
			for i := range int64(1000) {
				if l.enter(netip.Addr{}, second+loop*1000+i*1000) == "" {
					in.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := in.Load(); n < 500 || n > 501 {
		t.Errorf("%d let in within a millisecond", n)
	}
}
