package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

// adminStub answers as the admin API does.
func adminStub(t *testing.T, network, address string, status int, body string) string {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/v1/reload" {
			http.Error(w, "unexpected "+r.Method+" "+r.URL.Path, http.StatusBadRequest)
			return
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	}))
	srv.Listener.Close()
	srv.Listener = ln
	srv.Start()
	t.Cleanup(srv.Close)
	return ln.Addr().String()
}

func TestReload(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		status int
		body   string
		want   outcome
	}{
		{"ok", 200, `{"ok":true,"message":"reloaded: 1 listener added"}`, outcome{0, "reloaded: 1 listener added\n", ""}},
		{"no message", 200, `{"ok":true}`, outcome{0, "reloaded\n", ""}},
		{
			"failed", 422, `{"ok":false,"error":"a.hcl:1:1: error: one\na.hcl:2:1: error: two"}`,
			outcome{1, "", "a.hcl:1:1: error: one\na.hcl:2:1: error: two\nedgeproxy: not reloaded, the running configuration stays in force\n"},
		},
		{
			"another program", 404, "<html>no</html>",
			outcome{1, "", "edgeproxy: is this edgeproxy's admin API? It answers 404 (Not Found): \"<html>no</html>\"\n"},
		},
		{
			"another API", 200, `{"status":"green"}`,
			outcome{1, "", "edgeproxy: is this edgeproxy's admin API? It answers 200 (OK): \"{\\\"status\\\":\\\"green\\\"}\"\n"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			address := adminStub(t, "tcp", "127.0.0.1:0", tt.status, tt.body)
			if got := edgeproxy(t, "", "reload", "--admin", address); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestReloadFindsTheAdminAPI(t *testing.T) {
	t.Parallel()
	const done = `{"ok":true,"message":"done"}`
	socket := filepath.Join(t.TempDir(), "a.sock")
	adminStub(t, "unix", socket, 200, done)
	_, port, err := net.SplitHostPort(adminStub(t, "tcp", "127.0.0.1:0", 200, done))
	if err != nil {
		t.Fatal(err)
	}
	withAdmin := func(address string) string {
		return writeFile(t, "edge.hcl", fmt.Sprintf("%s\nadmin { address = %q }\n", validFile, address))
	}
	for _, args := range [][]string{
		{"--admin", "unix:" + socket},
		{"--admin", "localhost:" + port},
		{"--admin", "http://127.0.0.1:" + port},
		{"--admin", ":" + port},
		{"-c", withAdmin("127.0.0.1:" + port)},
		{"-c", withAdmin("0.0.0.0:" + port)},
		{"-c", withAdmin("unix:" + socket)},
	} {
		if got := edgeproxy(t, "", append([]string{"reload"}, args...)...); got != (outcome{0, "done\n", ""}) {
			t.Errorf("%v: %+v", args, got)
		}
	}
}

func TestReloadWithoutDaemon(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := ln.Addr().String()
	ln.Close()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--admin", closed}, "nothing answers at " + closed + "; is edgeproxy running"},
		{[]string{"--admin", "unix:/nonexistent/a.sock"}, "nothing answers at unix:/nonexistent/a.sock"},
		{[]string{"-c", writeFile(t, "edge.hcl", validFile)}, "has no admin block, so there is nothing to ask; send SIGHUP"},
		{[]string{"-c", writeFile(t, "edge.hcl", "nonsense {}\n")}, `there is no block "nonsense"`},
	} {
		got := edgeproxy(t, "", append([]string{"reload"}, tt.args...)...)
		if got.code != exitFailed || got.stdout != "" || !strings.Contains(got.stderr, tt.want) {
			t.Errorf("%v: %+v, want %q", tt.args, got, tt.want)
		}
	}
}
