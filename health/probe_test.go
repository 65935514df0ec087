package health

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serve gives each connection on a new listener to handle, and closes it then.
func serve(t *testing.T, network, address string, handle func(c net.Conn)) string {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return l.Addr().String()
}

// line reads up to a newline.
func line(c net.Conn) string {
	s, _ := bufio.NewReader(c).ReadString('\n')
	return s
}

// hang holds a connection until the other side closes it.
func hang(c net.Conn) { io.Copy(io.Discard, c) }

// answer reads a request and writes what it is told.
func answer(response string) func(net.Conn) {
	return func(c net.Conn) {
		http.ReadRequest(bufio.NewReader(c))
		io.WriteString(c, response)
	}
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nall ok\n"

func TestProbes(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("x", 70<<10)
	for _, c := range []struct {
		name   string
		handle func(net.Conn)
		opts   Options
		want   string // the error; "": it passes
	}{
		{"connect", hang, Options{}, ""},
		{"send and expect", func(c net.Conn) { fmt.Fprintf(c, "+%s", line(c)) }, Options{Send: []byte("PING\n"), Expect: []byte("+PING")}, ""},
		{"expect without sending", func(c net.Conn) { io.WriteString(c, "220 ready\r\n"); hang(c) }, Options{Expect: []byte("220 ")}, ""},
		{"send without expecting", hang, Options{Send: []byte("hello")}, ""},
		{"binary, over several segments", func(c net.Conn) {
			for _, b := range []byte("\x00\x00\xff\x00\x01") {
				c.Write([]byte{b})
				time.Sleep(time.Millisecond) // so that the kernel sends them one by one
			}
			hang(c)
		}, Options{Expect: []byte("\xff\x00\x01")}, ""},
		{"expected at the end of 64 KiB", func(c net.Conn) { io.WriteString(c, big[:64<<10-2]+"ok"+big); hang(c) }, Options{Expect: []byte("ok")}, ""},
		{"expected beyond 64 KiB", func(c net.Conn) { io.WriteString(c, big[:64<<10-1]+"ok"+big); hang(c) }, Options{Expect: []byte("ok")}, `the first 64 KiB of the response do not contain "ok"`},
		{"another answer", func(c net.Conn) { io.WriteString(c, "-LOADING\r\n") }, Options{Expect: []byte("+PONG")}, `response does not contain "+PONG"; got "-LOADING\r\n"`},
		{"no answer", func(c net.Conn) {}, Options{Expect: []byte("+PONG")}, "connection closed without a response"},
		{"silence", hang, Options{Expect: []byte("+PONG"), Timeout: 50 * time.Millisecond}, "timed out after 50ms waiting for the response"},
		{"half an answer, then silence", func(c net.Conn) { io.WriteString(c, "+PO"); hang(c) }, Options{Expect: []byte("+PONG"), Timeout: 100 * time.Millisecond}, `timed out after 100ms waiting for "+PONG"; got "+PO"`},
		{"reset", func(c net.Conn) { line(c); c.(*net.TCPConn).SetLinger(0) }, Options{Send: []byte("x\n"), Expect: []byte("y")}, "read: connection reset by peer while waiting for the response"},

		{"http", answer(ok), Options{Kind: HTTP}, ""},
		{"http body", answer(ok), Options{Kind: HTTP, ExpectBody: "ok"}, ""},
		{"http chunked body", answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nall \r\n2\r\nok\r\n0\r\n\r\n"), Options{Kind: HTTP, ExpectBody: "all ok"}, ""},
		{"http body until close", answer("HTTP/1.0 200 OK\r\n\r\nall ok"), Options{Kind: HTTP, ExpectBody: "ok"}, ""},
		{"http HEAD", answer("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"), Options{Kind: HTTP, Method: "HEAD"}, ""},
		{"http informational first", answer("HTTP/1.1 103 Early Hints\r\n\r\n" + ok), Options{Kind: HTTP}, ""},
		{"http informational for ever", answer(strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 100)), Options{Kind: HTTP}, "the response is not valid HTTP/1.1: more than 8 informational responses"},
		{"http redirect passes", answer("HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n"), Options{Kind: HTTP}, ""},
		{"http redirect is not followed", answer("HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n"), Options{Kind: HTTP, ExpectStatus: []StatusRange{{200, 299}}}, "status 302, want 200-299"},
		{"http status", answer("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"), Options{Kind: HTTP}, "status 503, want 200-399"},
		{"http status list", answer("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"), Options{Kind: HTTP, ExpectStatus: []StatusRange{{200, 204}, {301, 301}}}, "status 503, want 200-204, 301"},
		{"http status wanted", answer("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"), Options{Kind: HTTP, ExpectStatus: []StatusRange{{200, 204}, {404, 404}}}, ""},
		{"http other body", answer(ok), Options{Kind: HTTP, ExpectBody: "fine"}, `body does not contain "fine"`},
		{"http empty body", answer("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), Options{Kind: HTTP, ExpectBody: "ok"}, `body is empty, want it to contain "ok"`},
		{"http short body", answer("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"), Options{Kind: HTTP, ExpectBody: "ok"}, `connection closed within the body, which does not contain "ok" so far`},
		{"http large body", answer("HTTP/1.1 200 OK\r\n\r\n" + big + "ok"), Options{Kind: HTTP, ExpectBody: "ok"}, `the first 64 KiB of the body do not contain "ok"`},
		{"http large header", answer("HTTP/1.1 200 OK\r\nX: " + big + "\r\n\r\n"), Options{Kind: HTTP}, "the response's header is longer than 64 KiB"},
		{"http never-ending body", func(c net.Conn) {
			answer("HTTP/1.1 200 OK\r\n\r\n")(c)
			for {
				if _, err := io.WriteString(c, big); err != nil {
					return
				}
			}
		}, Options{Kind: HTTP}, ""},
		{"http not HTTP", answer("220 smtp.example.com ESMTP\r\n"), Options{Kind: HTTP}, `the response is not valid HTTP/1.1: malformed HTTP status code "smtp.example.com"`},
		{"http no response", answer(""), Options{Kind: HTTP}, "connection closed without a response"},
		{"http half a header", answer("HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n"), Options{Kind: HTTP}, "connection closed within the response's header"},
		{"http silence", hang, Options{Kind: HTTP, Timeout: 50 * time.Millisecond}, "timed out after 50ms waiting for the response"},
		{"http silent body", func(c net.Conn) { answer("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")(c); hang(c) }, Options{Kind: HTTP, ExpectBody: "ok", Timeout: 50 * time.Millisecond}, "timed out after 50ms waiting for the response's body"},
		{"http reset", func(c net.Conn) { answer("")(c); c.(*net.TCPConn).SetLinger(0) }, Options{Kind: HTTP}, "read: connection reset by peer while waiting for the response"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.opts.Timeout == 0 {
				c.opts.Timeout = 20 * time.Second
			}
			err := run(t, c.opts, Target{Network: "tcp", Address: serve(t, "tcp", "127.0.0.1:0", c.handle)})
			if got := text(err); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func run(t *testing.T, o Options, target Target) error {
	o = o.withDefaults()
	ctx, cancel := context.WithTimeout(t.Context(), o.Timeout)
	defer cancel()
	return probe(ctx, &o, target)
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestRequest(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		opts Options
		host string // of the target
		want string // of METHOD PATH HOST; PORT stands for the server's
	}{
		{"defaults", Options{}, "web.example.com:80", "GET / web.example.com:80"},
		{"no host is known", Options{}, "", "GET / 127.0.0.1:PORT"},
		{"all set", Options{Method: "OPTIONS", Path: "/a?b=c", Host: "h.example.com"}, "web.example.com:80", "OPTIONS /a?b=c h.example.com"},
		{"another address", Options{Address: "127.0.0.1"}, "web.example.com:80", "GET / 127.0.0.1:PORT"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			requests := make(chan string, 1)
			addr := serve(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
				r, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					requests <- err.Error()
					return
				}
				if !r.Close {
					t.Error("the request does not say that the connection ends with it")
				}
				requests <- fmt.Sprint(r.Method, " ", r.RequestURI, " ", r.Host)
				io.WriteString(conn, ok)
			})
			c.opts.Kind = HTTP
			c.opts.Timeout = 20 * time.Second
			if err := run(t, c.opts, Target{Network: "tcp", Address: addr, Host: c.host}); err != nil {
				t.Fatal(err)
			}
			_, port, _ := net.SplitHostPort(addr)
			if got, want := <-requests, strings.ReplaceAll(c.want, "PORT", port); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func TestDestination(t *testing.T) {
	web := Target{Network: "tcp", Address: "192.0.2.1:80", Host: "web:80"}
	six := Target{Network: "tcp", Address: "[2001:db8::1]:80", Host: "[2001:db8::1]:80"}
	sock := Target{Network: "unix", Address: "@app", Host: "localhost"}
	for _, c := range []struct {
		target                       Target
		address                      string
		port                         int
		network, probed, host, error string
	}{
		{target: web, network: "tcp", probed: "192.0.2.1:80", host: "web:80"},
		{target: web, port: 9000, network: "tcp", probed: "192.0.2.1:9000", host: "web:9000"},
		{target: web, address: "192.0.2.9", network: "tcp", probed: "192.0.2.9:80", host: "192.0.2.9:80"},
		{target: web, address: "2001:db8::9", port: 9000, network: "tcp", probed: "[2001:db8::9]:9000", host: "[2001:db8::9]:9000"},
		{target: six, port: 9000, network: "tcp", probed: "[2001:db8::1]:9000", host: "[2001:db8::1]:9000"},
		{target: sock, network: "unix", probed: "@app", host: "localhost"},
		{target: sock, address: "192.0.2.9", port: 80, network: "tcp", probed: "192.0.2.9:80", host: "192.0.2.9:80"},
		{target: sock, port: 80, error: "the server is a unix socket; a check that goes elsewhere needs both an address and a port"},
		{target: sock, address: "192.0.2.9", error: "the server is a unix socket; a check that goes elsewhere needs both an address and a port"},
	} {
		o := Options{Address: c.address, Port: c.port}
		network, probed, err := o.destination(c.target)
		if text(err) != c.error || network != c.network || probed != c.probed {
			t.Errorf("%+v: %s %s, %v", c, network, probed, err)
		}
		if host := o.hostHeader(c.target, probed); err == nil && host != c.host {
			t.Errorf("%+v: Host is %q", c, host)
		}
	}
}

func TestUnixSockets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "s"), "@edgeproxy-health-" + filepath.Base(filepath.Dir(dir))} {
		serve(t, "unix", path, answer(ok))
		for _, o := range []Options{{}, {Kind: HTTP, ExpectBody: "ok"}} {
			o.Timeout = 20 * time.Second
			if err := run(t, o, Target{Network: "unix", Address: path, Host: "localhost"}); err != nil {
				t.Errorf("%s, %v: %v", path, o.Kind, err)
			}
		}
	}
	if got, want := text(run(t, Options{}, Target{Network: "unix", Address: filepath.Join(dir, "none")})), "connect: no such file or directory"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestConnectFails(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	for _, kind := range []Kind{TCP, HTTP} {
		err := run(t, Options{Kind: kind}, Target{Network: "tcp", Address: l.Addr().String()})
		if got, want := text(err), "connect: connection refused"; got != want {
			t.Errorf("%v: got %q, want %q", kind, got, want)
		}
	}
	ctx, cancel := context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer cancel()
	o := Options{}.withDefaults()
	if got, want := text(probe(ctx, &o, Target{Network: "tcp", Address: l.Addr().String()})), "timed out after 2s connecting"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestConnectCheckGoesUnseen proves the claim of delayACK. On a machine under
// load the acknowledgement may go out in time for some of the probes.
func TestConnectCheckGoesUnseen(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	target := Target{Network: "tcp", Address: l.Addr().String()}
	const probes = 20
	for range probes {
		if err := run(t, Options{Timeout: 20 * time.Second}, target); err != nil {
			t.Fatal(err)
		}
	}
	last, err := net.Dial("tcp", target.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	for seen := 0; ; seen++ {
		if seen == probes {
			t.Fatal("all connect checks were accepted by the server")
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if c.RemoteAddr().String() == last.LocalAddr().String() {
			t.Logf("%d of %d connect checks were accepted by the server", seen, probes)
			return
		}
	}
}
