// Package histogram counts durations in fixed buckets, for several writers
// and readers at once.
package histogram

import (
	"sync/atomic"
	"time"
)

// Data is a snapshot of a histogram. Counts has one more element than Bounds,
// for what lies above the last.
type Data struct {
	Bounds []float64 // upper bounds in seconds, ascending
	Counts []uint64  // per bucket, not cumulative
	Sum    float64   // seconds
}

// Histogram counts durations. Make one with [New].
type Histogram struct {
	bounds []time.Duration
	counts []atomic.Uint64
	sum    atomic.Int64 // nanoseconds
}

// New makes a histogram with the given ascending, inclusive upper bounds.
func New(bounds ...time.Duration) *Histogram {
	return &Histogram{bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1)}
}

// Observe counts one duration.
func (h *Histogram) Observe(d time.Duration) {
	i := 0
	for i < len(h.bounds) && d > h.bounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(int64(d))
}

// AddTo adds what h has counted to d, which must be empty or come from a
// histogram with the same bounds.
func (h *Histogram) AddTo(d *Data) {
	if d.Bounds == nil {
		d.Bounds = make([]float64, len(h.bounds))
		for i, b := range h.bounds {
			d.Bounds[i] = b.Seconds()
		}
		d.Counts = make([]uint64, len(h.counts))
	}
	for i := range h.counts {
		d.Counts[i] += h.counts[i].Load()
	}
	d.Sum += time.Duration(h.sum.Load()).Seconds()
}
