package balance

import (
	"encoding/binary"
	"math/bits"

	"github.com/cespare/xxhash/v2"
)

// The table's sizes are primes, so that every skip visits every slot. The large
// one is for tables in which the member of the smallest share would get less
// than minSlots; there are no sizes between, because from one to another nearly
// all keys move.
const (
	maglevSize      = 65537
	largeMaglevSize = 1<<20 + 7
	minSlots        = 16
)

// maglev is the table of Eisenbud et al., "Maglev: A Fast and Reliable Software
// Network Load Balancer" (NSDI 2016), section 3.4: members take turns in
// claiming the next free slot of their own permutation of all slots. Here a
// member gets turns by its weight.
type maglev []int32

func newMaglev(members []seeded) maglev {
	size, heaviest := maglevFor(members)
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
			credit: heaviest - m.weight,
		}
	}
	t := make(maglev, size)
	for i := range t {
		t[i] = -1
	}
	for free := size; ; {
		for i := range claimants {
			c := &claimants[i]
			if c.credit += members[i].weight; c.credit < heaviest {
				continue
			}
			c.credit -= heaviest
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

// maglevFor decides on the table's size.
func maglevFor(members []seeded) (size, heaviest uint32) {
	total, lightest := uint64(0), uint32(MaxWeight)
	for _, m := range members {
		total += uint64(m.weight)
		heaviest, lightest = max(heaviest, m.weight), min(lightest, m.weight)
	}
	if minSlots*total > maglevSize*uint64(lightest) {
		return largeMaglevSize, heaviest
	}
	return maglevSize, heaviest
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

func (t maglev) feed(d *xxhash.Digest) {
	var buf [4]byte
	for _, m := range t {
		binary.LittleEndian.PutUint32(buf[:], uint32(m))
		d.Write(buf[:])
	}
}
