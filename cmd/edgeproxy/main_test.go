package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type outcome struct {
	code           int
	stdout, stderr string
}

// edgeproxy runs one command line in this process.
func edgeproxy(t *testing.T, stdin string, args ...string) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := execute(t.Context(), args, strings.NewReader(stdin), &stdout, &stderr)
	return outcome{code, stdout.String(), stderr.String()}
}

func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args   string
		code   int
		stdout string // somewhere in it
		stderr string
	}{
		{"", 2, "", "edgeproxy: a command is missing"},
		{"chekc", 2, "", `there is no command "chekc"; did you mean "check"?`},
		{"Run", 2, "", `did you mean "run"?`},
		{"frobnicate", 2, "", `there is no command "frobnicate"; the commands are "check", "demo"`},
		{"check", 2, "", "edgeproxy check needs a configuration: -c FILE"},
		{"check edge.hcl", 2, "", `takes no argument, but was given "edge.hcl"; the configuration is named with -c`},
		{"check --confg edge.hcl", 2, "", "there is no flag --confg; did you mean --config?"},
		{"check --frobnicate", 2, "", "there is no flag --frobnicate\n"},
		{"check -x", 2, "", "unknown shorthand flag: 'x'"},
		{"check -c", 2, "", "flag needs an argument: 'c'"},
		{"run", 2, "", "edgeproxy run needs a configuration"},
		{"run -c x.hcl --log-level loud", 2, "", `--log-level "loud" is not one of "debug", "info", "warn" or "error"`},
		{"run -c x.hcl --pidfile y", 2, "", "did you mean --pid-file?"},
		{"version now", 2, "", `edgeproxy version takes no argument, but was given "now"`},
		{"demo --quietly", 2, "", "there is no flag --quietly"},
		{"fmt -w --check x.hcl", 2, "", "-w and --check exclude each other"},
		{"reload -c x.hcl --admin :1", 2, "", "-c and --admin exclude each other"},
		{"reload --admin nonsense", 2, "", `admin address "nonsense" is neither HOST:PORT nor unix:/path`},

		{"version", 0, "edgeproxy ", ""},
		{"--version", 0, "(go1.", ""},
		{"help", 0, "Available Commands:", ""},
		{"--help", 0, "Available Commands:", ""},
		{"help explain", 0, "who comes next if", ""},
		{"help run", 0, "SIGHUP reloads", ""},
		{"run --help", 0, "--pid-file", ""},
	} {
		t.Run(tt.args, func(t *testing.T) {
			t.Parallel()
			got := edgeproxy(t, "", strings.Fields(tt.args)...)
			if got.code != tt.code || !strings.Contains(got.stdout, tt.stdout) || !strings.Contains(got.stderr, tt.stderr) {
				t.Errorf("got %+v\nwant %+v", got, tt)
			}
			if tt.code == exitUsage && !strings.Contains(got.stderr, "--help' for usage") {
				t.Errorf("does not say where help is: %s", got.stderr)
			}
			if tt.code == exitOK && got.stderr != "" {
				t.Errorf("stderr: %s", got.stderr)
			}
		})
	}
}

const validFile = `listener "tcp" "web" {
  address  = "127.0.0.1:0"
  upstream = upstream.app
}

upstream "app" {
  server "a" { address = "127.0.0.1:9000" }
  server "b" { address = "127.0.0.1:9001" }
}
`

func TestCheck(t *testing.T) {
	t.Parallel()
	valid := writeFile(t, "edge.hcl", validFile)
	broken := writeFile(t, "broken.hcl", strings.Replace(validFile, "127.0.0.1:0", "127.0.0.1:http", 1)+"proces {}\n")
	folder := t.TempDir()
	for name, content := range map[string]string{
		"1.hcl": validFile,
		"2.hcl": strings.NewReplacer(`"web"`, `"web2"`, `"app"`, `"app2"`, "upstream.app", "upstream.app2").Replace(validFile),
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name, path string
		code       int
		stdout     string
		stderr     []string
	}{
		{"valid", valid, 0, valid + " is valid: 1 listener, 1 upstream, 2 servers\n", nil},
		{"folder", folder, 0, folder + " is valid: 2 listeners, 2 upstreams, 4 servers\n", nil},
		{"two errors", broken, 1, "", []string{broken + ":2:", "http", broken + ":10:1", "process", broken + ": 2 errors\n"}},
		{"no such file", "/nonexistent/edge.hcl", 1, "", []string{"/nonexistent/edge.hcl", "no such file"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := edgeproxy(t, "", "check", "-c", tt.path)
			if got.code != tt.code || got.stdout != tt.stdout {
				t.Errorf("got %+v, want code %d and %q", got, tt.code, tt.stdout)
			}
			for _, want := range tt.stderr {
				if !strings.Contains(got.stderr, want) {
					t.Errorf("%q is missing in:\n%s", want, got.stderr)
				}
			}
		})
	}
}

// What the README shows must work.
func TestREADME(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(readme), "```hcl\n")
	example, _, closed := strings.Cut(rest, "```")
	if !found || !closed {
		t.Fatal("no configuration in the README")
	}
	path := writeFile(t, "edge.hcl", example)
	if got := edgeproxy(t, "", "check", "-c", path); got.code != exitOK {
		t.Errorf("the README's configuration: %s", got.stderr)
	}
	if got := edgeproxy(t, "", "fmt", "--check", path); got.code != exitOK {
		t.Error("the README's configuration is not in canonical layout")
	}
	if n := strings.Count(string(readme), "\n"); n > 120 {
		t.Errorf("the README has %d lines; it is to stay below 120", n)
	}
}
