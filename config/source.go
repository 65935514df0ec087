package config

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	hcljson "github.com/hashicorp/hcl/v2/json"
)

// maxSource bounds a configuration, all of its files together, in bytes.
const maxSource = 64 << 20

// File is one source file in memory. A name that ends in .json means JSON
// syntax. Paths in the file are relative to the folder of its name.
type File struct {
	Name   string
	Source []byte
}

// Load reads a file, or every *.hcl and *.hcl.json of a folder in the order
// of their names. The Config is nil if there are errors; the Diagnostics are
// never nil, and may hold warnings for a valid configuration.
func Load(path string) (*Config, *Diagnostics) {
	d := newDiagnostics()
	return newLoader(d).load(read(path, d))
}

// Parse is Load for sources in memory, taken in the order given.
func Parse(files ...File) (*Config, *Diagnostics) {
	return newLoader(newDiagnostics()).load(files)
}

func read(path string, d *Diagnostics) []File {
	info, err := os.Stat(path)
	if err != nil {
		d.errorf(hcl.Range{Filename: path}, "Name a file with -c, or a folder that holds *.hcl files.", "cannot read the configuration: %s", reason(err))
		return nil
	}
	if !info.IsDir() {
		f, ok := readFile(path, maxSource, d)
		if !ok {
			return nil
		}
		return []File{f}
	}
	entries, err := os.ReadDir(path) // sorted by name
	if err != nil {
		d.errorf(hcl.Range{Filename: path}, "", "cannot read the folder: %s", reason(err))
		return nil
	}
	var files []File
	left := maxSource
	for _, e := range entries {
		name := e.Name()
		// Editors leave hidden files beside the real ones.
		if e.IsDir() || name[0] == '.' || !strings.HasSuffix(name, ".hcl") && !strings.HasSuffix(name, ".hcl.json") {
			continue
		}
		f, ok := readFile(filepath.Join(path, name), left, d)
		if ok {
			left -= len(f.Source)
			files = append(files, f)
		}
	}
	if len(files) == 0 && !d.HasErrors() {
		d.errorf(hcl.Range{Filename: path}, "A folder is read as all its *.hcl and *.hcl.json files, in the order of their names.\n"+leastFile, "the folder holds no *.hcl file")
	}
	return files
}

func readFile(path string, limit int, d *Diagnostics) (File, bool) {
	f, err := os.Open(path)
	if err == nil {
		defer f.Close()
		var b []byte
		if b, err = io.ReadAll(io.LimitReader(f, int64(limit)+1)); err == nil {
			if len(b) <= limit {
				return File{Name: path, Source: b}, true
			}
			d.errorf(hcl.Range{Filename: path}, "", "the configuration is larger than %d MiB", maxSource>>20)
			return File{}, false
		}
	}
	d.errorf(hcl.Range{Filename: path}, "", "cannot read the file: %s", reason(err))
	return File{}, false
}

// reason is an I/O error without the operation and path, which the message
// around it has already.
func reason(err error) string {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	return err.Error()
}

// source is a parsed file.
type source struct {
	name    string
	body    hcl.Body
	hurt    map[int]bool // start bytes of block headers whose bodies have syntax errors
	dynamic bool         // may hold dynamic blocks
}

func isJSON(name string) bool { return strings.HasSuffix(name, ".json") }

// parse returns nil for a file that nothing can be taken from.
func parse(f File, d *Diagnostics, spent *budget) *source {
	src := bytes.TrimPrefix(f.Source, []byte("\uFEFF"))
	d.addFile(f.Name, src)
	if !checkText(f.Name, src, d) {
		return nil
	}
	s := &source{name: f.Name, hurt: make(map[int]bool)}
	if isJSON(f.Name) {
		if !checkJSON(f.Name, src, d) {
			return nil
		}
		s.dynamic = bytes.Contains(src, []byte("dynamic"))
		file, diags := hcljson.Parse(src, f.Name)
		if len(diags) > 1 {
			diags = diags[:1] // what follows is the parser's confusion
		}
		d.add(withoutNoise(diags)...)
		if diags.HasErrors() || file == nil {
			return nil
		}
		s.body = file.Body
		return s
	}
	facts, ok := scanNative(f.Name, src, d)
	if !ok {
		return nil
	}
	s.dynamic = facts.dynamic
	file, diags := hclsyntax.ParseConfig(src, f.Name, hcl.InitialPos)
	diags = withoutNoise(diags)
	d.add(diags...)
	if file == nil {
		return nil
	}
	body := file.Body.(*hclsyntax.Body)
	if diags.HasErrors() {
		for _, x := range diags {
			s.markHurt(body, x)
		}
	}
	if facts.loops {
		spent.guard(body)
	}
	s.body = body
	return s
}

// withoutNoise keeps the first of the errors that one missing quote leaves on
// every line behind it.
func withoutNoise(diags hcl.Diagnostics) hcl.Diagnostics {
	openString := false
	return slices.DeleteFunc(diags, func(x *hcl.Diagnostic) bool {
		x.Summary = lowerFirst(x.Summary)
		first := !openString && x.Summary == "invalid multi-line string"
		openString = openString || first
		return openString && !first && (x.Summary == "invalid multi-line string" || x.Summary == "unterminated template string")
	})
}

// markHurt notes the blocks around a syntax error: what the parser made of
// their bodies is not to be complained about. A block without an end has
// swallowed what follows it and is left out.
func (s *source) markHurt(body *hclsyntax.Body, x *hcl.Diagnostic) {
	if x.Subject == nil {
		return
	}
	at := x.Subject.Start.Byte
	for i := 0; i < len(body.Blocks); i++ {
		b := body.Blocks[i]
		if at < b.TypeRange.Start.Byte || at > b.Body.SrcRange.End.Byte {
			continue
		}
		if x.Summary == "unclosed configuration block" {
			body.Blocks = slices.Delete(body.Blocks, i, i+1)
			return
		}
		s.hurt[b.DefRange().Start.Byte] = true
		s.markHurt(b.Body, x)
		return
	}
	for name, a := range body.Attributes {
		if at >= a.SrcRange.Start.Byte && at <= a.SrcRange.End.Byte && x.Summary != "attribute redefined" {
			delete(body.Attributes, name)
		}
	}
}

func checkText(name string, src []byte, d *Diagnostics) bool {
	at := func(i int) hcl.Range { return hcl.Range{Filename: name, Start: posOf(src, i), End: posOf(src, i+1)} }
	if i := bytes.IndexByte(src, 0); i >= 0 {
		d.errorf(at(i), "A configuration is a text file in UTF-8; this may be UTF-16, or no text at all.", "NUL byte in the file")
		return false
	}
	if utf8.Valid(src) {
		return true
	}
	i := 0
	for i < len(src) {
		r, n := utf8.DecodeRune(src[i:])
		if r == utf8.RuneError && n == 1 {
			break
		}
		i += n
	}
	d.errorf(at(i), "Save the file in UTF-8.", "byte 0x%02x is not UTF-8", src[i])
	return false
}

// posOf counts runes as columns, which is near enough for a text that is not
// even lexed.
func posOf(src []byte, i int) hcl.Pos {
	i = min(i, len(src))
	start := bytes.LastIndexByte(src[:i], '\n') + 1
	return hcl.Pos{Line: 1 + bytes.Count(src[:i], []byte{'\n'}), Column: 1 + utf8.RuneCount(src[start:i]), Byte: i}
}

// leastFile is what to begin with.
const leastFile = `The least configuration is one listener and one upstream:

  listener "tcp" "web" {
    address  = ":8080"
    upstream = upstream.app
  }
  upstream "app" {
    server "a" { address = "127.0.0.1:9000" }
  }`
