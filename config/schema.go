package config

import (
	"fmt"
	"strings"
	"sync"

	"github.com/hashicorp/hcl/v2"
)

// The schema is data: decoding, what messages say is allowed, and
// docs/configuration.md come from the tables in schema_*.go.

// block is one kind of block.
type block struct {
	name   string
	kind   string // its first label, where that chooses among blocks of the same name
	named  bool   // it has a name as its (last) label
	many   bool   // it may stand more than once
	doc    string
	attrs  []attr
	blocks []*block
	open   func(parent any) any // makes or finds what the values go into
	sample string               // label in examples
	absent map[string]string    // what only similar blocks have → what to do instead
}

// attr is one attribute.
type attr struct {
	name     string
	required bool
	def      string // the default, in words or as written
	doc      string
	example  string // as written in a file
	binding
}

// binding is where the value of an attribute goes, and through which codec.
type binding struct {
	typ, rng string
	set      func(dst any, v *value) bool
}

// to binds an attribute to a field of T.
func to[T, F any](c codec[F], field func(*T) *F) binding {
	return binding{typ: c.typ, rng: c.rng, set: func(dst any, v *value) bool {
		x, ok := c.read(v)
		if ok {
			*field(dst.(*T)) = x
		}
		return ok
	}}
}

// in makes the open function of a block that lives in a P.
func in[P, T any](open func(*P) *T) func(any) any {
	return func(parent any) any { return open(parent.(*P)) }
}

// node is what the checks after decoding need to know of a block.
type node struct {
	name      string
	header    hcl.Range
	nameRange hcl.Range
	attrs     hcl.Attributes
	bad       bool // an attribute has no usable value, which has been said
	partial   bool // part of the body could not be read: do not complain about what is missing
}

func (n *node) self() *node { return n }

// at is the place of an attribute's value, or of the header if it is not there.
func (n *node) at(attr string) hcl.Range {
	if a := n.attrs[attr]; a != nil {
		return a.Expr.Range()
	}
	return n.header
}

func (n *node) has(attr string) bool { return n.attrs[attr] != nil }

// shape is what HCL wants to know of a block's body. Built once: bodies come
// by the ten thousand.
type shape struct {
	hcl   hcl.BodySchema
	attrs []string
	inner []string // names of blocks
}

var shapes sync.Map // *block → *shape

func (b *block) shape() *shape {
	if s, ok := shapes.Load(b); ok {
		return s.(*shape)
	}
	s := new(shape)
	for _, a := range b.attrs {
		s.attrs = append(s.attrs, a.name)
		s.hcl.Attributes = append(s.hcl.Attributes, hcl.AttributeSchema{Name: a.name})
	}
	seen := make(map[string]bool)
	for _, c := range b.blocks {
		if seen[c.name] {
			continue
		}
		seen[c.name] = true
		s.inner = append(s.inner, c.name)
		s.hcl.Blocks = append(s.hcl.Blocks, hcl.BlockHeaderSchema{Type: c.name, LabelNames: c.labels()})
	}
	shapes.Store(b, s)
	return s
}

func (b *block) labels() []string {
	var l []string
	if b.kind != "" {
		l = append(l, "type")
	}
	if b.named {
		l = append(l, "name")
	}
	return l
}

// child finds the inner block of that name, and of that kind if the name has
// kinds. Without a match it returns the kinds there are.
func (b *block) child(name string, labels []string) (c *block, kinds []string) {
	for _, c := range b.blocks {
		if c.name != name {
			continue
		}
		if c.kind == "" || len(labels) > 0 && labels[0] == c.kind {
			return c, nil
		}
		kinds = append(kinds, c.kind)
	}
	return nil, kinds
}

func (b *block) attr(name string) *attr {
	for i := range b.attrs {
		if b.attrs[i].name == name {
			return &b.attrs[i]
		}
	}
	return nil
}

// header is how the block begins in an example.
func (b *block) header() string {
	if b.sample != "" {
		return b.begin(b.sample)
	}
	return b.begin("NAME")
}

// begin is how a block of that name begins in a file.
func (b *block) begin(name string) string {
	s := b.name
	if b.kind != "" {
		s += ` "` + b.kind + `"`
	}
	if b.named {
		s += ` "` + name + `"`
	}
	return s
}

// noun is what messages call a block of that kind.
func (b *block) noun() string {
	if b.kind != "" {
		return fmt.Sprintf("%s %q block", an(b.name), b.kind)
	}
	return an(b.name) + " block"
}

// allowed says what can stand in the block.
func (b *block) allowed() string {
	s := b.shape()
	what := upperFirst(b.noun()) + " takes "
	if b == rootBlock {
		what = "A file holds "
	}
	switch {
	case len(s.attrs) > 0 && len(s.inner) > 0:
		return what + all("attribute", s.attrs) + ", and " + all("block", s.inner) + "."
	case len(s.attrs) > 0:
		return what + all("attribute", s.attrs) + "."
	case len(s.inner) > 0:
		return what + all("block", s.inner) + "."
	}
	return what + "nothing."
}

// all names everything of a kind: "the attributes a and b", "the block c".
func all(kind string, names []string) string {
	if len(names) > 1 {
		kind += "s"
	}
	return "the " + kind + " " + anyOf(names, "and")
}

// printed is a block as an example, with everything in it.
func (b *block) printed(indent string, deep bool) string {
	var out strings.Builder
	out.WriteString(indent + b.header() + " {\n")
	for _, a := range b.attrs {
		if a.example != "" {
			out.WriteString(indent + "  " + a.name + " = " + a.example + "\n")
		}
	}
	if deep {
		for _, c := range b.blocks {
			out.WriteString(c.printed(indent+"  ", deep))
		}
	}
	out.WriteString(indent + "}\n")
	return out.String()
}
