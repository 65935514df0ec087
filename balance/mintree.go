package balance

// noKey ranks behind all keys: such a leaf does not take part.
const noKey = ^uint64(0)

// minTree finds the least of n keys, any of which may change at any time: a
// tree of winners, in which each node holds the lesser of its two children.
// Nodes are numbered as in a heap: 1 is the root, leaf i is node n+i, the
// parent of node i is i/2. Other than sifting through a heap, a change reads
// nodes whose numbers are known from the start and takes no branches that
// depend on keys, so that the processor does not wait level by level.
type minTree []node

type node struct {
	key  uint64
	leaf uint32
}

// newMinTree makes a tree of n ≥ 1 leaves without keys.
func newMinTree(n int) minTree {
	t := make(minTree, 2*n)
	for i := range n {
		t[n+i] = node{noKey, uint32(i)}
	}
	t.rebuild()
	return t
}

// leaf is where leaf i's key may be written, if rebuild is called afterwards.
func (t minTree) leaf(i uint32) *node { return &t[uint32(len(t)/2)+i] }

func (t minTree) rebuild() {
	for i := len(t)/2 - 1; i > 0; i-- {
		t[i] = t[2*i]
		if t[2*i+1].key < t[i].key {
			t[i] = t[2*i+1]
		}
	}
}

// min returns the leaf with the least key. Its key is noKey when no leaf has one.
func (t minTree) min() node { return t[1] }

// set changes leaf i's key.
func (t minTree) set(i uint32, key uint64) {
	at := uint32(len(t)/2) + i
	t[at] = node{key, i}
	for at > 1 {
		sibling := t[at^1]
		at /= 2
		if sibling.key < key {
			i = sibling.leaf
		}
		key = min(key, sibling.key)
		t[at] = node{key, i}
	}
}
