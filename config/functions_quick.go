package config

import (
	"errors"
	"fmt"
	"slices"

	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

// What for expressions make are tuples, and cty converts a tuple to a list by
// comparing the types of all elements with each other: 60 000 elements take
// 40 s. Almost always they are of one type, which one pass can tell.

// maxMixed bounds the collections that cannot be spared the slow way.
const maxMixed = 2000

// quick is f with the conversion of its arguments done by uniform.
func quick(f function.Function) function.Function {
	params := slices.Clone(f.Params())
	var variadic *function.Parameter
	if p := f.VarParam(); p != nil {
		clone := *p
		variadic = &clone
	}
	want := make([]cty.Type, len(params))
	for i := range params {
		want[i] = params[i].Type
		if want[i].IsCollectionType() {
			params[i].Type = cty.DynamicPseudoType
		}
	}
	wantRest := cty.DynamicPseudoType
	if variadic != nil {
		wantRest = variadic.Type
		if wantRest.IsCollectionType() {
			variadic.Type = cty.DynamicPseudoType
		}
	}
	adapt := func(args []cty.Value) ([]cty.Value, error) {
		out := make([]cty.Value, len(args))
		for i, a := range args {
			ty := wantRest
			if i < len(want) {
				ty = want[i]
			}
			if !ty.IsCollectionType() {
				out[i] = a
				continue
			}
			v, err := uniform(a)
			if err == nil {
				v, err = convert.Convert(v, ty)
			}
			if err != nil {
				return nil, function.NewArgError(i, err)
			}
			out[i] = v
		}
		return out, nil
	}
	return function.New(&function.Spec{
		Description: f.Description(),
		Params:      params,
		VarParam:    variadic,
		Type: func(args []cty.Value) (cty.Type, error) {
			args, err := adapt(args)
			if err != nil {
				return cty.DynamicPseudoType, err
			}
			return f.ReturnTypeForValues(args)
		},
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			args, err := adapt(args)
			if err != nil {
				return cty.DynamicVal, err
			}
			return f.Call(args)
		},
	})
}

// uniform turns a tuple whose elements are of one type into a list, and such
// an object into a map.
func uniform(v cty.Value) (cty.Value, error) {
	ty := v.Type()
	if !ty.IsTupleType() && !ty.IsObjectType() || v.IsNull() || !v.IsKnown() || v.LengthInt() == 0 {
		return v, nil
	}
	var first cty.Type
	for it := v.ElementIterator(); it.Next(); {
		_, e := it.Element()
		switch t := e.Type(); {
		case first == cty.NilType:
			first = t
		case !t.Equals(first):
			if v.LengthInt() > maxMixed {
				return v, fmt.Errorf("the elements are not all of the same type, and more than %s", thousands(maxMixed))
			}
			return v, nil
		}
	}
	if first.HasDynamicTypes() {
		return v, nil
	}
	if ty.IsObjectType() {
		return cty.MapVal(v.AsValueMap()), nil
	}
	return cty.ListVal(v.AsValueSlice()), nil
}

// toFunc is tolist, toset or tomap.
func toFunc(ty cty.Type) function.Function {
	f := stdlib.MakeToFunc(ty)
	return function.New(&function.Spec{
		Params: f.Params(),
		Type: func(args []cty.Value) (cty.Type, error) {
			v, err := uniform(args[0])
			if err != nil {
				return cty.DynamicPseudoType, err
			}
			return f.ReturnTypeForValues([]cty.Value{v})
		},
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			v, err := uniform(args[0])
			if err != nil {
				return cty.DynamicVal, err
			}
			return f.Call([]cty.Value{v})
		},
	})
}

// distinctFunc is that of cty, which compares all with all, for anything but
// strings.
var distinctFunc = function.New(&function.Spec{
	Params: stdlib.DistinctFunc.Params(),
	Type:   stdlib.DistinctFunc.ReturnTypeForValues,
	Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
		list := args[0]
		if list.LengthInt() == 0 {
			return list, nil
		}
		if list.Type().ElementType() != cty.String || !list.IsWhollyKnown() {
			if list.LengthInt() > maxMixed {
				return cty.DynamicVal, errors.New("more than 2 000 elements that are not strings")
			}
			return stdlib.Distinct(list)
		}
		seen := make(map[string]bool, list.LengthInt())
		var out []cty.Value
		for it := list.ElementIterator(); it.Next(); {
			_, v := it.Element()
			if v.IsNull() {
				return stdlib.Distinct(list)
			}
			if s := v.AsString(); !seen[s] {
				seen[s] = true
				out = append(out, v)
			}
		}
		return cty.ListVal(out), nil
	},
})
