package balance

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

const (
	// pointsPerWeight makes the shares of servers of weight 1 differ by 6 %
	// (one standard deviation), as 1/√points does.
	pointsPerWeight = 256
	// maxPoints bounds the ring: above it members have fewer points.
	maxPoints = 1 << 20
)

// ring is consistent hashing as ketama made it known: each member has points
// on a circle of 2⁶⁴ positions, as many as its weight asks for, and a key
// belongs to the member of the next point at or after it.
type ring struct {
	points []uint64 // ascending
	owners []int32
	// heads tells, by the first bits of a position, how many points lie before
	// all positions that begin so: points are spread evenly, so that a look-up
	// ends a point or two behind.
	heads []uint32
	shift int
}

func newRing(members []seeded) *ring {
	var total uint64
	for _, m := range members {
		total += uint64(m.weight)
	}
	// Halving the points of all leaves half of the ring as it was.
	halved := 0
	for total*pointsPerWeight>>halved > maxPoints && 1<<halved < pointsPerWeight*MaxWeight {
		halved++
	}
	type point struct {
		at    uint64
		owner int32
	}
	var points []point
	for i, m := range members {
		r := rng(m.hash)
		for range max(m.weight*pointsPerWeight>>halved, 1) {
			points = append(points, point{r.next(), int32(i)})
		}
	}
	slices.SortStableFunc(points, func(a, b point) int { // of two at one place the first by name
		if a.at < b.at {
			return -1
		}
		if a.at > b.at {
			return 1
		}
		return 0
	})
	r := &ring{points: make([]uint64, len(points)), owners: make([]int32, len(points))}
	r.shift = 64 - bits.Len(uint(len(points)))
	r.heads = make([]uint32, 1<<(64-r.shift))
	for i, p := range points {
		r.points[i], r.owners[i] = p.at, p.owner
	}
	n := 0
	for h := range r.heads {
		for n < len(points) && points[n].at>>r.shift < uint64(h) {
			n++
		}
		r.heads[h] = uint32(n)
	}
	return r
}

// at looks at the key's point, then at those that follow: a member that is
// skipped leaves its keys to those who would have them if it did not exist.
func (r *ring) at(key uint64, n int) int32 {
	i := int(r.heads[key>>r.shift])
	for i < len(r.points) && r.points[i] < key {
		i++
	}
	return r.owners[(i+n)%len(r.points)]
}

func (r *ring) size() int  { return len(r.points) }
func (r *ring) bytes() int { return 12*len(r.points) + 4*len(r.heads) }

func (r *ring) appendTo(b []byte) []byte {
	for i, p := range r.points {
		b = binary.LittleEndian.AppendUint64(b, p)
		b = binary.LittleEndian.AppendUint32(b, uint32(r.owners[i]))
	}
	return b
}
