package integration

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The documented metrics are there, with their types, before and after
// sessions, for what was configured.
func TestMetricsAreComplete(t *testing.T) {
	t.Parallel()
	p := Start(t, oneUpstream("", "health \"tcp\" {\n interval = \"100ms\"\n }", Serve(t, named("app")).Addr()))
	fetchName(t, p.Addr("edge"))
	p.AccessLog(1)
	eventually(t, func() bool { return p.Metrics().Sum("edgeproxy_health_checks_total") > 0 }, func() string { return "a health check" })
	_, body, _ := p.get("/metrics")
	text := string(body)
	for _, m := range []struct {
		kind, name string
		labels     []string
	}{
		{"gauge", "edgeproxy_build_info", []string{"version", "goversion"}},
		{"counter", "edgeproxy_sessions_total", []string{"listener", "protocol"}},
		{"gauge", "edgeproxy_sessions_active", []string{"listener", "protocol"}},
		{"counter", "edgeproxy_session_ends_total", []string{"listener", "reason"}},
		{"histogram", "edgeproxy_session_seconds", []string{"listener"}},
		{"counter", "edgeproxy_bytes_total", []string{"listener", "direction"}},
		{"counter", "edgeproxy_spliced_bytes_total", []string{"listener"}},
		{"gauge", "edgeproxy_server_up", []string{"upstream", "server"}},
		{"gauge", "edgeproxy_server_sessions_active", []string{"upstream", "server"}},
		{"counter", "edgeproxy_server_sessions_total", []string{"upstream", "server"}},
		{"counter", "edgeproxy_server_failures_total", []string{"upstream", "server", "reason"}},
		{"histogram", "edgeproxy_connect_seconds", []string{"upstream"}},
		{"counter", "edgeproxy_health_checks_total", []string{"upstream", "server", "result"}},
		{"gauge", "edgeproxy_loop_sessions", []string{"loop"}},
		{"gauge", "edgeproxy_loop_busy_ratio", []string{"loop"}},
		{"histogram", "edgeproxy_loop_delay_seconds", []string{"loop"}},
		{"gauge", "edgeproxy_config_last_reload_successful", nil},
		{"gauge", "edgeproxy_config_last_reload_success_timestamp_seconds", nil},
	} {
		if !strings.Contains(text, fmt.Sprintf("# TYPE %s %s\n", m.name, m.kind)) {
			t.Errorf("no %s %s", m.kind, m.name)
			continue
		}
		name := m.name
		if m.kind == "histogram" {
			name += "_count"
		}
		for _, s := range p.Metrics() {
			if s.Name == name && len(s.Labels) != len(m.labels) {
				t.Errorf("%s has labels %v, want %v", name, s.Labels, m.labels)
			}
			for _, l := range m.labels {
				if _, ok := s.Labels[l]; s.Name == name && !ok {
					t.Errorf("%s has no label %q: %v", name, l, s.Labels)
				}
			}
		}
	}
}

// /readyz says no while draining, /healthz still says yes.
func TestHealthEndpoints(t *testing.T) {
	t.Parallel()
	p := Start(t, oneUpstream("", "", Serve(t, echo).Addr()), WithProcess(`shutdown_timeout = "60s"`))
	want := func(path string, want int) {
		t.Helper()
		if status, body, err := p.get(path); err != nil || status != want {
			t.Errorf("GET %s: %d, %v, %s; want %d", path, status, err, body, want)
		}
	}
	want("/healthz", http.StatusOK)
	want("/readyz", http.StatusOK)
	want("/no-such-page", http.StatusNotFound)
	c := Dial(t, p.Addr("edge"))
	RoundTrip(t, c, "hello")
	p.Signal(syscall.SIGTERM)
	eventually(t, func() bool {
		status, _, err := p.get("/readyz")
		return err == nil && status == http.StatusServiceUnavailable
	}, func() string { return "/readyz says 503" })
	want("/healthz", http.StatusOK)
	if got := p.Metrics().Sum("edgeproxy_sessions_active"); got != 1 {
		t.Errorf("%v sessions are active while draining", got)
	}
	c.Close()
	p.AwaitExit()
}

// Sessions spread over the loops.
func TestLoopsShareTheWork(t *testing.T) {
	t.Parallel()
	p := Start(t, oneUpstream("", "", Serve(t, echo).Addr()), WithWorkers(4))
	addr := p.Addr("edge")
	const n = 400
	for range n {
		Dial(t, addr)
	}
	p.Await(n, "edgeproxy_server_sessions_active")
	m := p.Metrics()
	for loop := range 4 {
		// By the kernel's hash alone it would be 100 ± 9.
		if got := m.Sum("edgeproxy_loop_sessions", "loop", fmt.Sprint(loop)); got < 55 || got > 145 {
			t.Errorf("loop %d has %v of %d sessions", loop, got, n)
		}
	}
	if got := m.Sum("edgeproxy_loop_sessions"); got != n {
		t.Errorf("the loops have %v sessions, want %d", got, n)
	}
}

// The process gives up root after binding, in all its threads, and can still
// reload.
func TestUserAfterBinding(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		code, _, errs := startOnly(t, "process { user = \"nobody\" }\n"+oneUpstream("", "", "127.0.0.1:1"))
		if code != 1 || !strings.Contains(errs, "nobody") {
			t.Errorf("without root: exit code %d, %s", code, errs)
		}
		return
	}
	good := strings.Replace(oneUpstream("", "", Serve(t, named("app")).Addr()), "127.0.0.1:0", "127.77.7.7:81", 1)
	p := Start(t, good, WithProcess(`user = "nobody"`))
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.Pid()))
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); (f[0] == "Uid:" || f[0] == "Gid:") && (f[1] == "0" || f[2] == "0" || f[3] == "0") {
				t.Errorf("%s: %s", task, line)
			}
			if f := strings.Fields(line); f[0] == "Groups:" && len(f) > 1 && f[1] == "0" {
				t.Errorf("%s: %s", task, line)
			}
		}
	}
	if got := fetchName(t, "127.77.7.7:81"); got != "app" {
		t.Errorf("%q", got)
	}
	// What an operator prepares: folders the user may write to. Files in them
	// that the program itself made, before it gave up root, must not be in its way.
	for path, mode := range map[string]os.FileMode{p.dir: 0o777, p.path("notify.sock"): 0o777} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	p.Reload(good)
	if got := fetchName(t, "127.77.7.7:81"); got != "app" {
		t.Errorf("after a reload %q", got)
	}
}

// The log says what was started, with the limits in force; --log-level wins
// over the file.
func TestStartIsLogged(t *testing.T) {
	t.Parallel()
	body := oneUpstream("", "", Serve(t, echo).Addr())
	p := Start(t, body)
	for _, want := range []string{"max_connections", "descriptor_limit"} {
		if !strings.Contains(p.Log(), want) {
			t.Errorf("nothing about %q in:\n%s", want, p.Log())
		}
	}
	quiet := Start(t, body, WithArgs("--log-level", "error"))
	if log := quiet.Log(); log != "" {
		t.Errorf("with --log-level error: %s", log)
	}
}
