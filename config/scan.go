package config

import (
	"encoding/json"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// HCL's parser and evaluator recurse, and a Go program cannot survive a stack
// overflow. What makes them recurse is therefore counted on the flat list of
// tokens first.
const (
	maxNesting  = 500  // open brackets, strings and templates plus pending operators, at any point
	maxExponent = 1000 // of a number: 1e999999999 is short to write and long to print
)

const tooDeep = "nested too deeply: more than 500 brackets, templates and operators inside each other"

// facts spare later steps work.
type facts struct {
	loops   bool // there is a for expression or directive
	dynamic bool // there is a dynamic block
}

// scanNative checks the nesting of a native syntax file.
func scanNative(name string, src []byte, d *Diagnostics) (facts, bool) {
	f, sure, tooMany := scanQuick(src)
	if tooMany {
		d.errorf(hcl.Range{Filename: name}, "Split it, or let dynamic blocks make what repeats.", "the file has more than %s words and signs", thousands(maxTokens))
		return f, false
	}
	if sure {
		return f, true
	}
	tokens, _ := hclsyntax.LexConfig(src, name, hcl.InitialPos) // the parser reports bad tokens again
	bad, why := deepest(tokens, &f)
	if bad == nil {
		return f, true
	}
	d.errorf(bad.Range, "", "%s", why)
	return f, false
}

// level is one open bracket, string or template.
type level struct {
	pending  int  // operators that wait for their operand: each may nest the tree once more
	newlines bool // a newline ends an item here
}

// deepest returns the token at which the nesting becomes too deep, if any.
func deepest(tokens hclsyntax.Tokens, f *facts) (*hclsyntax.Token, string) {
	levels := []level{{newlines: true}}
	depth := 0
	for i := range tokens {
		t := &tokens[i]
		top := &levels[len(levels)-1]
		switch t.Type {
		case hclsyntax.TokenTemplateControl:
			// %{ if } nests until its %{ endif }.
			delta := directive(tokens[i+1:])
			if top.pending+delta >= 0 {
				top.pending += delta
				depth += delta
			}
			levels = append(levels, level{})
			depth++
		case hclsyntax.TokenOBrack, hclsyntax.TokenOParen:
			top.pending++ // a[0][0] nests to the left
			levels = append(levels, level{})
			depth += 2
		case hclsyntax.TokenOBrace:
			levels = append(levels, level{newlines: !beginsFor(tokens[i+1:])})
			depth++
		case hclsyntax.TokenOQuote, hclsyntax.TokenOHeredoc, hclsyntax.TokenTemplateInterp:
			levels = append(levels, level{})
			depth++
		case hclsyntax.TokenCBrace, hclsyntax.TokenCBrack, hclsyntax.TokenCParen, hclsyntax.TokenCQuote,
			hclsyntax.TokenCHeredoc, hclsyntax.TokenTemplateSeqEnd:
			if len(levels) > 1 {
				depth -= top.pending + 1
				levels = levels[:len(levels)-1]
			}
		case hclsyntax.TokenComma, hclsyntax.TokenNewline:
			if t.Type == hclsyntax.TokenComma || top.newlines {
				depth -= top.pending
				top.pending = 0
			}
		case hclsyntax.TokenMinus, hclsyntax.TokenBang, hclsyntax.TokenPlus, hclsyntax.TokenStar, hclsyntax.TokenSlash,
			hclsyntax.TokenPercent, hclsyntax.TokenAnd, hclsyntax.TokenOr, hclsyntax.TokenEqualOp, hclsyntax.TokenNotEqual,
			hclsyntax.TokenGreaterThan, hclsyntax.TokenGreaterThanEq, hclsyntax.TokenLessThan, hclsyntax.TokenLessThanEq,
			hclsyntax.TokenQuestion, hclsyntax.TokenColon, hclsyntax.TokenDot:
			top.pending++
			depth++
		case hclsyntax.TokenNumberLit:
			if !soundNumber(string(t.Bytes)) {
				return t, "the number is too large"
			}
		case hclsyntax.TokenIdent:
			switch string(t.Bytes) {
			case "for":
				f.loops = true
			case "dynamic":
				f.dynamic = true
			}
		}
		if depth > maxNesting {
			return t, tooDeep
		}
	}
	return nil, ""
}

// directive says by how much the template directive whose tokens follow
// changes the nesting of the template.
func directive(rest hclsyntax.Tokens) int {
	if len(rest) > 0 {
		switch string(rest[0].Bytes) {
		case "else":
			return 0
		case "endif", "endfor":
			return -1
		}
	}
	return 1
}

func beginsFor(rest hclsyntax.Tokens) bool {
	for i := range rest {
		switch rest[i].Type {
		case hclsyntax.TokenNewline, hclsyntax.TokenComment:
		default:
			return string(rest[i].Bytes) == "for"
		}
	}
	return false
}

func soundNumber(s string) bool {
	i := strings.IndexAny(s, "eE")
	if i < 0 {
		return len(s) <= maxExponent
	}
	digits := strings.TrimLeft(s[i+1:], "+-0")
	return i <= maxExponent && len(digits) < 4
}

// checkJSON checks the nesting of a JSON file, and of the templates in its
// strings.
func checkJSON(name string, src []byte, d *Diagnostics) bool {
	fail := func(i int, why string) bool {
		d.errorf(hcl.Range{Filename: name, Start: posOf(src, i), End: posOf(src, i+1)}, "", "%s", why)
		return false
	}
	depth := 0
	for i := 0; i < len(src); i++ {
		switch c := src[i]; c {
		case '[', '{':
			if depth++; depth > maxNesting {
				return fail(i, tooDeep)
			}
		case ']', '}':
			depth--
		case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
			from := i
			for i+1 < len(src) && strings.IndexByte("0123456789.eE+-", src[i+1]) >= 0 {
				i++
			}
			if !soundNumber(string(src[from : i+1])) {
				return fail(from, "the number is too large")
			}
		case '"':
			from := i
			template := false
			for i++; i < len(src) && src[i] != '"'; i++ {
				switch src[i] {
				case '\\':
					i++
				case '$', '%':
					template = true
				}
			}
			if !template || i >= len(src) {
				continue
			}
			var text string
			if json.Unmarshal(src[from:i+1], &text) != nil {
				continue // the parser says it better
			}
			tokens, _ := hclsyntax.LexTemplate([]byte(text), name, hcl.InitialPos)
			if bad, why := deepest(tokens, new(facts)); bad != nil {
				return fail(from, why)
			}
		}
	}
	return true
}
