package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func writeFile(t testing.TB, name, text string) string {
	t.Helper()
	path := name
	if !filepath.IsAbs(path) {
		path = filepath.Join(shortTempDir(t), name)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

const validFile = `listener "tcp" "edge" {
  address  = "127.0.0.1:8080"
  upstream = upstream.app
}

upstream "app" {
  server "a" { address = "127.0.0.1:9090" }
}
`

func TestCommandVersion(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"version"}, {"--version"}} {
		code, out, errs := Run(t, args...)
		if code != 0 || !strings.Contains(out, "edgeproxy") || !strings.Contains(out, "go1.") || errs != "" {
			t.Errorf("%v: exit code %d, %q, %q", args, code, out, errs)
		}
	}
}

func TestCommandUsage(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{nil, 2, "Usage"},
		{[]string{"--help"}, 0, "run"},
		{[]string{"rnu"}, 2, "run"},
		{[]string{"run"}, 2, "-c"},
		{[]string{"check"}, 2, "-c"},
		{[]string{"run", "--no-such-flag"}, 2, "no-such-flag"},
		{[]string{"run", "-c", "x.hcl", "--log-level", "loud"}, 2, "loud"},
		{[]string{"version", "x"}, 2, "x"},
		{[]string{"check", "-c", "/no/such/file.hcl"}, 1, "/no/such/file.hcl"},
		{[]string{"run", "-c", "/no/such/file.hcl"}, 1, "/no/such/file.hcl"},
		{[]string{"reload", "--admin", "unix:/no/such.sock"}, 1, "/no/such.sock"},
	} {
		code, out, errs := Run(t, c.args...)
		if code != c.code || !strings.Contains(out+errs, c.says) {
			t.Errorf("edgeproxy %s: exit code %d, want %d; output must contain %q:\n%s%s", strings.Join(c.args, " "), code, c.code, c.says, out, errs)
		}
	}
}

// check finds all errors of a file at once, each with its place and the line.
func TestCommandCheck(t *testing.T) {
	t.Parallel()
	good := writeFile(t, "edge.hcl", validFile)
	if code, out, errs := Run(t, "check", "-c", good); code != 0 || errs != "" || out == "" {
		t.Errorf("a valid file: exit code %d, %q, %q", code, out, errs)
	}

	bad := writeFile(t, "bad.hcl", `listener "tcp" "edge" {
  adress   = "127.0.0.1:8080"
  upstream = upstream.ap
  timeouts { idle = "soon" }
}
upstream "app" {
  balance = "roundrobin"
  server "a" { address = "127.0.0.1" }
  server "a" { address = "127.0.0.1:9090" }
}
`)
	code, out, errs := Run(t, "check", "-c", bad)
	if code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	for _, want := range []string{
		"bad.hcl:2", "adress", "\"address\"", // the nearest spelling
		"bad.hcl:3", "\"app\"",
		"bad.hcl:4", "soon",
		"bad.hcl:7", "roundrobin", "round_robin", "least_conn", // what is allowed
		"bad.hcl:8", "has no port",
		"bad.hcl:9",
	} {
		if !strings.Contains(out+errs, want) {
			t.Errorf("nothing about %q in:\n%s%s", want, out, errs)
		}
	}
}

// A folder is all its files in name order, in both syntaxes.
func TestCommandCheckFolder(t *testing.T) {
	t.Parallel()
	dir := shortTempDir(t)
	writeFile(t, filepath.Join(dir, "10-upstreams.hcl"), "upstream \"app\" {\n  server \"a\" { address = \"127.0.0.1:9090\" }\n}\n")
	writeFile(t, filepath.Join(dir, "20-edge.hcl.json"), `{"listener": {"tcp": {"edge": {"address": "127.0.0.1:8080", "upstream": "${upstream.app}"}}}}`)
	writeFile(t, filepath.Join(dir, "notes.txt"), "not { configuration")
	if code, out, errs := Run(t, "check", "-c", dir); code != 0 {
		t.Errorf("exit code %d:\n%s%s", code, out, errs)
	}
	writeFile(t, filepath.Join(dir, "30-again.hcl"), "upstream \"app\" {\n  server \"a\" { address = \"127.0.0.1:9090\" }\n}\n")
	code, out, errs := Run(t, "check", "-c", dir)
	if code != 1 || !strings.Contains(out+errs, "30-again.hcl:1") || !strings.Contains(out+errs, "10-upstreams.hcl") {
		t.Errorf("a duplicate over two files: exit code %d:\n%s%s", code, out, errs)
	}
	if code, _, errs := Run(t, "check", "-c", shortTempDir(t)); code != 1 || errs == "" {
		t.Errorf("an empty folder: exit code %d, %q", code, errs)
	}
}

// Expressions: locals, env, file, functions, for and dynamic, each in use.
func TestCommandCheckExpressions(t *testing.T) {
	t.Parallel()
	dir := shortTempDir(t)
	writeFile(t, filepath.Join(dir, "port"), "9090\n")
	file := writeFile(t, filepath.Join(dir, "edge.hcl"), `locals {
  hosts = ["127.0.0.1", "127.0.0.2"]
  port  = chomp(file("port"))
}
listener "tcp" "edge" {
  address  = [for p in [8080, 8081] : format("%s:%d", env("EDGE_HOST", "127.0.0.9"), p)]
  upstream = upstream.app
}
upstream "app" {
  dynamic "server" {
    for_each = local.hosts
    labels   = ["s${server.key}"]
    content {
      address = "${server.value}:${local.port}"
      weight  = length(local.hosts)
    }
  }
}
`)
	if code, out, errs := Run(t, "check", "-c", file); code != 0 {
		t.Errorf("exit code %d:\n%s%s", code, out, errs)
	}
}

func TestCommandFmt(t *testing.T) {
	t.Parallel()
	const ugly = "listener   \"tcp\" \"edge\"   {\naddress=\"127.0.0.1:8080\"\n      upstream    = upstream.app\n}\n"
	const tidy = "listener \"tcp\" \"edge\" {\n  address  = \"127.0.0.1:8080\"\n  upstream = upstream.app\n}\n"
	file := writeFile(t, "edge.hcl", ugly)
	if code, out, errs := Run(t, "fmt", file); code != 0 || out != tidy || errs != "" {
		t.Errorf("exit code %d, %q, %q", code, out, errs)
	}
	if b, _ := os.ReadFile(file); string(b) != ugly {
		t.Error("fmt without -w changed the file")
	}
	if code, out, errs := Run(t, "fmt", "-w", file); code != 0 || errs != "" {
		t.Errorf("-w: exit code %d, %q, %q", code, out, errs)
	}
	if b, _ := os.ReadFile(file); string(b) != tidy {
		t.Errorf("-w wrote %q", b)
	}
	broken := writeFile(t, "broken.hcl", "listener \"tcp\" {\n")
	if code, _, errs := Run(t, "fmt", "-w", broken); code != 1 || !strings.Contains(errs, "broken.hcl") {
		t.Errorf("a broken file: exit code %d, %q", code, errs)
	}
	if b, _ := os.ReadFile(broken); string(b) != "listener \"tcp\" {\n" {
		t.Errorf("-w changed a broken file to %q", b)
	}
}

// reload is SIGHUP with the outcome printed.
func TestCommandReload(t *testing.T) {
	t.Parallel()
	good := oneUpstream("", "", Serve(t, named("app")).Addr())
	p := Start(t, good)
	p.write(good + "listener \"tcp\" \"second\" {\n address = \"127.0.0.1:0\"\n upstream = upstream.app\n}\n")
	admin := "unix:" + p.path("admin.sock")
	if code, out, errs := Run(t, "reload", "--admin", admin); code != 0 {
		t.Errorf("exit code %d, %q, %q", code, out, errs)
	}
	if got := fetchName(t, p.Addr("second")); got != "app" {
		t.Errorf("%q", got)
	}
	p.write(strings.Replace(good, "upstream.app", "upstream.apq", 1))
	p.Expect("edge.hcl|reload failed")
	code, out, errs := Run(t, "reload", "--admin", admin)
	if code != 1 || !strings.Contains(out+errs, "apq") {
		t.Errorf("of a broken file: exit code %d, %q, %q", code, out, errs)
	}
	p.write(good)
	if code, out, errs := Run(t, "reload", "-c", p.file); code != 0 {
		t.Errorf("exit code %d, %q, %q", code, out, errs)
	}
}
