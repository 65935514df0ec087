package config

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

//go:generate go test -run TestReference -update

var update = flag.Bool("update", false, "write the generated part of docs/configuration.md")

const (
	referencePath = "../docs/configuration.md"
	marker        = "<!-- Below: written by `go generate ./config` from the schema. Above: by hand. -->\n"
)

// TestReference: the page is what the schema says.
func TestReference(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(referencePath)
	if err != nil {
		t.Fatal(err)
	}
	byHand, _, ok := strings.Cut(string(page), marker)
	if !ok {
		t.Fatalf("%s has lost the line %s", referencePath, marker)
	}
	want := byHand + marker + referencePage()
	if string(page) == want {
		return
	}
	if !*update {
		t.Fatalf("%s is not what the schema says; run go generate ./config", referencePath)
	}
	if err := os.WriteFile(referencePath, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

func referencePage() string {
	var b strings.Builder
	var list func(blocks []*block, depth int, within string)
	list = func(blocks []*block, depth int, within string) {
		for _, c := range blocks {
			fmt.Fprintf(&b, "%s- [`%s`](#%s)\n", strings.Repeat("  ", depth), c.begin("NAME"), anchor(within, c))
			list(c.blocks, depth+1, anchor(within, c))
		}
	}
	b.WriteString("\n## Blocks\n\n")
	list(rootBlock.blocks, 0, "block")
	var section func(c, parent *block, within string)
	section = func(c, parent *block, within string) {
		fmt.Fprintf(&b, "\n<a id=\"%s\"></a>\n\n### `%s`\n\n", anchor(within, c), c.begin("NAME"))
		if parent != nil {
			fmt.Fprintf(&b, "In `%s`. ", parent.begin("NAME"))
		}
		if c.many {
			b.WriteString("Any number of them. ")
		} else {
			b.WriteString("At most one. ")
		}
		b.WriteString(c.doc + "\n\n```hcl\n")
		if c == localsBlock {
			b.WriteString("locals {\n  backends = [\"10.0.0.1\", \"10.0.0.2\"]\n}\n")
		} else {
			b.WriteString(tidy(c))
		}
		b.WriteString("```\n")
		if len(c.attrs) > 0 {
			b.WriteString("\n| attribute | takes | default | meaning |\n|---|---|---|---|\n")
			for _, a := range c.attrs {
				takes := a.typ
				if a.rng != "" {
					takes += ": " + a.rng
				}
				def := a.def
				if a.required {
					def = "**required**"
				} else if def == "" {
					def = "–"
				}
				fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", a.name, cell(takes), cell(def), cell(a.doc))
			}
		}
		if s := c.shape(); len(s.inner) > 0 {
			fmt.Fprintf(&b, "\nBlocks in it: `%s`.\n", strings.Join(s.inner, "`, `"))
		}
		for _, d := range c.blocks {
			section(d, c, anchor(within, c))
		}
	}
	for _, c := range rootBlock.blocks {
		section(c, nil, "block")
	}
	b.WriteString("\n## Functions\n\n`" + strings.Join(functionNames(), "`, `") + "`.\n\n" +
		"They work as those of the same name in Terraform. `env` and `file` are described under [expressions](#expressions).\n")
	return b.String()
}

// anchor tells blocks of the same name apart in anchors, and one that stands
// in several others.
func anchor(within string, c *block) string {
	name := c.name
	if c.kind != "" {
		name += "-" + c.kind
	}
	return within + "." + name
}

func cell(s string) string { return strings.ReplaceAll(s, "|", "\\|") }

// tidy is the example of a block in the canonical layout.
func tidy(c *block) string {
	out, diags := Format([]byte(c.printed("", false)), c.name)
	if diags.HasErrors() {
		panic(diags)
	}
	return string(out)
}

// TestSchemaExamples: each example of the table is accepted, and everything
// has its words.
func TestSchemaExamples(t *testing.T) {
	t.Parallel()
	var src strings.Builder
	for _, b := range rootBlock.blocks {
		src.WriteString(b.printed("", true))
	}
	// A route, a listener and a certificate cannot have everything at once, and
	// UDP and streams not the same upstream.
	text := strings.Replace(src.String(), "  upstream = upstream.web\n  tls = tls.public\n", "", 1)
	text = strings.Replace(text, "    upstream = upstream.web\n", "", 1)
	text = strings.Replace(text, "    send_hex", "    # send_hex", 1)
	text = strings.Replace(text, "    cert_file = \"web.crt\"\n    key_file = \"web.key\"\n", "", 1)
	tcp, rest, _ := strings.Cut(text, "listener \"udp\"")
	udp, upstreams, _ := strings.Cut(rest, "upstream \"web\"")
	udp = strings.Replace(udp, "\n  upstream = upstream.web\n", "\n", 1)
	udp = strings.Replace(udp, "\n    upstream = upstream.web\n", "\n", 1)
	udp = strings.ReplaceAll(udp, "upstream.web", "upstream.udp")
	text = tcp + "listener \"udp\"" + udp + "upstream \"web\"" + upstreams + "upstream \"udp\" {\n  server \"a\" { address = \"10.0.0.1:53\" }\n}\n"
	if _, diags := parseText(t, text); diags.HasErrors() {
		t.Errorf("%s\n%s", strings.Join(diags.Lines(0), "\n"), text)
	}
	var walk func(b *block)
	walk = func(b *block) {
		if b.doc == "" && b != rootBlock {
			t.Errorf("%s has no description", b.name)
		}
		for _, a := range b.attrs {
			if a.doc == "" || a.typ == "" || a.set == nil {
				t.Errorf("%s.%s has no description, type or field", b.name, a.name)
			}
			if a.required == (a.def != "") && a.name != "upstream" {
				t.Errorf("%s.%s: an attribute is required or has a default", b.name, a.name)
			}
		}
		for _, c := range b.blocks {
			walk(c)
		}
	}
	walk(rootBlock)
}
