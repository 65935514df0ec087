package config

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edgeproxy/listener"
)

// manyServers is a file of n servers in upstreams of 100.
func manyServers(n int) []byte {
	var b bytes.Buffer
	for u := range n / 100 {
		fmt.Fprintf(&b, "listener \"tcp\" \"l%d\" {\n  address  = \":%d\"\n  upstream = upstream.u%d\n}\nupstream \"u%d\" {\n", u, 10000+u, u, u)
		for s := range 100 {
			fmt.Fprintf(&b, "  server \"s%d\" {\n    address = \"10.%d.%d.%d:8080\"\n    weight  = %d\n  }\n", s, u>>8, u&255, s, 1+s%10)
		}
		b.WriteString("}\n")
	}
	return b.Bytes()
}

// manyNames is a file of n routes, each by one server name.
func manyNames(n int) []byte {
	var b bytes.Buffer
	b.WriteString("listener \"tcp\" \"edge\" {\n  address = \":443\"\n")
	for i := range n {
		fmt.Fprintf(&b, "  route \"r%d\" {\n    match { sni = [\"host-%d.example.com\"] }\n    upstream = upstream.u%d\n  }\n", i, i, i%100)
	}
	b.WriteString("}\n")
	for i := range 100 {
		fmt.Fprintf(&b, "upstream \"u%d\" {\n  server \"a\" { address = \"10.0.0.%d:443\" }\n}\n", i, i)
	}
	return b.Bytes()
}

func BenchmarkParse(b *testing.B) {
	for name, src := range map[string][]byte{
		"servers=10000": manyServers(10000),
		"servers=100":   manyServers(100),
		"names=100000":  manyNames(100_000),
		"dynamic=10000": []byte(`
			listener "tcp" "l" {
				address  = ":80"
				upstream = upstream.u
			}
			upstream "u" {
				dynamic "server" {
					for_each = range(10000)
					labels   = ["s${server.key}"]
					content {
						address = "10.0.${floor(server.value / 250)}.${server.value % 250}:80"
						weight  = 1 + server.value % 10
					}
				}
			}`),
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(src)))
			for b.Loop() {
				if _, diags := Parse(File{Name: "bench.hcl", Source: src}); diags.HasErrors() {
					b.Fatal(diags)
				}
			}
		})
	}
}

// TestNesting: what would overflow the stack of a recursive parser or
// evaluator is refused, what is merely deep passes.
func TestNesting(t *testing.T) {
	t.Parallel()
	const n = 100_000
	repeat := strings.Repeat
	deep := map[string]string{
		"brackets":     "x = " + repeat("[", n),
		"closed":       "x = " + repeat("[", n) + repeat("]", n),
		"braces":       "x = " + repeat("{a=", n),
		"blocks":       repeat("a {\n", n) + repeat("}\n", n),
		"parentheses":  "x = " + repeat("(", n),
		"templates":    "x = " + repeat(`"${`, n),
		"not":          "x = " + repeat("!", n) + "true",
		"minus":        "x = " + repeat("-", n) + "1",
		"sum":          "x = 1" + repeat("+1", n),
		"sum in lines": "x = (1" + repeat("\n+1", n) + ")",
		"conditional":  "x = " + repeat("true ? 1 : ", n) + "2",
		"index":        "x = a" + repeat("[b]", n),
		"splat":        "x = a" + repeat("[*]", n),
		"attributes":   "x = a" + repeat(".*", n),
		"calls":        "x = " + repeat("f(", n),
		"if":           "x = \"" + repeat("%{ if true }", n) + "\"",
		"heredoc":      "x = <<E\n" + repeat("%{ for a in b }\n", n) + "E\n",
		"for":          "x = " + repeat("[for a in ", n),
		"for object":   "x = {\n for a in b : a => 1" + repeat("\n+1", n) + "}",
		"commented":    "x = " + repeat("[ # ]\n", n),
		"number":       "x = 1e999999999",
		"long number":  "x = " + repeat("9", n),
	}
	for name, src := range deep {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, diags := parseText(t, src)
			if s := diags.Error(); !strings.Contains(s, "nested too deeply") && !strings.Contains(s, "too large") {
				t.Error(s)
			}
		})
	}
	json := map[string]string{
		"arrays":    `{"locals":{"x":` + repeat("[", n),
		"objects":   repeat(`{"a":`, n),
		"templates": `{"locals":{"x":"` + repeat(`\"${`, n) + `"}}`,
		"inner":     `{"locals":{"x":"${` + repeat("(", n) + `"}}`,
		"operators": `{"locals":{"x":"${1` + repeat("+1", n) + `}"}}`,
		"number":    `{"locals":{"x":1e99999999}}`,
	}
	for name, src := range json {
		t.Run("json "+name, func(t *testing.T) {
			t.Parallel()
			_, diags := Parse(File{Name: "x.json", Source: []byte(src)})
			if s := diags.Error(); !strings.Contains(s, "nested too deeply") && !strings.Contains(s, "too large") {
				t.Error(s)
			}
		})
	}
	fine := "locals {\n" +
		"a = " + repeat("[", 100) + repeat("]", 100) + "\n" +
		"b = 1" + repeat(" + 1", 200) + "\n" +
		"c = \"" + repeat("%{ if true }x%{ else }y%{ endif }", 2000) + "\"\n" +
		"d = [" + repeat("-1, ", 5000) + "]\n" +
		repeat("# ((((( [[[[[ {{{{{\n", 5000) +
		"e = \"" + repeat("(", 5000) + "\"\n}\n"
	if _, diags := parseText(t, fine); strings.Contains(diags.Error(), "deep") || diags.Errors() != 1 {
		t.Error(diags) // the one: no listener
	}
}

// TestHuge: ten megabytes of good and of bad input.
func TestHuge(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("x", 10<<20)
	for name, src := range map[string]string{
		"comment":    "# " + big,
		"identifier": big[:1<<20],
		"string":     "log { level = \"" + big[:1<<20] + "\" }",
		"unclosed":   "log { level = \"" + big[:1<<20],
		"blanks":     strings.Repeat("\n", 10<<20),
		"letters":    "locals { " + strings.Repeat("é\n", 3<<20) + "}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, diags := parseText(t, src)
			var out bytes.Buffer
			if err := diags.Write(&out, false, 100); err != nil || out.Len() == 0 {
				t.Fatal("nothing said")
			}
			if out.Len() > 1<<20 {
				t.Errorf("%d bytes of messages, beginning %.500s", out.Len(), out.String())
			}
			if len(diags.Error()) > 10_000 {
				t.Errorf("%d bytes in the one line", len(diags.Error()))
			}
		})
	}
}

func TestFileProblems(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good, err := os.ReadFile("../examples/minimal.hcl")
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	link := func(target, name string) string {
		p := filepath.Join(dir, name)
		if err := os.Symlink(target, p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	file := write("good/a.hcl", good)
	write("none/readme.txt", nil)
	write("dangling/a.hcl", good)
	big, err := os.Create(filepath.Join(dir, "big.hcl"))
	if err != nil {
		t.Fatal(err)
	}
	big.Truncate(maxSource + 1)
	big.Close()
	for _, c := range []struct{ name, path, want string }{
		{"missing", filepath.Join(dir, "missing.hcl"), "no such file"},
		{"empty folder", filepath.Join(dir, "none"), "the folder holds no *.hcl file"},
		{"large", big.Name(), "larger than 64 MiB"},
		{"symlink", link(file, "link.hcl"), ""},
		{"symlink to folder", link(filepath.Dir(file), "folder"), ""},
		{"loop", link(filepath.Join(dir, "loop.hcl"), "loop.hcl"), "too many levels of symbolic links"},
		{"dangling", filepath.Dir(link("nowhere", "dangling/b.hcl")), "dangling/b.hcl: cannot read the file: no such file"},
		{"not a file", "/proc/self/mem", "cannot read"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, diags := Load(c.path)
			if got := diags.Error(); diags.HasErrors() != (c.want != "") || !strings.Contains(got, c.want) && c.want != "" {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// TestOverlaps compares the index with the definition.
func TestOverlaps(t *testing.T) {
	t.Parallel()
	forms := []string{
		":80", ":81", "0.0.0.0:80", "[::]:80", "[::]:81", "10.0.0.1:80", "10.0.0.2:80", "[::1]:80", "127.0.0.1:80", ":0", "10.0.0.1:0",
		"unix:/a", "unix:@a", "unix:/b", "systemd:a", "systemd:b", "[fe80::1%eth0]:80", "[fe80::1%eth1]:80",
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		ov := newOverlaps()
		var taken []listener.Address
		for range 1 + rng.IntN(6) {
			list, err := listener.ParseAddress(forms[rng.IntN(len(forms))])
			if err != nil {
				t.Fatal(err)
			}
			want := false
			for _, b := range taken {
				want = want || list[0].Overlaps(b)
			}
			if got := ov.add(list[0], &binder{}) != nil; got != want {
				t.Fatalf("%v after %v: %v, want %v", list[0], taken, got, want)
			}
			if !want {
				taken = append(taken, list[0])
			}
		}
	}
}

// TestOverlapsFast: ranges of all ports, on many addresses.
func TestOverlapsFast(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	for i := range 2 {
		fmt.Fprintf(&b, "listener \"tcp\" \"l%d\" {\n address = [\"10.0.0.%d:1-65535\", \"10.0.0.%d:1-60000\"]\n upstream = upstream.u\n}\n", i, i, i)
	}
	b.WriteString("upstream \"u\" {\n server \"a\" { address = \"10.0.0.1:80\" }\n}\n")
	begin := time.Now()
	_, diags := parseText(t, b.String())
	if n := diags.Errors(); n != 2 {
		t.Errorf("%d errors, want one for each pair: %v", n, diags)
	}
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestDurationsAndSizes(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "250ms": 250 * time.Millisecond, "1h30m": 90 * time.Minute, "1d": 24 * time.Hour, "1.5d": 36 * time.Hour,
		"2d3h": 51 * time.Hour, "-1s": -time.Second, "-1d": -24 * time.Hour, "1us": time.Microsecond,
	} {
		if got, hint := parseDuration(s); got != want || hint != "" {
			t.Errorf("%q: %v %q, want %v", s, got, hint, want)
		}
	}
	for _, s := range []string{"", "1", "d", "1dd", "1d-1s", "--1s", "+1s", "1d+1s", "s", "1e3d", "1 s", "1D", "99999d9999999999h", "1000000d", "-", ".d", "NaNd"} {
		if got, hint := parseDuration(s); hint == "" {
			t.Errorf("%q: %v, want an error", s, got)
		}
	}
	for s, want := range map[string]int64{"1B": 1, "64KiB": 65536, "10MB": 10_000_000, "1.5 GiB": 3 << 29, "0.5B": 1} {
		if got, hint := parseSize(s); got != want || hint != "" {
			t.Errorf("%q: %v %q, want %v", s, got, hint, want)
		}
	}
	for _, s := range []string{"", "1", "MB", "1mb", "1Mbit", "-1MB", "1e3MB", "99999999999TB", "1..2MB"} {
		if got, hint := parseSize(s); hint == "" {
			t.Errorf("%q: %v, want an error", s, got)
		}
	}
}

func TestNearest(t *testing.T) {
	t.Parallel()
	names := []string{"upstream", "listener", "address", "allow", "tcp", "http"}
	for s, want := range map[string]string{
		"upsteam": "upstream", "Listner": "listener", "adress": "address", "alow": "allow", "htp": "http", "tpc": "tcp", "zzz": "", "": "", "banana": "",
	} {
		if got := nearest(s, names); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}
