package acme

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"edgeproxy/internal/testacme"
	"edgeproxy/internal/testcert"
)

// Most of these tests wait for the authority rather than compute, so more of
// them than there are CPUs run side by side, unless the caller chose.
func TestMain(m *testing.M) {
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		flag.Set("test.parallel", "10")
	}
	os.Exit(m.Run())
}

// patience bounds every wait; it matters only when something is wrong.
const patience = 30 * time.Second

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	end := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// edge is what the authority finds: a TLS server with a certificate of its own
// for names that the Manager has none for, and an HTTP server in front of
// Options.HTTPAddress.
type edge struct {
	t       *testing.T
	manager atomic.Pointer[Manager]
	tls     net.Listener
	http    *httptest.Server
	static  *testcert.CA
}

func newEdge(t *testing.T) *edge {
	t.Helper()
	e := &edge{t: t, static: testcert.NewCA(t, "static")}
	fallback := e.static.Server(t, "fallback.test").TLS()
	base := &tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if m := e.manager.Load(); m != nil {
			c, err := m.GetCertificate(h)
			if err == nil || IsChallenge(h.ServerName, h.SupportedProtos) {
				return c, err
			}
		}
		return &fallback, nil
	}}
	challenge := base.Clone()
	challenge.NextProtos = []string{ALPNProtocol}
	base.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if IsChallenge(h.ServerName, h.SupportedProtos) {
			return challenge, nil
		}
		return nil, nil
	}
	var err error
	if e.tls, err = tls.Listen("tcp", "127.0.0.1:0", base); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.tls.Close() })
	go func() {
		for {
			c, err := e.tls.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				io.Copy(io.Discard, c)
			}()
		}
	}()
	e.http = httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		m := e.manager.Load()
		r.SetURL(&url.URL{Scheme: "http", Host: m.responder.address})
		r.Out.Host = r.In.Host
	}})
	t.Cleanup(e.http.Close)
	return e
}

func port(t *testing.T, addr net.Addr) int {
	t.Helper()
	return addr.(*net.TCPAddr).Port
}

// authority starts one that asks this edge for proof.
func (e *edge) authority(o testacme.Options) *testacme.Authority {
	e.t.Helper()
	o.TLSPort, o.HTTPPort = port(e.t, e.tls.Addr()), port(e.t, e.http.Listener.Addr())
	return testacme.Start(e.t, o)
}

// serve has the edge answer with a Manager made of o, until the test ends.
func (e *edge) serve(s *Service, o Options) *Manager {
	e.t.Helper()
	m := manage(e.t, s, o)
	e.manager.Store(m)
	return m
}

func manage(t *testing.T, s *Service, o Options) *Manager {
	t.Helper()
	m, err := s.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

func options(t *testing.T, ca *testacme.Authority, domains ...string) Options {
	t.Helper()
	return Options{
		Domains:   domains,
		Email:     "ops@example.test",
		Directory: ca.Directory(),
		CAFile:    ca.CAFile(),
		Storage:   t.TempDir() + "/acme",
	}
}

func service(t *testing.T) *Service {
	s := NewService(zaptest.NewLogger(t))
	s.pause = func(int, error) time.Duration { return 20 * time.Millisecond }
	return s
}

// leaf shakes hands and returns the certificate that was shown.
func (e *edge) leaf(name string) *x509.Certificate {
	e.t.Helper()
	c, err := tls.Dial("tcp", e.tls.Addr().String(), &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err != nil {
		e.t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0]
}

// awaitIssued waits until the edge shows a certificate of ca for name.
func (e *edge) awaitIssued(ca *testacme.Authority, name string) *x509.Certificate {
	e.t.Helper()
	var cert *x509.Certificate
	eventually(e.t, "a certificate for "+name, func() bool {
		c, err := tls.Dial("tcp", e.tls.Addr().String(), &tls.Config{ServerName: name, RootCAs: ca.Roots(e.t)})
		if err != nil {
			return false
		}
		defer c.Close()
		cert = c.ConnectionState().PeerCertificates[0]
		return true
	})
	return cert
}

// RFC 8737, through handshakes of the listener that serves everybody.
func TestTLSALPN01(t *testing.T) {
	t.Parallel()
	e := newEdge(t)
	ca := e.authority(testacme.Options{})
	o := options(t, ca, "one.test", "Two.Test.")
	m := e.serve(service(t), o)
	if got := e.leaf("one.test"); got.Issuer.CommonName != "static" {
		t.Errorf("before Start: a certificate of %v", got.Issuer)
	}
	m.Start()
	for _, name := range []string{"one.test", "two.test", "TWO.test"} {
		if c := e.awaitIssued(ca, name); c.VerifyHostname(name) != nil {
			t.Errorf("%s: %v", name, c.DNSNames)
		}
	}
	if got := e.leaf("three.test"); got.Issuer.CommonName != "static" {
		t.Errorf("a name that is not managed: a certificate of %v", got.Issuer)
	}
	for _, s := range m.Status() {
		if s.NotAfter.Before(time.Now()) || s.Failure != "" {
			t.Errorf("status %+v", s)
		}
	}
}

// RFC 8555, section 8.3.
func TestHTTP01(t *testing.T) {
	t.Parallel()
	e := newEdge(t)
	ca := e.authority(testacme.Options{})
	o := options(t, ca, "web.test")
	o.HTTPAddress, o.NoTLSALPN = "127.0.0.1:0", true
	m := e.serve(service(t), o)
	if m.Challenge("web.test") {
		t.Error("tls-alpn-01 is switched off, and still expected")
	}
	m.Start()
	e.awaitIssued(ca, "web.test")
}

// One kind of challenge that fails is no reason to do without the other.
func TestOneOfTwoChallenges(t *testing.T) {
	t.Parallel()
	e := newEdge(t)
	o := testacme.Options{TLSPort: 1, HTTPPort: port(t, e.http.Listener.Addr())}
	ca := testacme.Start(t, o)
	opts := options(t, ca, "both.test")
	opts.HTTPAddress = "127.0.0.1:0"
	e.serve(service(t), opts).Start()
	e.awaitIssued(ca, "both.test")
}

// Certificates are replaced when they are due, without a reload.
func TestRenewal(t *testing.T) {
	t.Parallel()
	e := newEdge(t)
	ca := e.authority(testacme.Options{Validity: 5 * time.Second})
	s := service(t)
	s.renewEvery = 50 * time.Millisecond
	m := e.serve(s, options(t, ca, "short.test"))
	m.Start()
	first := e.awaitIssued(ca, "short.test")
	eventually(t, "another certificate", func() bool {
		now := e.awaitIssued(ca, "short.test")
		return now.SerialNumber.Cmp(first.SerialNumber) != 0
	})
	// RFC 9773, section 5.
	if orders, renewals := ca.Orders(); renewals == 0 {
		t.Errorf("none of %d orders says what it replaces", orders)
	}
}

// The proxy may be up long before the authority can be reached.
func TestAuthorityDownAtStart(t *testing.T) {
	t.Parallel()
	e := newEdge(t)
	ca := e.authority(testacme.Options{})
	ca.Stop()
	s := service(t)
	failed := make(chan error, 1)
	s.pause = func(_ int, err error) time.Duration {
		select {
		case failed <- err:
		default:
		}
		return 20 * time.Millisecond
	}
	m := e.serve(s, options(t, ca, "late.test"))
	m.Start()
	<-failed
	if got := e.leaf("late.test"); got.Issuer.CommonName != "static" {
		t.Errorf("without authority: a certificate of %v", got.Issuer)
	}
	if st := m.Status()[0]; st.Failure == "" || !st.NotAfter.IsZero() {
		t.Errorf("status %+v, want a failure", st)
	}
	ca.Resume(t)
	e.awaitIssued(ca, "late.test")
	if st := m.Status()[0]; st.Failure != "" {
		t.Errorf("status %+v after success", st)
	}
}

// A restart needs neither Start nor the authority for what is stored.
func TestStoredCertificateAtOnce(t *testing.T) {
	t.Parallel()
	e := newEdge(t)
	ca := e.authority(testacme.Options{})
	o := options(t, ca, "stored.test")
	m := e.serve(service(t), o)
	m.Start()
	first := e.awaitIssued(ca, "stored.test")
	m.Close()
	ca.Stop()

	e.serve(service(t), o)
	if got := e.leaf("stored.test"); !got.Equal(first) {
		t.Errorf("after a restart: serial %v of %v, want %v", got.SerialNumber, got.Issuer, first.SerialNumber)
	}
}

// RFC 8555, section 6.7: accountDoesNotExist, of an authority set up anew.
func TestAccountForgotten(t *testing.T) {
	t.Parallel()
	e := newEdge(t)
	ca := e.authority(testacme.Options{})
	o := options(t, ca, "first.test")
	e.serve(service(t), o).Start()
	e.awaitIssued(ca, "first.test")
	ca.Forget()
	o.Domains = []string{"second.test"}
	e.serve(service(t), o).Start()
	e.awaitIssued(ca, "second.test")
}

// A validation may reach any of the processes that share a storage folder.
func TestFleet(t *testing.T) {
	t.Parallel()
	e := newEdge(t)
	ca := e.authority(testacme.Options{})
	o := options(t, ca, "fleet.test")
	e.serve(service(t), o) // is reached, and orders nothing
	orders := manage(t, service(t), o)
	orders.Start()
	eventually(t, "the certificate of the one that ordered", func() bool { return orders.certificate("fleet.test") != nil })
	// The other finds it in the folder.
	e.manager.Load().Start()
	e.awaitIssued(ca, "fleet.test")
	if all, _ := ca.Orders(); all > 3 { // refused nonces count
		t.Errorf("%d orders for one certificate", all)
	}
}

// Two tls blocks may keep the same name; a validation reaches either.
func TestTwoManagersOfOneName(t *testing.T) {
	t.Parallel()
	e := newEdge(t)
	ca := e.authority(testacme.Options{})
	s := service(t)
	e.serve(s, options(t, ca, "twice.test"))
	other := manage(t, s, options(t, ca, "twice.test"))
	other.Start()
	eventually(t, "a certificate", func() bool { return other.certificate("twice.test") != nil })
}

// Refusals are told from an authority that cannot be reached, and what is
// served does not suffer.
func TestRefusedOrder(t *testing.T) {
	t.Parallel()
	e := newEdge(t)
	ca := testacme.Start(t, testacme.Options{TLSPort: 1})
	s := service(t)
	failed := make(chan error, 1)
	s.pause = func(_ int, err error) time.Duration {
		select {
		case failed <- err:
		default:
		}
		return time.Hour
	}
	m := e.serve(s, options(t, ca, "refused.test"))
	m.Start()
	if err := <-failed; pause(1, err) < time.Minute {
		t.Errorf("tried again after %v: %v", pause(1, err), err)
	}
	if got := e.leaf("refused.test"); got.Issuer.CommonName != "static" {
		t.Errorf("a certificate of %v", got.Issuer)
	}
	if st := m.Status()[0]; st.Failure == "" {
		t.Errorf("status %+v, want a failure", st)
	}
}

// Lesson: an ACME fast path cleared deadlines and answered anything (CVE-2026-22045).
// A probe that nobody ordered gets an error, never a certificate.
func TestUnorderedChallenge(t *testing.T) {
	t.Parallel()
	e := newEdge(t)
	ca := e.authority(testacme.Options{})
	m := e.serve(service(t), options(t, ca, "quiet.test"))
	m.Start()
	e.awaitIssued(ca, "quiet.test")
	for _, name := range []string{"quiet.test", "other.test", "../../etc/passwd", ""} {
		hello := &tls.ClientHelloInfo{ServerName: name, SupportedProtos: []string{ALPNProtocol}}
		if c, err := m.GetCertificate(hello); err == nil {
			t.Errorf("%q: a certificate for %v", name, c.Leaf.DNSNames)
		}
	}
	_, err := tls.Dial("tcp", e.tls.Addr().String(), &tls.Config{ServerName: "quiet.test", InsecureSkipVerify: true, NextProtos: []string{ALPNProtocol}})
	if err == nil {
		t.Error("a probe was answered that nobody ordered")
	}
}

func TestResponder(t *testing.T) {
	t.Parallel()
	e := newEdge(t)
	ca := e.authority(testacme.Options{})
	s := service(t)
	o := options(t, ca, "http.test")
	o.HTTPAddress = "127.0.0.1:0"
	m := manage(t, s, o)
	c := challengeFor("http.test", "http-01", "token1")
	if err := (solver{m.keeper}).Present(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		method, host, path string
		status             int
	}{
		{"GET", "http.test", httpPath + "token1", 200},
		{"GET", "HTTP.test.", httpPath + "token1", 200},
		{"GET", "http.test:80", httpPath + "token1", 200},
		{"GET", "http.test", httpPath + "token2", 404},
		{"GET", "http.test", httpPath, 404},
		{"GET", "http.test", "/", 404},
		{"GET", "http.test", "/token1", 404},
		{"GET", "other.test", httpPath + "token1", 404},
		{"POST", "http.test", httpPath + "token1", 404},
	} {
		req, _ := http.NewRequest(tt.method, "http://"+m.responder.address+tt.path, nil)
		req.Host = tt.host
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != tt.status || tt.status == 200 && string(body) != c.KeyAuthorization {
			t.Errorf("%s %s%s: %d %q, want %d", tt.method, tt.host, tt.path, resp.StatusCode, body, tt.status)
		}
	}
	if err := (solver{m.keeper}).CleanUp(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if _, ok := m.challenge(t.Context(), "http-01", "http.test"); ok {
		t.Error("the challenge is still answered after its end")
	}
}

// A reload makes a Manager before it closes the one it had. Nothing is begun
// anew when they are of the same options.
func TestSameOptionsSameKeeper(t *testing.T) {
	t.Parallel()
	e := newEdge(t)
	ca := e.authority(testacme.Options{})
	ca.Stop()
	s := service(t)
	failed := make(chan int, 1)
	s.pause = func(failures int, err error) time.Duration {
		select {
		case failed <- failures:
		default:
		}
		return 10 * time.Millisecond
	}
	o := options(t, ca, "same.test", "Same.TEST.")
	first := manage(t, s, o)
	first.Start()
	for n := 0; n < 3; n = <-failed {
	}
	o.Domains = []string{"same.test"}
	second := manage(t, s, o)
	second.Start()
	first.Close()
	first.Close()
	<-failed // one that may be from before
	if n := <-failed; n < 4 {
		t.Errorf("failure %d after the reload: the count began anew", n)
	}
	o.Email = "other@example.test"
	if third := manage(t, s, o); third.keeper == second.keeper {
		t.Error("other options got the same")
	}
	ca.Resume(t)
	e.manager.Store(second)
	e.awaitIssued(ca, "same.test")
	second.Close()
	if fourth := manage(t, s, o); fourth.keeper == second.keeper {
		t.Error("what was closed is used again")
	}
}

// Several Managers, those of a reload among them, use one address; the last
// one gives it back.
func TestResponderIsShared(t *testing.T) {
	t.Parallel()
	e := newEdge(t)
	ca := e.authority(testacme.Options{})
	s := service(t)
	o := options(t, ca, "a.test")
	o.HTTPAddress = "127.0.0.1:0"
	first := manage(t, s, o)
	o.Domains = []string{"b.test"}
	second := manage(t, s, o)
	address := first.responder.address
	if first.responder != second.responder {
		t.Fatal("each Manager has a socket of its own")
	}
	first.Close()
	resp, err := http.Get("http://" + address + "/")
	if err != nil {
		t.Fatalf("after the first of two was closed: %v", err)
	}
	resp.Body.Close()
	second.Close()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatalf("after both were closed: %v", err)
	}
	defer l.Close()

	o.HTTPAddress = "127.0.0.1:" + strconv.Itoa(port(t, l.Addr()))
	if _, err := s.New(o); err == nil {
		t.Error("an address that is taken was accepted")
	}
}
