package balance

import (
	"fmt"
	"math"
	"sync/atomic"
	"testing"
)

// pickers are the policies that need no key.
var pickers = []Policy{Random, RoundRobin, LeastConn}

// eachPolicy runs a test for all of them.
func eachPolicy(t *testing.T, f func(t *testing.T, p Policy)) {
	for _, p := range pickers {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			f(t, p)
		})
	}
}

func weighted(weights ...int) []Member {
	ms := make([]Member, len(weights))
	for i, w := range weights {
		ms[i] = Member{Weight: w, Load: new(atomic.Int64)}
	}
	return ms
}

// skipSet is a filter by index.
type skipSet []bool

func (s skipSet) Skip(i int) bool { return s[i] }

func TestPolicyNames(t *testing.T) {
	for i, name := range Policies {
		if p, ok := ParsePolicy(name); !ok || p != Policy(i) || p.String() != name {
			t.Errorf("%q reads as %v, %v", name, p, ok)
		}
	}
	for _, s := range []string{"", "Random", "leastconn"} {
		if _, ok := ParsePolicy(s); ok {
			t.Errorf("%q is a policy", s)
		}
	}
}

func TestNothingToPick(t *testing.T) {
	eachPolicy(t, func(t *testing.T, p Policy) {
		for _, c := range []struct {
			name    string
			members []Member
			filter  Filter
		}{
			{"no member", nil, nil},
			{"no member, filter", nil, skipSet{}},
			{"no weight", weighted(0, -1), nil},
			{"no weight, filter", weighted(0, -1), skipSet{false, false}},
			{"one, skipped", weighted(1), skipSet{true}},
			{"all skipped", weighted(1, 256, 3), skipSet{true, true, true}},
			{"skipped or without weight", weighted(0, 2, 0), skipSet{false, true, false}},
		} {
			picker := New(p, c.members, 1)
			for range 5 {
				if i := picker.Pick(c.filter); i != -1 {
					t.Errorf("%s: picked %d", c.name, i)
				}
			}
		}
	})
}

func TestWeightZeroIsNeverPicked(t *testing.T) {
	eachPolicy(t, func(t *testing.T, p Policy) {
		ms := weighted(0, 3, 0, 1, -5, 3, 0)
		for seed := range uint64(20) {
			picker := New(p, ms, seed)
			for k := range 200 {
				f := Filter(nil)
				if k%2 == 1 {
					f = skipSet{false, k%4 == 1, false, false, false, false, false}
				}
				i := picker.Pick(f)
				if ms[i].Weight <= 0 || f != nil && f.Skip(i) {
					t.Fatalf("picked %d", i)
				}
				ms[i].Load.Add(1)
			}
		}
	})
}

func TestTheLastOneLeftIsFound(t *testing.T) {
	eachPolicy(t, func(t *testing.T, p Policy) {
		for _, n := range []int{1, 2, 3, 9, 10000} {
			for _, w := range weightings {
				_, members := fleet(n, w.weight)
				picker := New(p, members, 5)
				f := make(skipSet, n)
				for i := range f {
					f[i] = true
				}
				for k := range 20 {
					left := k * 7919 % n
					f[left] = false
					if i := picker.Pick(f); i != left {
						t.Fatalf("%s, %d members: picked %d, all but %d are skipped", w.name, n, i, left)
					}
					f[left] = true
				}
				if i := picker.Pick(nil); i < 0 {
					t.Fatalf("%s, %d members: nothing picked when nothing is skipped any more", w.name, n)
				}
			}
		}
	})
}

// TestSkippedOnesGetNothing: half of the members are left out, which half
// changes all the time.
func TestSkippedOnesGetNothing(t *testing.T) {
	eachPolicy(t, func(t *testing.T, p Policy) {
		r := rng(1)
		for _, n := range []int{2, 5, 100} {
			servers, members := fleet(n, weightings[1].weight)
			picker := New(p, members, 1)
			f := make(skipSet, n)
			for range 5000 {
				some := false
				for i := range f {
					f[i] = r.next()&1 == 1
					some = some || !f[i]
				}
				i := picker.Pick(f)
				if i >= 0 && f[i] || some == (i < 0) {
					t.Fatalf("picked %d, skipped %v", i, f)
				}
				if i >= 0 {
					servers[i].load.Store(int64(r.next() % 5))
				}
			}
		}
	})
}

func TestNothingIsAllocated(t *testing.T) {
	for _, p := range pickers {
		for _, n := range []int{1, 2, 10, 1000} {
			servers, members := fleet(n, weightings[1].weight)
			picker := New(p, members, 1)
			down := Filter(notDown(servers))
			if a := testing.AllocsPerRun(500, func() {
				servers[picker.Pick(nil)].load.Add(1)
				servers[picker.Pick(down)].load.Add(1)
			}); a != 0 {
				t.Errorf("%v among %d: %v allocations", Policy(p), n, a)
			}
			for _, s := range servers[1:] {
				s.down.Store(true)
			}
			if a := testing.AllocsPerRun(100, func() { picker.Pick(down) }); a != 0 {
				t.Errorf("%v among %d, all but one skipped: %v allocations", Policy(p), n, a)
			}
		}
	}
}

// chiSquare tests counts against shares. Seeds are fixed, so that a test
// passes always or never; the limit is that of 1 in 10 000 (Wilson–Hilferty).
func chiSquare(t *testing.T, what string, counts []int, shares []float64) {
	t.Helper()
	total, sum := 0, 0.0
	for i := range counts {
		total += counts[i]
		sum += shares[i]
	}
	x, df := 0.0, -1.0
	for i, c := range counts {
		want := shares[i] / sum * float64(total)
		if want == 0 {
			if c != 0 {
				t.Errorf("%s: %d has no share, but was picked %d times", what, i, c)
			}
			continue
		}
		x += (float64(c) - want) * (float64(c) - want) / want
		df++
	}
	if df < 1 {
		return
	}
	a := 2 / (9 * df)
	if limit := df * math.Pow(1-a+3.719*math.Sqrt(a), 3); x > limit {
		t.Errorf("%s: chi-square %.1f with %v degrees of freedom, want at most %.1f: %v", what, x, df, limit, counts)
	}
}

// TestShares: idle members, whose sessions end at once, are chosen by weight,
// and so are those that are left when some are skipped.
func TestShares(t *testing.T) {
	for name, weights := range map[string][]int{
		"one": {1}, "two": {1, 1}, "unlike": {5, 1, 1}, "extremes": {256, 1, 1, 0, 256}, "dominant": {256, 10, 1},
		"ten": {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, "equal": {4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4},
	} {
		eachPolicy(t, func(t *testing.T, p Policy) {
			shares := make([]float64, len(weights))
			for i, w := range weights {
				shares[i] = float64(w)
			}
			f := make(skipSet, len(weights))
			for _, c := range []struct {
				name   string
				filter Filter
			}{{"unfiltered", nil}, {"filter that skips none", f}} {
				picker := New(p, weighted(weights...), 3)
				counts := make([]int, len(weights))
				for range 60000 {
					counts[picker.Pick(c.filter)]++
				}
				chiSquare(t, name+", "+c.name, counts, shares)
			}
			if len(weights) < 3 {
				return
			}
			f[0] = true
			shares[0] = 0
			picker := New(p, weighted(weights...), 4)
			counts := make([]int, len(weights))
			for range 60000 {
				counts[picker.Pick(f)]++
			}
			chiSquare(t, name+", first one skipped", counts, shares)
		})
	}
}

// TestSecondDraw: the less loaded of two different members wins, the second
// one drawn by weight among the others.
func TestSecondDraw(t *testing.T) {
	for _, filter := range []Filter{nil, make(skipSet, 4)} {
		for _, weights := range [][]int{{3, 3}, {1, 256}, {256, 10, 1}, {2, 2, 2, 2}, {1, 2, 3, 4}} {
			t.Run(fmt.Sprint(weights, filter != nil), func(t *testing.T) {
				// Member 0 is so loaded that it loses to any other: it must never win.
				ms := weighted(weights...)
				ms[0].Load.Store(1 << 40)
				picker := New(Random, ms, 1)
				counts, shares, total := make([]int, len(ms)), make([]float64, len(ms)), 0.0
				for _, w := range weights {
					total += float64(w)
				}
				// The winner is the first draw, or else the second one after member 0.
				for i := 1; i < len(weights); i++ {
					w := float64(weights[i])
					shares[i] = w/total + float64(weights[0])/total*w/(total-float64(weights[0]))
				}
				for range 50000 {
					counts[picker.Pick(filter)]++
				}
				chiSquare(t, "winners", counts, shares)
			})
		}
	}
}

// TestLoadsFollowWeights: long sessions end up spread by weight with every
// policy, and least_conn is level to one session.
func TestLoadsFollowWeights(t *testing.T) {
	eachPolicy(t, func(t *testing.T, p Policy) {
		weights := []int{1, 2, 3, 10, 50, 256, 256}
		ms := weighted(weights...)
		picker := New(p, ms, 9)
		const perWeight = 40
		for range perWeight * (1 + 2 + 3 + 10 + 50 + 256 + 256) {
			ms[picker.Pick(nil)].Load.Add(1)
		}
		for i, m := range ms {
			got, want := float64(m.Load.Load()), float64(perWeight*weights[i])
			slack := 1.0
			if p == Random {
				slack = 0.2*want + 15
			}
			if math.Abs(got-want) > slack {
				t.Errorf("member %d has %v sessions, want %v ± %v", i, got, want, slack)
			}
		}
	})
}

// TestLoopsBeginElsewhere: the first pick of many loops with their own seeds,
// however alike, is spread over the members.
func TestLoopsBeginElsewhere(t *testing.T) {
	eachPolicy(t, func(t *testing.T, p Policy) {
		weights := []int{2, 2, 2, 2, 2, 2, 2, 2}
		for _, step := range []uint64{1, 1 << 32} {
			counts, shares := make([]int, len(weights)), make([]float64, len(weights))
			for i := range shares {
				shares[i] = 1
			}
			for seed := range uint64(4000) {
				counts[New(p, weighted(weights...), seed*step).Pick(nil)]++
			}
			chiSquare(t, fmt.Sprintf("seeds %d apart", step), counts, shares)
		}
	})
}
