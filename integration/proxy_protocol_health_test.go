package integration

import (
	"fmt"
	"io"
	"path/filepath"
	"testing"
)

// assertChecks waits for a few checks of a server, all of which have one result.
func (p *Proxy) assertChecks(server, result string) {
	p.t.Helper()
	eventually(p.t, func() bool {
		return p.Metrics().Sum("edgeproxy_health_checks_total", "server", server, "result", result) >= 3
	}, func() string { return fmt.Sprintf("3 checks of %s that %s\n%s", server, result, p.Log()) })
	other := map[string]string{"passed": "failed", "failed": "passed"}[result]
	if n := p.Metrics().Sum("edgeproxy_health_checks_total", "server", server, "result", other); n > 0 {
		p.t.Errorf("%v checks of %s %s", n, server, other)
	}
}

func proxyHealth(kind, header, more string) string {
	if header != "" {
		header = fmt.Sprintf("proxy_protocol = %q", header)
	}
	return fmt.Sprintf("health %q {\n interval = \"100ms\"\n timeout = \"2s\"\n %s\n %s\n }\n", kind, header, more)
}

// Checks that begin with a PROXY header pass where one is wanted, and those
// without one fail.
func TestRealNginxTakesChecksWithProxyProtocol(t *testing.T) {
	t.Parallel()
	port := FreePorts(t, 1)
	startNginx(t, local(port), fmt.Sprintf("server {\n listen %s proxy_protocol;\n location /healthz { return 200 ok; }\n}\n", local(port)))
	for header, result := range map[string]string{"v1": "passed", "v2": "passed", "": "failed"} {
		p := Start(t, oneUpstream("", proxyHealth("http", header, "path = \"/healthz\"\n expect_body = \"ok\"\n expect_status = \"200\""), local(port)))
		p.assertChecks("s0", result)
	}
}

func TestRealHAProxyTakesChecksWithProxyProtocol(t *testing.T) {
	t.Parallel()
	port := FreePorts(t, 1)
	conf := writeFile(t, filepath.Join(shortTempDir(t), "haproxy.cfg"), fmt.Sprintf(`
defaults
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend behind
  mode http
  bind 127.0.0.1:%d accept-proxy
  http-request return status 200 content-type text/plain lf-string "%%[src]"
`, port))
	startReal(t, local(port), nil, need(t, "haproxy"), "-db", "-f", conf)
	for header, result := range map[string]string{"v1": "passed", "v2": "passed", "": "failed"} {
		p := Start(t, oneUpstream("", proxyHealth("http", header, `expect_body = "127.0.0.1"`), local(port)))
		p.assertChecks("s0", result)
	}
}

// The header says that the connection is the proxy's own: version 2 by LOCAL,
// version 1 by naming the ends of that very connection (PROXY protocol, section
// 2.1, on health checks).
func TestChecksWithProxyProtocol(t *testing.T) {
	t.Parallel()
	for _, header := range []string{"v1", "v2"} {
		t.Run(header, func(t *testing.T) {
			t.Parallel()
			s := Serve(t, func(c Conn) {
				got, err := readProxyHeader(c)
				want := "v2 0x20 0x0"
				if header == "v1" {
					src, dst := c.RemoteAddr().String(), c.LocalAddr().String()
					want = fmt.Sprintf("v1 TCP4 127.0.0.1 127.0.0.1 %s %s", splitPort(t, src), splitPort(t, dst))
				}
				if err != nil {
					return // a check that the test's end has cut; others are counted
				}
				if got != want {
					t.Errorf("header %q; want %q", got, want)
				}
				line := make([]byte, 6)
				if _, err := io.ReadFull(c, line); err == nil && string(line) == "PING\r\n" {
					io.WriteString(c, "+PONG\r\n")
				}
			})
			p := Start(t, oneUpstream("", proxyHealth("tcp", header, "send = \"PING\\r\\n\"\n expect = \"+PONG\""), s.Addr()))
			p.assertChecks("s0", "passed")
		})
	}
}
