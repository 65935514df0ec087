package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// What explain says of a session is what becomes of it: the route, and the end
// if it is refused.
func TestExplainIsWhatHappens(t *testing.T) {
	t.Parallel()
	server := Serve(t, named("app"))
	port := FreePorts(t, 2)
	p := Start(t, fmt.Sprintf(`listener "tcp" "edge" {
  address = ["127.0.0.1:%d", "127.0.0.1:%d"]
  deny    = ["127.0.9.0/24"]
  route "ssh" {
    match { protocol = ["ssh"] }
    upstream = upstream.app
  }
  route "second" {
    match { port = [%[2]d] }
    upstream = upstream.app
  }
  route "name" {
    match {
      sni    = ["*.example.com"]
      source = ["127.0.1.0/24", "127.0.2.0/24"]
    }
    match { host = ["www.example.com"] }
    upstream = upstream.app
  }
  route "path" {
    match { path = ["/api"] }
    upstream = upstream.app
  }
  route "refused" {
    match { protocol = ["redis", "mqtt"] }
    reject = true
  }
  route "tls" {
    match { protocol = ["tls"] }
    upstream = upstream.app
  }
}
upstream "app" {
  server "a" { address = %q }
}
`, port, port+1, server.Addr()))
	request := func(host, path string) string { return "GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n" }
	for _, test := range []struct {
		source, first string
		second        bool // of the listener's addresses
		args          string
		route, end    string
	}{
		{"127.0.1.1", "SSH-2.0-x\r\n", false, "--protocol ssh", "ssh", ""},
		{"127.0.1.1", string(clientHello(t, "a.example.com")), false, "--sni a.example.com", "name", ""},
		{"127.0.1.1", string(clientHello(t, "a.example.com")), true, "--sni a.example.com", "second", ""},
		{"127.0.3.1", string(clientHello(t, "a.example.com")), false, "--sni a.example.com", "tls", ""},
		{"127.0.1.1", string(clientHello(t, "example.com")), false, "--sni example.com", "tls", ""},
		{"127.0.3.1", request("WWW.example.com", "/"), false, "--host WWW.example.com --path /", "name", ""},
		{"127.0.3.1", request("example.com", "/api/x"), false, "--host example.com --path /api/x", "path", ""},
		{"127.0.3.1", request("example.com", "/"), false, "--host example.com --path /", "", "no_route"},
		{"127.0.3.1", "*1\r\n$4\r\nPING\r\n", false, "--protocol redis", "refused", "denied"},
		{"127.0.9.1", "SSH-2.0-x\r\n", false, "--protocol ssh", "", "denied"},
	} {
		to := fmt.Sprint("127.0.0.1:", port)
		if test.second {
			to = fmt.Sprint("127.0.0.1:", port+1)
		}
		c := DialFrom(t, test.source, to)
		if test.end == "" {
			Send(t, c, test.first)
			if name := ReadLine(t, c); name != "app" {
				t.Errorf("%+v: %q", test, name)
			}
			c.Close()
		} else {
			c.Write([]byte(test.first)) // it may be closed already
			ExpectGone(t, c)
		}
		from := c.LocalAddr().String()
		var entry Entry
		eventually(t, func() bool {
			all, err := parseAccessLog(p.path("access.log"))
			for _, e := range all {
				if e.Source == from {
					entry = e
				}
			}
			return err == nil && entry.Source == from
		}, func() string { return "a line about " + from })
		e := p.explain(append(strings.Fields(test.args), "--listener", "edge", "--source", from, "--destination", to)...)
		if e.Route != test.route || e.Route != entry.Route || e.End != test.end || test.end != "" && entry.End != test.end {
			t.Errorf("%q from %s: explain says route %q, end %q; it had route %q, end %q", test.args, from, e.Route, e.End, entry.Route, entry.End)
		}
	}
}

// Nothing needs to run, and no name of a server is looked up.
func TestExplainNeedsNoDaemon(t *testing.T) {
	t.Parallel()
	file := writeFile(t, "edge.hcl", strings.Replace(validFile, `upstream "app" {`, "upstream \"app\" {\n  balance = \"maglev\"", 1))
	code, out, errs := Run(t, "explain", "-c", file, "--source", "192.0.2.7:40000")
	if code != 0 || errs != "" || !strings.HasPrefix(out, `server "a" of upstream "app", by listener "edge"`) || !strings.Contains(out, "fingerprint ") {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	// Servers of the same names have the same table, wherever they are.
	moved, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	other := writeFile(t, "other.hcl", strings.Replace(string(moved), "127.0.0.1:9090", "no-such-host.invalid:9090", 1))
	fingerprint := func(out string) string {
		_, f, _ := strings.Cut(out, "fingerprint ")
		return strings.Fields(f + " ")[0]
	}
	if _, again, _ := Run(t, "explain", "-c", other, "--source", "192.0.2.7:40000"); !strings.Contains(again, "fingerprint ") || fingerprint(again) != fingerprint(out) {
		t.Errorf("%s\n%s", out, again)
	}
}
