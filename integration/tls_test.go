package integration

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"edgeproxy/internal/testcert"
)

// wantEngine is the engine that sessions must be counted under; "" if either
// may carry them, as when the tests run with kernel TLS switched on.
func wantEngine(testing.TB) string {
	if os.Getenv("EDGEPROXY_KERNEL_TLS") != "" {
		return ""
	}
	return "records"
}

// tlsSessions counts the sessions that are not left to crypto/tls, and asserts
// that none is.
func (p *Proxy) tlsSessions() float64 {
	p.t.Helper()
	m := p.Metrics()
	if n := m.Sum("edgeproxy_tls_sessions", "engine", "goroutine"); n != 0 {
		p.t.Errorf("crypto/tls carries %v sessions", n)
	}
	if e := wantEngine(p.t); e != "" {
		return m.Sum("edgeproxy_tls_sessions", "engine", e)
	}
	return m.Sum("edgeproxy_tls_sessions")
}

// tlsLab is a folder with an authority and a certificate for app.test.
type tlsLab struct {
	t    testing.TB
	dir  string
	ca   *testcert.CA
	pair *testcert.Pair
}

func newTLSLab(t testing.TB) *tlsLab {
	t.Helper()
	l := &tlsLab{t: t, dir: shortTempDir(t), ca: testcert.NewCA(t, "test authority")}
	l.pair = l.ca.Server(t, "app.test", "127.0.0.1")
	l.pair.Write(t, l.dir, "app")
	return l
}

// certificate is the block for the pair NAME.crt and NAME.key.
func (l *tlsLab) certificate(name string) string {
	return fmt.Sprintf("certificate {\n cert_file = \"%s/%s.crt\"\n key_file = \"%[1]s/%s.key\"\n}\n", l.dir, name, name)
}

// policy is the block tls "public" with the certificate of app.test.
func (l *tlsLab) policy(attrs string) string {
	return "tls \"public\" {\n" + l.certificate("app") + attrs + "\n}\n"
}

// edge is [oneUpstream] behind TLS.
func (l *tlsLab) edge(servers ...string) string { return l.edgeWith("", "", "", servers...) }

func (l *tlsLab) edgeWith(policy, listener, upstream string, servers ...string) string {
	return l.policy(policy) + oneUpstream("tls = tls.public\n "+listener, upstream, servers...)
}

// client is the configuration of a client that trusts the authority.
func (l *tlsLab) client() *tls.Config {
	return &tls.Config{ServerName: "app.test", RootCAs: l.ca.Pool()}
}

// server is the configuration of a server that has the certificate.
func (l *tlsLab) server() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{l.pair.TLS()}}
}

// serveTLS runs a server that speaks TLS.
func serveTLS(t testing.TB, cfg *tls.Config, handle func(*tls.Conn)) *Server {
	t.Helper()
	return Serve(t, func(c Conn) {
		s := tls.Server(c, cfg)
		if s.Handshake() == nil {
			handle(s)
		}
		s.Close()
	})
}

func echoTLS(c *tls.Conn) {
	io.Copy(struct{ io.Writer }{c}, c)
	c.CloseWrite()
}

// tlsClient is a client's connection, and that below it.
type tlsClient struct {
	*tls.Conn
	under *tap
}

// tap notes that the end of a TCP stream was read: crypto/tls does not tell it
// from a close_notify.
type tap struct {
	Conn
	eof atomic.Bool
}

func (t *tap) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	if errors.Is(err, io.EOF) {
		t.eof.Store(true)
	}
	return n, err
}

// tlsConnect connects and makes the handshake.
func tlsConnect(addr string, cfg *tls.Config) (*tlsClient, error) {
	c, err := connect(addr)
	if err != nil {
		return nil, err
	}
	t := &tap{Conn: c}
	s := tls.Client(t, cfg)
	if err := s.Handshake(); err != nil {
		c.Close()
		return nil, err
	}
	return &tlsClient{s, t}, nil
}

// DialTLS is [Dial] with TLS.
func DialTLS(t testing.TB, addr string, cfg *tls.Config) *tlsClient {
	t.Helper()
	c, err := tlsConnect(addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.under.Close() })
	return c
}

// bare closes without close_notify.
func (c *tlsClient) bare() { c.under.Conn.Close() }

// expectNotify asserts that the stream ends with close_notify here.
func expectNotify(t testing.TB, c *tlsClient) {
	t.Helper()
	b, err := io.ReadAll(c)
	if err != nil || len(b) > 0 || c.under.eof.Load() {
		t.Fatalf("read %d bytes, %v, bare end %v; want close_notify", len(b), err, c.under.eof.Load())
	}
}

// expectCut asserts that the stream does not end in good order.
func expectCut(t testing.TB, c *tlsClient) {
	t.Helper()
	if n, err := io.Copy(io.Discard, c); err == nil && !c.under.eof.Load() {
		t.Fatalf("close_notify after %d bytes; want a broken stream", n)
	}
}

// expectAlert makes a handshake that must fail with the alert of that name.
func expectAlert(t testing.TB, addr string, cfg *tls.Config, alert string) {
	t.Helper()
	c, err := tlsConnect(addr, cfg)
	if err == nil {
		// In TLS 1.3 a client has finished before the server refuses it.
		_, err = c.Read(make([]byte, 1))
		c.bare()
	}
	if err == nil || !strings.Contains(err.Error(), alert) {
		t.Errorf("%v; want the alert %q", err, alert)
	}
}

// tlsFault asserts that an entry's error speaks of what.
func tlsFault(t testing.TB, e Entry, what string) {
	t.Helper()
	if !strings.Contains(e.Error, what) {
		t.Errorf("session %s ended with error %q, want one about %q", e.End, e.Error, what)
	}
}

// suites12 are those of TLS 1.2 that are on by default.
var suites12 = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// only is cfg for one version and, if it is not 0, one suite.
func only(cfg *tls.Config, version, suite uint16) *tls.Config {
	cfg.MinVersion, cfg.MaxVersion = version, version
	if suite != 0 {
		cfg.CipherSuites = []uint16{suite}
	}
	return cfg
}

// bothVersions runs a test for TLS 1.2 and 1.3.
func bothVersions(t *testing.T, test func(t *testing.T, version uint16)) {
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(v), func(t *testing.T) {
			t.Parallel()
			test(t, v)
		})
	}
}

const moment = 50 * time.Millisecond // a peer that pauses
