package balance

import "math/bits"

// noKey ranks behind all keys: such a leaf does not take part.
const noKey = ^uint64(0)

// minTree finds the least of n keys, any of which may change at any time: a
// tree of winners, in which each node holds the lesser of its two children.
// Nodes are numbered as in a heap: 1 is the root, leaf i is node n+i, the
// parent of node i is i/2. The lowest bits of a key, as many as leafBits says,
// are the number of its leaf, so that the root tells who has won.
//
// Other than sifting through a heap, a change reads nodes whose numbers are
// known from the start and takes no branches that depend on keys, so that the
// processor does not wait level by level.
type minTree []uint64

// leafBits is the length of a leaf's number among n.
func leafBits(n int) int { return bits.Len(uint(n - 1)) }

// newMinTree makes a tree of n ≥ 1 leaves without keys.
func newMinTree(n int) minTree {
	t := make(minTree, 2*n)
	for i := range t {
		t[i] = noKey
	}
	return t
}

// leaf is where leaf i's key may be written, if rebuild is called afterwards.
func (t minTree) leaf(i int) *uint64 { return &t[len(t)/2+i] }

func (t minTree) rebuild() {
	for i := len(t)/2 - 1; i > 0; i-- {
		t[i] = min(t[2*i], t[2*i+1])
	}
}

// min returns the least key, noKey when no leaf has one.
func (t minTree) min() uint64 { return t[1] }

// set changes leaf i's key.
func (t minTree) set(i int, key uint64) {
	at := uint(len(t)/2 + i)
	t[at] = key
	for at > 1 {
		key = min(key, t[at^1])
		at /= 2
		t[at] = key
	}
}
