package config

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"unicode/utf8"

	"github.com/apparentlymart/go-cidr/cidr"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
	"github.com/zclconf/go-cty/cty/gocty"
)

// maxIncluded bounds what file() reads, in bytes.
const maxIncluded = 1 << 20

// functions returns all that expressions may call but file(), which depends
// on where the expression stands.
func functions(b *budget, lookupEnv func(string) (string, bool)) map[string]function.Function {
	fs := make(map[string]function.Function, len(pure)+3)
	for name, f := range pure {
		fs[name] = quick(f)
	}
	fs["env"] = envFunc(lookupEnv)
	fs["range"] = rangeFunc(b)
	return fs
}

// functionNames lists all, for the reference.
func functionNames() []string {
	names := slices.Collect(maps.Keys(pure))
	return slices.Sorted(slices.Values(append(names, "env", "file", "range")))
}

var pure = map[string]function.Function{
	"abs":             stdlib.AbsoluteFunc,
	"ceil":            stdlib.CeilFunc,
	"chomp":           stdlib.ChompFunc,
	"chunklist":       stdlib.ChunklistFunc,
	"cidrhost":        cidrHostFunc,
	"cidrsubnet":      cidrSubnetFunc,
	"coalesce":        stdlib.CoalesceFunc,
	"coalescelist":    stdlib.CoalesceListFunc,
	"compact":         stdlib.CompactFunc,
	"concat":          sized(stdlib.ConcatFunc),
	"contains":        stdlib.ContainsFunc,
	"distinct":        distinctFunc,
	"element":         stdlib.ElementFunc,
	"flatten":         sized(stdlib.FlattenFunc),
	"floor":           stdlib.FloorFunc,
	"format":          sized(stdlib.FormatFunc),
	"formatlist":      sized(stdlib.FormatListFunc),
	"indent":          stdlib.IndentFunc,
	"index":           stdlib.IndexFunc,
	"join":            sized(stdlib.JoinFunc),
	"jsondecode":      stdlib.JSONDecodeFunc,
	"jsonencode":      sized(stdlib.JSONEncodeFunc),
	"keys":            stdlib.KeysFunc,
	"length":          lengthFunc,
	"lookup":          stdlib.LookupFunc,
	"lower":           stdlib.LowerFunc,
	"max":             stdlib.MaxFunc,
	"merge":           sized(stdlib.MergeFunc),
	"min":             stdlib.MinFunc,
	"parseint":        stdlib.ParseIntFunc,
	"regex":           stdlib.RegexFunc,
	"regexall":        stdlib.RegexAllFunc,
	"replace":         stdlib.ReplaceFunc,
	"reverse":         stdlib.ReverseListFunc,
	"setintersection": stdlib.SetIntersectionFunc,
	"setsubtract":     stdlib.SetSubtractFunc,
	"setunion":        sized(stdlib.SetUnionFunc),
	"slice":           stdlib.SliceFunc,
	"sort":            stdlib.SortFunc,
	"split":           stdlib.SplitFunc,
	"strlen":          stdlib.StrlenFunc,
	"substr":          stdlib.SubstrFunc,
	"title":           stdlib.TitleFunc,
	"tobool":          stdlib.MakeToFunc(cty.Bool),
	"tolist":          toFunc(cty.List(cty.DynamicPseudoType)),
	"tomap":           toFunc(cty.Map(cty.DynamicPseudoType)),
	"tonumber":        stdlib.MakeToFunc(cty.Number),
	"toset":           toFunc(cty.Set(cty.DynamicPseudoType)),
	"tostring":        stdlib.MakeToFunc(cty.String),
	"trim":            stdlib.TrimFunc,
	"trimprefix":      stdlib.TrimPrefixFunc,
	"trimspace":       stdlib.TrimSpaceFunc,
	"trimsuffix":      stdlib.TrimSuffixFunc,
	"upper":           stdlib.UpperFunc,
	"values":          stdlib.ValuesFunc,
	"zipmap":          stdlib.ZipmapFunc,
}

// wide finds a width or precision in a format verb that pads to kilobytes.
var wide = regexp.MustCompile(`%[^%a-zA-Z]*[0-9]{4}`)

// sized refuses arguments from which f could build a value without bound.
func sized(f function.Function) function.Function {
	return function.New(&function.Spec{
		Description: f.Description(),
		Params:      f.Params(),
		VarParam:    f.VarParam(),
		Type:        f.ReturnTypeForValues,
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			if err := checkSize(args...); err != nil {
				return cty.DynamicVal, err
			}
			if a := args[0]; len(args) > 0 && a.Type() == cty.String && a.IsKnown() && !a.IsNull() && wide.MatchString(a.AsString()) {
				return cty.DynamicVal, errors.New("a width of more than 999 in a format")
			}
			// join repeats its separator, formatlist its format.
			if n := widest(args); n > 0 && len(args) > 1 && args[0].Type() == cty.String && !args[0].IsNull() && args[0].IsKnown() &&
				n*len(args[0].AsString()) > maxText {
				return cty.DynamicVal, fmt.Errorf("the result is larger than %d MiB", maxText>>20)
			}
			return f.Call(args)
		},
	})
}

func widest(args []cty.Value) (n int) {
	for _, a := range args {
		if l, ok := length(a); ok {
			n += l
		}
	}
	return n
}

// lengthFunc takes strings as well as collections.
var lengthFunc = function.New(&function.Spec{
	Params: []function.Parameter{{Name: "value", Type: cty.DynamicPseudoType, AllowDynamicType: true}},
	Type:   function.StaticReturnType(cty.Number),
	Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
		v := args[0]
		if v.Type() == cty.String {
			return stdlib.Strlen(v)
		}
		n, ok := length(v)
		if !ok {
			return cty.DynamicVal, errors.New("a list, map, set or string is needed")
		}
		return cty.NumberIntVal(int64(n)), nil
	},
})

func envFunc(lookup func(string) (string, bool)) function.Function {
	return function.New(&function.Spec{
		Params:   []function.Parameter{{Name: "name", Type: cty.String}},
		VarParam: &function.Parameter{Name: "default", Type: cty.String},
		Type:     function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			if len(args) > 2 {
				return cty.DynamicVal, function.NewArgErrorf(2, `write env("NAME") or env("NAME", "default")`)
			}
			name := args[0].AsString()
			if s, ok := lookup(name); ok {
				if !utf8.ValidString(s) {
					return cty.DynamicVal, function.NewArgErrorf(0, "environment variable %s is not UTF-8", name)
				}
				return cty.StringVal(s), nil
			}
			if len(args) == 2 {
				return args[1], nil
			}
			return cty.DynamicVal, function.NewArgErrorf(0, `environment variable %s is not set; set it, or give a default: env("%s", "…")`, name, name)
		},
	})
}

// fileFunc reads files relative to dir.
func fileFunc(dir string) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "path", Type: cty.String}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			path := args[0].AsString()
			if !filepath.IsAbs(path) {
				path = filepath.Join(dir, path)
			}
			s, err := include(path)
			if err != nil {
				return cty.DynamicVal, function.NewArgErrorf(0, "%s: %s", path, reason(err))
			}
			return cty.StringVal(s), nil
		},
	})
}

func include(path string) (string, error) {
	// Opening a FIFO would wait for its writer.
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", errors.New("not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIncluded+1))
	switch {
	case err != nil:
		return "", err
	case len(b) > maxIncluded:
		return "", fmt.Errorf("larger than %d MiB", maxIncluded>>20)
	case !utf8.Valid(b):
		return "", errors.New("not a text in UTF-8")
	}
	return string(b), nil
}

// rangeFunc is range(end), range(start, end) or range(start, end, step) over
// whole numbers. The one of cty stops at 1024 elements.
func rangeFunc(b *budget) function.Function {
	return function.New(&function.Spec{
		VarParam: &function.Parameter{Name: "numbers", Type: cty.Number},
		Type:     function.StaticReturnType(cty.List(cty.Number)),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			n := [3]int64{0, 0, 1}
			if len(args) < 1 || len(args) > 3 {
				return cty.DynamicVal, errors.New("write range(end), range(start, end) or range(start, end, step)")
			}
			for i, a := range args {
				v, acc := a.AsBigFloat().Int64()
				if acc != 0 || v > 1<<40 || v < -1<<40 {
					return cty.DynamicVal, function.NewArgErrorf(i, "a whole number below 2⁴⁰ is needed")
				}
				if len(args) == 1 {
					i = 1
				}
				n[i] = v
			}
			start, end, step := n[0], n[1], n[2]
			if step == 0 {
				return cty.DynamicVal, function.NewArgErrorf(2, "the step must not be 0")
			}
			count := max(0, (end-start+step-sign(step))/step)
			if count > int64(b.iterations) {
				return cty.DynamicVal, fmt.Errorf("more than %s numbers altogether", thousands(maxIterations))
			}
			if count == 0 {
				return cty.ListValEmpty(cty.Number), nil
			}
			b.iterations -= int(count)
			out := make([]cty.Value, count)
			for i := range out {
				out[i] = cty.NumberIntVal(start + int64(i)*step)
			}
			return cty.ListVal(out), nil
		},
	})
}

func sign(n int64) int64 {
	if n < 0 {
		return -1
	}
	return 1
}

// cidrhost("10.0.0.0/24", 5) is "10.0.0.5".
var cidrHostFunc = function.New(&function.Spec{
	Params: []function.Parameter{{Name: "prefix", Type: cty.String}, {Name: "number", Type: cty.Number}},
	Type:   function.StaticReturnType(cty.String),
	Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
		_, base, err := net.ParseCIDR(args[0].AsString())
		if err != nil {
			return cty.DynamicVal, function.NewArgError(0, err)
		}
		var n int
		if err := gocty.FromCtyValue(args[1], &n); err != nil {
			return cty.DynamicVal, function.NewArgError(1, err)
		}
		ip, err := cidr.Host(base, n)
		if err != nil {
			return cty.DynamicVal, function.NewArgError(1, err)
		}
		return cty.StringVal(ip.String()), nil
	},
})

// cidrsubnet("10.0.0.0/8", 8, 2) is "10.2.0.0/16".
var cidrSubnetFunc = function.New(&function.Spec{
	Params: []function.Parameter{{Name: "prefix", Type: cty.String}, {Name: "bits", Type: cty.Number}, {Name: "number", Type: cty.Number}},
	Type:   function.StaticReturnType(cty.String),
	Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
		_, base, err := net.ParseCIDR(args[0].AsString())
		if err != nil {
			return cty.DynamicVal, function.NewArgError(0, err)
		}
		var bits, n int
		if err := gocty.FromCtyValue(args[1], &bits); err != nil || bits < 0 || bits > 128 {
			return cty.DynamicVal, function.NewArgErrorf(1, "a number of bits from 0 to 128 is needed")
		}
		if err := gocty.FromCtyValue(args[2], &n); err != nil || n < 0 {
			return cty.DynamicVal, function.NewArgErrorf(2, "a whole number, not negative, is needed")
		}
		sub, err := cidr.Subnet(base, bits, n)
		if err != nil {
			return cty.DynamicVal, err
		}
		return cty.StringVal(sub.String()), nil
	},
})
