package config

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// FuzzScanQuick: when the quick scan is sure, the tokens agree. They are
// checked against a tenth of the limit, which inputs of a fuzzer reach.
func FuzzScanQuick(f *testing.F) {
	for _, s := range []string{
		`a = "${b.c}-$${d}"`, "a = <<E\n${b}\nE\n", "/* ( */ a = [1, 2]", "a {\n # (\n}\n", "a = \"\\\"(\"\n", "a = {for x in y :\n x =>\n x}\n",
		"a = (1\n+1\n)", "a = 1e5", "a = b-c", "a = \"%{ if x }a%{ endif }\"", "a = -1 // [\nb = !true", "a = [[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]",
	} {
		f.Add([]byte(s))
	}
	paths, _ := filepath.Glob("../examples/*.hcl")
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		quick, sure, _ := scanQuick(src)
		if !sure {
			return
		}
		var exact facts
		tokens, _ := hclsyntax.LexConfig(src, "x", hcl.InitialPos)
		if bad, why := deepest(tokens, &exact); bad != nil {
			t.Fatalf("%s at %v", why, bad.Range)
		}
		if exact.loops && !quick.loops || exact.dynamic && !quick.dynamic {
			t.Fatalf("quick %+v, exact %+v", quick, exact)
		}
	})
}
