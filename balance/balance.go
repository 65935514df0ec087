// Package balance chooses one of n members by weight and load. It is pure: it
// knows no addresses, sockets or clocks.
//
// A [Picker] belongs to one event loop and is not safe for concurrent use;
// members' loads are shared by all loops and read atomically. A picker is
// immutable in its membership: when servers come, go, or change their state,
// the owner builds another one.
package balance

import (
	"slices"
	"sync/atomic"
)

// Policy names a way to choose.
type Policy uint8

const (
	// Random draws two members by weight and takes the one with the fewer
	// active sessions per weight ("power of two choices"). The default.
	Random Policy = iota
	// RoundRobin takes members in turn, by weight, spread smoothly.
	RoundRobin
	// LeastConn takes the member with the fewest active sessions per weight.
	LeastConn
	// Maglev takes the member that a table names for the session's key: the
	// same on every node that has the same members. See [Table].
	Maglev
	// RingHash does so by a ring of points. See [Table].
	RingHash
)

// Policies holds the names used in configuration files, indexed by Policy.
var Policies = []string{Random: "random", RoundRobin: "round_robin", LeastConn: "least_conn", Maglev: "maglev", RingHash: "ring_hash"}

func (p Policy) String() string { return Policies[p] }

// Keyed reports whether p chooses by a key, with a [Table], and not with a
// [Picker].
func (p Policy) Keyed() bool { return p == Maglev || p == RingHash }

// ParsePolicy is the inverse of [Policy.String].
func ParsePolicy(s string) (Policy, bool) {
	i := slices.Index(Policies, s)
	return Policy(max(i, 0)), i >= 0
}

// MaxWeight bounds [Member.Weight]; more counts as this much.
const MaxWeight = 256

// Member is one choice.
type Member struct {
	Weight int           // relative share, 1–MaxWeight (≤ 0: never picked)
	Load   *atomic.Int64 // active sessions, shared with every loop
}

// Filter leaves members out of one pick: those already tried, full, or down
// since the picker was built.
type Filter interface {
	Skip(i int) bool
}

// Picker chooses among the members it was built over.
type Picker interface {
	// Pick returns the index of the chosen member, or -1 when every member is
	// skipped or there is none. A nil filter skips nothing. The caller adds
	// one to the chosen member's load.
	//
	// Its cost does not depend on the number of members, or as its logarithm
	// for LeastConn, except that a filter which skips nearly all of them makes
	// it look at each.
	Pick(f Filter) int
}

// New builds a picker over members, whose indexes are what Pick returns. The
// seed decides the draws and where a rotation starts: give every loop another
// one, or all loops begin with the same server after each change.
func New(p Policy, members []Member, seed uint64) Picker {
	r := rng(seed)
	r.next() // small seeds differ in few bits; their second outputs in half of them
	switch p {
	case RoundRobin:
		return newRoundRobin(members, &r)
	case LeastConn:
		return newLeastConn(members, &r)
	default:
		return newRandom(members, r)
	}
}

// weight is m's weight as the pickers count it.
func (m Member) weight() uint32 { return uint32(min(max(m.Weight, 0), MaxWeight)) }

// rng is SplitMix64 (Steele, Lea, Flood 2014): one addition is all that one
// draw waits for from the one before it.
type rng uint64

func (r *rng) next() uint64 {
	*r += 0x9e3779b97f4a7c15
	z := uint64(*r)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// below scales 32 random bits to 0 … n-1. The bias is at most n/2³².
func below(bits uint32, n uint32) uint32 { return uint32(uint64(bits) * uint64(n) >> 32) }
