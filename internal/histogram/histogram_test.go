package histogram

import (
	"slices"
	"testing"
	"time"
)

func TestBoundsAreInclusiveAndSumsAdd(t *testing.T) {
	a, b := New(time.Millisecond, time.Second), New(time.Millisecond, time.Second)
	a.Observe(time.Millisecond)     // on the first bound: in the first bucket
	a.Observe(time.Millisecond + 1) // just above it
	b.Observe(2 * time.Second)      // above all
	var d Data
	a.AddTo(&d)
	b.AddTo(&d)
	if !slices.Equal(d.Counts, []uint64{1, 1, 1}) || !slices.Equal(d.Bounds, []float64{0.001, 1}) {
		t.Errorf("got %+v", d)
	}
	if d.Sum < 2.002 || d.Sum > 2.0021 {
		t.Errorf("sum %v, want just above 2.002", d.Sum)
	}
}
