package integration

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"edgeproxy/internal/testcert"
)

// h3Server is an HTTP/3 server of quic-go.
type h3Server struct {
	name     string
	addr     string
	requests atomic.Int64
	content  *stream

	mu      sync.Mutex
	clients map[string]bool // addresses from which requests came
}

// newH3Server serves, until the test ends, on a socket:
//
//	GET /name        the server's name
//	GET /bytes?n=N   N bytes of the stream
//	GET /slow?ms=N   the name, N ms later
//	PUT /bytes?n=N   the name if these are the stream's first N bytes
//
// Its connection ids begin as QUIC-LB has them if it has a server id.
func newH3Server(t testing.TB, conn *net.UDPConn, name string, pair *testcert.Pair, serverID string, pages http.Handler) *h3Server {
	t.Helper()
	s := &h3Server{name: name, addr: conn.LocalAddr().String(), content: newStream(47), clients: map[string]bool{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /name", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, name) })
	mux.HandleFunc("GET /slow", func(w http.ResponseWriter, r *http.Request) {
		ms, _ := strconv.Atoi(r.FormValue("ms"))
		time.Sleep(time.Duration(ms) * time.Millisecond) // a slow server, not a wait for anything
		io.WriteString(w, name)
	})
	mux.HandleFunc("GET /bytes", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.FormValue("n"), 10, 64)
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		s.content.Send(w, n)
	})
	mux.HandleFunc("PUT /bytes", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
		if err := s.content.Verify(r.Body, n); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		io.WriteString(w, name)
	})
	if pages != nil {
		mux.Handle("/", pages)
	}
	server := &http3.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		s.mu.Lock()
		s.clients[r.RemoteAddr] = true
		s.mu.Unlock()
		mux.ServeHTTP(w, r)
	})}
	tr := &quic.Transport{Conn: conn}
	if serverID != "" {
		tr.ConnectionIDGenerator = lbConnectionIDs(serverID)
	}
	ln, err := tr.ListenEarly(http3.ConfigureTLSConfig(&tls.Config{Certificates: []tls.Certificate{pair.TLS()}}),
		&quic.Config{Versions: []quic.Version{quic.Version1, quic.Version2}})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { server.ServeListener(ln) })
	t.Cleanup(func() {
		server.Close()
		ln.Close()
		tr.Close()
		conn.Close()
		wg.Wait()
	})
	return s
}

// lbConnectionIDs makes connection ids with a server id in plain text
// (draft-ietf-quic-load-balancers, section 5.2): the length of the rest, the
// server id, and a nonce.
type lbConnectionIDs string

func (id lbConnectionIDs) GenerateConnectionID() (quic.ConnectionID, error) {
	b := make([]byte, id.ConnectionIDLen())
	rand.Read(b)
	b[0] = byte(len(b) - 1)
	copy(b[1:], id)
	return quic.ConnectionIDFromBytes(b), nil
}

func (id lbConnectionIDs) ConnectionIDLen() int { return 1 + len(id) + 8 }

// loopbackUDP is a socket whose owner closes it.
func loopbackUDP(t testing.TB) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// h3Client is an HTTP/3 client of quic-go with one connection at a time.
type h3Client struct {
	t       testing.TB
	sni     string
	http    http.Client
	content *stream
	close   func()

	mu   sync.Mutex
	conn *quic.Conn
}

// newH3Client is a client that speaks to an address, by a socket, as if it had
// looked up a name. It sends something at least every 300 ms.
func newH3Client(t testing.TB, ca *testcert.CA, conn *net.UDPConn, addr, sni string, version quic.Version) *h3Client {
	t.Helper()
	to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr))
	tr := &quic.Transport{Conn: conn}
	c := &h3Client{t: t, sni: sni, content: newStream(47)}
	h3 := &http3.Transport{
		TLSClientConfig: &tls.Config{RootCAs: ca.Pool()},
		QUICConfig:      &quic.Config{Versions: []quic.Version{version}, KeepAlivePeriod: 300 * time.Millisecond, MaxIdleTimeout: patience},
		Dial: func(ctx context.Context, _ string, tlsConf *tls.Config, conf *quic.Config) (*quic.Conn, error) {
			qc, err := tr.DialEarly(ctx, to, tlsConf, conf)
			c.mu.Lock()
			c.conn = qc
			c.mu.Unlock()
			return qc, err
		},
	}
	c.http = http.Client{Transport: h3, Timeout: 2 * patience}
	c.close = func() {
		h3.Close()
		tr.Close()
		conn.Close()
	}
	t.Cleanup(c.close)
	return c
}

func (c *h3Client) do(method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(c.t.Context(), method, "https://"+c.sni+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, text)
	}
	return resp, nil
}

// get returns a short text.
func (c *h3Client) get(path string) (string, error) {
	resp, err := c.do(http.MethodGet, path, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

// download fetches n bytes and compares them. It calls at, if there is one,
// with what has come so far.
func (c *h3Client) download(n int64, at func(int64)) error {
	resp, err := c.do(http.MethodGet, fmt.Sprintf("/bytes?n=%d", n), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return c.content.Verify(&watched{r: resp.Body, at: at}, n)
}

// upload sends n bytes, which the server compares.
func (c *h3Client) upload(n int64, at func(int64)) error {
	r, w := io.Pipe()
	go func() { w.CloseWithError(c.content.Send(w, n)) }()
	resp, err := c.do(http.MethodPut, fmt.Sprintf("/bytes?n=%d", n), &watched{r: r, at: at})
	r.Close()
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// watched tells how much was read.
type watched struct {
	r  io.Reader
	n  int64
	at func(int64)
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.r.Read(b)
	w.n += int64(n)
	if w.at != nil {
		w.at(w.n)
	}
	return n, err
}

// once calls f when a transfer has come as far as n.
func once(n int64, f func()) func(int64) {
	return func(at int64) {
		if f != nil && at >= n {
			f()
			f = nil
		}
	}
}

// h3Lab is two HTTP/3 servers, with a certificate of their own each, behind
// one listener.
type h3Lab struct {
	ca   *testcert.CA
	p    *Proxy
	a, b *h3Server
}

func newH3Lab(t *testing.T) *h3Lab {
	l := &h3Lab{ca: testcert.NewCA(t, "HTTP/3")}
	l.a = newH3Server(t, loopbackUDP(t), "a", l.ca.Server(t, "a.test"), "", nil)
	l.b = newH3Server(t, loopbackUDP(t), "b", l.ca.Server(t, "b.test"), "", nil)
	l.p = Start(t, fmt.Sprintf(`
listener "udp" "edge" {
  address = "127.0.0.1:0"
  timeouts { idle = "2s" }
  route "echo" {
    match {
      sni  = ["*.test"]
      alpn = ["echo"]
    }
    upstream = upstream.c
  }
  route "a" {
    match { sni = ["a.test"] }
    upstream = upstream.a
  }
  route "b" {
    match {
      sni  = ["b.test"]
      alpn = ["h3"]
    }
    upstream = upstream.b
  }
  route "rest" {
    match { protocol = ["quic"] }
    reject = true
  }
}
upstream "a" {
  server "a" { address = %q }
}
upstream "b" {
  server "b" { address = %q }
}
upstream "c" {
  server "c" { address = %q }
}
`, l.a.addr, l.b.addr, quicEcho(t, l.ca.Server(t, "a.test", "b.test"))))
	return l
}

func (l *h3Lab) client(t *testing.T, sni string, version quic.Version) *h3Client {
	return newH3Client(t, l.ca, loopbackUDP(t), l.p.Addr("edge"), sni, version)
}

// quicEcho is a server of another protocol over QUIC, "echo".
func quicEcho(t *testing.T, pair *testcert.Pair) (addr string) {
	tr := &quic.Transport{Conn: loopbackUDP(t)}
	ln, err := tr.Listen(&tls.Config{Certificates: []tls.Certificate{pair.TLS()}, NextProtos: []string{"echo"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept(context.Background())
			if err != nil {
				return
			}
			wg.Go(func() {
				if s, err := conn.AcceptStream(conn.Context()); err == nil {
					io.Copy(s, s)
					s.Close()
				}
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		tr.Close()
		wg.Wait()
	})
	return tr.Conn.LocalAddr().String()
}

// Servers are chosen by server name and protocol, which are read from the
// ClientHello; with QUIC 1 and 2.
func TestRealQUICBySNIAndALPN(t *testing.T) {
	t.Parallel()
	l := newH3Lab(t)
	n := 0
	for _, version := range []quic.Version{quic.Version1, quic.Version2} {
		for _, name := range []string{"a", "b"} {
			c := l.client(t, name+".test", version)
			for range 3 {
				if got, err := c.get("/name"); err != nil || got != name {
					t.Fatalf("%v, %s.test: %q, %v", version, name, got, err)
				}
			}
			// A hello with a post-quantum share takes two datagrams.
			if got := c.conn.ConnectionState(); got.Version != version || got.TLS.CurveID != tls.X25519MLKEM768 {
				t.Errorf("%v: %v, %v", version, got.Version, got.TLS.CurveID)
			}
			c.http.CloseIdleConnections()
			n++
		}
	}
	for _, e := range l.p.AccessLog(n) {
		if e.Protocol != "quic" || e.SNI != e.Server+".test" || e.ALPN != "h3" || e.Route != e.Server || e.End != "idle_timeout" {
			t.Errorf("%+v", e)
		}
	}
	tr := &quic.Transport{Conn: loopbackUDP(t)}
	defer tr.Close()
	dial := func(sni, alpn string, patience time.Duration) (*quic.Conn, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return tr.Dial(ctx, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(l.p.Addr("edge"))),
			&tls.Config{RootCAs: l.ca.Pool(), ServerName: sni, NextProtos: []string{alpn}}, nil)
	}
	conn, err := dial("b.test", "echo", patience)
	if err != nil {
		t.Fatal(err)
	}
	s, err := conn.OpenStreamSync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(s, "by ALPN")
	s.Close()
	if got, err := io.ReadAll(s); err != nil || string(got) != "by ALPN" {
		t.Errorf("%q, %v", got, err)
	}
	conn.CloseWithError(0, "")
	if _, err := dial("c.test", "h3", time.Second); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a name without a route: %v", err)
	}
	if l.p.Metrics().Drops("edge")["denied"] == 0 {
		t.Errorf("dropped: %v", l.p.Metrics().Drops("edge"))
	}
}

// A large transfer, each way and both at once.
func TestRealQUICTransfer(t *testing.T) {
	t.Parallel()
	l := newH3Lab(t)
	n := int64(208 * streamBlock) // 55 MB
	if raceEnabled {
		n /= 8 // quic-go is at both ends, and slow then
	}
	for name, transfer := range map[string]func(c *h3Client) error{
		"down": func(c *h3Client) error { return c.download(n, nil) },
		"up":   func(c *h3Client) error { return c.upload(n, nil) },
		"both": func(c *h3Client) error {
			done := make(chan error)
			go func() { done <- c.upload(n/2, nil) }()
			return errors.Join(c.download(n/2, nil), <-done)
		},
	} {
		if err := transfer(l.client(t, "a.test", quic.Version1)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
