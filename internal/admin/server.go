// Package admin is the daemon's HTTP side door: health, metrics, state as
// JSON, and the request to reload.
//
// Its life: [New]; then, at start and at every reload, [Server.Prepare], which
// binds the address and does all that can fail, followed by [Change.Commit] or
// [Change.Discard]; [Server.Close] at the end. A new address answers before
// the old one stops, and requests in flight on the old one are finished.
//
// There is no authentication: whoever reaches the address may use it.
package admin

import (
	"context"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// A client has so long to send its request; this is what ends slow ones.
	headerTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second
	// … and so long to take the answer, where a handler allows no more.
	writeTimeout = 30 * time.Second
	idleTimeout  = 30 * time.Second
	// retireTimeout is how long requests on an address that is given up may
	// go on.
	retireTimeout = 10 * time.Second

	maxHeader      = 16 << 10
	maxBody        = 64 << 10
	maxConnections = 256 // descriptors are for sessions
)

// Server serves on one address, or on none.
type Server struct {
	handler http.Handler
	log     *zap.Logger
	errors  *log.Logger

	mu      sync.Mutex
	current *endpoint // nil: none
	retired sync.WaitGroup
}

// endpoint is an address with its server.
type endpoint struct {
	address string // as configured
	*binding
	http *http.Server
}

// New makes a server that does not listen yet.
func New(s Source, l *zap.Logger) *Server {
	l = l.Named("admin")
	errors, _ := zap.NewStdLogAt(l, zap.WarnLevel) // fails for unknown levels only
	return &Server{handler: newHandler(s, l, time.Now()), log: l, errors: errors}
}

// Change is a prepared change of the address. End it with [Change.Commit] or
// [Change.Discard].
type Change struct {
	s    *Server
	next *endpoint // nil: no address
	keep bool      // the address stays
}

// Prepare opens an address, "127.0.0.1:9901" or "unix:/run/edgeproxy/admin.sock"
// ("" is none). The one in use stays open.
func (s *Server) Prepare(address string) (*Change, error) {
	s.mu.Lock()
	current := s.current
	s.mu.Unlock()
	switch {
	case address == "":
		return &Change{s: s}, nil
	case current != nil && current.address == address && current.intact():
		return &Change{s: s, keep: true}, nil
	}
	var old *binding
	if current != nil {
		old = current.binding
	}
	b, err := bind(address, old)
	if err != nil {
		return nil, err
	}
	e := &endpoint{address, b, newHTTP(s.handler, s.errors)}
	// At once, not at Commit: where the addresses overlap, the kernel may give
	// the new one what the old one had. Ends with Shutdown, and by no other
	// error: net/http retries when descriptors run out.
	go e.http.Serve(newBounded(b.Listener, maxConnections))
	return &Change{s: s, next: e}, nil
}

func newHTTP(h http.Handler, errors *log.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          errors,
	}
}

// Commit makes the change.
func (c *Change) Commit() {
	if c.keep {
		return
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if e := c.next; e != nil {
		if a, ok := e.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
			c.s.log.Warn("the admin API can be reached from other machines, and asks for no password; bind it to 127.0.0.1 or a unix socket, or keep others out with a firewall",
				zap.Stringer("address", a))
		}
		c.s.log.Info("admin API is up", zap.String("address", e.name()))
	}
	c.s.retire(c.s.current)
	c.s.current = c.next
}

// Discard gives the change up.
func (c *Change) Discard() { c.s.retire(c.next) }

func (s *Server) retire(e *endpoint) {
	if e != nil {
		s.retired.Go(func() { e.retire(context.Background()) })
	}
}

// Addr returns the address really bound, "" if there is none.
func (s *Server) Addr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return ""
	}
	return s.current.name()
}

// Close stops listening, and waits for requests in flight until ctx is done.
func (s *Server) Close(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil {
		s.current.retire(ctx)
		s.current = nil
	}
	done := make(chan struct{})
	go func() {
		s.retired.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// retire stops listening, lets requests in flight finish, and cuts those that
// take too long.
func (e *endpoint) retire(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, retireTimeout)
	defer cancel()
	e.unlink()
	if e.http.Shutdown(ctx) != nil {
		e.http.Close()
	}
	e.Listener.Close() // Serve may not have come to know it
}
