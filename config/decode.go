package config

import (
	"fmt"
	"iter"
	"maps"
	"strings"

	"github.com/hashicorp/hcl/v2"
)

func keys[V any](m map[string]V) iter.Seq[string] { return maps.Keys(m) }

// decodeBlocks decodes the blocks found in a body of b into their parent.
func (l *loader) decodeBlocks(b *block, blocks []topBlock, parent any) {
	type id struct{ block, name string }
	first := make(map[id]hcl.Range)
	for _, hb := range blocks {
		c, kinds := b.child(hb.Type, hb.Labels)
		if c == nil {
			if len(kinds) > 0 && len(hb.Labels) > 0 {
				l.d.errorf(hb.LabelRanges[0], fmt.Sprintf("%s block is %s.%s", upperFirst(an(hb.Type)), quotedKinds(hb.Type, kinds), didYouMean(hb.Labels[0], kinds)),
					"there is no %s of type %q", hb.Type, hb.Labels[0])
			}
			continue
		}
		if len(hb.Labels) < len(c.labels()) {
			// A dynamic block without labels; native blocks are checked by HCL.
			l.d.errorf(hb.DefRange, fmt.Sprintf("Add to the dynamic block: labels = [%s]", strings.Join(c.labels(), ", ")),
				"%s block has %s", an(c.name), c.labelsInWords())
			continue
		}
		if c == localsBlock {
			continue
		}
		n := node{header: hb.DefRange}
		if c.named {
			last := len(hb.Labels) - 1
			n.name, n.nameRange = hb.Labels[last], hb.LabelRanges[last]
			if !validName(n.name) {
				l.d.errorf(n.nameRange, "A name is 1 to 63 letters, digits, \"_\", \".\" and \"-\".", "%s cannot be the name of %s", quote(n.name), an(c.name))
			}
		}
		if c.named || !c.many {
			k := id{c.name, n.name}
			if at, dup := first[k]; dup {
				where := n.header
				what := fmt.Sprintf("there is %s block already, at %s", an(c.name), place(at))
				if c.named {
					where = n.nameRange
					what = fmt.Sprintf("%s %q is already defined at %s", c.name, n.name, place(at))
				}
				detail := ""
				if c.name == "listener" {
					detail = "Listeners of all networks share their names: metrics and logs know them by nothing else."
				}
				l.d.errorf(where, detail, "%s", what)
			} else {
				first[k] = n.header
			}
		}
		l.decode(c, hb, n, c.open(parent))
	}
}

func quotedKinds(name string, kinds []string) string {
	out := make([]string, len(kinds))
	for i, k := range kinds {
		out[i] = fmt.Sprintf("%s %q", name, k)
	}
	return anyOf(out, "or")
}

// decode reads the body of one block into dst.
func (l *loader) decode(b *block, hb topBlock, n node, dst any) {
	if hurt := l.hurt[hb.DefRange.Filename]; hurt[hb.DefRange.Start.Byte] {
		n.partial = true
	}
	content, diags := hb.Body.Content(&b.shape().hcl)
	if l.reportContent(diags, b, &n) {
		n.partial = true
	}
	n.attrs = content.Attributes
	for i := range b.attrs {
		a := &b.attrs[i]
		at, present := content.Attributes[a.name]
		if !present {
			if a.required && !n.partial {
				l.d.errorf(n.header, a.takes(), "%s has no %s", b.title(n.name), a.name)
			}
			continue
		}
		v, ok := l.eval(at.Expr, hb.ctx)
		switch {
		case !ok:
			n.bad = true
		case v.IsNull(): // as if it were not there
			if delete(n.attrs, a.name); a.required {
				l.d.errorf(at.Expr.Range(), "", "%s has no %s: the value is null", b.title(n.name), a.name)
			}
		default:
			if !a.set(dst, &value{v: v, expr: at.Expr, a: a, d: l.d}) {
				n.bad = true
			}
		}
	}
	if d, ok := dst.(interface{ self() *node }); ok {
		*d.self() = n
	}
	if len(content.Blocks) == 0 {
		return
	}
	inner := make([]topBlock, len(content.Blocks))
	for i, c := range content.Blocks {
		inner[i] = topBlock{c, hb.ctx}
	}
	l.decodeBlocks(b, inner, dst)
}

// an is the name with its article.
func an(name string) string {
	if name != "" && strings.IndexByte("aeiou", name[0]) >= 0 {
		return "an " + name
	}
	return "a " + name
}

// title is how messages call a block.
func (b *block) title(name string) string {
	if b.named {
		return fmt.Sprintf("%s %q", b.name, name)
	}
	return b.name
}

func validName(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}
