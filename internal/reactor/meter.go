//go:build linux

package reactor

import (
	"math"
	"sync/atomic"
)

// sampleEvery is how many turns share one measurement: two clock readings a
// turn would be a tenth of the cost of a small relay.
const sampleEvery = 8

// meter estimates the share of time that a loop works, over about the last
// few seconds. A loop that sleeps through is not busy: readers see that by
// the age of the last window.
type meter struct {
	turns   uint32
	sleptAt int64 // end of the last sampled turn, 0: not sampled
	work    int64 // ns in this window
	sleep   int64
	since   int64
	value   atomic.Uint64 // float64 bits
	at      atomic.Int64  // when value was stored
	wokeAt  int64
}

const window = 1e9

func (m *meter) woke(now int64) (sampled bool) {
	if m.sleptAt != 0 {
		m.sleep += now - m.sleptAt
		m.sleptAt = 0
		if now-m.since > window && m.work+m.sleep > 0 {
			v := float64(m.work) / float64(m.work+m.sleep)
			old := math.Float64frombits(m.value.Load())
			if now-m.at.Load() > 3*window {
				old = v
			}
			m.value.Store(math.Float64bits(old + (v-old)/3))
			m.at.Store(now)
			m.work, m.sleep, m.since = 0, 0, now
		}
	}
	m.turns++
	if m.turns%sampleEvery != 0 {
		return false
	}
	m.wokeAt = now
	return true
}

func (m *meter) slept(now int64) {
	m.work += now - m.wokeAt
	m.sleptAt = now
}

func (m *meter) ratio() float64 {
	v := math.Float64frombits(m.value.Load())
	if age := nanotime() - m.at.Load(); age > 10*window {
		return 0
	}
	return v
}
