package integration

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// startNginx runs nginx with a http block's content, in the foreground, with
// all its files in a folder of its own.
func startNginx(t *testing.T, addr, content string) *realServer {
	t.Helper()
	dir := shortTempDir(t)
	os.Chmod(dir, 0o755)
	conf := writeFile(t, filepath.Join(dir, "nginx.conf"), fmt.Sprintf(`
daemon off;
worker_processes 2;
pid %[1]s/pid;
error_log stderr warn;
events { worker_connections 2000; }
http {
  access_log off;
  keepalive_requests 1000000;
  client_body_temp_path %[1]s/body;
  proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/fastcgi;
  uwsgi_temp_path %[1]s/uwsgi;
  scgi_temp_path %[1]s/scgi;
  %[2]s
}
`, dir, content))
	return startReal(t, addr, nil, need(t, "nginx"), "-p", dir, "-c", conf, "-e", "stderr")
}

// httpGet fetches over a fresh connection.
func httpGet(t testing.TB, url string) string {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s, %v", url, resp.Status, err)
	}
	return string(body)
}

// wrk in front, nginx behind: no request fails, over connections that stay.
func TestRealNginxUnderWrk(t *testing.T) {
	wrk := need(t, "wrk")
	first := FreePorts(t, 2)
	var content strings.Builder
	for i := range 2 {
		fmt.Fprintf(&content, "server {\n listen %s;\n location /healthz { return 200 ok; }\n location / { return 200 \"n%d\"; }\n}\n", local(first+i), i)
	}
	startNginx(t, local(first+1), content.String())
	p := Start(t, oneUpstream("", `health "http" {
		path = "/healthz"
		expect_body = "ok"
		interval = "200ms"
	}`, local(first), local(first+1)))
	url := "http://" + p.Addr("edge") + "/"
	out := tool(t, wrk, "-t2", "-c64", "-d3s", "--latency", url)
	t.Log(out)
	if strings.Contains(out, "Socket errors") || strings.Contains(out, "Non-2xx") {
		t.Errorf("requests failed:\n%s", out)
	}
	if m := regexp.MustCompile(`(\d+) requests in`).FindStringSubmatch(out); m == nil || len(m[1]) < 3 {
		t.Errorf("hardly any request:\n%s", out)
	}
	p.assertEnds("edge", "client_closed", "client_reset")
	m := p.Metrics()
	for _, s := range []string{"s0", "s1"} {
		if n := m.Sum("edgeproxy_server_sessions_total", "server", s); n < 16 {
			t.Errorf("%v sessions on %s", n, s)
		}
	}
}

// nginx reads our PROXY headers, of both versions and families.
func TestRealNginxReadsProxyProtocol(t *testing.T) {
	t.Parallel()
	port := FreePorts(t, 1)
	startNginx(t, local(port), fmt.Sprintf("server {\n listen %s proxy_protocol;\n location / { return 200 \"$proxy_protocol_addr $proxy_protocol_server_port\"; }\n}\n", local(port)))
	for _, version := range []string{"v1", "v2"} {
		p := Start(t, strings.Replace(oneUpstream("", fmt.Sprintf("proxy_protocol = %q", version), local(port)),
			`"127.0.0.1:0"`, `["127.0.0.1:0", "[::1]:0"]`, 1))
		for i, addr := range p.Addrs("edge") {
			want := []string{"127.0.0.1", "::1"}[i] + " " + splitPort(t, addr)
			if got := httpGet(t, "http://"+addr+"/"); got != want {
				t.Errorf("%s: nginx was told %q, want %q", version, got, want)
			}
		}
	}
}

// Large files from nginx through edgeproxy, several at a time, are intact.
func TestRealNginxLargeFile(t *testing.T) {
	t.Parallel()
	const n = 256 * streamBlock
	content := newStream(11)
	dir := shortTempDir(t)
	os.Chmod(dir, 0o755)
	f, err := os.Create(filepath.Join(dir, "large"))
	if err != nil {
		t.Fatal(err)
	}
	if err := content.Send(f, n); err != nil {
		t.Fatal(err)
	}
	f.Close()
	port := FreePorts(t, 1)
	startNginx(t, local(port), fmt.Sprintf("server {\n listen %s;\n root %s;\n}\n", local(port), dir))
	p := Start(t, oneUpstream("", "", local(port)))
	url := "http://" + p.Addr("edge") + "/large"
	errs := make(chan error)
	for range 4 {
		go func() {
			resp, err := http.Get(url)
			if err == nil {
				err = content.Verify(resp.Body, n)
				resp.Body.Close()
			}
			errs <- err
		}()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if got := p.Metrics().Sum("edgeproxy_spliced_bytes_total"); got < 2*n {
		t.Errorf("%v bytes were spliced of %d", got, 4*n)
	}
}

// haproxy behind: it reads our PROXY headers; haproxy in front: its checks and
// its requests are served.
func TestRealHAProxy(t *testing.T) {
	t.Parallel()
	haproxy := need(t, "haproxy")
	dir := shortTempDir(t)
	first := FreePorts(t, 3)
	// 0: behind edgeproxy, with PROXY; 1: edgeproxy, so that haproxy can name it; 2: in front.
	conf := writeFile(t, filepath.Join(dir, "haproxy.cfg"), fmt.Sprintf(`
global
  maxconn 1000
defaults
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend behind
  mode http
  bind 127.0.0.1:%d accept-proxy
  http-request return status 200 content-type text/plain lf-string "%%[src] %%[dst_port]"
listen front
  mode tcp
  bind 127.0.0.1:%d
  option tcp-check
  server edge 127.0.0.1:%d check inter 100ms
`, first, first+2, first+1))
	startReal(t, local(first+2), nil, haproxy, "-db", "-f", conf)
	for _, version := range []string{"v1", "v2"} {
		body := strings.Replace(oneUpstream("", fmt.Sprintf("proxy_protocol = %q", version), local(first)),
			`"127.0.0.1:0"`, fmt.Sprintf(`["127.0.0.1:%d", "[::1]:0"]`, first+1), 1)
		p := Start(t, body)
		for i, addr := range p.Addrs("edge") {
			want := []string{"127.0.0.1", "::1"}[i] + " " + splitPort(t, addr)
			if got := httpGet(t, "http://"+addr+"/"); got != want {
				t.Errorf("%s: haproxy was told %q, want %q", version, got, want)
			}
		}
		eventually(t, func() bool {
			resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + local(first+2) + "/")
			if err != nil {
				return false
			}
			defer resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		}, func() string { return "haproxy in front finds the way through" })
		p.Term()
	}
}
