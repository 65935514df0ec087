package listener

import (
	"bytes"
	"strings"
)

// nameIndex finds the entries that ask for a host name: those of the name
// itself, and those of "*." and each of its parents. What it costs depends on
// the labels of the name, not on the number of entries.
type nameIndex struct {
	exact, below map[string]uint32 // numbers of lists; below: without the "*."
	depth        int               // labels that the longest name in below has
	ends         []uint32          // where in entries each list ends, and the next one begins
	entries      []int32           // indices into table.entries, ascending in each list
}

// named is an entry's wish while an index is built.
type named struct {
	pattern string
	entry   int32
}

// newNameIndex wants wishes in the order of their entries; nil without any.
func newNameIndex(wishes []named) *nameIndex {
	if len(wishes) == 0 {
		return nil
	}
	wild := 0
	for _, w := range wishes {
		if strings.HasPrefix(w.pattern, "*.") {
			wild++
		}
	}
	x := &nameIndex{
		exact:   make(map[string]uint32, len(wishes)-wild),
		below:   make(map[string]uint32, wild),
		ends:    make([]uint32, 0, len(wishes)),
		entries: make([]int32, len(wishes)),
	}
	// Count, lay out, fill: one array instead of a slice for each name.
	lists := make([]uint32, len(wishes))
	for i, w := range wishes {
		m, name := x.exact, w.pattern
		if parent, ok := strings.CutPrefix(name, "*."); ok {
			m, name = x.below, parent
			x.depth = max(x.depth, strings.Count(parent, ".")+1)
		}
		n, ok := m[name]
		if !ok {
			n = uint32(len(x.ends))
			m[name] = n
			x.ends = append(x.ends, 0)
		}
		lists[i] = n
		x.ends[n]++
	}
	var next uint32
	for i, n := range x.ends {
		x.ends[i] = next // where it begins; filling moves that to its end
		next += n
	}
	for i, n := range lists {
		x.entries[x.ends[n]] = wishes[i].entry
		x.ends[n]++
	}
	return x
}

func (x *nameIndex) list(n uint32) []int32 {
	if n == 0 {
		return x.entries[:x.ends[0]]
	}
	return x.entries[x.ends[n-1]:x.ends[n]]
}

// lookup calls f with the entries of the name and of each parent.
func (x *nameIndex) lookup(name []byte, f func(list []int32)) {
	if n, ok := x.exact[string(name)]; ok {
		f(x.list(n))
	}
	for labels, end := 1, len(name); labels <= x.depth; labels++ {
		if end = bytes.LastIndexByte(name[:end], '.'); end < 0 {
			return
		}
		if n, ok := x.below[string(name[end+1:])]; ok {
			f(x.list(n))
		}
	}
}
