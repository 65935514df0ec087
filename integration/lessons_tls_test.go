package integration

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"edgeproxy/internal/testcert"
)

// The tests of this file are bugs that other proxies had.

// twoPolicies serves app.test to everyone, and secret.test to clients with a
// certificate, in one listener and with the same ticket keys.
func twoPolicies(t *testing.T, extra string) (p *Proxy, l *tlsLab, alice *testcert.Pair, open, secret *Server) {
	t.Helper()
	l = newTLSLab(t)
	l.ca.Server(t, "secret.test", "*.secret.test").Write(t, l.dir, "secret")
	clients := testcert.NewCA(t, "clients")
	clients.Write(t, l.dir, "clients")
	key := make([]byte, 80)
	rand.Read(key)
	testcert.WriteFile(t, l.dir, "tickets.key", []byte(base64.StdEncoding.EncodeToString(key)+"\n"))
	open, secret = Serve(t, echo), Serve(t, echo)
	p = Start(t, fmt.Sprintf(`
tls "open" {
  %[1]s
  ticket_keys = "%[3]s/tickets.key"
}
tls "mutual" {
  %[2]s
  ticket_keys = "%[3]s/tickets.key"
  client_auth {
    mode    = "require"
    ca_file = "%[3]s/clients.pem"
  }
}
listener "tcp" "edge" {
  address = "127.0.0.1:0"
  %[6]s
  route "secret" {
    match { sni = ["secret.test", "*.secret.test"] }
    tls      = tls.mutual
    upstream = upstream.secret
  }
  route "open" {
    tls      = tls.open
    upstream = upstream.open
  }
}
upstream "open" {
  server "a" { address = %[4]q }
}
upstream "secret" {
  server "a" { address = %[5]q }
}`, l.certificate("app"), l.certificate("secret"), l.dir, open.Addr(), secret.Addr(), extra))
	return p, l, clients.Client(t, "alice"), open, secret
}

// oneSession is a session cache that offers what it has to every server.
type oneSession struct{ s *tls.ClientSessionState }

func (o *oneSession) Get(string) (*tls.ClientSessionState, bool) { return o.s, o.s != nil }
func (o *oneSession) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		o.s = s
	}
}

// nginx CVE-2025-23419, Envoy CVE-2022-21654, Go CVE-2025-68121: a session of a
// virtual server without client certificates was resumed at one with them. The
// ticket keys are the same here, in a file.
func TestLessonResumptionSkipsNoClientCertificate(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		p, l, alice, _, secret := twoPolicies(t, "")
		addr := p.Addr("edge")
		at := func(name string, cache *oneSession, pairs ...*testcert.Pair) *tls.Config {
			cfg := only(l.client(), version, 0)
			// A certificate that does not fit the name is no session's end for
			// crypto/tls, but it does not offer the session then.
			cfg.InsecureSkipVerify = true
			cfg.ServerName, cfg.ClientSessionCache = name, cache
			for _, pair := range pairs {
				cfg.Certificates = append(cfg.Certificates, pair.TLS())
			}
			return cfg
		}
		cache := &oneSession{}
		for try := range 2 {
			c := DialTLS(t, addr, at("app.test", cache))
			RoundTrip(t, c, "open")
			if resumed := c.ConnectionState().DidResume; resumed != (try == 1) {
				t.Fatalf("connection %d to app.test: resumed %v", try, resumed)
			}
			c.Close()
		}
		for _, name := range []string{"secret.test", "SECRET.test", "x.secret.test"} {
			c, err := tlsConnect(addr, at(name, &oneSession{cache.s}))
			if err == nil {
				if c.ConnectionState().DidResume {
					t.Errorf("%s: a session of app.test was resumed", name)
				}
				_, err = c.Read(make([]byte, 1))
				c.bare()
			}
			if err == nil || !strings.Contains(err.Error(), "alert") && !strings.Contains(err.Error(), "remote error") {
				t.Errorf("%s: %v; want an alert", name, err)
			}
		}
		// With a certificate, and back: neither is resumed.
		mutual := &oneSession{cache.s}
		c := DialTLS(t, addr, at("secret.test", mutual, alice))
		RoundTrip(t, c, "secret")
		if c.ConnectionState().DidResume {
			t.Error("a session of app.test was resumed with a certificate")
		}
		c.Close()
		c = DialTLS(t, addr, at("app.test", mutual))
		RoundTrip(t, c, "open")
		if c.ConnectionState().DidResume {
			t.Error("a session of secret.test was resumed at app.test")
		}
		c.Close()
		if n := secret.Accepted(); n != 1 {
			t.Errorf("%d sessions reached the server behind client certificates, want 1", n)
		}
	})
}

// firstWrite changes a client's first write, its ClientHello.
type firstWrite struct {
	net.Conn
	change func([]byte) []byte
}

func (f *firstWrite) Write(b []byte) (int, error) {
	n := len(b)
	if f.change != nil {
		b = f.change(bytes.Clone(b))
		f.change = nil
	}
	_, err := f.Conn.Write(b)
	return n, err
}

// Traefik CVE-2026-48491, CVE-2026-53622, CVE-2022-23632: what a name's case, a
// trailing dot or a wildcard meant differed between the route and its TLS
// policy. Whoever spells the name of the route with client certificates, in
// whatever way, does not get to the one without.
func TestLessonNamesDecideAlike(t *testing.T) {
	t.Parallel()
	p, l, _, open, secret := twoPolicies(t, "")
	addr := p.Addr("edge")
	for i, name := range []string{
		"secret.test", "SECRET.TEST", "sEcReT.tEsT", "secret.test.", "SECRET.TEST.", "x.secret.test", "X.secret.Test.", "a.b.secret.test",
		"secret.test..", ".secret.test", "secret..test", "secret.test\x00", "secret.test ", "secret.test:443", "\u017fecret.test",
	} {
		c := Dial(t, addr)
		cfg := l.client()
		cfg.InsecureSkipVerify = true
		cfg.ServerName = strings.Repeat("z", len(name)) // takes its place on the wire
		err := tls.Client(&firstWrite{c, func(b []byte) []byte {
			if bytes.Count(b, []byte(cfg.ServerName)) != 1 {
				t.Errorf("where is the name in % x?", b)
			}
			return bytes.Replace(b, []byte(cfg.ServerName), []byte(name), 1)
		}}, cfg).Handshake()
		if err == nil {
			t.Errorf("%q: a handshake that was tampered with", name)
		}
		c.Close()
		if e := p.AccessLog(i + 1)[i]; e.Route == "open" || e.End != "tls_failed" && e.End != "no_route" {
			t.Errorf("%q: route %q, ended %s in %s", name, e.Route, e.End, e.Phase)
		}
	}
	if open.Accepted()+secret.Accepted() != 0 {
		t.Errorf("%d and %d sessions reached servers", open.Accepted(), secret.Accepted())
	}
}

// splitHello is a ClientHello with its handshake message in records of those
// sizes; the last one takes the rest.
func splitHello(hello []byte, sizes ...int) []byte {
	message, out := hello[5:], []byte(nil)
	for _, n := range append(sizes, len(message)) {
		n = min(n, len(message))
		if n > 0 {
			out = append(append(out, 22, 3, 1, byte(n>>8), byte(n)), message[:n]...)
		}
		message = message[n:]
	}
	return out
}

// Traefik CVE-2026-32305: a ClientHello that was not understood had no name, and
// so got the default. Here it gets nothing, whether the default terminates or
// passes through.
func TestLessonHelloThatIsNotUnderstoodIsRefused(t *testing.T) {
	t.Parallel()
	secret, rest := Serve(t, echo), Serve(t, echo)
	p := Start(t, fmt.Sprintf(`
listener "tcp" "edge" {
  address = "127.0.0.1:0"
  timeouts { handshake = "2s" }
  route "secret" {
    match { sni = ["app.test"] }
    upstream = upstream.secret
  }
  route "rest" { upstream = upstream.rest }
}
upstream "secret" {
  server "a" { address = %q }
}
upstream "rest" {
  server "a" { address = %q }
}`, secret.Addr(), rest.Addr()))
	var hello []byte
	a, b := net.Pipe()
	tls.Client(&firstWrite{a, func(p []byte) []byte {
		hello = p
		b.Close()
		return p
	}}, &tls.Config{ServerName: "app.test"}).Handshake()
	good := splitHello(hello, 1, 3, 40, 60)
	halves := splitHello(hello, 50)
	long := bytes.Clone(hello[:9])
	long[6], long[7], long[8] = 2, 0, 0 // 128 KiB
	cases := map[string][]byte{
		"interrupted by an alert":     slices.Concat(halves[:55], []byte{21, 3, 3, 0, 2, 1, 0}, halves[55:]),
		"interrupted by data":         slices.Concat(halves[:55], []byte{23, 3, 3, 0, 1, 0}, halves[55:]),
		"interrupted by an empty one": slices.Concat(halves[:55], []byte{22, 3, 3, 0, 0}, halves[55:]),
		"an alert ahead":              slices.Concat([]byte{21, 3, 1, 0, 2, 1, 112}, hello),
		"an empty record ahead":       slices.Concat([]byte{22, 3, 1, 0, 0}, hello),
		"half of it":                  halves[:55],
		"less than its length":        hello[:len(hello)-1],
		"128 KiB":                     slices.Concat(long, bytes.Repeat([]byte{0}, 20_000)),
		"a ServerHello":               slices.Concat(hello[:5], []byte{2}, hello[6:]),
		"an extension beyond the end": bytes.Replace(bytes.Clone(hello), []byte("\x00\x00\x00\x0d\x00\x0b\x00\x00\x08app.test"), []byte("\x00\x00\xff\x0d\x00\x0b\x00\x00\x08app.test"), 1),
		"a name that is none":         bytes.Replace(bytes.Clone(hello), []byte("app.test"), []byte("app\x00test"), 1),
		"a name longer than its list": bytes.Replace(bytes.Clone(hello), []byte("\x00\x08app.test"), []byte("\x00\x09app.test"), 1),
	}
	n := 0
	for what, sent := range cases {
		if bytes.Equal(sent, hello) {
			t.Fatalf("%s: nothing was changed", what)
		}
		for _, fin := range []bool{true, false} {
			c := Dial(t, p.Addr("edge"))
			Send(t, c, string(sent))
			if fin {
				c.CloseWrite()
			}
			io.Copy(io.Discard, c)
			n++
			if e := p.AccessLog(n)[n-1]; e.Route != "" || e.End != "tls_failed" && (fin || e.End != "handshake_timeout") {
				t.Errorf("%s, FIN %v: route %q, ended %s in %s", what, fin, e.Route, e.End, e.Phase)
			}
		}
	}
	if secret.Accepted()+rest.Accepted() != 0 {
		t.Errorf("%d and %d sessions reached servers", secret.Accepted(), rest.Accepted())
	}
	// And one in five records is as good as in one.
	c := Dial(t, p.Addr("edge"))
	RoundTrip(t, c, string(good))
	c.CloseWrite()
	ExpectEOF(t, c)
	if e := p.AccessLog(n + 1)[n]; e.Route != "secret" || e.SNI != "app.test" {
		t.Errorf("%+v", e)
	}
}

// sslh CVE-2025-46807: clients that say nothing while they are sniffed took all
// descriptors. Limits count them from accept on.
func TestLessonLimitsCountWhileSniffing(t *testing.T) {
	t.Parallel()
	for limit, process := range map[string]string{"limits { connections = 10 }": "", "limits { connections_per_source = 10 }": "", "": "max_connections = 10"} {
		t.Run(limit+process, func(t *testing.T) {
			t.Parallel()
			l := newTLSLab(t)
			s := Serve(t, echo)
			p := Start(t, l.edgeWith("", "timeouts { handshake = \"3s\" }\n"+limit, "", s.Addr()), WithProcess(process))
			var silent []Conn
			for range 10 {
				silent = append(silent, Dial(t, p.Addr("edge")))
			}
			p.Await(10, "edgeproxy_sessions_active")
			if process != "" {
				// The next one waits in the kernel's queue, and gets its turn.
				c := DialTLS(t, p.Addr("edge"), l.client())
				RoundTrip(t, c, "at last")
				c.Close()
				return
			}
			c := Dial(t, p.Addr("edge"))
			ExpectGone(t, c)
			p.LastEnd(1, "limited", "accept")
			silent[0].Close()
			p.Await(9, "edgeproxy_sessions_active")
			cfg := l.client()
			d := DialTLS(t, p.Addr("edge"), cfg)
			RoundTrip(t, d, "room again")
		})
	}
}

// Go CVE-2024-24783 and others: what clients show is bounded in bytes, and so
// is what is logged of it.
func TestLessonHugeCertificates(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		p, l, alice, _, secret := twoPolicies(t, "")
		pair := alice.TLS()
		for size := 0; size < 150<<10; size += len(l.ca.Cert.Raw) {
			pair.Certificate = append(pair.Certificate, l.ca.Cert.Raw)
		}
		cfg := only(l.client(), version, 0)
		cfg.ServerName, cfg.Certificates = "secret.test", []tls.Certificate{pair}
		c, err := tlsConnect(p.Addr("edge"), cfg)
		if err == nil {
			_, err = c.Read(make([]byte, 1))
			c.bare()
		}
		e := p.LastEnd(1, "tls_failed", "tls")
		if err == nil || !strings.Contains(e.Error, "KiB") || len(e.Error) > 400 {
			t.Errorf("the client sees %v; logged %q", err, e.Error)
		}
		if secret.Accepted() != 0 {
			t.Error("a session has reached the server")
		}
	})
}

// Linux CVE-2026-23414, CVE-2025-39682: kernel TLS can be switched off.
func TestLessonKernelTLSCanBeOff(t *testing.T) {
	t.Parallel()
	l := newTLSLab(t)
	// The mention keeps the harness from switching it on.
	p := Start(t, l.edge(Serve(t, echo).Addr()), WithProcess(`kernel_tls = "off"`))
	c := DialTLS(t, p.Addr("edge"), l.client())
	RoundTrip(t, c, "hello")
	m := p.Metrics()
	if k, r := m.Sum("edgeproxy_tls_sessions", "engine", "kernel"), m.Sum("edgeproxy_tls_sessions", "engine", "records"); k != 0 || r != 1 {
		t.Errorf("%v sessions of kernel TLS, %v of records", k, r)
	}
}

// Traefik CVE-2026-22045: the handshake of a certificate authority's challenge
// cleared the deadline; and CVE-2026-25949 likewise a prelude. PostgreSQL's
// SSLRequest is such a prelude.
func TestLessonPreludeClearsNoDeadline(t *testing.T) {
	t.Parallel()
	l := newTLSLab(t)
	s := Serve(t, echo)
	p := Start(t, l.policy("")+fmt.Sprintf(`
listener "tcp" "edge" {
  address = "127.0.0.1:0"
  timeouts { handshake = "1s" }
  route "db" {
    match { protocol = ["postgres"] }
    tls      = tls.public
    upstream = upstream.app
  }
}
upstream "app" {
  server "a" { address = %q }
}`, s.Addr()))
	c := Dial(t, p.Addr("edge"))
	Send(t, c, "\x00\x00\x00\x08\x04\xd2\x16\x2f")
	Expect(t, c, "S")
	go func() { // a byte now and then, of a record that does not end
		for i := range 1000 {
			if _, err := c.Write([]byte("\x16\x03\x01\x40\x00\x01\x00\x3f\xfc" + strings.Repeat("\x03", 1000))[i : i+1]); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	io.Copy(io.Discard, c)
	e := p.LastEnd(1, "handshake_timeout", "tls")
	took(t, e, 980*time.Millisecond, 3*time.Second)
	if s.Accepted() != 0 {
		t.Error("a session has reached the server")
	}
}
