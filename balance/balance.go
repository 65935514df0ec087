// Package balance chooses one of n members by weight and load. It is pure: it
// knows no addresses, sockets or clocks.
//
// A [Picker] belongs to one event loop and is not safe for concurrent use;
// members' loads are shared by all loops and read atomically. A picker is
// immutable in its membership: when servers come, go, or change their state,
// the owner builds another one.
package balance

import "sync/atomic"

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
)

// Member is one choice.
type Member struct {
	Weight int           // relative share, 1–256 (0: never picked)
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
	Pick(f Filter) int
}
