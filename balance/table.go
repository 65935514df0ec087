package balance

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// Key hashes what a session is chosen by. The function is fixed: it, the
// tables and the order in which Pick looks further are the same on every node
// and in every version, or a fleet would send one client to two servers.
func Key(b []byte) uint64 { return xxhash.Sum64(b) }

// Keyed is one member of a [Table].
type Keyed struct {
	Name   string // what its share is found by: a member that is renamed is another one
	Weight int    // relative share, 1–MaxWeight (≤ 0: never picked)
}

// Table gives each key a member. It is immutable, and all loops share it.
//
// Who gets a key depends on the policy and on the members' names and weights,
// but not on their order. A member that comes or goes takes keys from, or
// leaves them to, the others by their weights; all other keys stay. With
// RingHash that is exact as long as the ring is not at its bound. With Maglev
// up to one in a hundred changes hands all the same, in return for shares that
// are even to a few percent, those of a ring to some ten.
type Table struct {
	policy      Policy
	members     []Keyed
	order       []int32 // members of a weight, by name
	slots       slots
	fingerprint uint64
}

// slots is where a policy looks keys up.
type slots interface {
	// at returns the place of a key's member in Table.order, at the n-th look.
	at(key uint64, n int) int32
	size() int
	bytes() int
	feed(d *xxhash.Digest)
}

// maxLooks bounds how often Pick looks further before it counts who is left.
// With half of the members skipped it gets that far once in 2⁶⁴ keys.
const maxLooks = 64

// NewTable builds the table of a keyed policy over members, whose indexes are
// what Pick returns.
func NewTable(p Policy, members []Keyed) *Table {
	t := &Table{policy: p, members: slices.Clone(members)}
	for i, m := range t.members {
		t.members[i].Weight = min(max(m.Weight, 0), MaxWeight)
		if m.Weight > 0 {
			t.order = append(t.order, int32(i))
		}
	}
	slices.SortStableFunc(t.order, func(a, b int32) int {
		x, y := &t.members[a], &t.members[b]
		return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.Weight, y.Weight))
	})
	sorted := make([]seeded, len(t.order))
	for i, m := range t.order {
		sorted[i] = seeded{hash: xxhash.Sum64String(t.members[m].Name), weight: uint32(t.members[m].Weight)}
		if i > 0 && t.members[t.order[i-1]].Name == t.members[m].Name {
			sorted[i].hash = mix(sorted[i-1].hash) // namesakes share nothing else
		}
	}
	switch {
	case len(sorted) == 0:
	case p == RingHash:
		t.slots = newRing(sorted)
	default:
		t.slots = newMaglev(sorted)
	}
	t.fingerprint = t.hash()
	return t
}

// seeded is a member as the tables are built from it.
type seeded struct {
	hash   uint64 // of its name
	weight uint32
}

// Pick returns the index of the member that key belongs to, or -1 when every
// member is skipped or there is none. A nil filter skips nothing. A member that
// is skipped leaves its keys, and no others, to the other members by their
// weights, and gets the same ones back afterwards.
//
// Its cost does not depend on the number of members, except that a filter
// which skips nearly all of them makes it look at each.
func (t *Table) Pick(key uint64, f Filter) int {
	if t.slots == nil {
		return -1
	}
	last := int32(-1)
	for n := range maxLooks {
		i := t.order[t.slots.at(key, n)]
		if f == nil || i != last && !f.Skip(int(i)) {
			return int(i)
		}
		last = i
	}
	return t.scan(key, f)
}

// scan chooses by weight among those that are left.
func (t *Table) scan(key uint64, f Filter) int {
	var total uint64
	for _, i := range t.order {
		if !f.Skip(int(i)) {
			total += uint64(t.members[i].Weight)
		}
	}
	n, _ := bits.Mul64(mix(key), total)
	found := -1
	for _, i := range t.order {
		if f.Skip(int(i)) { // the filter's answers may have changed since
			continue
		}
		found = int(i)
		w := uint64(t.members[i].Weight)
		if n < w {
			break
		}
		n -= w
	}
	return found
}

// Size is the number of slots, or of points on the ring.
func (t *Table) Size() int {
	if t.slots == nil {
		return 0
	}
	return t.slots.size()
}

// Bytes is the memory that the table takes.
func (t *Table) Bytes() int {
	n := 4 * len(t.order)
	for _, m := range t.members {
		n += 24 + len(m.Name)
	}
	if t.slots != nil {
		n += t.slots.bytes()
	}
	return n
}

// Fingerprint is the same for two tables if they give every key to a member of
// the same name. Nodes of a fleet are compared by it.
func (t *Table) Fingerprint() string { return fmt.Sprintf("%016x", t.fingerprint) }

// Equal reports whether u was built from the same as t, its order included.
func (t *Table) Equal(p Policy, members []Keyed) bool {
	return t.policy == p && slices.Equal(t.members, members)
}

func (t *Table) hash() uint64 {
	b := append([]byte(t.policy.String()), 0)
	b = binary.LittleEndian.AppendUint64(b, uint64(t.Size()))
	for _, i := range t.order {
		b = append(append(b, t.members[i].Name...), 0)
		b = binary.LittleEndian.AppendUint32(b, uint32(t.members[i].Weight))
	}
	d := xxhash.New()
	d.Write(b)
	if t.slots != nil {
		t.slots.feed(d)
	}
	return d.Sum64()
}

// mix is the finaliser of SplitMix64: each bit of x changes about half of the
// bits of the result.
func mix(x uint64) uint64 {
	r := rng(x)
	return r.next()
}
