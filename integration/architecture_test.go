package integration

import (
	"bytes"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// imports is who may import whom inside the module. It is policy, not a
// record of what happens to be: a line that has to be added here is a decision
// about the architecture, and docs/architecture.md is to say why. Imports run
// one way, from the command line down to the loops:
//
//	cmd → {config, internal/admin} → listener → {splice, upstream, tlsterm, internal/sniff} → {balance, internal/reactor, internal/tlsrecord}
//
// and config imports what it configures. A package that is missing here may
// import nothing of the module.
var imports = map[string][]string{
	"cmd/edgeproxy": {
		"config", "listener", "upstream", "health", "tlsterm", "tlsterm/acme",
		"internal/accesslog", "internal/admin", "internal/demo", "internal/ktls", "internal/logging", "internal/reactor", "internal/sdnotify", "internal/version",
	},
	"config":             {"balance", "health", "internal/sniff", "listener", "tlsterm", "upstream"},
	"internal/admin":     {"internal/histogram", "internal/reactor", "internal/version", "listener", "tlsterm", "upstream"},
	"internal/accesslog": {"internal/logging", "internal/sniff", "listener"},
	"listener":           {"internal/histogram", "internal/proxyproto", "internal/quic", "internal/reactor", "internal/sniff", "internal/tlsrecord", "internal/udp", "splice", "tlsterm", "upstream"},
	"upstream":           {"balance", "health", "internal/histogram", "internal/proxyproto", "internal/reactor", "internal/tlsrecord", "tlsterm"},
	"health":             {"internal/proxyproto"},
	"splice":             {"internal/ktls", "internal/reactor", "internal/tlsrecord"},
	"tlsterm":            {"internal/histogram", "internal/ktls", "internal/tlsrecord", "tlsterm/acme"},
	"internal/ktls":      {"internal/tlsrecord"},
	"internal/quic":      {"internal/sniff"},
	"internal/reactor":   {"internal/histogram"},
	"internal/testacme":  {"internal/testcert"},
	// The one thing that the benchmark shares with what it measures: with
	// crypto/tls on every connection its client would need more CPU than a proxy.
	"integration/bench/traffic": {"internal/tlsrecord"},
}

// testImports is what tests may import in addition.
var testImports = map[string][]string{
	"cmd/edgeproxy":      {"internal/testcert"},
	"config":             {"internal/testcert"},
	"health":             {"internal/testcert"},
	"integration":        {"internal/testacme", "internal/testcert", "internal/tlsrecord"},
	"internal/admin":     {"internal/testcert"},
	"internal/ktls":      {"internal/testcert"},
	"internal/quic":      {"internal/testcert"},
	"internal/sniff":     {"internal/testcert"},
	"internal/tlsrecord": {"internal/testcert"},
	"listener":           {"balance", "internal/testcert"},
	"splice":             {"internal/testcert"},
	"tlsterm":            {"internal/testcert"},
	"tlsterm/acme":       {"internal/testacme", "internal/testcert"},
	"upstream":           {"internal/testcert"},
}

// trees are programs of several packages, which know each other and, but for
// what imports says, nothing else of the module: the benchmark measures
// edgeproxy as it measures its peers.
var trees = []string{"integration/bench"}

// foreign is which packages may import what is not ours. A key covers all
// packages below it; a module that is missing may be imported by nobody. The
// narrow ones keep their subject in one place: HCL is known to config,
// Prometheus to the admin server, raw system calls to those that own sockets, or descriptors of logs.
var foreign = map[string][]string{
	"github.com/cilium/ebpf":            {"integration", "listener"},
	"github.com/coreos/go-systemd/v22":  {"internal/sdnotify"},
	"github.com/agext/levenshtein":      {"cmd/edgeproxy"},
	"github.com/apparentlymart/go-cidr": {"config"},
	"github.com/cespare/xxhash/v2":      {"balance"},
	"github.com/fsnotify/fsnotify":      {"tlsterm"},
	"github.com/caddyserver/certmagic":  {"tlsterm/acme"},
	"github.com/hashicorp/hcl/v2":       {"config"},
	"github.com/letsencrypt/pebble":     {"internal/testacme"},
	"github.com/mholt/acmez/v3":         {"tlsterm/acme"},
	"github.com/miekg/dns":              {"internal/testacme"},
	"github.com/mitchellh/go-wordwrap":  {"config"},
	"github.com/pires/go-proxyproto":    {"internal/proxyproto"}, // tests only
	"github.com/prometheus":             {"internal/admin"},
	"github.com/quic-go/quic-go":        {"integration", "internal/quic"}, // tests and the benchmark's ends only
	"github.com/spf13/cobra":            {"cmd/edgeproxy"},
	"github.com/spf13/pflag":            {"cmd/edgeproxy"},
	"github.com/zclconf/go-cty":         {"config"},
	"go.uber.org/zap":                   {"cmd/edgeproxy", "health", "internal/admin", "internal/logging", "listener", "tlsterm", "upstream"},
	"golang.org/x/crypto":               {"internal/tlsrecord", "tlsterm"},
	"golang.org/x/net/idna":             {"config"},
	"golang.org/x/sys/unix":             {"cmd/edgeproxy", "health", "integration", "internal/accesslog", "internal/admin", "internal/ktls", "internal/logging", "internal/reactor", "internal/sdnotify", "internal/udp", "listener", "splice", "tlsterm", "upstream"},
	"golang.org/x/term":                 {"cmd/edgeproxy"},
	"gonum.org/v1/plot":                 {"integration/bench"},
}

// tooVague are package names that say nothing of what is inside.
var tooVague = []string{"util", "utils", "common", "types", "helpers", "misc", "server"}

const maxLines = 650

// goFile is what the policy looks at.
type goFile struct {
	path    string // from the root of the module
	dir     string
	pkg     string
	imports []string
	lines   int
}

func (f goFile) isTest() bool { return strings.HasSuffix(f.path, "_test.go") }

// goFiles parses the module's files. Asking `go list` would be shorter, but
// its answer is no input of `go test`'s cache: a new import would go unseen.
func goFiles(t *testing.T) []goFile {
	t.Helper()
	root := ".."
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatal(err)
	}
	var files []goFile
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if b := d.Name(); name != root && (b[0] == '.' || b[0] == '_' || b == "testdata" || b == "bin") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		src, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ImportsOnly)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		f := goFile{path: filepath.ToSlash(rel), pkg: parsed.Name.Name, lines: bytes.Count(src, []byte{'\n'})}
		f.dir = path.Dir(f.path)
		for _, s := range parsed.Imports {
			p, err := strconv.Unquote(s.Path.Value)
			if err != nil {
				return err
			}
			f.imports = append(f.imports, p)
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("found %d Go files; looked in the wrong place?", len(files))
	}
	return files
}

func TestImportsInside(t *testing.T) {
	t.Parallel()
	for _, f := range goFiles(t) {
		allowed := imports[f.dir]
		if f.isTest() {
			allowed = slices.Concat(allowed, testImports[f.dir], []string{f.dir})
		}
		for _, imp := range f.imports {
			p, ours := strings.CutPrefix(imp, "edgeproxy/")
			sameTree := slices.ContainsFunc(trees, func(root string) bool { return within(p, root) && within(f.dir, root) })
			if ours && !sameTree && !slices.Contains(allowed, p) {
				t.Errorf("%s imports %s, which the architecture does not provide for; it allows %s", f.path, p, list(allowed))
			}
		}
	}
}

func TestImportsFromOutside(t *testing.T) {
	t.Parallel()
	modules := slices.Sorted(maps.Keys(foreign))
	for _, f := range goFiles(t) {
		for _, imp := range f.imports {
			first, _, _ := strings.Cut(imp, "/")
			if first == "edgeproxy" || !strings.Contains(first, ".") {
				continue
			}
			i := slices.IndexFunc(modules, func(m string) bool { return within(imp, m) })
			switch {
			case i < 0:
				t.Errorf("%s imports %s, a module that is not in the list of those we depend on", f.path, imp)
			case !slices.ContainsFunc(foreign[modules[i]], func(dir string) bool { return within(f.dir, dir) }):
				t.Errorf("%s imports %s; only %s may", f.path, imp, list(foreign[modules[i]]))
			}
		}
	}
}

// The graph above must have no way back to where one came from, for else the
// first person to walk it finds an import cycle.
func TestImportGraphIsAcyclic(t *testing.T) {
	t.Parallel()
	const walking, done = 1, 2
	state := make(map[string]int)
	var walk func(p string, trail []string)
	walk = func(p string, trail []string) {
		switch trail = append(trail, p); state[p] {
		case walking:
			t.Errorf("the policy allows a cycle: %s", strings.Join(trail, " → "))
		case done:
		default:
			state[p] = walking
			for _, next := range imports[p] {
				walk(next, trail)
			}
			state[p] = done
		}
	}
	for p := range imports {
		walk(p, nil)
	}
}

func TestFileSizesAndNames(t *testing.T) {
	t.Parallel()
	for _, f := range goFiles(t) {
		if f.lines > maxLines {
			t.Errorf("%s has %d lines; more than %d is more than one role", f.path, f.lines, maxLines)
		}
		if slices.Contains(tooVague, strings.TrimSuffix(f.pkg, "_test")) {
			t.Errorf("%s: package %s says nothing of what is in it", f.path, f.pkg)
		}
		if base := path.Base(f.dir); f.dir != "." && slices.Contains(tooVague, base) {
			t.Errorf("%s: the folder %s says nothing of what is in it", f.path, base)
		}
	}
}

// within reports whether p is prefix or lies below it.
func within(p, prefix string) bool {
	rest, ok := strings.CutPrefix(p, prefix)
	return ok && (rest == "" || rest[0] == '/')
}

func list(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}
