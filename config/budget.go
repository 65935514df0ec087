package config

import (
	"fmt"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// Bounds on what one load may compute: a short file must not be able to fill
// the memory of the machine.
const (
	maxIterations = 250_000   // of all for expressions and range()
	maxGenerated  = 200_000   // blocks from dynamic blocks
	maxValue      = 1_000_000 // elements in one value, nested ones included
	maxText       = 4 << 20   // bytes in the strings of one value
)

// budget counts what is left of the bounds.
type budget struct {
	iterations int
	generated  int
}

func newBudget() *budget { return &budget{iterations: maxIterations, generated: maxGenerated} }

// guard makes every loop in the body draw on the budget.
func (b *budget) guard(body *hclsyntax.Body) {
	hclsyntax.VisitAll(body, func(n hclsyntax.Node) hcl.Diagnostics {
		switch e := n.(type) {
		case *hclsyntax.ForExpr:
			e.CollExpr = &counted{wrap(e.CollExpr), b}
		case *hclsyntax.TemplateJoinExpr:
			e.Tuple = &bounded{wrap(e.Tuple)}
		}
		return nil
	})
}

// wrap puts e where hclsyntax still walks into it: to a type of another
// package only embedding gives the unexported methods that takes.
func wrap(e hclsyntax.Expression) *hclsyntax.ParenthesesExpr {
	return &hclsyntax.ParenthesesExpr{Expression: e, SrcRange: e.Range()}
}

// counted is the collection of a for expression.
type counted struct {
	*hclsyntax.ParenthesesExpr
	budget *budget
}

func (c *counted) Value(ctx *hcl.EvalContext) (cty.Value, hcl.Diagnostics) {
	v, diags := c.ParenthesesExpr.Value(ctx)
	if n, ok := length(v); ok {
		if c.budget.iterations < 0 {
			return cty.DynamicVal, diags // said before
		}
		if c.budget.iterations -= n; c.budget.iterations < 0 {
			return cty.DynamicVal, append(diags, &hcl.Diagnostic{
				Severity: hcl.DiagError,
				Summary:  fmt.Sprintf("for expressions run more than %s times altogether", thousands(maxIterations)),
				Subject:  c.Range().Ptr(),
			})
		}
	}
	return v, diags
}

// bounded is a value that is about to be joined to one string.
type bounded struct{ *hclsyntax.ParenthesesExpr }

func (e *bounded) Value(ctx *hcl.EvalContext) (cty.Value, hcl.Diagnostics) {
	v, diags := e.ParenthesesExpr.Value(ctx)
	if err := checkSize(v); err != nil {
		return cty.DynamicVal, append(diags, &hcl.Diagnostic{Severity: hcl.DiagError, Summary: err.Error(), Subject: e.Range().Ptr()})
	}
	return v, diags
}

const unknownForEach = "unknown for_each"

// forEach is called with the collection of each dynamic block.
func (b *budget) forEach(v cty.Value, expr hcl.Expression, _ *hcl.EvalContext) hcl.Diagnostics {
	if !v.IsKnown() {
		return hcl.Diagnostics{{Severity: hcl.DiagError, Summary: unknownForEach, Subject: expr.Range().Ptr()}}
	}
	n, ok := length(v)
	if !ok {
		return nil
	}
	if b.generated -= n; b.generated < 0 {
		return hcl.Diagnostics{{
			Severity: hcl.DiagError,
			Summary:  fmt.Sprintf("dynamic blocks make more than %s blocks altogether", thousands(maxGenerated)),
			Subject:  expr.Range().Ptr(),
		}}
	}
	return nil
}

func length(v cty.Value) (int, bool) {
	if v == cty.NilVal || !v.IsKnown() || v.IsNull() || v.IsMarked() || !v.CanIterateElements() {
		return 0, false
	}
	return v.LengthInt(), true
}

// checkSize walks no further than the bounds.
func checkSize(vals ...cty.Value) error {
	elements, text := maxValue, maxText
	var walk func(v cty.Value) bool
	walk = func(v cty.Value) bool {
		if elements--; elements < 0 || v == cty.NilVal || !v.IsKnown() || v.IsNull() || v.IsMarked() {
			return elements >= 0
		}
		if v.Type() == cty.String {
			text -= len(v.AsString())
			return text >= 0
		}
		if v.CanIterateElements() {
			for it := v.ElementIterator(); it.Next(); {
				if _, e := it.Element(); !walk(e) {
					return false
				}
			}
		}
		return true
	}
	for _, v := range vals {
		if !walk(v) {
			return fmt.Errorf("the value is too large: at most %s elements and %d MiB of text", thousands(maxValue), maxText>>20)
		}
	}
	return nil
}
