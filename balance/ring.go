package balance

import (
	"encoding/binary"
	"math/bits"

	"github.com/cespare/xxhash/v2"
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
	// all positions that begin so; its last element is for the end of the
	// circle. Points are spread evenly, so that a look-up ends a point or two
	// behind.
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
	n := 0
	points := func(m seeded) int { return max(int(m.weight)*pointsPerWeight>>halved, 1) }
	for _, m := range members {
		n += points(m)
	}
	r := &ring{points: make([]uint64, n), owners: make([]int32, n), shift: 64 - bits.Len(uint(n))}
	r.heads = make([]uint32, 1<<(64-r.shift)+1)
	// Count, lay out, fill: the heads that the look-up needs sort nearly all.
	each := func(f func(at uint64, owner int32)) {
		for i, m := range members {
			stream := rng(m.hash)
			for range points(m) {
				f(stream.next(), int32(i))
			}
		}
	}
	each(func(at uint64, _ int32) { r.heads[at>>r.shift+1]++ })
	for h := range r.heads[1:] {
		r.heads[h+1] += r.heads[h]
	}
	filled := make([]uint32, len(r.heads)-1)
	each(func(at uint64, owner int32) {
		h := at >> r.shift
		i := r.heads[h] + filled[h]
		filled[h]++
		for ; i > r.heads[h] && r.points[i-1] > at; i-- { // of two at one place the first by name stays first
			r.points[i], r.owners[i] = r.points[i-1], r.owners[i-1]
		}
		r.points[i], r.owners[i] = at, owner
	})
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

func (r *ring) feed(d *xxhash.Digest) {
	var buf [12]byte
	for i, p := range r.points {
		binary.LittleEndian.PutUint64(buf[:], p)
		binary.LittleEndian.PutUint32(buf[8:], uint32(r.owners[i]))
		d.Write(buf[:])
	}
}
