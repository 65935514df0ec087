package listener

import (
	"bytes"
	"strings"
)

// nameIndex finds the entries that ask for a host name: those of the name itself,
// and those of "*." and each of its parents. What it costs depends on the
// labels of the name, not on the number of entries.
type nameIndex struct {
	exact, below map[string]span // below: without the "*."
	depth        int             // labels that the longest name in below has
	entries      []int32         // indices into table.entries, ascending in each span
}

// span is a part of nameIndex.entries.
type span struct{ from, to uint32 }

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
		exact:   make(map[string]span, len(wishes)-wild),
		below:   make(map[string]span, wild),
		entries: make([]int32, len(wishes)),
	}
	// Count, lay out, fill: three passes instead of a slice for each name.
	of := func(pattern string) (map[string]span, string) {
		if parent, ok := strings.CutPrefix(pattern, "*."); ok {
			return x.below, parent
		}
		return x.exact, pattern
	}
	for _, w := range wishes {
		m, name := of(w.pattern)
		s := m[name]
		s.to++
		m[name] = s
	}
	var next uint32
	for _, w := range wishes {
		m, name := of(w.pattern)
		s := m[name]
		if s.to&filling == 0 {
			count := s.to
			s = span{next, next | filling}
			next += count
		}
		x.entries[s.to&^filling] = w.entry
		s.to++
		m[name] = s
	}
	for _, m := range []map[string]span{x.exact, x.below} {
		for name, s := range m {
			s.to &^= filling
			m[name] = s
		}
	}
	for parent := range x.below {
		x.depth = max(x.depth, strings.Count(parent, ".")+1)
	}
	return x
}

// filling marks a span whose place is known, and which ends where the next
// entry goes.
const filling = 1 << 31

// lookup calls f with the entries of the name and of each parent.
func (x *nameIndex) lookup(name []byte, f func(list []int32)) {
	if s, ok := x.exact[string(name)]; ok {
		f(x.entries[s.from:s.to])
	}
	if x.depth == 0 {
		return
	}
	for labels, end := 1, len(name); labels <= x.depth; labels++ {
		if end = bytes.LastIndexByte(name[:end], '.'); end < 0 {
			return
		}
		if s, ok := x.below[string(name[end+1:])]; ok {
			f(x.entries[s.from:s.to])
		}
	}
}
