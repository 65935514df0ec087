package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"edgeproxy/internal/version"
)

func TestAnswers(t *testing.T) {
	f := &fake{state: State{Phase: Running}}
	s, _ := start(t, f, "127.0.0.1:0")
	for _, tt := range []struct {
		method, path string
		status       int
		kind         string
		want         string // in the body
	}{
		{"GET", "/", 200, "text/plain; charset=utf-8", "/v1/upstreams"},
		{"GET", "/healthz", 200, "text/plain; charset=utf-8", "ok\n"},
		{"HEAD", "/healthz", 200, "text/plain; charset=utf-8", ""},
		{"GET", "/readyz", 200, "text/plain; charset=utf-8", "ready\n"},
		{"GET", "/metrics", 200, "text/plain; version=0.0.4; charset=utf-8; escaping=underscores", "edgeproxy_build_info{"},
		{"GET", "/debug/pprof/", 200, "text/html; charset=utf-8", "goroutine"},
		{"GET", "/debug/pprof/goroutine?debug=1", 200, "text/plain; charset=utf-8", "goroutine profile:"},
		{"GET", "/debug/pprof/cmdline", 200, "text/plain; charset=utf-8", os.Args[0]},
		{"GET", "/debug/pprof/profile?seconds=1", 200, "application/octet-stream", ""},

		{"GET", "/nowhere", 404, "application/json", "there is no /nowhere; / lists what there is"},
		{"GET", "/v1/", 404, "application/json", "there is no /v1/"},
		{"GET", "/healthz/x", 404, "application/json", "there is no /healthz/x"},
		{"POST", "/healthz", 405, "application/json", "/healthz does not take POST; use GET, HEAD"},
		{"GET", "/v1/reload", 405, "application/json", "/v1/reload does not take GET; use POST"},
		{"DELETE", "/v1/status", 405, "application/json", "use GET, HEAD"},
		{"POST", "/debug/pprof/", 405, "application/json", "use GET, HEAD"},
		{"BREW", "/", 405, "application/json", "use GET, HEAD"},
	} {
		res, body := do(t, s.Addr(), tt.method, tt.path, nil)
		if res.StatusCode != tt.status || res.Header.Get("Content-Type") != tt.kind || !strings.Contains(body, tt.want) {
			t.Errorf("%s %s: %d, %s, %.200q; want %d, %s, %q", tt.method, tt.path, res.StatusCode, res.Header.Get("Content-Type"), body, tt.status, tt.kind, tt.want)
		}
		if tt.status == 405 && res.Header.Get("Allow") == "" { // RFC 9110 section 15.5.6
			t.Errorf("%s %s: no Allow", tt.method, tt.path)
		}
		if tt.kind == "application/json" {
			var v struct{ Error string }
			if err := json.Unmarshal([]byte(body), &v); err != nil || v.Error == "" {
				t.Errorf("%s %s: %v: %s", tt.method, tt.path, err, body)
			}
		}
	}
}

func TestReadiness(t *testing.T) {
	for _, tt := range []struct {
		state State
		code  int
		want  string
	}{
		{State{}, 503, "not ready: starting\n"},
		{State{Phase: Running}, 200, "ready\n"},
		{State{Phase: Running, NotReady: `listener "edge" does not accept: out of descriptors`}, 503, "not ready: listener \"edge\" does not accept: out of descriptors\n"},
		{State{Phase: Draining, NotReady: "x"}, 503, "not ready: draining\n"},
	} {
		s, _ := start(t, &fake{state: tt.state}, "127.0.0.1:0")
		if res, body := do(t, s.Addr(), "GET", "/readyz", nil); res.StatusCode != tt.code || body != tt.want {
			t.Errorf("%+v: %d %q, want %d %q", tt.state, res.StatusCode, body, tt.code, tt.want)
		}
		if res, _ := do(t, s.Addr(), "GET", "/healthz", nil); res.StatusCode != 200 {
			t.Errorf("%+v: /healthz %d", tt.state, res.StatusCode)
		}
	}
}

func TestJSON(t *testing.T) {
	s, _ := start(t, &fake{state: State{Phase: Running}}, "127.0.0.1:0")
	for _, tt := range []struct{ path, want string }{
		{"/v1/status", fmt.Sprintf(`{"version":%q,"go_version":%q,"pid":%d,"state":"running","ready":true,
			"last_reload":{"ok":true,"success":"2023-11-14T22:13:20.5Z"},
			"loops":[{"loop":0,"sessions":1,"busy_ratio":0.25},{"loop":1,"sessions":1,"busy_ratio":0}]}`, version.String(), version.Go(), os.Getpid())},
		{"/v1/listeners", `[
			{"name":"edge","protocol":"tcp","addresses":["127.0.0.1:443","[::1]:443"],"sessions_active":2,"sessions_total":12,
			 "ends":{"client_closed":7,"denied":2,"killed":1},"bytes_in":100,"bytes_out":2000,"spliced_bytes":1500,"accept_errors":1,"accept_pauses":3},
			{"name":"quiet \"one\"","protocol":"tcp","addresses":[],"sessions_active":0,"sessions_total":0,
			 "ends":{},"bytes_in":0,"bytes_out":0,"spliced_bytes":0,"accept_errors":0,"accept_pauses":0},
			{"name":"dns","protocol":"udp","addresses":["127.0.0.1:53"],"sessions_active":1,"sessions_total":9,
			 "ends":{"responses_done":7,"killed":1},"bytes_in":30,"bytes_out":300,"datagrams_in":10,"datagrams_out":11,"accept_errors":4,"dropped":{"limited":5,"denied":2}}]`},
		{"/v1/upstreams", `[
			{"name":"web","servers":[
			 {"name":"s0","address":"app.example:80","resolved":"10.0.0.1:80","weight":10,"tier":1,"state":"down","last_error":"connecting to 10.0.0.1:80: refused <\ufffd>",
			  "sessions_active":0,"sessions_total":100,"failures":{"refused":4},"health_checks":{"passed":20,"failed":5}},
			 {"name":"s1","address":"app.example:80","resolved":"10.0.0.1:80","weight":10,"tier":1,"state":"up",
			  "sessions_active":1,"sessions_total":101,"failures":{"refused":4},"health_checks":{"passed":20,"failed":5}}]},
			{"name":"empty","servers":[]}]`},
	} {
		_, body := do(t, s.Addr(), "GET", tt.path, nil)
		var got, want any
		if err := json.Unmarshal([]byte(body), &got); err != nil {
			t.Fatalf("%s: %v: %s", tt.path, err, body)
		}
		if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
			t.Fatal(err)
		}
		if m, ok := got.(map[string]any); ok {
			started, err := time.Parse(time.RFC3339, fmt.Sprint(m["started"]))
			if up, ok := m["uptime_seconds"].(float64); err != nil || !ok || time.Since(started) < 0 || up < 0 || up > 60 {
				t.Errorf("started %v, up %v", m["started"], m["uptime_seconds"])
			}
			delete(m, "started")
			delete(m, "uptime_seconds")
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %v\nwant %v", tt.path, got, want)
		}
	}
}

func TestReload(t *testing.T) {
	diagnostics := "edge.hcl:3:5: unknown block \"listner\"\n  3 | listner \"tcp\" {\n<did you mean \"listener\"?>"
	f := &fake{}
	s, _ := start(t, f, "127.0.0.1:0")
	for _, tt := range []struct {
		err    error
		status int
		want   map[string]any
	}{
		{nil, 200, map[string]any{"ok": true, "message": "2 listeners kept"}},
		{errors.New(diagnostics), 422, map[string]any{"ok": false, "error": diagnostics}},
	} {
		f.reload = func(context.Context) (string, error) { return "2 listeners kept", tt.err }
		res, body := do(t, s.Addr(), "POST", "/v1/reload", strings.NewReader("{}"))
		var got map[string]any
		if err := json.Unmarshal([]byte(body), &got); err != nil || res.StatusCode != tt.status || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%d %s, want %d %v", res.StatusCode, body, tt.status, tt.want)
		}
	}
	f.reload = func(context.Context) (string, error) { t.Error("reloaded"); return "", nil }
	if res, body := do(t, s.Addr(), "POST", "/v1/reload", io.LimitReader(neverEnding('x'), maxBody+1)); res.StatusCode != 413 {
		t.Errorf("a large body: %d %s", res.StatusCode, body)
	}
	// A page in the operator's browser must not reach the daemon on loopback.
	r, _ := http.NewRequestWithContext(t.Context(), "POST", "http://admin/v1/reload", nil)
	r.Header.Set("Origin", "https://evil.example")
	res, err := client(s.Addr()).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 403 {
		t.Errorf("from another origin: %d", res.StatusCode)
	}
}

type neverEnding byte

func (b neverEnding) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(b)
	}
	return len(p), nil
}

// A client that gives up does not stop a reload half way.
func TestReloadOutlivesItsClient(t *testing.T) {
	begun, gone, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	s, _ := start(t, &fake{reload: func(ctx context.Context) (string, error) {
		close(begun)
		<-gone
		ended <- ctx.Err()
		return "", nil
	}}, "127.0.0.1:0")
	c, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "POST /v1/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
	<-begun
	c.Close()
	close(gone)
	if err := <-ended; err != nil {
		t.Errorf("the reload's context: %v", err)
	}
}

func TestPanicEndsItsRequestOnly(t *testing.T) {
	f := &fake{servers: -1, reload: func(context.Context) (string, error) { panic("at the disco") }}
	s, logs := start(t, f, "127.0.0.1:0")
	for _, r := range [][2]string{{"GET", "/v1/listeners"}, {"POST", "/v1/reload"}, {"GET", "/metrics"}} {
		res, body := do(t, s.Addr(), r[0], r[1], nil)
		var v struct{ Error string }
		if err := json.Unmarshal([]byte(body), &v); err != nil || res.StatusCode != 500 || v.Error != "internal error; the log has more" {
			t.Errorf("%s: %d %s", r, res.StatusCode, body)
		}
		last := logs.FilterMessageSnippet("a request has failed").All()
		if len(last) == 0 || last[len(last)-1].ContextMap()["path"] != r[1] || !strings.Contains(fmt.Sprint(last[len(last)-1].ContextMap()["stack"]), "fake_test.go") && r[1] != "/v1/reload" {
			t.Errorf("%s: logged %v", r, last)
		}
	}
	if res, _ := do(t, s.Addr(), "GET", "/healthz", nil); res.StatusCode != 200 {
		t.Errorf("/healthz afterwards: %d", res.StatusCode)
	}
}

func TestHostileRequests(t *testing.T) {
	s, _ := start(t, &fake{}, "127.0.0.1:0")
	for _, tt := range []struct{ name, send, want string }{
		{"no HTTP", "\x16\x03\x01\x02\x00\r\n\r\n", "HTTP/1.1 400"},
		{"a large header", "GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 2*maxHeader) + "\r\n\r\n", "HTTP/1.1 431"},
		{"no host", "GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 400"},
		{"of the server as such", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200"},
		{"dots", "GET /v1/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404"},
		{"CONNECT", "CONNECT 192.0.2.1:80 HTTP/1.1\r\nHost: 192.0.2.1:80\r\n\r\n", "HTTP/1.1 40"},
		{"a proxy's form", "GET http://192.0.2.1/healthz HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200"},
	} {
		c, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		go io.WriteString(c, tt.send)
		line, err := bufio.NewReader(c).ReadString('\n')
		if !strings.HasPrefix(line, tt.want) {
			t.Errorf("%s: %q, %v, want %q", tt.name, line, err, tt.want)
		}
		c.Close()
	}
}

func TestSlowClientsAreCut(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := newHTTP(newHandler(&fake{}, zap.NewNop(), time.Now()), nil)
	for _, d := range []*time.Duration{&h.ReadHeaderTimeout, &h.ReadTimeout, &h.IdleTimeout} {
		if *d <= 0 || *d > time.Minute {
			t.Errorf("a timeout of %v", *d)
		}
		*d = 50 * time.Millisecond
	}
	go h.Serve(l)
	defer h.Close()
	for _, send := range []string{"", "GET /healthz HT", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "POST /v1/reload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc"} {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, send)
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := io.ReadAll(c); err != nil {
			t.Errorf("after %q the connection stays open: %v", send, err)
		}
		c.Close()
	}
}
