package config

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

func written(d *Diagnostics, color bool, width uint) string {
	var b bytes.Buffer
	if err := d.Write(&b, color, width); err != nil {
		panic(err)
	}
	return b.String()
}

func TestWrite(t *testing.T) {
	t.Parallel()
	_, diags := Parse(File{Name: "edge.hcl", Source: []byte("listener \"tcp\" \"web\" {\n\taddress  = \":80\"\n\tupsteam = upstream.app\n}\n")})
	want := `edge.hcl:3:2: error: there is no attribute "upsteam" in a listener "tcp" block
    3 |     upsteam = upstream.app
      |     ^^^^^^^
   A listener "tcp" block takes the attributes address, upstream, tls, allow and
   deny, and the blocks accept_proxy_protocol, limits, timeouts, tcp and route.
   Did you mean "upstream"?

`
	if got := written(diags, false, 80); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := diags.Error(); got != `edge.hcl:3:2: there is no attribute "upsteam" in a listener "tcp" block` {
		t.Error(got)
	}
	if got := written(diags, true, 80); !strings.Contains(got, "\x1b[1;31merror\x1b[0m") {
		t.Errorf("no colours in %q", got)
	}
	if lines := diags.Lines(0); len(lines) != 1 || strings.ContainsAny(lines[0], "\n") {
		t.Errorf("%q", lines)
	}
}

func TestWriteBounds(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	for i := range 1340 {
		fmt.Fprintf(&b, "bad%d = 1\n", i)
	}
	_, diags := parseText(t, b.String())
	got := written(diags, false, 80)
	if !strings.HasSuffix(got, "… and 1 240 more\n") || strings.Count(got, "error:") != 100 {
		t.Errorf("%d errors, ending %q", strings.Count(got, "error:"), got[len(got)-40:])
	}
	if s := diags.Error(); !strings.HasSuffix(s, "(and 1 339 more errors)") {
		t.Error(s)
	}
}

// TestWriteHostile: a file cannot send escape sequences to the terminal, nor
// fill it with a line of megabytes.
func TestWriteHostile(t *testing.T) {
	t.Parallel()
	for _, src := range []string{
		"log { level = \"\x1b[31mred\" }",
		"log { level = \"\\u001b]0;title\\u0007\" }",
		"# \x1b[2J\nx = 1 # \x1b[2J \x9b",
		"x\x1b = 1",
		"log { level = \"" + strings.Repeat("ä", 1<<17) + "\" }",
		strings.Repeat(" ", 1<<17) + "x = 1" + strings.Repeat(" ", 1<<17),
		"x = <<E\n" + strings.Repeat("é", 1000) + "\nE\n",
	} {
		_, diags := parseText(t, src)
		for _, width := range []uint{0, 1, 20, 21, 80} {
			got := written(diags, false, width)
			if strings.ContainsAny(got, "\x1b\x07\u009b") || !utf8.ValidString(got) || len(got) > 20_000 || got == "" {
				t.Errorf("width %d: %d bytes: %.300q", width, len(got), got)
			}
		}
	}
}

func TestNoDiagnostics(t *testing.T) {
	t.Parallel()
	var d *Diagnostics
	if d.HasErrors() || d.Err() != nil || d.Errors() != 0 || d.Warnings() != 0 || written(d, true, 80) != "" || d.Lines(0) != nil {
		t.Error("nil says something")
	}
	if newDiagnostics().Err() != nil {
		t.Error("no errors are an error")
	}
}

func TestFormat(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, in, want string }{
		{"a.hcl", "log{\nlevel=\"info\"\n  format   = \"json\"\n}", "log {\n  level  = \"info\"\n  format = \"json\"\n}\n"},
		{"a.hcl", "\uFEFFlog {\r\n}\r\n\r\n\r\n", "log {\n}\n"},
		{"a.hcl", "unknown = 1", "unknown = 1\n"},
		{"a.hcl", "", ""},
		{"a.hcl.json", "{\"log\":{\"level\":\"info\"}}", "{\n  \"log\": {\n    \"level\": \"info\"\n  }\n}\n"},
	} {
		out, diags := Format([]byte(c.in), c.name)
		if string(out) != c.want || diags.HasErrors() {
			t.Errorf("%q: %q, want %q (%v)", c.in, out, c.want, diags.Lines(0))
		}
		again, _ := Format(out, c.name)
		if c.want != "" && !bytes.Equal(out, again) {
			t.Errorf("%q: a second time %q", c.in, again)
		}
	}
	for _, s := range []string{"log {", "x = ", "\xff", "{}}"} {
		if out, diags := Format([]byte(s), "a.hcl"); !diags.HasErrors() || out != nil {
			t.Errorf("%q: %q, want an error", s, out)
		}
	}
}

// FuzzParse: whatever the file, there is a configuration or an error, and
// nothing panics. What the formatter returns means the same.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", leastFile, "listener \"tcp\" \"a\" {", "locals {\n a = [for x in range(3) : x]\n}", "dynamic \"upstream\" {\n for_each = [1]\n content {}\n}",
		"upstream \"a\" {\n dynamic \"server\" {\n for_each = {a = 1}\n labels = [server.key]\n content { address = server.value }\n}\n}",
		"listener \"udp\" \"a\" {\n address = \":1\"\n responses = 1\n upstream = upstream.a\n quic {}\n udp { send_buffer = \"1MiB\" }\n}\nupstream \"a\" {\n balance = \"maglev\"\n server \"a\" {\n address = \"[::1]:1\"\n quic_server_id = \"0a\"\n}\n}",
		"x = \"%{ for a in b }${a}%{ endfor }\"", "locals { a = local.a }", "x = <<-E\n  ${upper(\"a\")}\n  E\n",
	} {
		f.Add([]byte(s), false)
	}
	f.Add([]byte(`{"listener":{"tcp":{"a":{"address":":1","upstream":"${upstream.a}"}}},"upstream":[{"a":{"server":{"a":{"address":"a:1"}}}}]}`), true)
	f.Add([]byte(`{"dynamic":{"upstream":{"for_each":[1],"labels":["a"],"content":{}}},"locals":{"//":1,"a":"${[for x in [1]: x]}"}}`), true)
	f.Fuzz(func(t *testing.T, src []byte, json bool) {
		name := "fuzz.hcl"
		if json {
			name += ".json"
		}
		l := newLoader(newDiagnostics())
		l.lookupEnv = func(string) (string, bool) { return "", false }
		cfg, diags := l.load([]File{{name, src}})
		if (cfg == nil) != diags.HasErrors() {
			t.Fatalf("%v and %v", cfg, diags)
		}
		written(diags, true, 40)
		if cfg == nil {
			return
		}
		out, fd := Format(src, name)
		if fd.HasErrors() {
			t.Fatalf("loads, but cannot be formatted: %v", fd)
		}
		if _, again := Parse(File{name, out}); again.HasErrors() {
			t.Fatalf("formatted, it does not load: %v\n%s", again, out)
		}
	})
}
