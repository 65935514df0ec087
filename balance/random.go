package balance

import (
	"slices"
	"sync/atomic"
)

// random draws members by weight from an alias table (Vose 1991), or straight
// from the index where all weights are equal.
type random struct {
	rng   rng
	equal bool    // all weights are the same: cut and alias are not used
	table []entry // members with a weight
	// upTo[i] is the sum of the weights of table[0] … table[i]. It finds a
	// second member when the first one's weight is so large that drawing
	// again would mostly draw it again. Not set when equal.
	upTo []uint32
}

// entry is one member, and one column of the alias table: a draw that lands
// here stands for the member itself below cut, for alias from there on.
type entry struct {
	load   *atomic.Int64
	weight uint32
	index  uint32
	cut    uint32
	alias  uint32
}

func newRandom(members []Member, r rng) *random {
	p := &random{rng: r, equal: true, table: make([]entry, 0, len(members))}
	for i, m := range members {
		if w := m.weight(); w > 0 {
			p.table = append(p.table, entry{load: m.Load, weight: w, index: uint32(i)})
			p.equal = p.equal && w == p.table[0].weight
		}
	}
	if !p.equal {
		p.buildAlias()
	}
	return p
}

func (p *random) buildAlias() {
	n := len(p.table)
	p.upTo = make([]uint32, n)
	total := uint32(0)
	for i := range p.table {
		total += p.table[i].weight
		p.upTo[i] = total
	}
	// Weights are scaled so that a column holds total. Columns with less are
	// kept at the front of the list, those with more at its back.
	rest := make([]uint64, n)
	list := make([]uint32, n)
	small, large := 0, n
	for i := range p.table {
		rest[i] = uint64(p.table[i].weight) * uint64(n)
		if rest[i] < uint64(total) {
			list[small] = uint32(i)
			small++
		} else {
			large--
			list[large] = uint32(i)
		}
	}
	for small > 0 && large < n {
		small--
		s, l := list[small], list[large]
		p.table[s].cut = uint32(rest[s] << 32 / uint64(total))
		p.table[s].alias = l
		if rest[l] -= uint64(total) - rest[s]; rest[l] < uint64(total) {
			large++
			list[small] = l
			small++
		}
	}
	// What is left is full, exactly so as the arithmetic is: it is its own alias.
	for _, i := range slices.Concat(list[:small], list[large:]) {
		p.table[i].alias = i
	}
}

func (p *random) Pick(f Filter) int {
	n := uint32(len(p.table))
	if n == 0 {
		return -1
	}
	if f != nil {
		return p.pickFiltered(f)
	}
	if n == 1 {
		return int(p.table[0].index)
	}
	var a, b uint32
	if p.equal {
		r := p.rng.next()
		a = below(uint32(r), n)
		b = below(uint32(r>>32), n-1)
		if b >= a {
			b++
		}
	} else {
		a = p.draw()
		b = p.drawOther(a)
	}
	return p.better(a, b)
}

// better returns the index of the less loaded of two. The first one wins a
// tie, so that idle members are chosen by weight alone.
func (p *random) better(a, b uint32) int {
	x, y := &p.table[a], &p.table[b]
	i := x.index
	if y.load.Load()*int64(x.weight) < x.load.Load()*int64(y.weight) {
		i = y.index
	}
	return int(i)
}

func (p *random) draw() uint32 {
	r := p.rng.next()
	i := below(uint32(r>>32), uint32(len(p.table)))
	if p.equal {
		return i
	}
	e := &p.table[i]
	if uint32(r) >= e.cut {
		i = e.alias
	}
	return i
}

// drawOther draws a member that is not a. There are at least two.
func (p *random) drawOther(a uint32) uint32 {
	for range 3 {
		if b := p.draw(); b != a {
			return b
		}
	}
	if p.equal {
		b := below(uint32(p.rng.next()>>32), uint32(len(p.table)-1))
		if b >= a {
			b++
		}
		return b
	}
	// Draw from the line of all weights with a's stretch cut out.
	w := p.table[a].weight
	x := below(uint32(p.rng.next()>>32), p.upTo[len(p.upTo)-1]-w)
	if x >= p.upTo[a]-w {
		x += w
	}
	b, _ := slices.BinarySearch(p.upTo, x+1)
	return uint32(b)
}

// filteredTries is how many draws may hit skipped members before all members
// are looked at.
const filteredTries = 16

func (p *random) pickFiltered(f Filter) int {
	a := none
	for range filteredTries {
		if x := p.draw(); !f.Skip(int(p.table[x].index)) {
			a = x
			break
		}
	}
	if a != none {
		if len(p.table) == 1 {
			return int(p.table[a].index)
		}
		for range filteredTries {
			if b := p.drawOther(a); !f.Skip(int(p.table[b].index)) {
				return p.better(a, b)
			}
		}
	}
	return p.pickScanning(f, a)
}

// none stands for no place in the table.
const none = ^uint32(0)

// pickScanning draws by looking at all members which are not skipped. A first
// draw a is kept: drawing again where a second one is hard to find would give
// more to members beside which it is easy, the light ones.
func (p *random) pickScanning(f Filter, a uint32) int {
	r := p.rng.next()
	if a == none {
		total := p.weightOf(f, none)
		if total == 0 {
			return -1
		}
		if a = p.find(f, below(uint32(r), total), none); a == none {
			return -1
		}
	}
	if total := p.weightOf(f, a); total > 0 {
		if b := p.find(f, below(uint32(r>>32), total), a); b != none {
			return p.better(a, b)
		}
	}
	return int(p.table[a].index)
}

// weightOf sums up the members that are neither skipped nor except.
func (p *random) weightOf(f Filter, except uint32) uint32 {
	total := uint32(0)
	for i := range p.table {
		if e := &p.table[i]; uint32(i) != except && !f.Skip(int(e.index)) {
			total += e.weight
		}
	}
	return total
}

// find returns the place of x on the line of the weights of all members that
// are neither skipped nor except. The line may have become shorter since it
// was measured, as a filter may look at the loads; its last member then is it.
func (p *random) find(f Filter, x, except uint32) uint32 {
	last := none
	for i := range p.table {
		e := &p.table[i]
		if uint32(i) == except || f.Skip(int(e.index)) {
			continue
		}
		last = uint32(i)
		if x < e.weight {
			break
		}
		x -= e.weight
	}
	return last
}
