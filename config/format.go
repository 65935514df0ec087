package config

import (
	"bytes"
	"encoding/json"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclwrite"
)

// Format returns src in the canonical layout, or nil and why it does not
// parse. A name that ends in .json means JSON syntax.
func Format(src []byte, name string) ([]byte, *Diagnostics) {
	d := newDiagnostics()
	if len(src) > maxSource {
		d.errorf(hcl.Range{Filename: name}, "", "the file is larger than %d MiB", maxSource>>20)
		return nil, d
	}
	if parse(File{Name: name, Source: src}, d, newBudget()); d.HasErrors() {
		d.settle()
		return nil, d
	}
	src = bytes.ReplaceAll(bytes.TrimPrefix(src, []byte("\uFEFF")), []byte("\r\n"), []byte("\n"))
	if !isJSON(name) {
		out := bytes.TrimRight(hclwrite.Format(src), " \t\n")
		if len(out) == 0 {
			return out, d
		}
		return append(out, '\n'), d
	}
	var out bytes.Buffer
	if err := json.Indent(&out, bytes.TrimSpace(src), "", "  "); err != nil {
		d.errorf(hcl.Range{Filename: name}, "", "%v", err)
		return nil, d
	}
	out.WriteByte('\n')
	return out.Bytes(), d
}
