package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// expectation is a comment "# error: TEXT" or "# warning: TEXT" on the line
// that a diagnostic points to. TEXT is a part of its summary and detail; there
// may be several on a line. "# error-at-file: TEXT" has no line.
var expectation = regexp.MustCompile(`# ?(error|warning)(-at-file)?: ([^#\n]*)`)

// jsonExpectation is the same in a "//" property, where a quote ends it.
var jsonExpectation = regexp.MustCompile(`# ?(error|warning)(-at-file)?: ([^#\n"]*)`)

// TestFiles loads every file and folder of testdata and compares what it says
// with the comments in the files.
func TestFiles(t *testing.T) {
	t.Parallel()
	paths, _ := filepath.Glob("testdata/*")
	if len(paths) < 20 {
		t.Fatalf("only %d files", len(paths))
	}
	for _, path := range paths {
		if filepath.Base(path) == "fuzz" || filepath.Base(path) == "include" {
			continue
		}
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			cfg, diags := Load(path)
			compare(t, path, diags)
			if (cfg == nil) != diags.HasErrors() {
				t.Errorf("a configuration and errors, or neither")
			}
		})
	}
}

func compare(t *testing.T, path string, diags *Diagnostics) {
	t.Helper()
	files := []string{path}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		files, _ = filepath.Glob(path + "/*.hcl*")
	}
	type want struct {
		severity, text string
		met            bool
	}
	wants := make(map[string][]*want)
	for _, f := range files {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		pattern := expectation
		if isJSON(f) {
			pattern = jsonExpectation
		}
		for i, line := range strings.Split(string(src), "\n") {
			for _, m := range pattern.FindAllStringSubmatch(line, -1) {
				at := fmt.Sprintf("%s:%d", f, i+1)
				if m[2] != "" {
					at = f + ":0"
				}
				wants[at] = append(wants[at], &want{severity: m[1], text: strings.TrimSpace(m[3])})
			}
		}
	}
	for _, x := range diags.list {
		at := fmt.Sprintf("%s:%d", x.Subject.Filename, x.Subject.Start.Line)
		found := false
		for _, w := range wants[at] {
			if !w.met && w.severity == severity(x) && strings.Contains(x.Summary+" "+x.Detail, w.text) {
				w.met, found = true, true
				break
			}
		}
		if !found {
			t.Errorf("%s: unexpected %s: %s\n\t%s", at, severity(x), x.Summary, x.Detail)
		}
	}
	for at, list := range wants {
		for _, w := range list {
			if !w.met {
				t.Errorf("%s: missing %s: %s", at, w.severity, w.text)
			}
		}
	}
}

// TestExamples: what newcomers copy from must load, without a warning, and be
// laid out the canonical way.
func TestExamples(t *testing.T) {
	t.Parallel()
	paths, _ := filepath.Glob("../examples/*.hcl*")
	if len(paths) < 22 {
		t.Fatalf("only %d examples", len(paths))
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			_, diags := Load(path)
			if lines := diags.Lines(0); len(lines) > 0 {
				t.Error(strings.Join(lines, "\n"))
			}
			src, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(path, ".json") {
				return
			}
			out, diags := Format(src, path)
			if diags.HasErrors() || !bytes.Equal(out, src) {
				t.Errorf("not in the canonical layout; want\n%s", out)
			}
		})
	}
}

// TestJSON: both syntaxes say the same.
func TestJSON(t *testing.T) {
	t.Parallel()
	a, da := Load("../examples/minimal.hcl")
	b, db := Load("../examples/minimal.hcl.json")
	if da.HasErrors() || db.HasErrors() || !reflect.DeepEqual(a, b) {
		t.Errorf("native %+v (%v), JSON %+v (%v)", a, da, b, db)
	}
}

// TestJSONTLS: references, nested blocks and lists in JSON.
func TestJSONTLS(t *testing.T) {
	t.Parallel()
	native := mustParse(t, `
tls "a" {
  certificate { cert_file = "a.crt" }
  certificate {
    acme { domains = ["example.com"] }
  }
  client_auth {
    mode    = "require"
    ca_file = "ca.pem"
  }
}
listener "tcp" "l" {
  address = ":443"
  accept_proxy_protocol { from = "10.0.0.0/8" }
  route "r" {
    match { sni = ["a.example"] }
    match { client_name = "b" }
    tls      = tls.a
    upstream = upstream.u
  }
}
upstream "u" {
  server "s" { address = "10.0.0.1:443" }
  tls {}
}`)
	json, diags := Parse(File{Name: "test.hcl.json", Source: []byte(`{
  "tls": {"a": {
    "certificate": [{"cert_file": "a.crt"}, {"acme": {"domains": ["example.com"]}}],
    "client_auth": {"mode": "require", "ca_file": "ca.pem"}
  }},
  "listener": {"tcp": {"l": {
    "address": ":443",
    "accept_proxy_protocol": {"from": "10.0.0.0/8"},
    "route": {"r": {"match": [{"sni": ["a.example"]}, {"client_name": "b"}], "tls": "${tls.a}", "upstream": "${upstream.u}"}}
  }}},
  "upstream": {"u": {"server": {"s": {"address": "10.0.0.1:443"}}, "tls": {}}}
}`)})
	if diags.HasErrors() || !reflect.DeepEqual(native, json) {
		t.Errorf("native %+v, JSON %+v (%v)", native, json, diags.Lines(0))
	}
}

// TestJSONUDP: listeners of both networks, in JSON objects by their labels.
func TestJSONUDP(t *testing.T) {
	t.Parallel()
	native := mustParse(t, `
listener "udp" "u" {
  address   = ":443"
  responses = 1
  upstream  = upstream.u
  quic { server_id_length = 1 }
}
listener "tcp" "t" {
  address  = ":443"
  upstream = upstream.u
}
upstream "u" {
  server "s" {
    address        = "10.0.0.1:443"
    quic_server_id = "0a"
  }
  health "udp" { send_hex = "00" }
}`)
	json, diags := Parse(File{Name: "test.hcl.json", Source: []byte(`{
  "listener": {
    "udp": {"u": {"address": ":443", "responses": 1, "upstream": "${upstream.u}", "quic": {"server_id_length": 1}}},
    "tcp": {"t": {"address": ":443", "upstream": "${upstream.u}"}}
  },
  "upstream": {"u": {"server": {"s": {"address": "10.0.0.1:443", "quic_server_id": "0a"}}, "health": {"udp": {"send_hex": "00"}}}}
}`)})
	if diags.HasErrors() || !reflect.DeepEqual(native, json) {
		t.Errorf("native %+v, JSON %+v (%v)", native, json, diags.Lines(0))
	}
}

// TestDynamicTLS: tls blocks made by dynamic blocks can be referred to, by
// computed names, too.
func TestDynamicTLS(t *testing.T) {
	t.Parallel()
	cfg := mustParse(t, `
locals {
  sites   = { a = "a.example", b = "b.example" }
  default = tls.a
}
dynamic "tls" {
  for_each = local.sites
  labels   = [tls.key]
  content {
    certificate { cert_file = "${tls.value}.pem" }
  }
}
listener "tcp" "l" {
  address = ":443"
  dynamic "route" {
    for_each = local.sites
    labels   = [route.key]
    content {
      match { sni = [route.value] }
      tls      = tls[route.key]
      upstream = upstream.u
    }
  }
  route "rest" {
    tls      = local.default
    upstream = upstream.u
  }
}
upstream "u" {
  server "s" { address = "10.0.0.1:443" }
}`)
	var got []string
	for _, r := range cfg.Listeners[0].Routes {
		got = append(got, r.Name+" "+r.TLS)
	}
	if want := []string{"a a", "b b", "rest a"}; !reflect.DeepEqual(got, want) || len(cfg.TLS) != 2 || cfg.TLS[1].Certificates[0].CertFile != "b.example.pem" {
		t.Errorf("%q, %+v", got, cfg.TLS)
	}
}

// TestAttach: what is found later is shown where the configuration names the
// file, or the block.
func TestAttach(t *testing.T) {
	t.Parallel()
	const src = `
tls "a" {
  certificate { cert_file = "certs/a.pem" }
  certificate { cert_file = "certs/a.pem.new" }
}
listener "tcp" "l" {
  address  = ":443"
  tls      = tls.a
  upstream = upstream.u
}
upstream "u" {
  server "s" { address = "10.0.0.1:443" }
  tls { ca_file = "ca.pem" }
}`
	_, diags := Parse(File{Name: "conf/test.hcl", Source: []byte(src)})
	if diags.Err() != nil {
		t.Fatal(diags)
	}
	diags.Attach("tls", "a", errors.New("no luck"))
	diags.Attach("tls", "a", errors.New("open conf/certs/a.pem.new: permission denied"))
	diags.Attach("tls", "a", errors.New("conf/certs/a.pem: expired"))
	diags.Attach("upstream", "u", errors.New("sorry"))
	diags.Attach("tls", "unknown", errors.New("odd"))
	want := []string{
		"configuration: error: odd",
		"conf/test.hcl:2:1: error: no luck",
		"conf/test.hcl:3:29: error: conf/certs/a.pem: expired",
		"conf/test.hcl:4:29: error: open conf/certs/a.pem.new: permission denied",
		"conf/test.hcl:11:1: error: sorry",
	}
	if got := diags.Lines(0); !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
}

func parseText(t testing.TB, src string) (*Config, *Diagnostics) {
	t.Helper()
	return Parse(File{Name: "test.hcl", Source: []byte(src)})
}

func mustParse(t testing.TB, src string) *Config {
	t.Helper()
	cfg, diags := parseText(t, src)
	if diags.HasErrors() {
		var b bytes.Buffer
		diags.Write(&b, false, 0)
		t.Fatal(b.String())
	}
	return cfg
}
