package config

import (
	"fmt"
	"math/big"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// value is what an attribute holds, on its way into a field.
type value struct {
	v    cty.Value
	expr hcl.Expression
	a    *attr
	d    *Diagnostics
}

// fail reports the value, or one element of a list if elem is not negative.
// The summary continues "NAME: …"; what the attribute takes is added to the
// detail.
func (v *value) fail(elem int, detail, summary string, args ...any) {
	takes := v.a.takes()
	if detail != "" {
		takes = detail + "\n" + takes
	}
	v.d.errorf(element(v.expr, elem), takes, "%s: %s", v.a.name, fmt.Sprintf(summary, args...))
}

// takes says what an attribute takes.
func (a *attr) takes() string {
	s := "Allowed: " + a.typ
	if a.rng != "" {
		s += ", " + a.rng
	}
	s += "."
	if a.example != "" {
		s += " Example: " + a.name + " = " + a.example
	}
	return s
}

func (v *value) warn(elem int, detail, summary string, args ...any) {
	v.d.warnf(element(v.expr, elem), detail, "%s: %s", v.a.name, fmt.Sprintf(summary, args...))
}

// element is the place of an element where the list is written out, otherwise
// that of the whole expression.
func element(expr hcl.Expression, i int) hcl.Range {
	if i >= 0 {
		if list, diags := hcl.ExprList(expr); !diags.HasErrors() && i < len(list) {
			return list[i].Range()
		}
	}
	return expr.Range()
}

// text takes strings, and numbers and bools as their text.
func (v *value) text(elem int, c cty.Value) (string, bool) {
	if !c.IsNull() && c.Type().IsPrimitiveType() {
		if s, err := convert.Convert(c, cty.String); err == nil {
			return s.AsString(), true
		}
	}
	v.fail(elem, "", "%s is not a string", show(c))
	return "", false
}

// number takes numbers and strings of digits, as env() has only those.
func (v *value) number(elem int, c cty.Value) (*big.Float, bool) {
	if !c.IsNull() && c.Type() != cty.Bool && c.Type().IsPrimitiveType() &&
		(c.Type() != cty.String || soundNumber(c.AsString())) {
		if n, err := convert.Convert(c, cty.Number); err == nil {
			return n.AsBigFloat(), true
		}
	}
	v.fail(elem, "", "%s is not a number", show(c))
	return nil, false
}

// elements takes a list, or a single value as a list of one.
func (v *value) elements() ([]cty.Value, bool) {
	t := v.v.Type()
	if t.IsPrimitiveType() {
		return []cty.Value{v.v}, true
	}
	if !t.IsTupleType() && !t.IsListType() && !t.IsSetType() {
		v.fail(-1, "", "%s is not a list", show(v.v))
		return nil, false
	}
	return v.v.AsValueSlice(), true
}

// each reads every element by f, which reports what it does not like.
func each[F any](v *value, f func(elem int, c cty.Value) (F, bool)) ([]F, bool) {
	in, ok := v.elements()
	if !ok {
		return nil, false
	}
	out := make([]F, 0, len(in))
	for i, c := range in {
		x, good := f(i, c)
		if ok = ok && good; good {
			out = append(out, x)
		}
	}
	return out, ok
}

// show renders a value for a message.
func show(v cty.Value) string {
	t := v.Type()
	switch {
	case v.IsNull():
		return "null"
	case t == cty.String:
		return quote(v.AsString())
	case t == cty.Number:
		return v.AsBigFloat().Text('g', 12)
	case t == cty.Bool:
		return fmt.Sprint(v.True())
	case t.IsCapsuleType():
		for _, k := range refKinds {
			if t.Equals(k.capsule) {
				return k.name + "." + *v.EncapsulatedValue().(*string)
			}
		}
		return "an object"
	case t.IsTupleType(), t.IsListType(), t.IsSetType():
		return "a list"
	default:
		return "an object"
	}
}

func quote(s string) string {
	if r := []rune(s); len(r) > 60 {
		s = string(r[:60]) + "…"
	}
	return `"` + strings.NewReplacer("\n", `\n`, "\r", `\r`, "\t", `\t`).Replace(s) + `"`
}
