// Package demo is the world that `edgeproxy demo` stands in: small servers in
// this process that the proxy balances over, and that can be made to fail.
//
// A [Backend] listens on a port of the kernel's choice. [Backend.Stop] takes it
// away, connections and all, the way a crash would; it comes back on the same
// port by itself.
package demo

import (
	"io"
	"net"
	"sync"
	"time"
)

// retryListen is how long a backend waits when something else has taken its
// port while it was away.
const retryListen = time.Second

// Backend is one server.
//
//	serving ──Stop──▶ stopped ──timer──▶ serving
//	   └──────Close──────┴─────▶ closed
type Backend struct {
	name  string
	addr  string
	serve serve

	mu     sync.Mutex
	live   io.Closer   // nil unless serving
	again  *time.Timer // nil unless stopped
	closed bool
}

// serve listens on an address and answers there until it is closed, with all
// its connections.
type serve func(address string) (net.Addr, io.Closer, error)

// overTCP is what listens for connections; f starts to serve them.
func overTCP(f func(net.Listener) io.Closer) serve {
	return func(address string) (net.Addr, io.Closer, error) {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			return nil, nil, err
		}
		return ln.Addr(), f(ln), nil
	}
}

func (b *Backend) start(s serve) (*Backend, error) {
	addr, live, err := s("127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b.addr, b.live, b.serve = addr.String(), live, s
	return b, nil
}

// Name returns the name the backend answers with.
func (b *Backend) Name() string { return b.name }

// Addr returns where the backend listens, as host:port.
func (b *Backend) Addr() string { return b.addr }

// Stop makes the backend refuse what comes, and drops the connections it has. It serves
// again after d. A backend that is stopped already stays so for d from now on.
func (b *Backend) Stop(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	if b.live != nil {
		b.live.Close()
		b.live = nil
	}
	b.comeBack(d)
}

// Start ends a stop at once. It does nothing to a backend that serves.
func (b *Backend) Start() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || b.live != nil {
		return
	}
	_, live, err := b.serve(b.addr)
	if err != nil {
		b.comeBack(retryListen)
		return
	}
	b.again.Stop()
	b.again = nil
	b.live = live
}

// comeBack is called with b.mu held.
func (b *Backend) comeBack(d time.Duration) {
	if b.again != nil {
		b.again.Stop()
	}
	b.again = time.AfterFunc(d, b.Start)
}

// Close stops the backend for good.
func (b *Backend) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	if b.again != nil {
		b.again.Stop()
	}
	if b.live != nil {
		b.live.Close()
		b.live = nil
	}
}
