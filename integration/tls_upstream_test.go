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

// encrypted is an upstream's tls block.
func (l *tlsLab) encrypted(attrs string) string {
	l.ca.Write(l.t, l.dir, "ca")
	return fmt.Sprintf("tls {\n server_name = \"app.test\"\n ca_file = \"%s/ca.pem\"\n %s\n}\n", l.dir, attrs)
}

// serverTLSFailures counts the handshakes that servers have failed.
func (p *Proxy) serverTLSFailures(server string) float64 {
	p.t.Helper()
	return p.Metrics().Sum("edgeproxy_server_failures_total", "server", server, "reason", "tls")
}

// A server that cannot prove who it is gets not a byte, and another is tried.
func TestTLSUpstreamVerification(t *testing.T) {
	t.Parallel()
	l := newTLSLab(t)
	other := testcert.NewCA(t, "another authority")
	expired := l.ca.Issue(t, testcert.Template{Names: []string{"app.test"}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour)})
	client := l.ca.Issue(t, testcert.Template{Names: []string{"app.test"}, Client: true})
	for name, c := range map[string]struct {
		cert  tls.Certificate
		fault string
	}{
		"another authority":      {other.Server(t, "app.test").TLS(), "unknown authority"},
		"another name":           {l.ca.Server(t, "other.test").TLS(), "app.test"},
		"expired":                {expired.TLS(), "expired"},
		"certificate of clients": {client.TLS(), "usage"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{c.cert}}, func(s *tls.Conn) {
				if b, err := io.ReadAll(s); err == nil || len(b) > 0 {
					t.Errorf("the server read %q, %v", b, err)
				}
			})
			p := Start(t, oneUpstream("", "retries = 1\n"+l.encrypted(""), bad.Addr()))
			c2 := Dial(t, p.Addr("edge"))
			Send(t, c2, "secret")
			ExpectGone(t, c2)
			e := p.LastEnd(1, "connect_failed", "connect")
			tlsFault(t, e, c.fault)
			tlsFault(t, e, `"s0"`)
			if e.Retries != 1 || e.Server != "s0" || p.serverTLSFailures("s0") != 2 {
				t.Errorf("%v failures, %+v", p.serverTLSFailures("s0"), e)
			}

			good := serveTLS(t, l.server(), echoTLS)
			p.Reload(oneUpstream("", "retries = 1\n"+l.encrypted(""), bad.Addr(), good.Addr()))
			for i := 2; ; i++ {
				c := Dial(t, p.Addr("edge"))
				RoundTrip(t, c, "secret")
				c.CloseWrite()
				ExpectEOF(t, c)
				if e := p.LastEnd(i, "client_closed", "relay"); e.Server != "s1" {
					t.Errorf("%+v", e)
				} else if e.Retries == 1 || i > 100 {
					break
				}
			}
			if n := p.serverTLSFailures("s0"); n < 3 {
				t.Errorf("the server that fails was not tried again: %v failures", n)
			}
		})
	}
}

// What the server is told in the hello, and by the certificate.
func TestTLSUpstreamHello(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		l := newTLSLab(t)
		clients := testcert.NewCA(t, "proxies")
		clients.Client(t, "edgeproxy").Write(t, l.dir, "proxy")
		cfg := only(l.server(), version, 0)
		cfg.NextProtos = []string{"echo"}
		cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, clients.Pool()
		seen := make(chan string, 1)
		s := serveTLS(t, cfg, func(c *tls.Conn) {
			cs := c.ConnectionState()
			seen <- fmt.Sprint(cs.ServerName, " ", cs.NegotiatedProtocol, " ", cs.PeerCertificates[0].Subject, " ", cs.DidResume)
			echoTLS(c)
		})
		p := Start(t, oneUpstream("", l.encrypted(fmt.Sprintf("alpn = [\"other\", \"echo\"]\n cert_file = \"%s/proxy.crt\"\n key_file = \"%[1]s/proxy.key\"", l.dir)), s.Addr()))
		for i := range 4 {
			c := Dial(t, p.Addr("edge"))
			RoundTrip(t, c, "hello")
			if got, want := <-seen, fmt.Sprint("app.test echo CN=edgeproxy ", i > 0); got != want {
				t.Errorf("session %d: the server saw %q, want %q", i, got, want)
			}
			if n := p.tlsSessions(); n != 1 {
				t.Errorf("%v TLS sessions, want 1", n)
			}
			c.CloseWrite()
			ExpectEOF(t, c)
			p.LastEnd(i+1, "client_closed", "relay")
		}
		p.Await(0, "edgeproxy_tls_sessions")
	})
}

// Without server_name the host of the address is verified, an IP address among
// the certificate's.
func TestTLSUpstreamByAddress(t *testing.T) {
	t.Parallel()
	l := newTLSLab(t)
	seen := make(chan string, 1)
	s := serveTLS(t, l.server(), func(c *tls.Conn) {
		seen <- c.ConnectionState().ServerName
		echoTLS(c)
	})
	p := Start(t, oneUpstream("", strings.Replace(l.encrypted(""), `server_name = "app.test"`, "", 1), s.Addr()))
	RoundTrip(t, Dial(t, p.Addr("edge")), "hello")
	if name := <-seen; name != "" {
		t.Errorf("SNI %q for an address (RFC 6066, section 3, allows none)", name)
	}
}

// Of what a server, or somebody before it, sends in the clear, not a byte may
// reach the client. (nginx CVE-2026-1642)
func TestTLSUpstreamPlainText(t *testing.T) {
	t.Parallel()
	const evil = "HTTP/1.1 200 OK\r\n\r\nevil"
	t.Run("instead of a handshake", func(t *testing.T) {
		t.Parallel()
		l := newTLSLab(t)
		p := Start(t, oneUpstream("", "retries = 0\n"+l.encrypted(""), Serve(t, hello(evil)).Addr()))
		ExpectGone(t, Dial(t, p.Addr("edge")))
		e := p.LastEnd(1, "connect_failed", "connect")
		if e.BytesOut != 0 || e.Error == "" || strings.Contains(e.Error, "evil") {
			t.Errorf("%+v", e)
		}
	})
	t.Run("before one", func(t *testing.T) {
		t.Parallel()
		l := newTLSLab(t)
		p := Start(t, oneUpstream("", "retries = 0\n"+l.encrypted(""), Serve(t, func(c Conn) {
			io.WriteString(c, evil)
			tls.Server(c, l.server()).Handshake()
			discard(c)
		}).Addr()))
		ExpectGone(t, Dial(t, p.Addr("edge")))
		p.LastEnd(1, "connect_failed", "connect")
	})
	bothVersions(t, func(t *testing.T, version uint16) {
		// Right behind the handshake, in the segment of its last message.
		l := newTLSLab(t)
		p := Start(t, oneUpstream("", "retries = 0\n"+l.encrypted(""), Serve(t, func(c Conn) {
			last := 2 // the server's flight with Finished: its second in TLS 1.2
			if version == tls.VersionTLS13 {
				last = 1
			}
			s := tls.Server(&trailer{Conn: c, text: evil, from: last}, only(l.server(), version, 0))
			if s.Handshake() == nil {
				echoTLS(s)
			}
		}).Addr()))
		c := Dial(t, p.Addr("edge"))
		ExpectGone(t, c)
		if e := p.AccessLog(1)[0]; e.BytesOut != 0 || e.End != "tls_failed" && e.End != "connect_failed" {
			t.Errorf("%+v", e)
		}
	})
}

// trailer adds a text to each write from one on.
type trailer struct {
	Conn
	text    string
	n, from int
}

func (t *trailer) Write(b []byte) (int, error) {
	if t.n++; t.n < t.from {
		return t.Conn.Write(b)
	}
	_, err := t.Conn.Write(append(append([]byte{}, b...), t.text...))
	return len(b), err
}

// TLS on both sides: records are opened and sealed anew.
func TestTLSUpstreamBothSides(t *testing.T) {
	t.Parallel()
	for _, client := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, server := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			t.Run(tls.VersionName(client)+" to "+tls.VersionName(server), func(t *testing.T) {
				t.Parallel()
				const n = 32 * streamBlock
				l := newTLSLab(t)
				got := make(chan error, 1)
				s := serveTLS(t, only(l.server(), server, 0), func(c *tls.Conn) {
					sent := make(chan struct{})
					go func() {
						newStream(1).Send(c, n)
						c.CloseWrite()
						close(sent)
					}()
					got <- newStream(2).Verify(c, n)
					<-sent
				})
				p := Start(t, l.edgeWith("", "", l.encrypted(""), s.Addr()))
				c := DialTLS(t, p.Addr("edge"), only(l.client(), client, 0))
				sent := make(chan struct{})
				go func() {
					newStream(2).Send(c, n)
					c.CloseWrite()
					close(sent)
				}()
				if err := newStream(1).Verify(c, n); err != nil {
					t.Error(err)
				}
				if err := <-got; err != nil {
					t.Error("the server:", err)
				}
				<-sent
				if c.under.eof.Load() {
					t.Error("no close_notify")
				}
				c.Close()
				if e := p.AccessLog(1)[0]; e.BytesIn != n || e.BytesOut != n || e.End != "client_closed" && e.End != "server_closed" {
					t.Errorf("%+v", e)
				}

				// Small requests, each a record.
				e := serveTLS(t, only(l.server(), server, 0), echoTLS)
				p.Reload(l.edgeWith("", "", l.encrypted(""), e.Addr()))
				c = DialTLS(t, p.Addr("edge"), only(l.client(), client, 0))
				for i := range 200 {
					RoundTrip(t, c, string(randomBytes(1+i)))
				}
				if n := p.tlsSessions(); n != 2 {
					t.Errorf("%v TLS sessions, want that of the client and that of the server", n)
				}
			})
		}
	}
}

// A server's stream that is cut is a reset to the client, and one that is cut
// by the client is a reset to the server, even after the server has finished.
func TestTLSUpstreamTruncation(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		t.Run("server", func(t *testing.T) {
			for _, client := range []string{"plain", "TLS"} {
				l := newTLSLab(t)
				s := Serve(t, func(c Conn) {
					s := tls.Server(c, only(l.server(), version, 0))
					io.WriteString(s, strings.Repeat("half an answer", 1000))
					c.CloseWrite()
					discard(c)
				})
				listener := ""
				if client == "TLS" {
					listener = "tls = tls.public"
				}
				p := Start(t, l.policy("")+oneUpstream(listener, l.encrypted(""), s.Addr()))
				var c Conn
				if client == "TLS" {
					s := DialTLS(t, p.Addr("edge"), only(l.client(), version, 0))
					expectCut(t, s)
				} else {
					c = Dial(t, p.Addr("edge"))
					ExpectReset(t, c)
				}
				tlsFault(t, p.LastEnd(1, "server_reset", "relay"), "truncated")
			}
		})
		t.Run("client", func(t *testing.T) {
			l := newTLSLab(t)
			got := make(chan error, 1)
			s := serveTLS(t, only(l.server(), version, 0), func(c *tls.Conn) {
				io.WriteString(c, "answer")
				c.CloseWrite()
				_, err := io.Copy(io.Discard, c)
				got <- err
			})
			p := Start(t, l.edgeWith("", "", l.encrypted(""), s.Addr()))
			c := DialTLS(t, p.Addr("edge"), only(l.client(), version, 0))
			Expect(t, c, "answer")
			expectNotify(t, c)
			c.bare()
			if err := <-got; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the server read %v, want a reset: the client's stream may be cut", err)
			}
			p.LastEnd(1, "server_closed", "relay")
		})
	})
}

// Half-closes travel through both.
func TestTLSUpstreamHalfClose(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		l := newTLSLab(t)
		s := serveTLS(t, only(l.server(), version, 0), func(c *tls.Conn) {
			n, err := io.Copy(io.Discard, c)
			fmt.Fprintf(c, "you sent %d bytes, %v", n, err)
		})
		p := Start(t, oneUpstream("", l.encrypted(""), s.Addr()))
		c := Dial(t, p.Addr("edge"))
		Send(t, c, "0123456789")
		c.CloseWrite()
		Expect(t, c, "you sent 10 bytes, <nil>")
		ExpectEOF(t, c)
		p.LastEnd(1, "client_closed", "relay")
	})
}

// A server that takes the connection and then says nothing.
func TestTLSUpstreamHandshakeHangs(t *testing.T) {
	t.Parallel()
	l := newTLSLab(t)
	silent, release := ServeNeverReading(t, "tcp", "127.0.0.1:0")
	t.Cleanup(release)
	p := Start(t, oneUpstream("", "connect_timeout = \"400ms\"\n retries = 1\n"+l.encrypted(""), silent.Addr()))
	ExpectGone(t, Dial(t, p.Addr("edge")))
	e := p.LastEnd(1, "connect_timeout", "connect")
	took(t, e, 790*time.Millisecond, 10*time.Second)
	tlsFault(t, e, "TLS handshake")
	if e.Retries != 1 || e.Server != "s0" {
		t.Errorf("%+v", e)
	}

	// A client that leaves meanwhile ends it at once.
	p.Reload(oneUpstream(`timeouts { handshake = "25s" }`, "connect_timeout = \"25s\"\n"+l.encrypted(""), silent.Addr()))
	c := Dial(t, p.Addr("edge"))
	p.Await(1, "edgeproxy_server_sessions_active")
	reset(c)
	took(t, p.LastEnd(2, "client_reset", "connect"), 0, 10*time.Second)
}

// A suite that the record layer does not know.
func TestTLSUpstreamCBC(t *testing.T) {
	t.Parallel()
	l := newTLSLab(t)
	cfg := only(l.server(), tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA)
	s := serveTLS(t, cfg, echoTLS)
	p := Start(t, oneUpstream("", l.encrypted(`cipher_suites = ["TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA"]`), s.Addr()))
	c := Dial(t, p.Addr("edge"))
	RoundTrip(t, c, string(randomBytes(1<<20)))
	if n := p.Metrics().Sum("edgeproxy_tls_sessions", "engine", "goroutine"); n != 1 {
		t.Errorf("%v sessions in crypto/tls, want 1", n)
	}
	c.CloseWrite()
	ExpectEOF(t, c)
	p.LastEnd(1, "client_closed", "relay")

	cut := Serve(t, func(c Conn) {
		io.WriteString(tls.Server(c, cfg), "half an answer")
		c.CloseWrite()
		discard(c)
	})
	p.Reload(oneUpstream("", l.encrypted(`cipher_suites = ["TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA"]`), cut.Addr()))
	for i := range 10 {
		ExpectReset(t, Dial(t, p.Addr("edge")))
		tlsFault(t, p.LastEnd(2+i, "server_reset", "relay"), "truncated")
	}
}
