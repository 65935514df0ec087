package demo

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// get asks over a connection of its own, as the proxy's clients do.
func get(t *testing.T, b *Backend, path string) (int, string, error) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + b.Addr() + path)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}

func TestHTTPAnswers(t *testing.T) {
	t.Parallel()
	b, err := StartHTTP("web-a")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, tt := range []struct {
		path   string
		status int
		want   string // in the body
	}{
		{"/", 200, "hello from web-a, answer 1"},
		{"/", 200, "hello from web-a, answer 2"},
		{"/healthz", 200, "ok"},
		{"/nothing", 404, ""},
		{"/bytes", 400, "mb=N"},
		{"/bytes?mb=0", 400, "mb=N"},
		{"/bytes?mb=100001", 400, "mb=N"},
		{"/bytes?mb=2", 200, strings.Repeat("\x00", 2_000_000)},
		{"/stop?for=never", 400, "write a duration"},
		{"/stop?for=-1s", 400, "write a duration"},
		{"/stop?for=11m", 400, "write a duration"},
		{"/", 200, "answer 3"},
	} {
		status, body, err := get(t, b, tt.path)
		if err != nil || status != tt.status || !strings.Contains(body, tt.want) {
			t.Errorf("%s: status %d, %d bytes, %v; want %d with %.40q", tt.path, status, len(body), err, tt.status, tt.want)
		}
	}
}

// A stop answers who asked, takes the port away, and ends with the same port.
func TestHTTPStop(t *testing.T) {
	t.Parallel()
	b, err := StartHTTP("web-a")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	status, body, err := get(t, b, "/stop?for=10m")
	if err != nil || status != 200 || body != "web-a goes away for 10m0s\n" {
		t.Fatalf("/stop: %d %q %v", status, body, err)
	}
	eventually(t, "refused", func() bool { _, _, err := get(t, b, "/"); return err != nil })
	b.Start()
	if status, _, err := get(t, b, "/"); err != nil || status != 200 {
		t.Fatalf("after Start: %d, %v", status, err)
	}
	b.Start() // of a backend that serves
	b.Stop(time.Millisecond)
	eventually(t, "back by itself", func() bool { _, _, err := get(t, b, "/"); return err == nil })
}

func TestEcho(t *testing.T) {
	t.Parallel()
	b, err := StartEcho("echo-a")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	c, err := net.Dial("tcp", b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	for _, line := range []string{"one\n", "two\n"} {
		io.WriteString(c, line)
		if got, err := in.ReadString('\n'); got != line || err != nil {
			t.Fatalf("sent %q, got %q, %v", line, got, err)
		}
	}
	b.Stop(time.Hour)
	if got, err := in.ReadString('\n'); err == nil {
		t.Fatalf("still answers after Stop: %q", got)
	}
	b.Start()
	c2, err := net.Dial("tcp", b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c2.Close()
	io.WriteString(c2, "half")
	c2.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(c2); string(got) != "half" || err != nil {
		t.Fatalf("half-closed: got %q, %v", got, err)
	}
}

func TestPing(t *testing.T) {
	t.Parallel()
	b, err := StartPing("ping-a")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	c, err := net.Dial("udp", b.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	in := make([]byte, maxDatagram)
	exchange := func(text string) (string, error) {
		if _, err := io.WriteString(c, text); err != nil {
			return "", err
		}
		n, err := c.Read(in)
		return string(in[:n]), err
	}
	for _, text := range []string{"one\n", "", "two"} {
		if got, err := exchange(text); got != "pong from ping-a: "+text || err != nil {
			t.Fatalf("sent %q, got %q, %v", text, got, err)
		}
	}
	if got, err := exchange(strings.Repeat("x", maxDatagram)); len(got) != maxDatagram || err != nil {
		t.Fatalf("the largest: got %d bytes, %v", len(got), err)
	}
	b.Stop(time.Hour)
	if got, err := exchange("three"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("after Stop: %q, %v", got, err)
	}
	b.Start()
	if got, err := exchange("four"); got != "pong from ping-a: four" || err != nil {
		t.Fatalf("after Start: %q, %v", got, err)
	}
}

// Whatever the state, Close is final.
func TestClose(t *testing.T) {
	t.Parallel()
	for _, stopped := range []bool{false, true} {
		b, err := StartEcho("echo-a")
		if err != nil {
			t.Fatal(err)
		}
		if stopped {
			b.Stop(time.Hour)
		}
		b.Close()
		b.Start()
		b.Stop(time.Nanosecond)
		b.mu.Lock()
		if b.live != nil {
			t.Errorf("stopped %v: serves after Close", stopped)
		}
		b.mu.Unlock()
	}
}

// eventually polls what happens in another goroutine.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}
