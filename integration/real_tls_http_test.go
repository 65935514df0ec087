package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// large is the size of what clients fetch and send.
const large = 24 << 20

// web is a tlsLab with nginx and a HTTP/2 server (without TLS) behind it.
type web struct {
	*tlsLab
	p      *Proxy
	port   string
	files  string // what both serve; nginx takes PUT there
	large  []byte
	upload string // the file "large" is in
}

func newWeb(t *testing.T) *web {
	t.Helper()
	w := &web{tlsLab: newTLSLab(t), files: shortTempDir(t)}
	w.upload, w.large = blob(t, w.files, "large", large)
	writeFile(t, filepath.Join(w.files, "small"), "small\n")
	for _, d := range []string{w.files, filepath.Join(w.files, "in")} {
		os.MkdirAll(d, 0o755)
		os.Chmod(d, 0o777)
	}
	first := FreePorts(t, 2)
	startNginx(t, local(first), fmt.Sprintf(`server {
    listen %s;
    root %s;
    client_max_body_size 0;
    location /in/ { dav_methods PUT; }
  }`, local(first), w.files))
	startReal(t, local(first+1), nil, need(t, "nghttpd"), "--no-tls", "-a", "127.0.0.1", "--echo-upload",
		"-d", w.files, strconv.Itoa(first+1))
	w.p = Start(t, w.policy(`alpn = ["h2", "http/1.1"]`)+fmt.Sprintf(`
listener "tcp" "edge" {
  address = "127.0.0.1:0"
  route "h2" {
    match { alpn = ["h2"] }
    tls      = tls.public
    upstream = upstream.h2
  }
  route "rest" {
    tls      = tls.public
    upstream = upstream.web
  }
}
upstream "web" {
  server "nginx" { address = %q }
}
upstream "h2" {
  server "nghttpd" { address = %q }
}
`, local(first), local(first+1)))
	w.port = splitPort(t, w.p.Addr("edge"))
	return w
}

func (w *web) url(path string) string { return "https://app.test:" + w.port + path }

func (w *web) curl(args ...string) string {
	w.t.Helper()
	return tool(w.t, need(w.t, "curl"), append([]string{"-sS", "--fail", "--cacert", w.caFile(), "--resolve", "app.test:" + w.port + ":127.0.0.1"}, args...)...)
}

// curl, with both versions of TLS and of HTTP: downloads, uploads, and a name
// that the certificate does not bear.
func TestRealTLSCurl(t *testing.T) {
	t.Parallel()
	need(t, "curl")
	w := newWeb(t)
	sessions := 0
	for _, version := range []string{"1.2", "1.3"} {
		for _, http := range []string{"1.1", "2"} {
			base := []string{"--tlsv" + version, "--tls-max", version, "--http" + http}
			got := filepath.Join(w.dir, "got")
			out := w.curl(append(base, "-o", got, "-w", "%{http_version} %{ssl_verify_result} %{http_code}", w.url("/large"))...)
			if out != http+" 0 200" {
				t.Errorf("TLS %s, HTTP/%s: %q", version, http, out)
			}
			wantFile(t, got, w.large)
			sessions++
			e := w.p.AccessLog(sessions)[sessions-1]
			alpn := map[string]string{"1.1": "http/1.1", "2": "h2"}[http]
			if e.TLSVersion != version || e.ALPN != alpn || e.SNI != "app.test" || e.BytesOut < large {
				t.Errorf("%+v", e)
			}
			if http == "2" { // comes back
				w.curl(append(base, "--data-binary", "@"+w.upload, "-o", got, w.url("/echo"))...)
				wantFile(t, got, w.large)
			} else {
				w.curl(append(base, "-T", w.upload, w.url("/in/"+version))...)
				wantFile(t, filepath.Join(w.files, "in", version), w.large)
			}
			sessions++
		}
	}
	// curl closes HTTP/2 connections without close_notify.
	w.p.assertEnds("edge", "client_closed", "client_reset")
	for _, e := range w.p.AccessLog(sessions) {
		if e.End == "client_reset" && e.ALPN != "h2" {
			t.Errorf("%+v", e)
		}
	}
	out := toolFails(t, need(t, "curl"), "-sS", "--cacert", w.caFile(), "--resolve", "other.test:"+w.port+":127.0.0.1", "https://other.test:"+w.port+"/small")
	want(t, out, "no alternative certificate subject name matches")
	w.p.AccessLog(sessions + 1)
	out = toolFails(t, need(t, "curl"), "-sS", "--cacert", w.caFile(), "--resolve", "app.test:"+w.port+":127.0.0.1",
		"--tlsv1.0", "--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0", w.url("/small"))
	want(t, out, "alert protocol version")
	tlsFault(t, w.p.LastEnd(sessions+2, "tls_failed", "tls"), "version")
}

// Two connections of one curl: the second resumes the session of the first.
// With TLS 1.2 curl switches tickets off.
func TestRealTLSCurlResumes(t *testing.T) {
	t.Parallel()
	need(t, "curl")
	w := newWeb(t)
	out := w.curl("--tlsv1.3", "--http1.1", "-H", "Connection: close", "-w", "%{num_connects}\n", w.url("/small"), w.url("/small"))
	if out != "small\n1\nsmall\n1\n" {
		t.Errorf("%q", out)
	}
	w.p.AccessLog(2)
	w.p.assertHandshakes("1.3", 1, 1)
}

// assertHandshakes asserts how many of a version there were.
func (p *Proxy) assertHandshakes(version string, full, resumed float64) {
	p.t.Helper()
	m := p.Metrics()
	for result, want := range map[string]float64{"full": full, "resumed": resumed} {
		if n := m.Sum("edgeproxy_tls_handshakes_total", "version", version, "result", result); n != want {
			p.t.Errorf("TLS %s: %v handshakes %s, want %v", version, n, result, want)
		}
	}
}

// wrk over connections that stay.
func TestRealTLSWrk(t *testing.T) {
	wrk := need(t, "wrk")
	w := newWeb(t)
	out := tool(t, wrk, "-t2", "-c64", "-d2s", "--latency", "https://"+local(mustAtoi(t, w.port))+"/small")
	t.Log(out)
	if strings.Contains(out, "Socket errors") || strings.Contains(out, "Non-2xx") {
		t.Errorf("requests failed:\n%s", out)
	}
	if m := regexp.MustCompile(`(\d+) requests in`).FindStringSubmatch(out); m == nil || len(m[1]) < 3 {
		t.Errorf("hardly any request:\n%s", out)
	}
	for _, e := range w.p.AccessLog(2) {
		// wrk tries the address first, and says nothing.
		if e.End != "client_closed" && e.End != "client_reset" && e.BytesIn > 0 {
			t.Errorf("%+v", e)
		}
	}
}

// nghttp2's clients: many streams on each connection, no request fails.
func TestRealTLSHTTP2(t *testing.T) {
	t.Parallel()
	h2load, nghttp := need(t, "h2load"), need(t, "nghttp")
	w := newWeb(t)
	for _, c := range []struct {
		path     string
		requests int
	}{{"/small", 4000}, {"/large", 8}} {
		n := strconv.Itoa(c.requests)
		out := tool(t, h2load, "-n", n, "-c", "8", "-m", "16", "https://"+w.p.Addr("edge")+c.path)
		want(t, out, "Application protocol: h2")
		want(t, out, n+" succeeded, 0 failed, 0 errored, 0 timeout")
		want(t, out, "status codes: "+n+" 2xx")
	}
	// One upload, one download and one small file side by side.
	out := tool(t, nghttp, "--no-verify-peer", "-n", "-s", "-d", w.upload, "https://"+w.p.Addr("edge")+"/small", "https://"+w.p.Addr("edge")+"/large")
	if got := strings.Count(out, " 200 "); got != 2 {
		t.Errorf("%d answers with 200, want 2:\n%s", got, out)
	}
	w.p.assertEnds("edge", "client_closed", "server_closed")
}

func mustAtoi(t testing.TB, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// curl through one listener to two nginx with certificates of their own, which
// edgeproxy never sees; a name that no route has is told so.
func TestRealTLSPassthroughBySNI(t *testing.T) {
	t.Parallel()
	curl := need(t, "curl")
	labs := []*tlsLab{newTLSLab(t), newTLSLab(t)}
	names := []string{"one.test", "two.test"}
	first := FreePorts(t, 2)
	var content strings.Builder
	for i, l := range labs {
		l.ca.Server(t, names[i]).Write(t, l.dir, "own")
		fmt.Fprintf(&content, "server {\n listen %s ssl http2;\n ssl_certificate %s;\n ssl_certificate_key %s;\n location / { return 200 \"%s $ssl_server_name\"; }\n}\n",
			local(first+i), l.file("own.crt"), l.file("own.key"), names[i])
	}
	startNginx(t, local(first+1), content.String())
	p := Start(t, fmt.Sprintf(`
listener "tcp" "edge" {
  address = "127.0.0.1:0"
  route "one" {
    match { sni = ["one.test"] }
    upstream = upstream.one
  }
  route "two" {
    match { sni = ["*.test"] }
    upstream = upstream.two
  }
}
upstream "one" {
  server "a" { address = %q }
}
upstream "two" {
  server "a" { address = %q }
}
`, local(first), local(first+1)))
	port := splitPort(t, p.Addr("edge"))
	get := func(ca, name string, more ...string) (string, error) {
		out, err := exec.Command(curl, append([]string{"-sS", "--cacert", ca, "--resolve", name + ":" + port + ":127.0.0.1", "https://" + name + ":" + port + "/"}, more...)...).CombinedOutput()
		return string(out), err
	}
	for i, name := range names {
		for _, more := range [][]string{{"--http1.1", "--tls-max", "1.2"}, {"--http2"}} {
			if out, err := get(labs[i].caFile(), name, more...); err != nil || out != name+" "+name {
				t.Errorf("%s %v: %q, %v", name, more, out, err)
			}
		}
		if out, err := get(labs[1-i].caFile(), name); err == nil {
			t.Errorf("%s has the certificate of another authority: %s", name, out)
		}
	}
	out, err := get(labs[0].caFile(), "else.where")
	if err == nil {
		t.Error("a name without a route was served")
	}
	want(t, out, "unrecognized name")
	for _, e := range p.AccessLog(7) { // they end in any order
		if (e.End == "no_route") != (e.SNI == "else.where") {
			t.Errorf("%+v", e)
		}
	}
}
