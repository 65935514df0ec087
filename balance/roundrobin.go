package balance

// roundRobin takes members in turn. Members of the same weight form a group
// and simply rotate; the groups, of which there are at most MaxWeight however
// many members there are, come up when their deadline is the earliest one, at
// even distances in proportion to their total weight. Over any stretch as long
// as the sum of all weights, each member comes up as often as its weight says
// (one more or less at the ends), and the turns of a heavy member are spread
// over the stretch instead of following each other.
type roundRobin struct {
	groups  []group
	due     minTree  // deadlines of the groups; none for a single group
	members []uint32 // indexes, group after group
	rest    *random  // draws when nearly all members are skipped
}

type group struct {
	period        uint64 // from one turn of the group to the next one; round / total weight
	from, to, pos uint32 // in members
}

const (
	// groupBits is the part of a key that is the group's number.
	groupBits = 8

	// round is the time in which each group has as many turns as its weight.
	// It is large for the sake of exact periods: even the one of 10 000 members
	// of MaxWeight is above 2²².
	round = 1 << 44

	// dueLimit is the key from which on all deadlines are set back, to stay
	// below noKey.
	dueLimit = 1 << 63
)

func newRoundRobin(members []Member, r *rng) *roundRobin {
	p := &roundRobin{rest: newRandom(members, *r)}
	var count [MaxWeight + 1]uint32
	for _, m := range members {
		count[m.weight()]++
	}
	var start [MaxWeight + 1]uint32
	total := uint32(0)
	for w := uint32(MaxWeight); w > 0; w-- {
		n := count[w]
		if n == 0 {
			continue
		}
		start[w] = total
		p.groups = append(p.groups, group{
			period: round / (uint64(n) * uint64(w)),
			from:   total,
			to:     total + n,
			pos:    total + below(uint32(r.next()), n),
		})
		total += n
	}
	p.members = make([]uint32, total)
	for i, m := range members {
		if w := m.weight(); w > 0 {
			p.members[start[w]] = uint32(i)
			start[w]++
		}
	}
	if len(p.groups) > 1 {
		p.due = newMinTree(len(p.groups))
		for i, g := range p.groups {
			*p.due.leaf(i) = r.next()%g.period<<groupBits | uint64(i)
		}
		p.due.rebuild()
	}
	return p
}

func (p *roundRobin) Pick(f Filter) int {
	if len(p.groups) == 0 {
		return -1
	}
	if f == nil {
		return int(p.turn())
	}
	// A skipped member uses up its turn, so that the others keep their shares.
	for range 2 * filteredTries {
		if i := int(p.turn()); !f.Skip(i) {
			return i
		}
	}
	return p.rest.pickScanning(f, none)
}

// turn returns the member whose turn it is.
func (p *roundRobin) turn() uint32 {
	g := &p.groups[0]
	if p.due != nil {
		first := p.due.min()
		if first >= dueLimit {
			p.setBack()
			first = p.due.min()
		}
		i := int(first % (1 << groupBits))
		g = &p.groups[i]
		p.due.set(i, first+g.period<<groupBits)
	}
	i := p.members[g.pos]
	if g.pos++; g.pos == g.to {
		g.pos = g.from
	}
	return i
}

// setBack makes the earliest deadline 0, about once in 2048 rounds.
func (p *roundRobin) setBack() {
	earliest := p.due.min() >> groupBits << groupBits
	for i := range p.groups {
		*p.due.leaf(i) -= earliest
	}
	p.due.rebuild()
}
