package traffic

import (
	"encoding/json"
	"math/bits"
	"time"
)

const (
	subBits    = 7 // 128 buckets to each doubling: values are right to 0.8 %
	subBuckets = 1 << subBits
	maxBits    = 42 // over an hour, in nanoseconds
	buckets    = (maxBits - subBits + 1) * subBuckets
)

// Histogram counts durations in buckets whose width grows with the value, as
// HdrHistogram does. The zero value is empty. One goroutine uses it at a time.
type Histogram struct {
	counts [buckets]uint64
	total  uint64
	max    int64
}

func bucketOf(v int64) int {
	v = min(max(v, 0), 1<<maxBits-1)
	shift := max(bits.Len64(uint64(v))-subBits-1, 0)
	return shift*subBuckets + int(v>>shift)
}

// upperBound is the largest value of bucket i.
func upperBound(i int) int64 {
	if i < 2*subBuckets {
		return int64(i)
	}
	shift := i/subBuckets - 1
	return int64(i-shift*subBuckets+1)<<shift - 1
}

// Record counts one duration.
func (h *Histogram) Record(d time.Duration) {
	h.counts[bucketOf(int64(d))]++
	h.total++
	h.max = max(h.max, int64(d))
}

// Count is how many durations were recorded.
func (h *Histogram) Count() uint64 { return h.total }

// Merge adds what o has counted.
func (h *Histogram) Merge(o *Histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.total += o.total
	h.max = max(h.max, o.max)
}

// Quantile is the smallest recorded value, to the width of its bucket, that at
// least the share q of all values does not exceed. It is zero if there are none.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := max(uint64(q*float64(h.total)+0.999999), 1)
	var seen uint64
	for i, n := range h.counts {
		if seen += n; n > 0 && seen >= rank {
			return time.Duration(min(upperBound(i), h.max))
		}
	}
	return time.Duration(h.max)
}

type histogramJSON struct {
	Max    int64       `json:"max"`
	Counts [][2]uint64 `json:"counts"` // bucket, count; only those that have any
}

// MarshalJSON writes the buckets that have counts.
func (h *Histogram) MarshalJSON() ([]byte, error) {
	j := histogramJSON{Max: h.max}
	for i, n := range h.counts {
		if n > 0 {
			j.Counts = append(j.Counts, [2]uint64{uint64(i), n})
		}
	}
	return json.Marshal(j)
}

// UnmarshalJSON is the inverse of MarshalJSON.
func (h *Histogram) UnmarshalJSON(b []byte) error {
	var j histogramJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*h = Histogram{max: j.Max}
	for _, c := range j.Counts {
		if c[0] < buckets {
			h.counts[c[0]] += c[1]
			h.total += c[1]
		}
	}
	return nil
}
