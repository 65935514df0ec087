package balance

import "sync/atomic"

// leastConn takes the member with the fewest active sessions per weight.
//
// Loads change under its hands: other loops add to them, and sessions end
// everywhere, and nobody tells. So it ranks members by the load it has last
// seen and looks again, in two ways:
//
//   - A member about to be chosen is looked at first, and ranked anew when it
//     has more than last seen. Loads that rose therefore never mislead: what a
//     member has been seen with is then no more than what it has.
//   - Each pick also looks at the next [looks] members in turn. A load that
//     fell is noticed at most ⌈n/looks⌉ picks later; until then that member
//     merely gets no new session earlier than it deserves.
//
// So no member had, when last looked at, fewer sessions per weight than the
// chosen one has now. Among up to looks members the choice is exact; among
// more it is exact as long as loads only rise, and the members not seen to
// fall are fewer than one look each per ⌈n/looks⌉ picks, a stretch in which a
// member can expect 1/looks of a session. A member that a filter skips is not
// asked again until it is looked at in turn.
//
// Members with the same load per weight are taken in turn by weight, as
// roundRobin would do it: each has a virtual time that advances by 1/weight
// with every session it gets, and the earliest is first. This decides for
// all sessions when they are too short to overlap.
type leastConn struct {
	seats    []seat
	tree     minTree
	leafBits uint8
	next     int    // seat to be looked at next
	last     int    // seat of the last pick, whose load is about to rise; -1: none
	clock    uint32 // virtual time of the last pick
}

// looks is the number of members each pick looks at in turn.
const looks = 8

type seat struct {
	load   *atomic.Int64
	seen   int32  // load when last looked at, at most maxLoad; parked: the filter skipped it
	time   uint32 // virtual time, below maxTime
	index  uint32
	weight uint32
}

// A key is the load per weight in units of 1/65536, which tell any two apart,
// then the virtual time, then the seat. A turn of weight 1 is tick long.
const (
	loadFraction = 16
	timeBits     = 14
	maxTime      = 1 << timeBits
	tick         = 1 << 12
	maxLoad      = 1<<31 - 1
	parked       = -1
)

func newLeastConn(members []Member, r *rng) *leastConn {
	p := &leastConn{seats: make([]seat, 0, len(members)), last: -1}
	for i, m := range members {
		if w := m.weight(); w > 0 {
			p.seats = append(p.seats, seat{load: m.Load, weight: w, index: uint32(i), time: below(uint32(r.next()), tick/w)})
		}
	}
	if len(p.seats) > 0 {
		p.tree = newMinTree(len(p.seats))
		p.leafBits = uint8(leafBits(len(p.seats)))
		p.next = int(below(uint32(r.next()), uint32(len(p.seats))))
		p.rank(nil)
	}
	return p
}

func (s *seat) look() int32 { return int32(min(max(s.load.Load(), 0), maxLoad)) }

// key ranks seat i, which is not parked. Among 10 000 members, all loads per
// weight from 2²⁰ on are the same to it, among ten from 2³⁰ on.
func (p *leastConn) key(i int) uint64 {
	s := &p.seats[i]
	ratio := min(uint64(s.seen)<<loadFraction/uint64(s.weight), 1<<(64-timeBits-p.leafBits)-2)
	return (ratio<<timeBits|uint64(s.time))<<p.leafBits | uint64(i)
}

// first is the seat with the least key.
func (p *leastConn) first() int { return int(p.tree.min() & (1<<p.leafBits - 1)) }

func (p *leastConn) Pick(f Filter) int {
	if len(p.seats) == 0 {
		return -1
	}
	if p.last >= 0 {
		p.seats[p.last].seen = p.seats[p.last].look()
		p.tree.set(p.last, p.key(p.last))
		p.last = -1
	}
	if p.tree.min() != noKey {
		p.seats[p.first()].look() // has its load on the way while others are looked at
	}
	p.lookAround()
	for range 64 + len(p.seats)/looks {
		if p.tree.min() == noKey {
			break
		}
		i := p.first()
		s := &p.seats[i]
		if now := s.look(); now > s.seen {
			s.seen = now
			p.tree.set(i, p.key(i))
			continue
		}
		if f != nil && f.Skip(int(s.index)) {
			s.seen = parked
			p.tree.set(i, noKey)
			continue
		}
		return p.take(i)
	}
	// Nearly all that is known is out of date, or skipped.
	p.rank(f)
	if p.tree.min() == noKey {
		return -1
	}
	return p.take(p.first())
}

// lookAround sees to it that no member goes unseen for long.
func (p *leastConn) lookAround() {
	i := p.next
	for range min(looks, len(p.seats)) {
		s := &p.seats[i]
		if now := s.look(); now != s.seen {
			s.seen = now
			p.tree.set(i, p.key(i))
		}
		if i++; i == len(p.seats) {
			i = 0
		}
	}
	p.next = i
}

// take advances the member's virtual time, from now if it has been left
// behind: having been busy entitles to no burst of turns later.
func (p *leastConn) take(i int) int {
	s := &p.seats[i]
	s.time = max(s.time, p.clock)
	p.clock = s.time
	if s.time += tick / s.weight; s.time >= maxTime {
		p.setBack()
	}
	p.last = i
	return int(s.index)
}

// rank looks at all members.
func (p *leastConn) rank(f Filter) {
	for i := range p.seats {
		s := &p.seats[i]
		if f != nil && f.Skip(int(s.index)) {
			s.seen = parked
			*p.tree.leaf(i) = noKey
			continue
		}
		s.seen = s.look()
		*p.tree.leaf(i) = p.key(i)
	}
	p.tree.rebuild()
}

// setBack makes the clock 0, after at least maxTime/tick turns of a member of
// weight 1, in which all others had theirs.
func (p *leastConn) setBack() {
	for i := range p.seats {
		s := &p.seats[i]
		s.time -= min(s.time, p.clock)
		if s.seen != parked {
			*p.tree.leaf(i) = p.key(i)
		}
	}
	p.tree.rebuild()
	p.clock = 0
}
