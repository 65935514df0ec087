package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"edgeproxy/config"
)

// The file must hold each address that gets replaced exactly once: otherwise
// the demo would run another configuration than the one it means.
func TestDemoFile(t *testing.T) {
	t.Parallel()
	wanted := []string{demoHTTP, demoEcho, demoPing, demoAdmin}
	for _, s := range demoServers {
		wanted = append(wanted, s.address)
		if !strings.Contains(demoFile, `server "`+s.name+`" { address = "`+s.address+`" }`) {
			t.Errorf("no server %q at %s", s.name, s.address)
		}
	}
	for _, a := range wanted {
		if n := strings.Count(demoFile, quoted(a)); n != 1 {
			t.Errorf("%s occurs %d times", a, n)
		}
	}
	if n := strings.Count(demoFile, "127.0.0.1:"); n != len(wanted) {
		t.Errorf("%d addresses, of which %d are known", n, len(wanted))
	}
	out, diags := config.Format([]byte(demoFile), "demo.hcl")
	if diags.HasErrors() || string(out) != demoFile {
		t.Error("demo.hcl is not in canonical layout")
	}
}

func TestStage(t *testing.T) {
	s, err := newStage()
	if err != nil {
		t.Fatal(err)
	}
	c, diags := config.Load(s.file)
	if err := diags.Err(); err != nil {
		t.Fatal(err)
	}
	var configured, running []string
	for _, u := range c.Upstreams {
		for _, srv := range u.Servers {
			configured = append(configured, srv.Name+" "+srv.Address.String())
		}
	}
	for _, b := range s.backends {
		running = append(running, b.Name()+" "+b.Addr())
	}
	slices.Sort(configured)
	slices.Sort(running)
	if !slices.Equal(configured, running) {
		t.Errorf("configured %v, but running %v", configured, running)
	}
	if c.Admin.Address != s.admin {
		t.Errorf("admin configured at %s, but looked for at %s", c.Admin.Address, s.admin)
	}
	s.close()
	if _, err := os.Stat(s.dir); !os.IsNotExist(err) {
		t.Errorf("%s is left behind: %v", s.dir, err)
	}
}

func TestFreeAddress(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for network, taken := range map[string]string{"tcp": ln.Addr().String(), "udp": conn.LocalAddr().String()} {
		got, err := freeAddress(network, taken)
		if err != nil || got == taken {
			t.Fatalf("%s: instead of %s: %s, %v", network, taken, got, err)
		}
		host, port, err := net.SplitHostPort(got)
		if err != nil || host != "127.0.0.1" {
			t.Errorf("%s: got %s, %v", network, got, err)
		}
		if n, err := strconv.Atoi(port); err != nil || n == 0 {
			t.Errorf("%s: port %s", network, port)
		}
		if got, err := freeAddress(network, "192.0.2.1:80"); err == nil {
			t.Errorf("%s: an address of another machine is free: %s", network, got)
		}
	}
}

// transcript collects what a command prints while it runs.
type transcript struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *transcript) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(p)
}

func (w *transcript) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// The demo does what it says one can try.
func TestDemo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errOut transcript
	code := make(chan int, 1)
	go func() { code <- execute(ctx, []string{"demo"}, strings.NewReader(""), &out, &errOut) }()
	waitFor(t, "the introduction", func() bool { return strings.Contains(out.String(), "Ctrl-C ends it.") }, &out, &errOut)

	m := regexp.MustCompile(`curl (\S+) +# several(?s:.*)nc (\S+) (\d+)(?s:.*)nc -u -w1 (\S+) (\d+)(?s:.*)curl -s (\S+)/metrics`).FindStringSubmatch(out.String())
	if m == nil {
		t.Fatalf("no commands in:\n%s", out.String())
	}
	web, echo, ping, admin := m[1], net.JoinHostPort(m[2], m[3]), net.JoinHostPort(m[4], m[5]), m[6]

	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	defer client.CloseIdleConnections()
	ask := func(url string) string {
		res, err := client.Get("http://" + url)
		if err != nil {
			return err.Error()
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		return string(body)
	}
	names := make(map[string]bool)
	waitFor(t, "an answer of each server", func() bool {
		if s, ok := strings.CutPrefix(ask(web), "hello from "); ok {
			name, _, _ := strings.Cut(s, ",")
			names[name] = true
		}
		return len(names) == 3
	}, &out, &errOut)
	c, err := net.Dial("tcp", echo)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "hello\n")
	back := make([]byte, 6)
	if _, err := io.ReadFull(c, back); err != nil || string(back) != "hello\n" {
		t.Errorf("echo: %q, %v", back, err)
	}
	c.Close()
	u, err := net.Dial("udp", ping)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	clear(names)
	waitFor(t, "an answer of both UDP servers", func() bool {
		io.WriteString(u, "hello\n")
		u.SetReadDeadline(time.Now().Add(5 * time.Second))
		answer := make([]byte, 100)
		n, _ := u.Read(answer)
		if s, ok := strings.CutPrefix(string(answer[:n]), "pong from "); ok {
			name, text, _ := strings.Cut(s, ": ")
			names[name] = text == "hello\n"
		}
		return names["ping-a"] && names["ping-b"]
	}, &out, &errOut)
	gone, _, _ := strings.Cut(ask(web+"/stop?for=10m"), " ")
	waitFor(t, "the stopped server is seen down", func() bool {
		c, err := readCounts(strings.NewReader(ask(admin + "/metrics")))
		return err == nil && c.servers == len(demoServers) && slices.Equal(c.down, []string{gone})
	}, &out, &errOut)

	cancel()
	select {
	case got := <-code:
		if got != exitOK {
			t.Errorf("exit code %d\n%s%s", got, out.String(), errOut.String())
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("does not end\n%s%s", out.String(), errOut.String())
	}
	file := regexp.MustCompile(`This is (\S+):`).FindStringSubmatch(out.String())
	if file == nil {
		t.Fatalf("the file is not named:\n%s", out.String())
	}
	if _, err := os.Stat(file[1]); !os.IsNotExist(err) {
		t.Errorf("%s is left behind: %v", file[1], err)
	}
}

// waitFor polls for what a daemon does on its own.
func waitFor(t *testing.T, what string, ok func() bool, logs ...*transcript) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for tick := time.NewTicker(10 * time.Millisecond); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			for _, l := range logs {
				t.Log(l.String())
			}
			t.Fatalf("not in time: %s", what)
		}
	}
}
