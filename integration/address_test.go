package integration

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Each address form of a listener and of a server carries bytes.
func TestAddressForms(t *testing.T) {
	t.Parallel()
	dir := shortTempDir(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	abstract := fmt.Sprintf("@edgeproxy-test-%d", os.Getpid())
	v4, v6 := Serve(t, named("v4")), ServeOn(t, "tcp", "[::1]:0", named("v6"))
	file := ServeOn(t, "unix", path("app.sock"), named("file"))
	hidden := ServeOn(t, "unix", abstract+"-app", named("abstract"))
	var b strings.Builder
	add := func(name, address, server string) {
		fmt.Fprintf(&b, "listener \"tcp\" %q {\n address = %q\n upstream = upstream.%s\n}\n", name, address, name)
		fmt.Fprintf(&b, "upstream %q {\n server \"a\" { address = %q }\n}\n", name, server)
	}
	add("v4", "127.0.0.1:0", v6.Addr())
	add("any4", "0.0.0.0:0", file.Addr())
	add("v6", "[::1]:0", v4.Addr())
	add("any6", "[::]:0", hidden.Addr())
	add("dual", ":0", v4.Addr())
	add("star", "*:0", v4.Addr())
	add("unix", "unix:"+path("edge.sock"), v4.Addr())
	add("abstract", "unix:"+abstract, file.Addr())
	p := Start(t, b.String())

	port := func(listener string) string {
		_, port, err := net.SplitHostPort(p.Addr(listener))
		if err != nil {
			t.Fatal(err)
		}
		return port
	}
	n := 0
	for _, c := range []struct{ listener, addr, server string }{
		{"v4", p.Addr("v4"), "v6"},
		{"any4", "127.0.0.1:" + port("any4"), "file"},
		{"v6", p.Addr("v6"), "v4"},
		{"any6", "[::1]:" + port("any6"), "abstract"},
		{"dual", "127.0.0.1:" + port("dual"), "v4"},
		{"dual", "[::1]:" + port("dual"), "v4"},
		{"star", "127.0.0.1:" + port("star"), "v4"},
		{"unix", "unix:" + path("edge.sock"), "v4"},
		{"abstract", "unix:" + abstract, "file"},
	} {
		conn := Dial(t, c.addr)
		if got := ReadLine(t, conn); got != c.server {
			t.Errorf("listener %q at %s: server %q, want %q", c.listener, c.addr, got, c.server)
		}
		RoundTrip(t, conn, "there and back")
		conn.Close()
		n++
		if e := p.AccessLog(n)[n-1]; e.Listener != c.listener || strings.Contains(e.Source+e.Destination, "::ffff:") {
			t.Errorf("logged %+v", e)
		} else if strings.HasPrefix(c.addr, "unix:") && !strings.Contains(e.Destination, c.addr[len("unix:"):]) {
			t.Errorf("destination %q, want %q", e.Destination, c.addr)
		}
	}
	if c, err := net.Dial("tcp", "127.0.0.1:"+port("any6")); err == nil {
		c.Close()
		t.Error("[::] took an IPv4 connection")
	}
	if want := []string{"unix:" + path("edge.sock")}; p.Addr("unix") != want[0] {
		t.Errorf("/v1/listeners says %q, want %q", p.Addr("unix"), want)
	}
	p.Term()
	if _, err := os.Stat(path("edge.sock")); err == nil {
		t.Error("the unix socket's file is left after the end")
	}
}

// A port range opens each of its ports, and one listener takes several forms.
func TestAddressRangeAndList(t *testing.T) {
	t.Parallel()
	first := FreePorts(t, 5)
	s := Serve(t, named("app"))
	sock := filepath.Join(shortTempDir(t), "e.sock")
	p := Start(t, fmt.Sprintf(`
listener "tcp" "edge" {
  address  = ["127.0.0.1:%d-%d", "[::1]:0", "unix:%s"]
  upstream = upstream.app
}
upstream "app" {
  server "a" { address = %q }
}`, first, first+4, sock, s.Addr()))
	bound := p.Addrs("edge")
	if len(bound) != 7 {
		t.Fatalf("bound to %q, want 7 addresses", bound)
	}
	for i, a := range bound {
		if i < 5 && a != fmt.Sprintf("127.0.0.1:%d", first+i) {
			t.Errorf("address %d is %s", i, a)
		}
		if got := fetchName(t, a); got != "app" {
			t.Errorf("%s: %q", a, got)
		}
	}
}

// A unix socket's file that a killed process left behind is taken over; one
// that is in use is not.
func TestAddressStaleUnixSocket(t *testing.T) {
	t.Parallel()
	sock := filepath.Join(shortTempDir(t), "e.sock")
	s := Serve(t, named("app"))
	body := strings.ReplaceAll(oneUpstream("", "", s.Addr()), "127.0.0.1:0", "unix:"+sock)
	first := Start(t, body)
	code, _, errors := startOnly(t, body)
	if code != 1 || !strings.Contains(errors, sock) || !strings.Contains(errors, "edge") {
		t.Errorf("with the socket in use: exit code %d, %s", code, errors)
	}
	if got := fetchName(t, "unix:"+sock); got != "app" {
		t.Errorf("after another process tried to take the socket: %q", got)
	}
	first.Kill()
	if _, err := os.Stat(sock); err != nil {
		t.Fatal("the test needs the socket to be left: ", err)
	}
	Start(t, body)
	if got := fetchName(t, "unix:"+sock); got != "app" {
		t.Errorf("%q", got)
	}
}

// startOnly runs the program with a configuration with which it must not
// start, and returns how it ended.
func startOnly(t testing.TB, body string, options ...Option) (code int, stdout, stderr string) {
	t.Helper()
	s := setup{}
	for _, o := range options {
		o(&s)
	}
	file := filepath.Join(shortTempDir(t), "edge.hcl")
	if err := os.WriteFile(file, []byte(body), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	return run(t, &s, "run", "-c", file)
}

// Sockets that systemd passes are found by their name, in any order, and are
// still systemd's when the program ends.
func TestAddressSystemd(t *testing.T) {
	t.Parallel()
	s := ServeNames(t, 2, named)
	web, _ := net.Listen("tcp", "127.0.0.1:0")
	sock := filepath.Join(shortTempDir(t), "admin-like.sock")
	local, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer web.Close()
	defer local.Close()
	webFile, err1 := web.(*net.TCPListener).File()
	localFile, err2 := local.(*net.UnixListener).File()
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	defer webFile.Close()
	defer localFile.Close()
	body := fmt.Sprintf(`
listener "tcp" "web" {
  address  = "systemd:web"
  upstream = upstream.a
}
listener "tcp" "local" {
  address  = "systemd:local"
  upstream = upstream.b
}
upstream "a" {
  server "a" { address = %q }
}
upstream "b" {
  server "b" { address = %q }
}`, s[0].Addr(), s[1].Addr())
	p := Start(t, body, WithSocket("web", webFile), WithSocket("local", localFile))
	check := func() {
		t.Helper()
		for range 20 {
			if got := fetchName(t, web.Addr().String()); got != "s0" {
				t.Errorf("web: %q", got)
			}
			if got := fetchName(t, "unix:"+sock); got != "s1" {
				t.Errorf("local: %q", got)
			}
		}
	}
	check()
	p.Reload(body)
	check()
	p.Term()
	c, err := net.Dial("tcp", web.Addr().String())
	if err != nil {
		t.Fatal("systemd's socket was shut down: ", err)
	}
	c.Close()
	if _, err := os.Stat(sock); err != nil {
		t.Error("systemd's socket file was removed: ", err)
	}

	code, _, errors := startOnly(t, body, WithSocket("web", webFile))
	if code != 1 || !strings.Contains(errors, `systemd:local`) || !strings.Contains(errors, "FileDescriptorName") {
		t.Errorf("without the socket \"local\": exit code %d, %s", code, errors)
	}
}
