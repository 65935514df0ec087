package tlsterm

import (
	"cmp"
	"crypto/tls"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"edgeproxy/internal/testcert"
)

// lab has what tests of contexts need: an authority of servers, one of
// clients, and files of a block `tls "public"` for a.example.com and
// b.example.com.
type lab struct {
	dir             string
	servers         *testcert.CA
	clients         *testcert.CA
	alice           *testcert.Pair
	cert, key, caPE string // files
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{dir: t.TempDir(), servers: testcert.NewCA(t, "servers"), clients: testcert.NewCA(t, "clients")}
	l.cert, l.key = l.servers.Server(t, "a.example.com", "b.example.com").Write(t, l.dir, "web")
	l.caPE = l.clients.Write(t, l.dir, "clients")
	l.alice = l.clients.Client(t, "alice")
	return l
}

func (l *lab) options() Options {
	return Options{Name: "public", Certificates: []CertificateOptions{{CertFile: l.cert, KeyFile: l.key}}}
}

// mutual asks for client certificates.
func (l *lab) mutual() Options {
	o := l.options()
	o.ClientAuth = ClientAuthOptions{Mode: ClientAuthRequire, CAFile: l.caPE}
	return o
}

// revoking also looks into a list of who is revoked.
func (l *lab) revoking(t *testing.T, revoked ...*testcert.Pair) Options {
	o := l.mutual()
	o.ClientAuth.CRLFile = testcert.WriteFile(t, l.dir, "revoked.pem", l.clients.CRL(t, revoked...))
	return o
}

// client is a configuration that trusts the lab, with a session cache.
func (l *lab) client(pairs ...*testcert.Pair) *tls.Config {
	c := &tls.Config{RootCAs: l.servers.Pool(), ServerName: "a.example.com", ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	for _, p := range pairs {
		c.Certificates = append(c.Certificates, p.TLS())
	}
	return c
}

// set makes a set that nothing watches.
func (l *lab) set(t *testing.T, old *Set, opts ...Options) *Set {
	t.Helper()
	s, err := Prepare(&Env{}, old, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Discard)
	return s
}

func (l *lab) context(t *testing.T, o Options) *Context {
	t.Helper()
	return l.set(t, nil, o).Context(o.Name)
}

// outcome is what both sides have seen.
type outcome struct {
	server, client       tls.ConnectionState
	serverErr, clientErr error
}

func (o outcome) failed() bool { return o.serverErr != nil || o.clientErr != nil }

// meet connects both sides in memory. The client reads a byte of the server's
// after the handshake: so it has its tickets, and the server's verdict.
func meet(server, client *tls.Config) (o outcome) {
	a, b := memoryPipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer a.Close()
		c := tls.Server(a, server)
		if o.serverErr = c.Handshake(); o.serverErr == nil {
			o.server = c.ConnectionState()
			c.Write([]byte{'x'})
			c.Close()
		}
	})
	wg.Go(func() {
		defer b.Close()
		c := tls.Client(b, client)
		if o.clientErr = c.Handshake(); o.clientErr == nil {
			o.client = c.ConnectionState()
			_, o.clientErr = io.ReadFull(c, make([]byte, 1))
			c.Close()
		}
	})
	wg.Wait()
	return o
}

// mustMeet is meet of two that get on with each other.
func mustMeet(t *testing.T, server, client *tls.Config) outcome {
	t.Helper()
	o := meet(server, client)
	if o.failed() {
		t.Fatalf("server: %v; client: %v", o.serverErr, o.clientErr)
	}
	return o
}

// memoryConn is one end of a connection in memory that takes what is written
// without waiting for the other side to read it. Unlike sockets it can be used
// within synctest.
type memoryConn struct {
	in, out *memoryStream
}

type memoryStream struct {
	mu     sync.Mutex
	cond   *sync.Cond
	data   []byte
	closed bool
}

func memoryPipe() (a, b *memoryConn) {
	x, y := &memoryStream{}, &memoryStream{}
	x.cond, y.cond = sync.NewCond(&x.mu), sync.NewCond(&y.mu)
	return &memoryConn{x, y}, &memoryConn{y, x}
}

func (c *memoryConn) Read(p []byte) (int, error) {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	for len(c.in.data) == 0 {
		if c.in.closed {
			return 0, io.EOF
		}
		c.in.cond.Wait()
	}
	n := copy(p, c.in.data)
	c.in.data = c.in.data[n:]
	return n, nil
}

func (c *memoryConn) Write(p []byte) (int, error) {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if c.out.closed {
		return 0, os.ErrClosed
	}
	c.out.data = append(c.out.data, p...)
	c.out.cond.Broadcast()
	return len(p), nil
}

func (c *memoryConn) Close() error {
	for _, s := range []*memoryStream{c.in, c.out} {
		s.mu.Lock()
		s.closed = true
		s.cond.Broadcast()
		s.mu.Unlock()
	}
	return nil
}

func (c *memoryConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *memoryConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *memoryConn) SetDeadline(time.Time) error      { return nil }
func (c *memoryConn) SetReadDeadline(time.Time) error  { return nil }
func (c *memoryConn) SetWriteDeadline(time.Time) error { return nil }

// alertOf is the text of the error that ended the handshake for the client.
func alertOf(o outcome) string {
	if o.clientErr == nil {
		return ""
	}
	return o.clientErr.Error()
}

// eventRecorder writes down all events of sets.
type eventRecorder struct{ recorder }

func (r *eventRecorder) RevocationsLoaded(name, _ string, _ time.Time) { r.add("CRL loaded %s", name) }
func (r *eventRecorder) RevocationsRefused(name, _ string, err error) {
	r.add("CRL refused %s: %v", name, err)
}
func (r *eventRecorder) RevocationsExpire(name, _, issuer string, _ time.Time, expired bool) {
	r.add("CRL expire %s %s expired=%v", name, issuer, expired)
}
func (r *eventRecorder) TicketKeysLoaded(file string) { r.add("keys loaded %s", file) }
func (r *eventRecorder) TicketKeysRefused(file string, err error) {
	r.add("keys refused %s: %v", file, err)
}
func (r *eventRecorder) TicketKeysRotated(name string) { r.add("keys rotated %s", name) }

// eventually waits for what another goroutine does, for 5 s at most.
func eventually(t *testing.T, what string, is func() bool, within ...time.Duration) {
	t.Helper()
	limit := 5 * time.Second
	if len(within) > 0 {
		limit = cmp.Or(within[0], limit)
	}
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
		<-tick.C
	}
}
