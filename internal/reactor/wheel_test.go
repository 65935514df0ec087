package reactor

import (
	"math/rand/v2"
	"slices"
	"testing"
)

type recorder struct {
	w     *wheel
	fired map[*Timer]uint64
	again func(t *Timer)
}

func (r *recorder) Expired(t *Timer) {
	r.fired[t] = r.w.now
	if r.again != nil {
		r.again(t)
	}
}

// Every timer fires at exactly the tick it was started for, however far ahead
// and however the clock jumps: compared with a plain sorted list.
func TestWheelAgainstSortedList(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var w wheel
		w.init(rnd.Uint64N(1 << 40))
		r := &recorder{w: &w, fired: map[*Timer]uint64{}}
		want := map[*Timer]uint64{}
		var live []*Timer
		for range 2000 {
			switch rnd.IntN(4) {
			case 0, 1:
				tm := &Timer{Owner: r}
				when := w.now + 1 + rnd.Uint64N(1<<rnd.IntN(29))
				w.start(tm, when)
				want[tm] = when
				live = append(live, tm)
			case 2:
				if len(live) > 0 {
					i := rnd.IntN(len(live))
					if tm := live[i]; tm.Active() && rnd.IntN(2) == 0 {
						w.stop(tm)
						delete(want, tm)
					} else if tm.Active() { // moved while running
						when := w.now + 1 + rnd.Uint64N(5000)
						w.start(tm, when)
						want[tm] = when
					}
					live = slices.Delete(live, i, i+1)
				}
			case 3:
				to := w.now + rnd.Uint64N(1<<rnd.IntN(26))
				w.advance(to)
				for tm, when := range want {
					if got, ok := r.fired[tm]; ok != (when <= to) || ok && got != when {
						t.Fatalf("seed %d: timer for tick %d, clock at %d: fired %v at %d", seed, when, to, ok, got)
					}
					if when <= to {
						delete(want, tm)
						delete(r.fired, tm)
					}
				}
				if len(r.fired) > 0 {
					t.Fatalf("seed %d: %d stopped timers fired", seed, len(r.fired))
				}
			}
		}
	}
}

func TestWheelBeyondItsReach(t *testing.T) {
	var w wheel
	w.init(7)
	r := &recorder{w: &w, fired: map[*Timer]uint64{}}
	tm := &Timer{Owner: r}
	when := uint64(7 + 5<<(levels*slotBits))
	w.start(tm, when)
	w.advance(when - 1)
	if len(r.fired) != 0 {
		t.Fatalf("fired at %d, wanted %d", r.fired[tm], when)
	}
	w.advance(when)
	if r.fired[tm] != when {
		t.Fatalf("fired %v, wanted at %d", r.fired, when)
	}
}

// A timer that starts itself again fires once a tick, not for ever within one.
func TestTimerStartedByItself(t *testing.T) {
	var w wheel
	w.init(0)
	n := 0
	r := &recorder{w: &w, fired: map[*Timer]uint64{}}
	r.again = func(tm *Timer) {
		n++
		w.start(tm, 0)
	}
	w.start(&Timer{Owner: r}, 1)
	w.advance(100)
	if n != 100 {
		t.Errorf("fired %d times in 100 ticks", n)
	}
}
