package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
)

// refKind is a kind of block that others refer to by its name.
type refKind struct {
	name    string   // as in upstream.NAME
	noun    string   // in messages
	capsule cty.Type // of upstream.NAME in expressions; it holds the name
	body    string   // what the least block holds
}

var (
	upstreamRefs = newRefKind("upstream", "an upstream", "a server in it")
	tlsRefs      = newRefKind("tls", "a tls block", "a certificate in it")
	refKinds     = []*refKind{upstreamRefs, tlsRefs}
	refNames     = []string{"upstream", "tls"}
)

func newRefKind(name, noun, body string) *refKind {
	return &refKind{name: name, noun: noun, body: body, capsule: cty.Capsule(name, reflect.TypeFor[string]())}
}

// refKindOf finds a kind by its name in expressions.
func refKindOf(name string) *refKind {
	if i := slices.Index(refNames, name); i >= 0 {
		return refKinds[i]
	}
	return nil
}

// local is one attribute of a locals block.
type local struct {
	name   string
	attr   *hcl.Attribute
	ctx    *hcl.EvalContext
	needs  []string // other locals
	refers bool     // … or to blocks, directly or not
	state  uint8    // unvisited, on the path, done
}

const (
	unvisited = iota
	onPath
	done
)

// locals holds those of all files.
type locals struct {
	byName map[string]*local
	order  []*local
}

func (ls *locals) add(attr *hcl.Attribute, ctx *hcl.EvalContext, d *Diagnostics) {
	if first, ok := ls.byName[attr.Name]; ok {
		d.errorf(attr.NameRange, "Each local is defined once, in one of the files.", "local %q is already defined at %s", attr.Name, place(first.attr.NameRange))
		return
	}
	l := &local{name: attr.Name, attr: attr, ctx: ctx}
	for _, t := range attr.Expr.Variables() {
		switch t.RootName() {
		case "local":
			if n := secondName(t); n != "" {
				l.needs = append(l.needs, n)
			}
		case "upstream", "tls":
			l.refers = true
		}
	}
	ls.byName[attr.Name] = l
	ls.order = append(ls.order, l)
}

// sort puts each local behind those it refers to and reports cycles.
func (ls *locals) sort(d *Diagnostics) (cyclic map[string]bool) {
	slices.SortStableFunc(ls.order, func(a, b *local) int {
		// hcl hands attributes out of a map
		if a.attr.NameRange.Filename != b.attr.NameRange.Filename {
			return 0
		}
		return a.attr.NameRange.Start.Byte - b.attr.NameRange.Start.Byte
	})
	cyclic = make(map[string]bool)
	sorted := make([]*local, 0, len(ls.order))
	var path []*local
	var visit func(l *local)
	visit = func(l *local) {
		switch l.state {
		case done:
			return
		case onPath:
			i := slices.Index(path, l)
			var names []string
			for _, p := range append(path[i:len(path):len(path)], l) {
				names = append(names, "local."+p.name)
				cyclic[p.name] = true
			}
			d.errorf(l.attr.NameRange, "", "locals refer to each other in a circle: %s", strings.Join(names, " → "))
			return
		}
		l.state = onPath
		path = append(path, l)
		if len(path) > maxLocalsDepth {
			d.errorf(l.attr.NameRange, "", "more than %d locals refer to each other in a row", maxLocalsDepth)
			cyclic[l.name] = true
		} else {
			for _, n := range l.needs {
				if m := ls.byName[n]; m != nil {
					visit(m)
					l.refers = l.refers || m.refers
				}
			}
		}
		path = path[:len(path)-1]
		l.state = done
		sorted = append(sorted, l)
	}
	for _, l := range ls.order {
		visit(l)
	}
	ls.order = sorted
	return cyclic
}

const maxLocalsDepth = 1000

func (ls *locals) names() []string { return slices.Sorted(maps.Keys(ls.byName)) }

// secondName is "b" in a.b and a["b"].
func secondName(t hcl.Traversal) string {
	if len(t) < 2 {
		return ""
	}
	switch s := t[1].(type) {
	case hcl.TraverseAttr:
		return s.Name
	case hcl.TraverseIndex:
		if s.Key.Type() == cty.String && s.Key.IsKnown() && !s.Key.IsNull() {
			return s.Key.AsString()
		}
	}
	return ""
}

// eval returns the value of an expression, or false after reporting why there
// is none. Values that depend on a local which failed are reported there, not
// here.
func (l *loader) eval(expr hcl.Expression, ctx *hcl.EvalContext) (cty.Value, bool) {
	v, diags := expr.Value(ctx)
	if diags.HasErrors() {
		l.d.add(l.explain(diags, expr)...)
		return cty.DynamicVal, false
	}
	return v, v.IsWhollyKnown()
}

// explain replaces what HCL says about names it does not know by which there
// are.
func (l *loader) explain(diags hcl.Diagnostics, expr hcl.Expression) hcl.Diagnostics {
	var out hcl.Diagnostics
	for _, x := range diags {
		if y := l.explainOne(x, expr); y != nil {
			out = append(out, y)
		}
	}
	return out
}

func (l *loader) explainOne(x *hcl.Diagnostic, expr hcl.Expression) *hcl.Diagnostic {
	y := *x
	y.Expression, y.EvalContext = nil, nil
	switch x.Summary {
	case unknownForEach, "Invalid dynamic block label":
		if x.Summary == unknownForEach || strings.Contains(x.Detail, "not yet known") {
			return nil
		}
	case "Unknown variable", "Unsupported attribute", "Invalid index":
		for _, t := range expr.Variables() {
			if x.Subject == nil || !t.SourceRange().Overlaps(*x.Subject) {
				continue
			}
			root, second := t.RootName(), secondName(t)
			switch {
			case refKindOf(root) != nil && x.Summary != "Unknown variable":
				names := l.named[root]
				if second == "" || names[second] {
					continue
				}
				if l.incomplete {
					return nil // it may be in what could not be read
				}
				y.Summary = fmt.Sprintf("there is no %s %q", root, second)
				y.Detail = l.known(root, second, slices.Sorted(maps.Keys(names)))
			case root == "local" && x.Summary != "Unknown variable":
				if second == "" || l.locals.byName[second] != nil {
					continue
				}
				if l.incomplete {
					return nil
				}
				y.Summary = fmt.Sprintf("there is no local %q", second)
				y.Detail = l.known("local", second, l.locals.names())
			case x.Summary == "Unknown variable":
				y.Summary = fmt.Sprintf("there is no variable %q", root)
				y.Detail = fmt.Sprintf("A text needs quotes: \"%s\". Names in expressions are local.NAME, upstream.NAME, tls.NAME, and in dynamic blocks their iterator.", root) +
					didYouMean(root, append([]string{"local"}, refNames...))
				if refKindOf(root) != nil {
					y.Detail = "Upstreams and tls blocks can be referred to in their users, not in what creates such blocks."
				}
			default:
				continue
			}
			r := t.SourceRange()
			y.Subject = &r
			return &y
		}
	case "Call to unknown function":
		name := l.textAt(*x.Subject)
		y.Summary = fmt.Sprintf("there is no function %q", name)
		y.Detail = "There are: " + strings.Join(functionNames(), ", ") + "." + didYouMean(name, functionNames())
	case "Invalid function argument", "Error in function call":
		// The reason belongs where the one line of a log shows it.
		if _, why, ok := strings.Cut(x.Detail, ": "); ok {
			y.Summary, y.Detail = strings.TrimSuffix(why, "."), ""
			if y.Subject = x.Subject; x.Context != nil && x.Summary == "Error in function call" {
				y.Subject = x.Context
			}
		}
	}
	// HCL's summaries are titles; where the detail is a single sentence it
	// says more, and fits in the one line of a log.
	if s := strings.TrimSuffix(y.Detail, "."); y.Detail != "" && len(s) < 120 && !strings.Contains(s, ". ") {
		y.Summary, y.Detail = s, ""
	}
	y.Summary = lowerFirst(y.Summary)
	return &y
}

// known lists the names there are, and the nearest.
func (l *loader) known(what, name string, names []string) string {
	if len(names) == 0 {
		how := "locals { " + name + " = … }."
		if k := refKindOf(what); k != nil {
			how = what + ` "` + name + `" with ` + k.body + "."
		}
		return "There is none at all; define one with a block: " + how
	}
	suggestion := ""
	if l.suggested++; l.suggested <= maxSuggestions {
		suggestion = didYouMean(name, names)
	}
	list := names
	if len(list) > 12 {
		list = append(slices.Clone(list[:12]), fmt.Sprintf("%s more", thousands(len(names)-12)))
	}
	return "Defined are: " + anyOf(list, "and") + "." + suggestion
}

// Comparing with all names is quadratic in a file where all of them are wrong.
const maxSuggestions = 200

func lowerFirst(s string) string {
	if len(s) > 1 && s[0] >= 'A' && s[0] <= 'Z' && (s[1] < 'A' || s[1] > 'Z') {
		return string(s[0]+'a'-'A') + s[1:]
	}
	return s
}
