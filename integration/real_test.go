package integration

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The tests in the files real_*_test.go put edgeproxy between servers and
// clients that others wrote. Each starts what it needs, on ports and in
// folders of its own.

// need finds an installed program. A machine without it skips the test, unless
// EDGEPROXY_REQUIRE_REAL=1 says that it must be there.
func need(t testing.TB, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, pattern := range []string{"/usr/sbin/", "/usr/local/sbin/", "/usr/lib/postgresql/*/bin/"} {
		if found, _ := filepath.Glob(pattern + name); len(found) > 0 {
			return found[len(found)-1]
		}
	}
	missing(t, name)
	return ""
}

// needPython finds a python3 that has a module.
func needPython(t testing.TB, module string) string {
	t.Helper()
	for _, python := range []string{"python3", "/usr/bin/python3"} {
		if exec.Command(python, "-c", "import "+module).Run() == nil {
			return python
		}
	}
	missing(t, "python3 with the module "+module)
	return ""
}

func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("EDGEPROXY_REQUIRE_REAL") == "1" {
		t.Fatalf("%s is missing, and EDGEPROXY_REQUIRE_REAL=1 asks for it", what)
	}
	t.Skipf("%s is missing", what)
}

// realServer is a program that listens.
type realServer struct {
	t   testing.TB
	cmd *exec.Cmd
	log string
}

// startReal runs a server until the test ends, and waits until it takes
// connections at an address.
func startReal(t testing.TB, addr string, user *syscall.Credential, exe string, args ...string) *realServer {
	t.Helper()
	dir := shortTempDir(t)
	r := &realServer{t: t, cmd: exec.Command(exe, args...), log: filepath.Join(dir, "log")}
	out, err := os.Create(r.log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	r.cmd.Stdout, r.cmd.Stderr = out, out
	r.cmd.Dir = "/"
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: user}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		r.cmd.Wait()
		close(exited)
	}()
	t.Cleanup(func() {
		r.cmd.Process.Signal(syscall.SIGINT) // "fast" for PostgreSQL, an end for all others
		if !waitFor(patience, func() bool {
			select {
			case <-exited:
				return true
			default:
				return false
			}
		}) {
			r.cmd.Process.Kill()
			<-exited
		}
	})
	eventually(t, func() bool {
		select {
		case <-exited:
			t.Fatalf("%s: %v\n%s", exe, r.cmd.ProcessState, r.output())
		default:
		}
		network, address := "tcp", addr
		if p, ok := strings.CutPrefix(addr, "unix:"); ok {
			network, address = "unix", p
		}
		c, err := net.Dial(network, address)
		if err == nil {
			c.Close()
		}
		return err == nil
	}, func() string { return exe + " takes connections\n" + r.output() })
	return r
}

func (r *realServer) output() string {
	b, _ := os.ReadFile(r.log)
	return string(b)
}

// tool runs a client program to its end and returns its output.
func tool(t testing.TB, exe string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", exe, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func local(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

func splitPort(t testing.TB, addr string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// assertEnds asserts that all sessions of a listener ended in one of the
// given ways.
func (p *Proxy) assertEnds(listener string, allowed ...string) {
	p.t.Helper()
	p.Await(0, "edgeproxy_sessions_active", "listener", listener)
	ends := p.Metrics().Ends(listener)
	sum := 0
	for end, n := range ends {
		sum += n
		if !strings.Contains(" "+strings.Join(allowed, " ")+" ", " "+end+" ") {
			p.t.Errorf("%d sessions ended with %s", n, end)
		}
	}
	if sum == 0 {
		p.t.Errorf("no session went through %q", listener)
	}
}
