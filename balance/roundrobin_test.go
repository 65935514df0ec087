package balance

import (
	"math"
	"testing"
)

// TestRoundRobinIsExact: over any stretch as long as the sum of all weights,
// each member comes up as often as its weight says, give or take one.
func TestRoundRobinIsExact(t *testing.T) {
	for _, weights := range [][]int{{1}, {7}, {1, 1, 1}, {5, 1, 1}, {256, 1}, {3, 0, 3, 2, 2, 2, 1}, {256, 255, 254, 3, 3, 3, 1}} {
		total := 0
		for _, w := range weights {
			total += w
		}
		for seed := range uint64(5) {
			p := New(RoundRobin, weighted(weights...), seed)
			picks := make([]int, 6*total)
			for i := range picks {
				picks[i] = p.Pick(nil)
			}
			for from := 0; from+total <= len(picks); from += max(1, total/5) {
				counts := make([]int, len(weights))
				for _, i := range picks[from : from+total] {
					counts[i]++
				}
				for i, w := range weights {
					if d := counts[i] - w; d < -1 || d > 1 {
						t.Fatalf("%v: member %d came up %d times in %d picks from the %dth, want %d", weights, i, counts[i], total, from, w)
					}
				}
			}
		}
	}
}

// TestRoundRobinIsSmooth compares with nginx's algorithm, the naive one that
// looks at all members: no member may run further ahead of or behind its
// share than two sessions more than it does there.
func TestRoundRobinIsSmooth(t *testing.T) {
	for _, weights := range [][]int{{5, 1, 1}, {1, 1, 1, 1}, {10, 1, 10, 1}, {256, 1, 1, 1}, {100, 50, 25, 12, 6, 3, 1}, {7, 7, 7, 3, 3, 2, 1, 1, 1}} {
		total := 0
		for _, w := range weights {
			total += w
		}
		current := make([]int, len(weights))
		naive := func() int {
			best := 0
			for i, w := range weights {
				if current[i] += w; current[i] > current[best] {
					best = i
				}
			}
			current[best] -= total
			return best
		}
		drift := func(next func() int) float64 {
			counts := make([]int, len(weights))
			worst := 0.0
			for k := 1; k <= 4*total; k++ {
				counts[next()]++
				for i, w := range weights {
					worst = max(worst, math.Abs(float64(counts[i])-float64(k*w)/float64(total)))
				}
			}
			return worst
		}
		allowed := drift(naive) + 2
		for seed := range uint64(10) {
			p := New(RoundRobin, weighted(weights...), seed)
			if d := drift(func() int { return p.Pick(nil) }); d > allowed {
				t.Errorf("%v: a member is %.2f sessions off its share, nginx's at most %.2f", weights, d, allowed-2)
			}
		}
	}
}

// TestRoundRobinSetsBack runs past the point where deadlines are set back.
func TestRoundRobinSetsBack(t *testing.T) {
	p := New(RoundRobin, weighted(2, 1), 1).(*roundRobin)
	before := uint64(0)
	counts := [2]int{}
	setBack := false
	for range 3 * (dueLimit/round>>groupBits + 10) {
		counts[p.Pick(nil)]++
		setBack = setBack || p.due.min() < before
		before = p.due.min()
	}
	if d := counts[0] - 2*counts[1]; !setBack || d < -2 || d > 2 {
		t.Errorf("set back: %v, counts %v", setBack, counts)
	}
}
