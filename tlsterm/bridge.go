package tlsterm

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Bridge is the goroutine engine: crypto/tls goes on after the handshake, for
// versions and suites that the record layer does not know. The relay sees one
// end of a socket pair, and on it plain text; two goroutines carry that to and
// from the TLS connection. A half-close travels as ever.
type Bridge struct {
	tls   *tls.Conn
	peer  halfCloser // below tls
	plain *net.UnixConn
	fail  func(error)

	mu      sync.Mutex
	aborted bool // guarded by mu
}

type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// NewBridge takes over the descriptor of a finished handshake, which the
// caller has taken off its loop, and returns the end of the socket pair that
// is for the loop. On failure the descriptor has been closed. Call
// [Bridge.Start] once the other end is watched.
func NewBridge(h *Handshake) (*Bridge, int, error) {
	c, err := connOf(h.FD)
	if err != nil {
		return nil, -1, err
	}
	peer := c.(halfCloser) // a TCP or a unix socket
	h.stream.inner = peer
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		peer.Close()
		return nil, -1, fmt.Errorf("socketpair: %w", err)
	}
	p, err := connOf(pair[0])
	if err != nil {
		peer.Close()
		unix.Close(pair[1])
		return nil, -1, err
	}
	return &Bridge{tls: h.Conn, peer: peer, plain: p.(*net.UnixConn)}, pair[1], nil
}

// connOf makes a connection of a descriptor, which it takes over.
func connOf(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	return net.FileConn(f)
}

// Start begins to carry. fail is told, once and from another goroutine, when
// TLS ends otherwise than by an orderly close; [ErrTruncated] is among the
// reasons.
func (b *Bridge) Start(fail func(error)) {
	b.fail = fail
	var done sync.WaitGroup
	done.Go(b.in)
	done.Go(b.out)
	go func() {
		done.Wait()
		b.plain.Close()
		b.peer.Close()
	}()
}

// in carries from the TLS peer to the loop.
func (b *Bridge) in() {
	if _, err := io.Copy(b.plain, onlyReader{b.tls}); err != nil {
		b.failed(err)
		return
	}
	b.plain.CloseWrite()
}

// out carries from the loop to the TLS peer.
func (b *Bridge) out() {
	if _, err := io.Copy(onlyWriter{b.tls}, b.plain); err != nil {
		b.failed(err)
		return
	}
	b.tls.CloseWrite()
	b.peer.CloseWrite()
}

// onlyReader and onlyWriter keep io.Copy from looking for shortcuts.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

// failed leaves the loop's side as it is: whether its end would come before the
// news is chance, and it would pass for the orderly end of the stream. Its owner
// closes it, and then the other goroutine ends.
func (b *Bridge) failed(err error) {
	b.mu.Lock()
	first := !b.aborted
	b.aborted = true
	b.mu.Unlock()
	b.peer.Close()
	if first {
		b.fail(err)
	}
}

// lingering is how long a peer may take for what it has not read yet, once the
// session has ended in good order.
const lingering = 30 * time.Second

// Linger leaves the bridge to end by itself, and sees to it that it does.
func (b *Bridge) Linger() { b.peer.SetDeadline(time.Now().Add(lingering)) }

// Abort ends the bridge; the TLS peer sees a reset.
func (b *Bridge) Abort() {
	b.mu.Lock()
	b.aborted = true
	b.mu.Unlock()
	if t, ok := b.peer.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	b.peer.Close()
	b.plain.Close()
}
