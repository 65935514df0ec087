package balance

import (
	"encoding/binary"
	"math/bits"
)

// maglevSizes are the table's sizes, of which it takes the smallest that gives
// the member of the smallest share minSlots. They are primes, so that every
// skip visits every slot, and far apart: from one to the next nearly all keys
// move.
var maglevSizes = [...]uint32{65537, 1<<20 + 7, 1<<22 + 15}

const minSlots = 16

// maglev is the table of Eisenbud et al., "Maglev: A Fast and Reliable Software
// Network Load Balancer" (NSDI 2016), section 3.4: members take turns in
// claiming the next free slot of their own permutation of all slots. Here a
// member gets turns by its weight.
type maglev []int32

func newMaglev(members []seeded) maglev {
	var total, heaviest, lightest uint64 = 0, 0, MaxWeight
	for _, m := range members {
		total += uint64(m.weight)
		heaviest, lightest = max(heaviest, uint64(m.weight)), min(lightest, uint64(m.weight))
	}
	size := maglevSizes[0]
	for _, s := range maglevSizes[1:] {
		if minSlots*total <= uint64(size)*lightest {
			break
		}
		size = s
	}
	type claimant struct {
		next, skip uint32
		credit     uint32 // a turn costs as much as the heaviest earns in a round
	}
	claimants := make([]claimant, len(members))
	for i, m := range members {
		claimants[i] = claimant{
			next: uint32(m.hash % uint64(size)),
			skip: uint32(mix(m.hash)%uint64(size-1)) + 1,
			// Everybody has a turn in the first round, or a small one could
			// end with no slot at all.
			credit: uint32(heaviest) - m.weight,
		}
	}
	t := make(maglev, size)
	for i := range t {
		t[i] = -1
	}
	for free := size; ; {
		for i := range claimants {
			c := &claimants[i]
			if c.credit += members[i].weight; c.credit < uint32(heaviest) {
				continue
			}
			c.credit -= uint32(heaviest)
			n := c.next
			for t[n] >= 0 {
				if n += c.skip; n >= size {
					n -= size
				}
			}
			t[n] = int32(i)
			if c.next = n + c.skip; c.next >= size {
				c.next -= size
			}
			if free--; free == 0 {
				return t
			}
		}
	}
}

// at looks at the slot of the key, then at others at random: slots are shared
// out by weight, and so are the keys of a member that is skipped.
func (t maglev) at(key uint64, n int) int32 {
	if n > 0 {
		key = mix(key + uint64(n))
	}
	slot, _ := bits.Mul64(key, uint64(len(t)))
	return t[slot]
}

func (t maglev) size() int  { return len(t) }
func (t maglev) bytes() int { return 4 * len(t) }

func (t maglev) appendTo(b []byte) []byte {
	for _, m := range t {
		b = binary.LittleEndian.AppendUint32(b, uint32(m))
	}
	return b
}
