package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/dynblock"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
)

// loader is one load.
type loader struct {
	d          *Diagnostics
	budget     *budget
	lookupEnv  func(string) (string, bool)
	base       *hcl.EvalContext // variables and functions of all files
	locals     locals
	named      map[string]map[string]bool // kind of block → names; see [refKinds]
	incomplete bool                       // something could not be read: a name that is unknown may be there
	suggested  int
	hurt       map[string]map[int]bool // file → headers of blocks with syntax errors inside
	root       root
}

func newLoader(d *Diagnostics) *loader {
	l := &loader{
		d: d, budget: newBudget(), lookupEnv: os.LookupEnv,
		locals: locals{byName: make(map[string]*local)}, named: make(map[string]map[string]bool), hurt: make(map[string]map[int]bool),
	}
	for _, k := range refKinds {
		l.named[k.name] = make(map[string]bool)
	}
	return l
}

// topBlock is a block of a file, with what its expressions see.
type topBlock struct {
	*hcl.Block
	ctx *hcl.EvalContext
}

func (l *loader) load(files []File) (*Config, *Diagnostics) {
	l.base = &hcl.EvalContext{
		Variables: map[string]cty.Value{"local": cty.EmptyObjectVal},
		Functions: functions(l.budget, l.lookupEnv),
	}
	failedToRead := l.d.HasErrors()
	l.incomplete = failedToRead
	bodies := make([]hcl.Body, 0, len(files))
	contexts := make([]*hcl.EvalContext, 0, len(files))
	for _, f := range files {
		before := l.d.Errors()
		s := parse(f, l.d, l.budget)
		l.incomplete = l.incomplete || l.d.Errors() > before
		if s == nil {
			continue
		}
		ctx := l.base.NewChild()
		ctx.Functions = map[string]function.Function{"file": fileFunc(filepath.Dir(f.Name))}
		l.hurt[s.name] = s.hurt
		l.collectLocals(s.body, ctx)
		body := s.body
		if s.dynamic {
			body = dynblock.Expand(body, ctx, dynblock.OptCheckForEach(l.budget.forEach))
		}
		bodies = append(bodies, body)
		contexts = append(contexts, ctx)
	}

	// Dynamic blocks may need locals and create upstreams; locals may need
	// upstreams. So those locals wait that do. tls blocks are like upstreams.
	cyclic := l.locals.sort(l.d)
	l.evalLocals(cyclic, false)
	var blocks []topBlock
	for i, body := range bodies {
		content, diags := body.Content(&rootBlock.shape().hcl)
		lost := l.mayDefine(diags)
		if l.reportContent(diags, rootBlock, nil) && lost {
			l.incomplete = true
		}
		for _, b := range content.Blocks {
			blocks = append(blocks, topBlock{b, contexts[i]})
			if refKindOf(b.Type) != nil && len(b.Labels) == 1 {
				l.named[b.Type][b.Labels[0]] = true
			}
		}
	}
	for _, k := range refKinds {
		refs := make(map[string]cty.Value, len(l.named[k.name]))
		for name := range l.named[k.name] {
			refs[name] = cty.CapsuleVal(k.capsule, &name)
		}
		l.base.Variables[k.name] = cty.ObjectVal(refs)
	}
	l.evalLocals(cyclic, true)

	l.decodeBlocks(rootBlock, blocks, &l.root)
	if len(l.root.listeners) == 0 && !l.incomplete && !hasType(blocks, "listener") {
		at := hcl.Range{Filename: "configuration"}
		if len(files) > 0 {
			at.Filename = files[0].Name
		}
		l.d.errorf(at, leastFile, "there is no listener: nothing would be proxied")
	}
	l.check()
	l.d.settle()
	if l.d.HasErrors() {
		return nil, l.d
	}
	return &l.root.cfg, l.d
}

func hasType(blocks []topBlock, name string) bool {
	return slices.ContainsFunc(blocks, func(b topBlock) bool { return b.Type == name })
}

func (l *loader) collectLocals(body hcl.Body, ctx *hcl.EvalContext) {
	content, _, _ := body.PartialContent(&hcl.BodySchema{Blocks: []hcl.BlockHeaderSchema{{Type: "locals"}}})
	for _, b := range content.Blocks {
		attrs, diags := b.Body.JustAttributes()
		for _, x := range diags {
			x.Summary = lowerFirst(x.Summary)
			x.Detail += " A locals block holds NAME = VALUE."
			l.d.add(x)
		}
		for _, name := range slices.SortedFunc(keys(attrs), func(a, b string) int {
			return attrs[a].NameRange.Start.Byte - attrs[b].NameRange.Start.Byte
		}) {
			l.locals.add(attrs[name], ctx, l.d)
		}
	}
}

// evalLocals evaluates those that do, or do not, refer to blocks. One that
// fails becomes unknown, so that nothing further is said about its users.
func (l *loader) evalLocals(cyclic map[string]bool, refers bool) {
	values := l.base.Variables["local"].AsValueMap()
	if values == nil {
		values = make(map[string]cty.Value, len(l.locals.order))
	}
	// A local is seen by the next one through the object, which would be
	// quadratic to build anew each time; so each level of references is one.
	pending := make(map[string]cty.Value)
	flush := func() {
		for k, v := range pending {
			values[k] = v
		}
		clear(pending)
		l.base.Variables["local"] = cty.ObjectVal(values)
	}
	for _, x := range l.locals.order {
		if x.refers != refers {
			continue
		}
		if slices.ContainsFunc(x.needs, func(n string) bool { _, ok := pending[n]; return ok }) {
			flush()
		}
		v := cty.DynamicVal
		if !cyclic[x.name] {
			got, ok := l.eval(x.attr.Expr, x.ctx)
			if ok || got.IsKnown() {
				v = got
			}
			if err := checkSize(v); err != nil {
				l.d.errorf(x.attr.Expr.Range(), "", "local %q: %v", x.name, err)
				v = cty.DynamicVal
			}
		}
		pending[x.name] = v
	}
	flush()
}

// mayDefine reports whether what is wrong at the top of a file may hide an
// upstream, a tls block or a local that other blocks name. A block of quite another name
// does not.
func (l *loader) mayDefine(diags hcl.Diagnostics) bool {
	for _, x := range diags {
		if x.Severity == hcl.DiagError &&
			(x.Summary != "Unsupported block type" || nearest(l.textAt(*x.Subject), append([]string{"locals"}, refNames...)) != "") {
			return true
		}
	}
	return false
}

// reportContent rewrites what HCL says about a body that does not fit its
// schema, and reports whether there was anything.
func (l *loader) reportContent(diags hcl.Diagnostics, b *block, n *node) bool {
	if !diags.HasErrors() {
		return false
	}
	where := "in " + b.noun()
	if b == rootBlock {
		where = "at the top of a file"
	}
	for _, x := range diags {
		switch x.Summary {
		case "Unsupported argument", "Unsupported block type", "Extraneous JSON object property":
			if n != nil && n.partial {
				continue // the parser has lost its way in this body
			}
			name := l.textAt(*x.Subject)
			detail := b.allowed()
			shape := b.shape()
			isAttr, isBlock := slices.Contains(shape.attrs, name), slices.Contains(shape.inner, name)
			switch {
			case isAttr:
				x.Summary = fmt.Sprintf("%s is an attribute, not a block", name)
				detail = "Write " + name + " = " + b.attr(name).sampleValue()
			case isBlock:
				c := b.blocks[slices.IndexFunc(b.blocks, func(c *block) bool { return c.name == name })]
				x.Summary = fmt.Sprintf("%s is a block, not an attribute", name)
				detail = "Write " + c.header() + " { … } without an equals sign."
			default:
				what := "attribute"
				if x.Summary == "Unsupported block type" {
					what = "block"
				} else if x.Summary != "Unsupported argument" {
					what = "attribute or block"
				}
				x.Summary = fmt.Sprintf("there is no %s %q %s", what, name, where)
				if instead := b.absent[name]; instead != "" {
					detail = instead
					break
				}
				detail += didYouMean(name, slices.Concat(shape.attrs, shape.inner))
			}
			x.Detail = detail
		default:
			switch {
			case strings.HasPrefix(x.Summary, "Missing ") && strings.Contains(x.Summary, " for "),
				strings.HasPrefix(x.Summary, "Extraneous label for "), x.Summary == "Missing block label":
				_, name, _ := strings.Cut(x.Summary, " for ")
				for _, c := range b.blocks {
					if c.name == name {
						x.Summary = fmt.Sprintf("%s block has %s", an(name), c.labelsInWords())
						x.Detail = "Write " + c.header() + " { … }"
						break
					}
				}
			case x.Summary == "Missing required argument": // of HCL's own dynamic block; ours are not required for HCL
				x.Summary = "the dynamic block lacks an attribute"
				x.Detail = `Write dynamic "BLOCK" { for_each = …, labels = […] if the block has labels, content { … } }`
			case x.Summary == unknownForEach, strings.Contains(x.Detail, "not yet known"):
				continue
			}
			x.Summary = lowerFirst(x.Summary)
			l.d.add(l.explainAny(x))
			continue
		}
		x.Context = nil
		l.d.add(x)
	}
	return true
}

// explainAny is explainOne for the expressions of dynamic blocks, which HCL
// has evaluated itself.
func (l *loader) explainAny(x *hcl.Diagnostic) *hcl.Diagnostic {
	if x.Expression == nil {
		return x
	}
	y := *x
	y.Summary = upperFirst(x.Summary)
	if z := l.explainOne(&y, x.Expression); z != nil {
		return z
	}
	return x
}

func (b *block) labelsInWords() string {
	switch len(b.labels()) {
	case 0:
		return "no label"
	case 1:
		return "one label, its " + b.labels()[0]
	default:
		return "two labels, its type and its name"
	}
}

func (a *attr) sampleValue() string {
	if a.example != "" {
		return a.example
	}
	return "…"
}

func upperFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// textAt is what stands in a file, without the quotes of JSON names.
func (l *loader) textAt(r hcl.Range) string {
	src := l.d.sources[r.Filename]
	if r.Start.Byte < 0 || r.End.Byte > len(src) || r.Start.Byte > r.End.Byte {
		return "?"
	}
	return strings.Trim(string(src[r.Start.Byte:r.End.Byte]), `"`)
}
