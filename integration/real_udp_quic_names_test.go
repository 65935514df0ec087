package integration

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"edgeproxy/internal/testcert"
)

// quicSocket is one client socket for any number of QUIC connections.
type quicSocket struct {
	*quic.Transport
	t    testing.TB
	pool *tls.Config
	to   *net.UDPAddr
}

func newQUICSocket(t testing.TB, ca *testcert.CA, addr string) *quicSocket {
	s := &quicSocket{
		Transport: &quic.Transport{Conn: loopbackUDP(t)}, t: t,
		pool: &tls.Config{RootCAs: ca.Pool(), NextProtos: []string{http3.NextProtoH3}},
		to:   net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)),
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// send sends a datagram that is not quic-go's.
func (s *quicSocket) send(b []byte) {
	s.t.Helper()
	if _, err := s.WriteTo(b, s.to); err != nil {
		s.t.Fatal(err)
	}
}

// connect returns a client whose one connection asks for a name; dns is the
// name in the server's certificate.
func (s *quicSocket) connect(sni, dns string, within time.Duration) (*h3Client, error) {
	conf := s.pool.Clone()
	conf.ServerName = sni
	conf.InsecureSkipVerify = true // by quic-go, which takes the name as it is sent
	conf.VerifyConnection = func(cs tls.ConnectionState) error { return cs.PeerCertificates[0].VerifyHostname(dns) }
	ctx, cancel := context.WithTimeout(s.t.Context(), within)
	defer cancel()
	conn, err := s.Dial(ctx, s.to, conf, &quic.Config{KeepAlivePeriod: 300 * time.Millisecond, MaxIdleTimeout: patience})
	if err != nil {
		return nil, err
	}
	tr := &http3.Transport{}
	c := &h3Client{t: s.t, sni: dns, content: newStream(47), conn: conn}
	c.http = http.Client{Transport: tr.NewClientConn(conn), Timeout: 2 * patience}
	c.close = func() { conn.CloseWithError(0, "") }
	s.t.Cleanup(c.close)
	return c, nil
}

// name is which server has the name.
func (s *quicSocket) name(sni string) (string, error) {
	c, err := s.connect(sni, sni, patience)
	if err != nil {
		return "", err
	}
	defer c.close()
	return c.get("/name")
}

// nameLab is a listener with routes by name and, for what is not QUIC, a
// default route.
type nameLab struct {
	ca         *testcert.CA
	p          *Proxy
	a, b, rest *h3Server // rest is that of the default route, and would serve any name
}

func newNameLab(t *testing.T) *nameLab {
	l := &nameLab{ca: testcert.NewCA(t, "HTTP/3")}
	l.a = newH3Server(t, loopbackUDP(t), "a", l.ca.Server(t, "a.test"), "", nil)
	l.b = newH3Server(t, loopbackUDP(t), "b", l.ca.Server(t, "b.test"), "", nil)
	l.rest = newH3Server(t, loopbackUDP(t), "rest", l.ca.Server(t, "a.test", "b.test", "closed.test", "other.test"), "", nil)
	l.p = Start(t, fmt.Sprintf(`
listener "udp" "edge" {
  address = "127.0.0.1:0"
  timeouts { idle = "3s" }
  route "closed" {
    match { sni = ["closed.test"] }
    reject = true
  }
  route "a" {
    match { sni = ["a.test"] }
    upstream = upstream.a
  }
  route "b" {
    match { sni = ["b.test"] }
    upstream = upstream.b
  }
  route "rest" { upstream = upstream.rest }
}
upstream "a" {
  server "a" { address = %q }
}
upstream "b" {
  server "b" { address = %q }
}
upstream "rest" {
  server "rest" { address = %q }
}
`, l.a.addr, l.b.addr, l.rest.addr))
	return l
}

// What a socket sends first does not decide where its QUIC connections go:
// who begins with junk, or with a version that nobody knows, gets by it past no
// route with a name (differential routing: Traefik CVE-2026-32305 and
// CVE-2026-48491).
func TestRealQUICNamesAfterAnUnknownBeginning(t *testing.T) {
	t.Parallel()
	unknown := "\xcaabcd\x08unknown!\x04from" // RFC 8999, section 5.1
	for name, first := range map[string]string{
		"text":                        "GET / HTTP/1.1\r\n\r\n",
		"one byte":                    "\x00",
		"nothing":                     "",
		"a short header":              "\x41" + strings.Repeat("short", 10),
		"an unknown version":          unknown + strings.Repeat("\x00", 1200-len(unknown)),
		"an unknown version, small":   unknown,
		"version negotiation":         "\x80\x00\x00\x00\x00\x08unknown!\x04from\x00\x00\x00\x01",
		"the beginning of an Initial": "\xc0\x00\x00\x00\x01\x08",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newNameLab(t)
			s := newQUICSocket(t, l.ca, l.p.Addr("edge"))
			s.send([]byte(first))
			if _, err := s.connect("closed.test", "closed.test", 500*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a rejected name: %v", err)
			}
			for range 2 {
				for _, want := range []string{"a", "b"} {
					s.send([]byte(first))
					if got, err := s.name(want + ".test"); err != nil || got != want {
						t.Errorf("%s.test: %q, %v", want, got, err)
					}
				}
			}
			if _, err := s.connect("closed.test", "closed.test", 500*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a rejected name after others: %v", err)
			}
			// The default route is for names that have no other.
			if got, err := s.name("other.test"); err != nil || got != "rest" {
				t.Errorf("other.test: %q, %v", got, err)
			}
			if n := l.rest.requests.Load(); n != 1 {
				t.Errorf("%d requests at the server of the default route, want 1", n)
			}
			if l.p.Metrics().Drops("edge")["denied"] == 0 {
				t.Errorf("dropped: %v", l.p.Metrics().Drops("edge"))
			}
		})
	}
}

// Connections of one socket to two names are with two servers, also while both
// are in use, as long as they keep to the connection ids that they had before
// the next one began: quic-go takes the one it keeps into use after the
// handshake, and another after 5000 datagrams at the earliest.
func TestRealQUICTwoNamesOfOneSocket(t *testing.T) {
	t.Parallel()
	l := newNameLab(t)
	s := newQUICSocket(t, l.ca, l.p.Addr("edge"))
	var clients []*h3Client
	for _, want := range []string{"a", "b"} {
		c, err := s.connect(want+".test", want+".test", patience)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second one is asked for with the id that it keeps
			if got, err := c.get("/name"); err != nil || got != want {
				t.Fatalf("%s.test: %q, %v", want, got, err)
			}
		}
		clients = append(clients, c)
	}
	var wg sync.WaitGroup
	for i, c := range clients {
		want := []string{"a", "b"}[i]
		const n = 8 * streamBlock // 2 MB
		for way, transfer := range map[string]func(int64, func(int64)) error{"down": c.download, "up": c.upload} {
			wg.Go(func() {
				if err := transfer(n, nil); err != nil {
					t.Errorf("%s, %s: %v", want, way, err)
				}
			})
		}
		wg.Go(func() {
			if got, err := c.get("/name"); err != nil || got != want {
				t.Errorf("%s.test: %q, %v", want, got, err)
			}
		})
	}
	wg.Wait()
	if n := l.rest.requests.Load(); n != 0 {
		t.Errorf("%d requests at the server of the default route", n)
	}
	if a, b := l.a.requests.Load(), l.b.requests.Load(); a != 5 || b != 5 {
		t.Errorf("%d and %d requests, want 5 each", a, b)
	}
}

// Connections of one socket to one name are with one server, and so all of them
// work.
func TestRealQUICManyConnectionsOfOneSocket(t *testing.T) {
	t.Parallel()
	f := newH3Fleet(t, seenOnly)
	s := newQUICSocket(t, f.ca, f.p.Addr("edge"))
	var clients []*h3Client
	for range 5 {
		c, err := s.connect("fleet.test", "fleet.test", patience)
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	const n = 4 * streamBlock // 1 MB
	names := make([]string, len(clients))
	var wg sync.WaitGroup
	for i, c := range clients {
		for way, transfer := range map[string]func(int64, func(int64)) error{"down": c.download, "up": c.upload} {
			wg.Go(func() {
				if err := transfer(n, nil); err != nil {
					t.Errorf("connection %d, %s: %v", i, way, err)
				}
			})
		}
		wg.Go(func() {
			var err error
			if names[i], err = c.get("/name"); err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	slices.Sort(names)
	if len(slices.Compact(names)) != 1 {
		t.Errorf("the servers of the connections: %v", names)
	}
	for i, c := range clients {
		if err := c.conn.Context().Err(); err != nil {
			t.Errorf("connection %d: %v", i, context.Cause(c.conn.Context()))
		}
	}
}
