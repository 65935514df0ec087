package integration

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"edgeproxy/internal/testcert"
)

// A suite that the record layer does not know is left to crypto/tls, and
// behaves alike.
func TestTLSPolicyCBC(t *testing.T) {
	t.Parallel()
	const suite = tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA
	start := func(t *testing.T, handle func(Conn)) (*Proxy, func() *tlsClient) {
		l := newTLSLab(t)
		p := Start(t, l.edgeWith(`cipher_suites = ["TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA"]`, "", "", Serve(t, handle).Addr()))
		return p, func() *tlsClient { return DialTLS(t, p.Addr("edge"), only(l.client(), tls.VersionTLS12, suite)) }
	}
	goroutine := func(t *testing.T, p *Proxy) {
		t.Helper()
		if n := p.Metrics().Sum("edgeproxy_tls_sessions", "engine", "goroutine"); n != 1 {
			t.Errorf("%v sessions in crypto/tls, want 1", n)
		}
	}
	t.Run("bytes", func(t *testing.T) {
		t.Parallel()
		p, dial := start(t, echo)
		c := dial()
		RoundTrip(t, c, "hello")
		goroutine(t, p)
		exchange(t, c, randomBytes(3<<20))
		c.Close()
		if e := p.LastEnd(1, "client_closed", "relay"); e.TLSCipher != "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA" || e.BytesIn != 5+3<<20 || e.BytesOut != 5+3<<20 {
			t.Errorf("%+v", e)
		}
		p.Await(0, "edgeproxy_tls_sessions")
	})
	t.Run("half-close", func(t *testing.T) {
		t.Parallel()
		p, dial := start(t, func(c Conn) {
			n, _ := io.Copy(io.Discard, c)
			fmt.Fprintf(c, "you sent %d bytes", n)
		})
		c := dial()
		Send(t, c, "0123456789")
		c.CloseWrite()
		Expect(t, c, "you sent 10 bytes")
		expectNotify(t, c)
		p.LastEnd(1, "client_closed", "relay")
	})
	t.Run("server first", func(t *testing.T) {
		t.Parallel()
		got := make(chan string, 1)
		p, dial := start(t, func(c Conn) {
			io.WriteString(c, "all I have to say")
			c.CloseWrite()
			b, err := io.ReadAll(c)
			got <- fmt.Sprint(string(b), err)
		})
		c := dial()
		Expect(t, c, "all I have to say")
		expectNotify(t, c)
		Send(t, c, "much more")
		c.Close()
		if s := <-got; s != "much more<nil>" {
			t.Errorf("the server read %q", s)
		}
		p.LastEnd(1, "server_closed", "relay")
	})
	t.Run("truncation", func(t *testing.T) {
		t.Parallel()
		got := make(chan error, 1)
		p, dial := start(t, func(c Conn) {
			_, err := io.Copy(io.Discard, c)
			got <- err
		})
		for i := range 20 {
			c := dial()
			Send(t, c, strings.Repeat("x", 1+i*1000))
			time.Sleep(5 * time.Millisecond)
			c.bare()
			if err := <-got; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the server read %v, want a reset", err)
			}
			tlsFault(t, p.LastEnd(i+1, "client_reset", "relay"), "truncated")
		}
	})
	t.Run("client reset", func(t *testing.T) {
		t.Parallel()
		got := make(chan error, 1)
		p, dial := start(t, func(c Conn) {
			_, err := io.Copy(io.Discard, c)
			got <- err
		})
		for i := range 10 {
			c := dial()
			Send(t, c, "x")
			time.Sleep(5 * time.Millisecond)
			reset(c.under.Conn)
			if err := <-got; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the server read %v, want a reset", err)
			}
			p.LastEnd(i+1, "client_reset", "relay")
		}
	})
	t.Run("server reset", func(t *testing.T) {
		t.Parallel()
		p, dial := start(t, func(c Conn) {
			io.ReadFull(c, make([]byte, 1))
			reset(c)
		})
		for i := range 10 {
			c := dial()
			Send(t, c, "x")
			expectCut(t, c)
			p.LastEnd(i+1, "server_reset", "relay")
		}
	})
	t.Run("bare close after the answer", func(t *testing.T) {
		t.Parallel()
		p, dial := start(t, func(c Conn) {
			io.WriteString(c, "answer")
			c.CloseWrite()
			io.Copy(io.Discard, c)
		})
		c := dial()
		Expect(t, c, "answer")
		expectNotify(t, c)
		c.bare()
		p.LastEnd(1, "server_closed", "relay")
	})
	t.Run("idle timeout", func(t *testing.T) {
		t.Parallel()
		l := newTLSLab(t)
		p := Start(t, l.edgeWith(`cipher_suites = ["TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA"]`, `timeouts { idle = "500ms" }`, "", Serve(t, echo).Addr()))
		c := DialTLS(t, p.Addr("edge"), only(l.client(), tls.VersionTLS12, suite))
		RoundTrip(t, c, "x")
		expectCut(t, c)
		p.LastEnd(1, "idle_timeout", "relay")
	})
}

// Who asks for a name that is not here is told so (RFC 6066, section 3), by
// the certificates and by the routes.
func TestTLSPolicyNames(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		l := newTLSLab(t)
		l.ca.Server(t, "*.wild.test").Write(t, l.dir, "wild")
		p := Start(t, l.policy("strict_sni = true\n"+l.certificate("wild"))+fmt.Sprintf(`
listener "tcp" "strict" {
  address  = "127.0.0.1:0"
  tls      = tls.public
  upstream = upstream.app
}
listener "tcp" "routes" {
  address = "127.0.0.1:0"
  route "app" {
    match { sni = ["app.test", "*.wild.test"] }
    tls      = tls.public
    upstream = upstream.app
  }
}
upstream "app" {
  server "a" { address = %q }
}`, Serve(t, echo).Addr()))
		named := func(name string) *tls.Config {
			cfg := only(l.client(), version, 0)
			cfg.ServerName = name
			return cfg
		}
		ended := 0
		for _, listener := range []string{"strict", "routes"} {
			addr := p.Addr(listener)
			for _, name := range []string{"app.test", "APP.TEST", "a.wild.test"} {
				c := DialTLS(t, addr, named(name))
				RoundTrip(t, c, "hello")
				c.Close()
				ended++
				if e := p.LastEnd(ended, "client_closed", "relay"); !strings.EqualFold(e.SNI, name) {
					t.Errorf("%+v", e)
				}
			}
			for _, name := range []string{"other.test", "xapp.test", "wild.test"} {
				expectAlert(t, addr, named(name), "unrecognized name")
				ended++
				e := p.AccessLog(ended)[ended-1]
				if want := map[string]string{"strict": "tls_failed", "routes": "no_route"}[listener]; e.End != want || e.SNI != name && listener == "routes" {
					t.Errorf("%s, asked for %q: %+v", listener, name, e)
				}
			}
		}
	})
}

// ALPN is strict (RFC 7301, section 3.2; ALPACA, CVE-2021-3618).
func TestTLSPolicyALPN(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		l := newTLSLab(t)
		p := Start(t, l.edgeWith(`alpn = ["h2", "http/1.1"]`, "", "", Serve(t, echo).Addr()))
		offering := func(protocols ...string) *tls.Config {
			cfg := only(l.client(), version, 0)
			cfg.NextProtos = protocols
			return cfg
		}
		for i, c := range []struct {
			offer []string
			want  string
		}{{[]string{"http/1.1", "h2"}, "h2"}, {[]string{"ftp", "http/1.1"}, "http/1.1"}, {nil, ""}} {
			s := DialTLS(t, p.Addr("edge"), offering(c.offer...))
			if got := s.ConnectionState().NegotiatedProtocol; got != c.want {
				t.Errorf("offered %q, agreed on %q", c.offer, got)
			}
			s.Close()
			if e := p.AccessLog(i + 1)[i]; e.ALPN != c.want {
				t.Errorf("%+v", e)
			}
		}
		expectAlert(t, p.Addr("edge"), offering("ftp"), "no application protocol")
		p.LastEnd(4, "tls_failed", "tls")
	})
}

func TestTLSPolicyVersions(t *testing.T) {
	t.Parallel()
	l := newTLSLab(t)
	p := Start(t, l.edgeWith(`min_version = "1.3"`, "", "", Serve(t, echo).Addr()))
	expectAlert(t, p.Addr("edge"), only(l.client(), tls.VersionTLS12, 0), "protocol version")
	p.LastEnd(1, "tls_failed", "tls")
	RoundTrip(t, DialTLS(t, p.Addr("edge"), l.client()), "hello")
	if n := p.Metrics().Sum("edgeproxy_tls_handshakes_total", "version", "none", "result", "failed"); n != 1 {
		t.Errorf("%v failed handshakes were counted", n)
	}
}

// A client that does not trust the certificate says so, and the log repeats it.
func TestTLSPolicyDistrusted(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		l := newTLSLab(t)
		p := Start(t, l.edge(Serve(t, echo).Addr()))
		cfg := only(l.client(), version, 0)
		cfg.RootCAs = testcert.NewCA(t, "another").Pool()
		if c, err := tlsConnect(p.Addr("edge"), cfg); err == nil {
			c.bare()
			t.Error("an unknown authority was taken")
		}
		tlsFault(t, p.LastEnd(1, "tls_failed", "tls"), "bad certificate")
	})
}

// The identity that a certificate proves goes into the log, to the server and
// into the choice of the route.
func TestTLSPolicyClientCertificates(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		l := newTLSLab(t)
		clients := testcert.NewCA(t, "clients")
		clients.Write(t, l.dir, "clients")
		alice, bob, eve := clients.Client(t, "alice"), clients.Client(t, "bob"), clients.Client(t, "eve")
		testcert.WriteFile(t, l.dir, "revoked.pem", clients.CRL(t, eve))
		headers := make(chan string, 10)
		s := Serve(t, func(c Conn) {
			h, err := readProxyHeader(c)
			headers <- fmt.Sprint(h, err)
			echo(c)
		})
		p := Start(t, l.policy(fmt.Sprintf("client_auth {\n mode = \"require\"\n ca_file = \"%s/clients.pem\"\n crl_file = \"%[1]s/revoked.pem\"\n}", l.dir))+fmt.Sprintf(`
listener "tcp" "edge" {
  address = "127.0.0.1:0"
  route "alice" {
    match { client_name = ["alice"] }
    tls      = tls.public
    upstream = upstream.app
  }
  route "others" {
    tls      = tls.public
    upstream = upstream.app
  }
}
upstream "app" {
  proxy_protocol = "v2"
  server "a" { address = %q }
}`, s.Addr()))
		with := func(pairs ...*testcert.Pair) *tls.Config {
			cfg := only(l.client(), version, 0)
			for _, pair := range pairs {
				cfg.Certificates = append(cfg.Certificates, pair.TLS())
			}
			cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			return cfg
		}
		addr, ended := p.Addr("edge"), 0
		for _, who := range []struct {
			pair        *testcert.Pair
			name, route string
		}{{alice, "alice", "alice"}, {bob, "bob", "others"}} {
			cfg := with(who.pair)
			for range 2 { // the second is resumed, and proves the same
				c := DialTLS(t, addr, cfg)
				RoundTrip(t, c, "hello")
				c.Close()
				ended++
				e := p.LastEnd(ended, "client_closed", "relay")
				if e.ClientName != "CN="+who.name || e.Route != who.route {
					t.Errorf("%s: %+v", who.name, e)
				}
				// PP2_TYPE_SSL, with PP2_SUBTYPE_SSL_CN 0x22 within.
				if h := <-headers; !strings.Contains(h, ` 0x20:"`) || !strings.Contains(h, who.name) || !strings.Contains(h, "app.test") {
					t.Errorf("%s: the server was told %s", who.name, h)
				}
			}
		}
		for name, cfg := range map[string]*tls.Config{
			"none": with(), "revoked": with(eve), "of another authority": with(testcert.NewCA(t, "x").Client(t, "alice")), "of a server": with(l.pair),
		} {
			expectAlert(t, addr, cfg, "tls: ")
			ended++
			if e := p.LastEnd(ended, "tls_failed", "tls"); e.Error == "" || e.ClientName != "" {
				t.Errorf("%s: %+v", name, e)
			}
		}
		if len(headers) > 0 {
			t.Errorf("a server was connected to: %s", <-headers)
		}
	})
}

// PostgreSQL's way into TLS: eight bytes of SSLRequest, answered by S.
func TestTLSPolicyPostgres(t *testing.T) {
	t.Parallel()
	const request = "\x00\x00\x00\x08\x04\xd2\x16\x2f"
	l := newTLSLab(t)
	p := Start(t, l.policy("")+fmt.Sprintf(`
listener "tcp" "edge" {
  address = "127.0.0.1:0"
  route "db" {
    match { protocol = ["postgres"] }
    tls      = tls.public
    upstream = upstream.app
  }
}
upstream "app" {
  server "a" { address = %q }
}`, Serve(t, echo).Addr()))
	addr := p.Addr("edge")
	c := Dial(t, addr)
	Send(t, c, request[:3])
	time.Sleep(moment)
	Send(t, c, request[3:])
	Expect(t, c, "S")
	s := tls.Client(c, l.client())
	RoundTrip(t, s, "startup message")
	if n := p.tlsSessions(); n != 1 {
		t.Errorf("%v TLS sessions", n)
	}
	s.Close()
	p.LastEnd(1, "client_closed", "relay")

	// What stands behind the request was sent in the clear (CVE-2021-23214).
	c = Dial(t, addr)
	Send(t, c, request+"\x00\x00\x00\x08")
	ExpectGone(t, c)
	tlsFault(t, p.LastEnd(2, "tls_failed", "tls"), "SSLRequest")
}
