package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	untidy = "process {\nworkers=2\n  pin_cpus = true\n}\n\n\n"
	tidy   = "process {\n  workers  = 2\n  pin_cpus = true\n}\n"
	broken = "process {\n  workers = \n}\n"
)

func TestFmtStdin(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, stdin string
		args        []string
		want        outcome
	}{
		{"stdin", untidy, []string{"fmt"}, outcome{0, tidy, ""}},
		{"dash", untidy, []string{"fmt", "-"}, outcome{0, tidy, ""}},
		{"again", tidy, []string{"fmt"}, outcome{0, tidy, ""}},
		{"nothing", "", []string{"fmt"}, outcome{0, "", ""}},
		{"check", untidy, []string{"fmt", "--check"}, outcome{1, "<stdin>\n", ""}},
		{"check tidy", tidy, []string{"fmt", "--check"}, outcome{0, "", ""}},
		{"write", untidy, []string{"fmt", "-w"}, outcome{1, "", "edgeproxy fmt: standard input cannot be written back to; leave -w out\n"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := edgeproxy(t, tt.stdin, tt.args...); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
	got := edgeproxy(t, broken, "fmt")
	if got.code != exitFailed || got.stdout != "" || !strings.Contains(got.stderr, "<stdin>:2:") {
		t.Errorf("syntax error: %+v", got)
	}
}

func TestFmtFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	a := write("a.hcl", untidy, 0o600)
	b := write("b.hcl", tidy, 0o640)
	c := write("c.hcl", broken, 0o644)
	write("notes.txt", "not { ours", 0o644)
	write(".a.hcl.swp", "not { ours", 0o644)
	link := filepath.Join(t.TempDir(), "link.hcl")
	if err := os.Symlink(a, link); err != nil {
		t.Fatal(err)
	}

	if got := edgeproxy(t, "", "fmt", a, b); got != (outcome{0, tidy + tidy, ""}) {
		t.Errorf("printing: %+v", got)
	}
	if got := edgeproxy(t, "", "fmt", "--check", a, b); got != (outcome{1, a + "\n", ""}) {
		t.Errorf("--check: %+v", got)
	}
	// The broken file of the folder does not keep the others from being written.
	got := edgeproxy(t, "", "fmt", "-w", dir, "/nonexistent.hcl")
	if got.code != exitFailed || got.stdout != "" || !strings.Contains(got.stderr, c+":2:") ||
		!strings.Contains(got.stderr, "/nonexistent.hcl: no such file") {
		t.Errorf("-w: %+v", got)
	}
	for path, want := range map[string]string{a: tidy, b: tidy, c: broken} {
		if src, err := os.ReadFile(path); err != nil || string(src) != want {
			t.Errorf("%s: %q, %v", path, src, err)
		}
	}
	if st, err := os.Stat(a); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode of %s has become %v", a, st.Mode())
	}

	if err := os.WriteFile(a, []byte(untidy), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := edgeproxy(t, "", "fmt", "-w", link); got != (outcome{}) {
		t.Errorf("through a link: %+v", got)
	}
	if st, err := os.Lstat(link); err != nil || st.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link has become a file: %v, %v", st.Mode(), err)
	}
	if src, _ := os.ReadFile(a); string(src) != tidy {
		t.Errorf("behind the link: %q", src)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 5 {
		t.Errorf("left behind: %v", entries)
	}
	if got := edgeproxy(t, "", "fmt", t.TempDir()); got.code != exitFailed || !strings.Contains(got.stderr, "holds no *.hcl") {
		t.Errorf("empty folder: %+v", got)
	}
}
