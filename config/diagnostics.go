package config

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/mitchellh/go-wordwrap"
)

// maxPrinted bounds what Write prints: more help nobody, and a generated file
// can have tens of thousands.
const maxPrinted = 100

// Diagnostics are the errors and warnings of one load, in the order of files
// and lines. A nil pointer is an empty list.
type Diagnostics struct {
	list    hcl.Diagnostics
	order   []string // file names in the order they were read
	sources map[string][]byte

	// Where things stand, for errors that are found after loading.
	blocks map[string]hcl.Range // "tls.public"
	files  map[string]hcl.Range // paths that the configuration names
}

func newDiagnostics() *Diagnostics {
	return &Diagnostics{sources: make(map[string][]byte), blocks: make(map[string]hcl.Range), files: make(map[string]hcl.Range)}
}

func (d *Diagnostics) addFile(name string, src []byte) {
	if _, ok := d.sources[name]; !ok {
		d.order = append(d.order, name)
	}
	d.sources[name] = src
}

func (d *Diagnostics) add(diags ...*hcl.Diagnostic) { d.list = append(d.list, diags...) }

func (d *Diagnostics) errorf(at hcl.Range, detail, summary string, args ...any) {
	d.add(&hcl.Diagnostic{Severity: hcl.DiagError, Summary: fmt.Sprintf(summary, args...), Detail: detail, Subject: &at})
}

func (d *Diagnostics) warnf(at hcl.Range, detail, summary string, args ...any) {
	d.add(&hcl.Diagnostic{Severity: hcl.DiagWarning, Summary: fmt.Sprintf(summary, args...), Detail: detail, Subject: &at})
}

// noteFile remembers where a path stands.
func (d *Diagnostics) noteFile(path string, at hcl.Range) {
	if _, ok := d.files[path]; !ok {
		d.files[path] = at
	}
}

// Attach adds an error that was found when the configuration was put to use,
// by a block such as "tls", "public". It is shown where the file that it
// names stands in the configuration, otherwise at the block.
func (d *Diagnostics) Attach(block, name string, err error) {
	at, ok := d.blocks[block+"."+name]
	if !ok {
		at = hcl.Range{Filename: "configuration"}
	}
	text, longest := err.Error(), 0
	for path, r := range d.files {
		if len(path) > longest && strings.Contains(text, path) {
			at, longest = r, len(path)
		}
	}
	d.errorf(at, "", "%s", text)
	d.settle()
}

// HasErrors reports whether the configuration must not be used. Warnings do
// not count.
func (d *Diagnostics) HasErrors() bool { return d != nil && d.list.HasErrors() }

// Errors and Warnings count what there is of each.
func (d *Diagnostics) Errors() int   { return d.count(hcl.DiagError) }
func (d *Diagnostics) Warnings() int { return d.count(hcl.DiagWarning) }

func (d *Diagnostics) count(s hcl.DiagnosticSeverity) (n int) {
	if d == nil {
		return 0
	}
	for _, x := range d.list {
		if x.Severity == s {
			n++
		}
	}
	return n
}

// Err returns d as an error if it holds errors, otherwise nil.
func (d *Diagnostics) Err() error {
	if !d.HasErrors() {
		return nil
	}
	return d
}

// Error is the first error in one line, and how many follow it. Check
// [Diagnostics.Err] for whether there is any: a *Diagnostics in an error
// interface is never nil.
func (d *Diagnostics) Error() string {
	if d == nil {
		return "no errors"
	}
	n := d.Errors()
	for _, x := range d.list {
		if x.Severity != hcl.DiagError {
			continue
		}
		s := position(x) + ": " + printable(x.Summary)
		switch {
		case n == 2:
			s += " (and 1 more error)"
		case n > 2:
			s += fmt.Sprintf(" (and %s more errors)", thousands(n-1))
		}
		return s
	}
	return "no errors"
}

// Lines returns each diagnostic as one line, "edge.hcl:12:5: error: …", at
// most max of them (0: all), for logs.
func (d *Diagnostics) Lines(max int) []string {
	if d == nil {
		return nil
	}
	var out []string
	for i, x := range d.list {
		if max > 0 && i == max {
			break
		}
		s := position(x) + ": " + severity(x) + ": " + printable(x.Summary)
		if x.Detail != "" {
			s += ": " + printable(strings.ReplaceAll(x.Detail, "\n", " "))
		}
		out = append(out, s)
	}
	return out
}

// Write prints the diagnostics for people: place first, so that editors can
// jump to it, then the line with the culprit underlined, then what is
// allowed. Details are wrapped at width; 0 does not wrap.
func (d *Diagnostics) Write(w io.Writer, color bool, width uint) error {
	if d == nil || len(d.list) == 0 {
		return nil
	}
	bw := bufio.NewWriter(w)
	lines := make(map[string]*lineIndex)
	for i, x := range d.list {
		if i == maxPrinted {
			fmt.Fprintf(bw, "… and %s more\n", thousands(len(d.list)-i))
			break
		}
		d.writeOne(bw, x, color, width, lines)
	}
	return bw.Flush()
}

func (d *Diagnostics) writeOne(w *bufio.Writer, x *hcl.Diagnostic, color bool, width uint, lines map[string]*lineIndex) {
	paint := func(code, s string) string {
		if !color {
			return s
		}
		return "\x1b[" + code + "m" + s + "\x1b[0m"
	}
	hue := "1;31"
	if x.Severity == hcl.DiagWarning {
		hue = "1;33"
	}
	fmt.Fprintf(w, "%s: %s: %s\n", paint("1", position(x)), paint(hue, severity(x)), printable(x.Summary))
	if r := x.Subject; r != nil && r.Start.Line > 0 {
		idx := lines[r.Filename]
		if idx == nil {
			idx = newLineIndex(d.sources[r.Filename])
			lines[r.Filename] = idx
		}
		if code, mark, ok := idx.snippet(*r, int(width)); ok {
			no := strconv.Itoa(r.Start.Line)
			pad := max(5, len(no)+1)
			fmt.Fprintf(w, "%*s | %s\n", pad, no, code)
			fmt.Fprintf(w, "%*s | %s\n", pad, "", paint(hue, mark))
		}
	}
	if x.Detail != "" {
		detail := printable(x.Detail)
		if width > 10 {
			detail = wordwrap.WrapString(detail, width-3)
		}
		for line := range strings.Lines(detail) {
			fmt.Fprintf(w, "   %s", line)
		}
		w.WriteByte('\n')
	}
	w.WriteByte('\n')
}

// settle sorts by file and place and drops repetitions, as they come from
// the iterations of a dynamic block.
func (d *Diagnostics) settle() {
	rank := make(map[string]int, len(d.order))
	for i, n := range d.order {
		rank[n] = i
	}
	slices.SortStableFunc(d.list, func(a, b *hcl.Diagnostic) int {
		if a.Subject == nil || b.Subject == nil {
			return cmp.Compare(btoi(a.Subject != nil), btoi(b.Subject != nil))
		}
		return cmp.Or(cmp.Compare(rank[a.Subject.Filename], rank[b.Subject.Filename]),
			cmp.Compare(a.Subject.Start.Byte, b.Subject.Start.Byte))
	})
	type key struct {
		at               hcl.Range
		summary, details string
	}
	seen := make(map[key]bool, len(d.list))
	d.list = slices.DeleteFunc(d.list, func(x *hcl.Diagnostic) bool {
		k := key{summary: x.Summary, details: x.Detail}
		if x.Subject != nil {
			k.at = *x.Subject
		}
		dup := seen[k]
		seen[k] = true
		return dup
	})
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func severity(x *hcl.Diagnostic) string {
	if x.Severity == hcl.DiagWarning {
		return "warning"
	}
	return "error"
}

func position(x *hcl.Diagnostic) string {
	if x.Subject == nil {
		return "configuration"
	}
	return place(*x.Subject)
}

func place(r hcl.Range) string {
	if r.Start.Line == 0 {
		return r.Filename
	}
	return fmt.Sprintf("%s:%d:%d", r.Filename, r.Start.Line, r.Start.Column)
}

// printable keeps what a file says from steering the reader's terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, s)
}

func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + " " + s[i:]
	}
	return s
}

// lineIndex finds lines of a source without scanning it for each diagnostic.
type lineIndex struct {
	src    []byte
	starts []int
}

func newLineIndex(src []byte) *lineIndex {
	idx := &lineIndex{src: src, starts: []int{0}}
	for i := 0; ; {
		n := bytes.IndexByte(src[i:], '\n')
		if n < 0 {
			return idx
		}
		i += n + 1
		idx.starts = append(idx.starts, i)
	}
}

// snippet returns the first line of r and a line of carets below it, cut
// around r to width columns.
func (l *lineIndex) snippet(r hcl.Range, width int) (code, mark string, ok bool) {
	no := r.Start.Line - 1
	if no >= len(l.starts) || r.Start.Byte > len(l.src) {
		return "", "", false
	}
	start, end := l.starts[no], len(l.src)
	if no+1 < len(l.starts) {
		end = l.starts[no+1]
	}
	line := bytes.TrimRight(l.src[start:end], "\r\n")
	from := min(max(r.Start.Byte-start, 0), len(line))
	to := min(max(r.End.Byte-start, from), len(line))

	// A generated file may be one line of megabytes.
	room := 160
	if width > 20 {
		room = max(20, width-8)
	}
	lo, hi := 0, len(line)
	if utf8.RuneCount(line[:min(len(line), 4*room+4)]) > room {
		lo = max(0, min(from-room/3, len(line)-room))
		for lo > 0 && !utf8.RuneStart(line[lo]) {
			lo--
		}
		hi = min(len(line), lo+room)
		for hi < len(line) && !utf8.RuneStart(line[hi]) {
			hi++
		}
		hi = max(hi, from) // lo may have moved far through bytes that are no text
		to = min(to, hi)
	}
	var head, tail string
	if lo > 0 {
		head = "…"
	}
	if hi < len(line) {
		tail = "…"
	}
	flat := func(b []byte) string { return printable(strings.ReplaceAll(string(b), "\t", "    ")) }
	before := head + flat(line[lo:from])
	carets := max(1, utf8.RuneCountInString(flat(line[from:max(from, to)])))
	return before + flat(line[from:hi]) + tail,
		strings.Repeat(" ", utf8.RuneCountInString(before)) + strings.Repeat("^", carets), true
}
