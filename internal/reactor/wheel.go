//go:build linux

package reactor

import (
	"math"
	"math/bits"
	"time"
)

// A tick is 2^23 ns, about 8.4 ms: the resolution of all timeouts.
const tickShift = 23

const (
	levels    = 5 // 64^5 ticks: 104 days
	slotBits  = 6
	slotCount = 1 << slotBits
	slotMask  = slotCount - 1
)

// Expirer is called when its timer is due, on the loop.
type Expirer interface {
	Expired(t *Timer)
}

// Timer is embedded in what it belongs to. Its zero value is a stopped timer;
// set Owner before starting it.
type Timer struct {
	Owner      Expirer
	next, prev *Timer
	when       uint64 // tick
	place      uint16 // level*64 + slot
}

// Active reports whether the timer is running.
func (t *Timer) Active() bool { return t.next != nil }

// wheel is a hierarchical timing wheel (Varghese and Lauck, scheme 6). Level k
// holds timers that are due within 64^(k+1) ticks, in slots of 64^k ticks each;
// when the clock enters a slot of an upper level its timers move down. Starting
// and stopping are O(1), and a bitmap per level finds the next slot in use.
type wheel struct {
	now  uint64 // tick up to which timers have expired
	used [levels]uint64
	slot [levels * slotCount]Timer // list heads
}

func (w *wheel) init(now uint64) {
	w.now = now
	for i := range w.slot {
		h := &w.slot[i]
		h.next, h.prev = h, h
	}
}

func (w *wheel) start(t *Timer, when uint64) {
	if t.next != nil {
		w.stop(t)
	}
	when = max(when, w.now+1)
	t.when = when
	delta := when - w.now
	level := (bits.Len64(delta) - 1) / slotBits
	if level >= levels {
		level = levels - 1
		when = w.now + 1<<(levels*slotBits) - 1 // as far ahead as the wheel reaches; it is put back then
	}
	s := int(when>>(uint(level)*slotBits)) & slotMask
	t.place = uint16(level<<slotBits | s)
	h := &w.slot[t.place]
	t.prev, t.next = h.prev, h
	h.prev.next = t
	h.prev = t
	w.used[level] |= 1 << s
}

func (w *wheel) stop(t *Timer) {
	if t.next == nil {
		return
	}
	t.prev.next, t.next.prev = t.next, t.prev
	t.next, t.prev = nil, nil
	if h := &w.slot[t.place]; h.next == h {
		w.used[t.place>>slotBits] &^= 1 << (t.place & slotMask)
	}
}

// next returns the tick at which something is to be done, a timer to fire or a
// slot to move down.
func (w *wheel) next() uint64 {
	best := uint64(math.MaxUint64)
	for k := range levels {
		if w.used[k] == 0 {
			continue
		}
		shift := uint(k) * slotBits
		cur := w.now >> shift
		// The slot the clock is in was emptied when it was entered: what is in
		// it now is a whole turn ahead.
		d := bits.TrailingZeros64(bits.RotateLeft64(w.used[k], -int(cur&slotMask)-1)) + 1
		best = min(best, (cur+uint64(d))<<shift)
	}
	return best
}

// advance fires all timers due at or before tick now. Timers started meanwhile
// fire in a later call.
func (w *wheel) advance(now uint64) {
	for {
		n := w.next()
		if n > now {
			w.now = max(w.now, now)
			return
		}
		w.now = n
		for k := levels - 1; k > 0; k-- {
			if shift := uint(k) * slotBits; n&(1<<shift-1) == 0 {
				w.moveDown(k<<slotBits | int(n>>shift)&slotMask)
			}
		}
		w.fire(&w.slot[n&slotMask])
	}
}

// moveDown puts the timers of an upper slot where they belong by now. A timer
// due at this very tick goes to the lowest level's current slot, which fire
// empties next.
func (w *wheel) moveDown(place int) {
	h := &w.slot[place]
	for h.next != h {
		t := h.next
		w.stop(t)
		if t.when <= w.now {
			l0 := &w.slot[w.now&slotMask]
			t.place = uint16(w.now & slotMask)
			t.prev, t.next = l0.prev, l0
			l0.prev.next = t
			l0.prev = t
			w.used[0] |= 1 << (w.now & slotMask)
			continue
		}
		w.start(t, t.when)
	}
}

// fire expires the timers of the lowest level's current slot. What they start
// lands elsewhere: at most 63 ticks ahead in this level.
func (w *wheel) fire(h *Timer) {
	for h.next != h {
		t := h.next
		w.stop(t)
		t.Owner.Expired(t)
	}
}

// StartTimer makes t due after d, at least one tick from now. A running timer
// is moved. On the loop.
func (l *Loop) StartTimer(t *Timer, d time.Duration) {
	// Rounded up, so that no timer is early.
	l.wheel.start(t, uint64(l.now+max(int64(d), 0)+1<<tickShift-1)>>tickShift)
}

// StopTimer stops t; one that does not run is left alone. On the loop.
func (l *Loop) StopTimer(t *Timer) { l.wheel.stop(t) }
