package balance

import (
	"sync"
	"sync/atomic"
	"testing"
)

// less compares sessions per weight without rounding.
func less(a int64, aw int, b int64, bw int) bool { return a*int64(bw) < b*int64(aw) }

// scan is the oracle: it reports whether some member has fewer sessions per
// weight than member i.
func scan(loads []int64, members []Member, f skipSet, i int) (better int, ok bool) {
	for j, m := range members {
		if m.Weight > 0 && (f == nil || !f[j]) && less(loads[j], m.Weight, loads[i], members[i].Weight) {
			return j, true
		}
	}
	return 0, false
}

func loadsOf(members []Member) []int64 {
	loads := make([]int64, len(members))
	for i, m := range members {
		loads[i] = m.Load.Load()
	}
	return loads
}

// TestLeastConnIsExact: among few members whatever happens to the loads, and
// among many while loads only rise, also by other loops' hands.
func TestLeastConnIsExact(t *testing.T) {
	for _, c := range []struct {
		n     int
		falls bool
	}{{1, true}, {2, true}, {3, true}, {looks, true}, {looks + 1, false}, {50, false}, {777, false}} {
		for _, w := range weightings {
			r := rng(c.n)
			_, members := fleet(c.n, w.weight)
			p := New(LeastConn, members, 1)
			for range 3000 {
				for range r.next() % 4 {
					load := members[r.next()%uint64(c.n)].Load
					if c.falls {
						load.Store(int64(r.next() % 6))
					} else {
						load.Add(int64(r.next() % 3))
					}
				}
				i := p.Pick(nil)
				if j, ok := scan(loadsOf(members), members, nil, i); ok {
					t.Fatalf("%s, %d members: picked %d with %d/%d, while %d has %d/%d", w.name, c.n,
						i, members[i].Load.Load(), members[i].Weight, j, members[j].Load.Load(), members[j].Weight)
				}
				if r.next()%8 > 0 { // a session that ends at once adds nothing
					members[i].Load.Add(1)
				}
			}
		}
	}
}

// TestLeastConnSeesLoadsFall: the bound that the doc comment gives, with loads
// that change at random and filters that do.
func TestLeastConnSeesLoadsFall(t *testing.T) {
	for _, n := range []int{20, 100, 300} {
		for _, w := range weightings {
			r := rng(n)
			_, members := fleet(n, w.weight)
			p := New(LeastConn, members, 1)
			window := (n + looks - 1) / looks
			history := make([][]int64, 0, 800) // loads at each pick
			f := make(skipSet, n)
			skipped := make([]int, n) // last pick at which the filter skipped it
			for k := range 800 {
				for range r.next() % 8 {
					members[r.next()%uint64(n)].Load.Store(int64(r.next() % 20))
				}
				for range r.next() % 4 {
					j := r.next() % uint64(n)
					f[j] = !f[j] && r.next()%4 == 0
				}
				for j := range f {
					if f[j] {
						skipped[j] = k
					}
				}
				history = append(history, loadsOf(members))
				i := p.Pick(f)
				if i < 0 || f[i] {
					t.Fatalf("picked %d", i)
				}
				now := history[k]
				// The most that each member has been seen with within the window.
				most := append([]int64(nil), now...)
				for _, loads := range history[max(0, k-window):k] {
					for j := range most {
						most[j] = max(most[j], loads[j])
					}
				}
				for j, m := range members {
					if k-skipped[j] > window && less(most[j], m.Weight, now[i], members[i].Weight) {
						t.Fatalf("%s, %d members, pick %d: %d has %d/%d, while %d had at most %d/%d for %d picks", w.name, n, k,
							i, now[i], members[i].Weight, j, most[j], m.Weight, window)
					}
				}
				members[i].Load.Add(1)
			}
		}
	}
}

// TestLeastConnRecovers: a member that loses all its sessions at once gets the
// new ones soon.
func TestLeastConnRecovers(t *testing.T) {
	const n = 1000
	_, members := fleet(n, weightings[0].weight)
	p := New(LeastConn, members, 1)
	for range 5 * n {
		members[p.Pick(nil)].Load.Add(1)
	}
	members[123].Load.Store(0)
	for k := 0; ; k++ {
		i := p.Pick(nil)
		members[i].Load.Add(1)
		if i == 123 {
			return
		}
		if k > n/looks {
			t.Fatalf("not picked within %d picks", k)
		}
	}
}

// TestLeastConnSetsBack runs past the point where virtual times are set back.
func TestLeastConnSetsBack(t *testing.T) {
	ms := weighted(1, 3)
	p := New(LeastConn, ms, 1).(*leastConn)
	counts := [2]int{}
	setBack := false
	clock := uint32(0)
	for range 4 * (maxTime/tick + 10) {
		counts[p.Pick(nil)]++
		setBack = setBack || p.clock < clock
		clock = p.clock
	}
	if d := counts[1] - 3*counts[0]; !setBack || d < -6 || d > 6 {
		t.Errorf("set back: %v, counts %v", setBack, counts)
	}
}

func TestLeastConnTakesAnyLoad(t *testing.T) {
	ms := weighted(1, 1, 1)
	p := New(LeastConn, ms, 1)
	ms[0].Load.Store(1 << 62)
	ms[1].Load.Store(-1 << 62)
	ms[2].Load.Store(maxLoad + 5)
	if i := p.Pick(nil); i != 1 {
		t.Errorf("picked %d, want the one with a load below zero", i)
	}
}

// TestLoopsShareLoads: several loops, each with its own picker, keep common
// loads level. For the race detector as well.
func TestLoopsShareLoads(t *testing.T) {
	const n, loops, each = 40, 4, 2000
	_, members := fleet(n, weightings[0].weight)
	var g sync.WaitGroup
	var total atomic.Int64
	for k := range loops {
		g.Go(func() {
			p := New(LeastConn, members, uint64(k))
			for range each {
				members[p.Pick(nil)].Load.Add(1)
				total.Add(1)
			}
		})
	}
	g.Wait()
	// Between a pick and its addition each other loop may pick the same member,
	// so one that lags gets at most loops-1 too many.
	for i, load := range loadsOf(members) {
		if d := load - total.Load()/n; d < -loops || d > loops {
			t.Errorf("member %d has %d sessions, want %d ± %d", i, load, total.Load()/n, loops)
		}
	}
}
