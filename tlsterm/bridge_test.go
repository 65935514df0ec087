package tlsterm

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/testcert"
)

// crossing is a bridge, and both of its ends.
type crossing struct {
	bridge *Bridge
	peer   *tls.Conn     // the TLS peer
	under  *net.TCPConn  // below it
	loop   *net.UnixConn // what the loop sees
	ended  *endNoted
	failed chan error
}

// endNoted notes that a FIN was read: crypto/tls does not tell it from a
// close_notify.
type endNoted struct {
	net.Conn
	fin atomic.Bool
}

func (e *endNoted) Read(b []byte) (int, error) {
	n, err := e.Conn.Read(b)
	if err == io.EOF {
		e.fin.Store(true)
	}
	return n, err
}

// expectNotify asserts that the TLS peer reads this, and then close_notify.
func (c *crossing) expectNotify(t *testing.T, want string) {
	t.Helper()
	expectAll(t, c.peer, want)
	if c.ended.fin.Load() {
		t.Error("the stream ends without close_notify")
	}
}

// newCrossing makes a handshake that the record layer does not know how to go
// on with, over TCP, and a bridge of it.
func newCrossing(t *testing.T, version, suite uint16) *crossing {
	t.Helper()
	ca := testcert.NewCA(t, "servers")
	dir := t.TempDir()
	certFile, keyFile := ca.Issue(t, testcert.Template{Names: []string{"a.example.com"}, RSA: true}).Write(t, dir, "web")
	s, err := Prepare(&Env{}, nil, []Options{{
		Name: "old", Certificates: []CertificateOptions{{CertFile: certFile, KeyFile: keyFile}}, MinVersion: version, CipherSuites: []uint16{suite},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Discard)
	f := newFloor(t, 1)

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	far, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	far.SetDeadline(time.Now().Add(time.Minute))
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	file, err := accepted.(*net.TCPConn).File()
	accepted.Close()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	unix.SetNonblock(fd, true)

	ended := f.startOn(fd, &Handshake{Context: s.Context("old")})
	c := &crossing{under: far.(*net.TCPConn), failed: make(chan error, 10)}
	c.ended = &endNoted{Conn: far}
	c.peer = tls.Client(c.ended, &tls.Config{RootCAs: ca.Pool(), ServerName: "a.example.com", MinVersion: version, MaxVersion: version, CipherSuites: []uint16{suite}})
	if err := c.peer.Handshake(); err != nil {
		t.Fatal(err)
	}
	h := await(t, ended)
	if h.Err != nil || h.Records != nil || h.Conn == nil {
		t.Fatalf("%v; the record layer has taken it: %v", h.Err, h.Records != nil)
	}
	b, end, err := NewBridge(h)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := connOf(end)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { plain.Close() })
	plain.SetDeadline(time.Now().Add(time.Minute))
	c.bridge, c.loop = b, plain.(*net.UnixConn)
	b.Start(func(err error) { c.failed <- err })
	return c
}

// oldSuites are what is left to crypto/tls.
var oldSuites = []struct{ version, suite uint16 }{
	{tls.VersionTLS10, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA},
	{tls.VersionTLS11, tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA},
	{tls.VersionTLS12, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA},
}

// bridgeTest runs a test for each of them, and asserts that in the end neither
// a goroutine is left nor an error that the test did not take.
func bridgeTest(t *testing.T, test func(t *testing.T, c *crossing)) {
	before := runtime.NumGoroutine()
	for _, s := range oldSuites {
		t.Run(tls.VersionName(s.version), func(t *testing.T) {
			c := newCrossing(t, s.version, s.suite)
			test(t, c)
			select {
			case err := <-c.failed:
				t.Errorf("told of a failure: %v", err)
			default:
			}
		})
	}
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
}

func (c *crossing) expectFailure(t *testing.T) error {
	t.Helper()
	select {
	case err := <-c.failed:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("nobody was told of the failure")
		return nil
	}
}

func expectAll(t *testing.T, r io.Reader, want string) {
	t.Helper()
	if b, err := io.ReadAll(r); err != nil || string(b) != want {
		t.Errorf("read %.50q, %v; want %.50q", b, err, want)
	}
}

// A half-close travels, from whichever side, and the other direction goes on.
func TestBridgeHalfClose(t *testing.T) {
	bridgeTest(t, func(t *testing.T, c *crossing) {
		io.WriteString(c.peer, "question")
		c.peer.CloseWrite()
		expectAll(t, c.loop, "question")
		io.WriteString(c.loop, "answer")
		c.loop.CloseWrite()
		c.expectNotify(t, "answer")
		expectAll(t, c.under, "") // a FIN behind close_notify
		c.loop.Close()
	})
	bridgeTest(t, func(t *testing.T, c *crossing) {
		io.WriteString(c.loop, "banner")
		c.loop.CloseWrite()
		c.expectNotify(t, "banner")
		io.WriteString(c.peer, "late")
		c.peer.CloseWrite()
		expectAll(t, c.loop, "late")
	})
}

// Both directions at once, more than all buffers hold, through a reader that
// pauses: nothing is lost, and little is held meanwhile.
func TestBridgeBackPressure(t *testing.T) {
	bridgeTest(t, func(t *testing.T, c *crossing) {
		block := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
		const blocks = 128 // 8 MiB
		// Nobody reads: what is taken are the buffers' sizes.
		taken, stalled := 0, false
		c.loop.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		for range blocks {
			n, err := c.loop.Write(block)
			if taken += n; err != nil {
				stalled = true
				break
			}
		}
		if !stalled {
			t.Errorf("%d bytes were taken that nobody has read", taken)
		}
		c.loop.SetWriteDeadline(time.Time{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for left := blocks*len(block) - taken; left > 0; {
				at := (blocks*len(block) - left) % len(block)
				n, err := c.loop.Write(block[at:min(len(block), at+left)])
				if left -= n; err != nil {
					t.Error(err)
					return
				}
			}
			c.loop.CloseWrite()
		})
		wg.Go(func() {
			for range blocks {
				c.peer.Write(block)
			}
			c.peer.CloseWrite()
		})
		for name, r := range map[string]io.Reader{"peer": c.peer, "loop": c.loop} {
			wg.Go(func() {
				if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, bytes.Repeat(block, blocks)) {
					t.Errorf("%s: %d bytes, %v; want %d of a pattern", name, len(b), err, blocks*len(block))
				}
			})
		}
		wg.Wait()
	})
}

// A bare FIN is no end in good order, wherever it comes, between records (which
// crypto/tls takes for one) or within.
func TestBridgeTruncation(t *testing.T) {
	bridgeTest(t, func(t *testing.T, c *crossing) {
		io.WriteString(c.peer, "half of it")
		got := make([]byte, len("half of it"))
		io.ReadFull(c.loop, got)
		c.under.CloseWrite()
		if err := c.expectFailure(t); !errors.Is(err, ErrTruncated) {
			t.Errorf("a cut between records: %v", err)
		}
	})
	bridgeTest(t, func(t *testing.T, c *crossing) {
		c.under.Write([]byte{23, 3, 3, 1, 0, 'x'})
		c.under.CloseWrite()
		if err := c.expectFailure(t); err == nil {
			t.Error("a cut within a record is no failure")
		}
	})
}

// Garbage in place of a record is a failure, and reaches nobody.
func TestBridgeBadRecord(t *testing.T) {
	bridgeTest(t, func(t *testing.T, c *crossing) {
		c.under.Write(append([]byte{23, 3, 3, 0, 64}, make([]byte, 64)...))
		if err := c.expectFailure(t); err == nil {
			t.Error("no failure")
		}
		// Not even an end: it would pass for the orderly one.
		c.loop.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if n, err := c.loop.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the loop has read %d bytes, %v", n, err)
		}
	})
}

// Abort is told to the TLS peer as a reset, and to nobody else.
func TestBridgeAbort(t *testing.T) {
	bridgeTest(t, func(t *testing.T, c *crossing) {
		io.WriteString(c.loop, "the beginning")
		got := make([]byte, len("the beginning"))
		io.ReadFull(c.peer, got)
		c.bridge.Abort()
		c.bridge.Abort()
		if _, err := c.under.Read(got); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the peer sees %v, want a reset", err)
		}
	})
}
