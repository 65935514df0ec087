package traffic

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// The oracle is a sorted slice of all values.
func TestQuantilesAgainstSortedValues(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 2, 99, 100, 101, 5000} {
		var h, part Histogram
		var values []time.Duration
		for i := range n {
			v := time.Duration(math.Exp(rng.Float64() * 24)) // 1 ns to 26 s, evenly over the magnitudes
			values = append(values, v)
			if i%3 == 0 {
				part.Record(v)
			} else {
				h.Record(v)
			}
		}
		h.Merge(&part)
		slices.Sort(values)
		for _, q := range []float64{0.001, 0.25, 0.5, 0.9, 0.99, 0.999, 1} {
			want := values[max(int(math.Ceil(q*float64(n)))-1, 0)]
			got := h.Quantile(q)
			if got < want || float64(got) > float64(want)*1.008+1 {
				t.Errorf("%d values: quantile %v is %v, want %v to 0.8 %%", n, q, got, want)
			}
		}
		if h.Count() != uint64(n) || h.Quantile(1) != values[n-1] {
			t.Errorf("%d values: count %d, max %v, want %v", n, h.Count(), h.Quantile(1), values[n-1])
		}
		b, err := json.Marshal(&h)
		if err != nil {
			t.Fatal(err)
		}
		var back Histogram
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		if back != h {
			t.Errorf("%d values: another histogram came back from JSON", n)
		}
	}
}

func FuzzBucketHoldsItsValue(f *testing.F) {
	for _, v := range []int64{-1, 0, 1, 127, 128, 255, 256, 257, 1 << 20, 1<<42 - 1, 1 << 42, math.MaxInt64} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v int64) {
		i := bucketOf(v)
		clamped := min(max(v, 0), 1<<maxBits-1)
		if i < 0 || i >= buckets || upperBound(i) < clamped || i > 0 && upperBound(i-1) >= clamped {
			t.Errorf("%d is in bucket %d, which ends at %d", v, i, upperBound(i))
		}
	})
}
