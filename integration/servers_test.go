package integration

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is what the handlers of servers and the clients work with: a TCP or a
// unix connection.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Server is an instrumented server in the test process.
type Server struct {
	t        testing.TB
	handle   func(Conn)
	accepted atomic.Int64
	open     atomic.Int64

	mu    sync.Mutex
	ln    net.Listener
	addr  net.Addr
	conns map[net.Conn]struct{}
	wg    sync.WaitGroup
}

// Serve runs a server on a free port of 127.0.0.1 until the test ends.
func Serve(t testing.TB, handle func(Conn)) *Server {
	t.Helper()
	return ServeOn(t, "tcp", "127.0.0.1:0", handle)
}

// ServeOn runs a server on an address.
func ServeOn(t testing.TB, network, address string, handle func(Conn)) *Server {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, handle: handle, ln: ln, addr: ln.Addr(), conns: map[net.Conn]struct{}{}}
	s.wg.Go(func() { s.run(ln) })
	t.Cleanup(s.Stop)
	return s
}

// ServeNames runs n servers with a handler that is made from each one's name,
// "s0" and so on.
func ServeNames(t testing.TB, n int, handler func(name string) func(Conn)) []*Server {
	t.Helper()
	out := make([]*Server, n)
	for i := range out {
		out[i] = Serve(t, handler("s"+strconv.Itoa(i)))
	}
	return out
}

// Addr is the address in the form of the configuration.
func (s *Server) Addr() string {
	if u, ok := s.addr.(*net.UnixAddr); ok {
		return "unix:" + u.Name
	}
	return s.addr.String()
}

// Accepted counts the connections since the server was made.
func (s *Server) Accepted() int64 { return s.accepted.Load() }

// Open counts the connections whose handlers run.
func (s *Server) Open() int64 { return s.open.Load() }

// Stop closes the listening socket and all connections, as the end of a
// process does, and waits for the handlers.
func (s *Server) Stop() {
	s.mu.Lock()
	s.ln.Close()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// Restart opens a stopped server again at its address.
func (s *Server) Restart() {
	s.t.Helper()
	ln, err := net.Listen(s.addr.Network(), s.addr.String())
	if err != nil {
		s.t.Error(err)
		return
	}
	s.mu.Lock()
	s.ln = ln
	s.mu.Unlock()
	s.wg.Go(func() { s.run(ln) })
}

func (s *Server) run(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if ln != s.ln {
			s.mu.Unlock()
			c.Close()
			return
		}
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		s.accepted.Add(1)
		s.open.Add(1)
		s.wg.Go(func() {
			s.handle(c.(Conn))
			c.Close()
			s.open.Add(-1)
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
		})
	}
}

// echo sends back what comes, and its end.
func echo(c Conn) { io.Copy(c, c) }

// discard takes everything, then ends.
func discard(c Conn) { io.Copy(io.Discard, c) }

// hello sends a text at once, then waits for the client to finish: a protocol
// in which the server speaks first.
func hello(text string) func(Conn) {
	return func(c Conn) {
		io.WriteString(c, text)
		c.CloseWrite()
		discard(c)
	}
}

// named tells its name, then echoes.
func named(name string) func(Conn) {
	return func(c Conn) {
		io.WriteString(c, name+"\n")
		echo(c)
	}
}

// sendAndClose sends a text and closes without reading anything.
func sendAndClose(text string) func(Conn) {
	return func(c Conn) { io.WriteString(c, text) }
}

// resetAtOnce answers with RST.
func resetAtOnce(c Conn) { reset(c) }

// reset closes a connection with RST instead of FIN.
func reset(c Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}

// lines answers each line with name and the line, after a delay.
func lines(name string, delay time.Duration) func(Conn) {
	return func(c Conn) {
		for s := bufio.NewScanner(c); s.Scan(); {
			if delay > 0 {
				time.Sleep(delay) // a slow server, not a wait for anything
			}
			if _, err := fmt.Fprintf(c, "%s %s\n", name, s.Text()); err != nil {
				return
			}
		}
	}
}

// ServeNeverReading runs a server that holds its connections without reading
// from them until release is called or the test ends.
func ServeNeverReading(t testing.TB, network, address string) (s *Server, release func()) {
	t.Helper()
	done := make(chan struct{})
	s = ServeOn(t, network, address, func(Conn) { <-done })
	release = sync.OnceFunc(func() { close(done) })
	t.Cleanup(release)
	return s, release
}

// Refused returns an address on which nothing listens and nobody else will.
func Refused(t testing.TB) string {
	t.Helper()
	fd, port := boundSocket(t)
	t.Cleanup(func() { unix.Close(fd) })
	return "127.0.0.1:" + strconv.Itoa(port)
}

// Hanging returns an address on which connecting takes forever: the accept
// queue of a listening socket is full and nobody empties it, so the kernel
// drops each SYN (tcp(7), listen(2)).
func Hanging(t testing.TB) string {
	t.Helper()
	fd, port := boundSocket(t)
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	addr := "127.0.0.1:" + strconv.Itoa(port)
	for range 16 {
		c, err := net.DialTimeout("tcp", addr, 300*time.Millisecond)
		if err != nil {
			var timeout net.Error
			if !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Fatal(err)
			}
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the accept queue of a socket with backlog 0 does not fill up")
	return ""
}

func boundSocket(t testing.TB) (fd, port int) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd, sa.(*unix.SockaddrInet4).Port
}

var nextPort atomic.Int64

// FreePorts returns the first of n consecutive ports below the ephemeral
// range that nothing is bound to, for configurations that cannot say 0.
func FreePorts(t testing.TB, n int) int {
	t.Helper()
	nextPort.CompareAndSwap(0, int64(12000+os.Getpid()%8000))
search:
	for range 200 {
		first := int(nextPort.Add(int64(n))) - n
		for p := first; p < first+n; p++ {
			ln, err := net.Listen("tcp", ":"+strconv.Itoa(p))
			if err != nil {
				continue search
			}
			ln.Close()
		}
		return first
	}
	t.Fatal("no free ports")
	return 0
}
