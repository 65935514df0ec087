package integration

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"testing"
	"time"

	"edgeproxy/internal/testacme"
	"edgeproxy/internal/testcert"
)

// gate is a port that is known before what it leads to: the authority must be
// told where to look before the proxy is started, and the proxy where the
// authority is. Until it is opened, connections wait.
type gate struct {
	port int
	open func(addr string)
}

func newGate(t testing.TB) gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target, known, stop := "", make(chan struct{}), make(chan struct{})
	t.Cleanup(func() {
		close(stop)
		l.Close()
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				select {
				case <-known:
				case <-stop:
					return
				}
				to, err := net.Dial("tcp", target)
				if err != nil {
					return
				}
				defer to.Close()
				go func() {
					io.Copy(to, c)
					to.(*net.TCPConn).CloseWrite()
				}()
				io.Copy(c, to)
			}()
		}
	}()
	return gate{l.Addr().(*net.TCPAddr).Port, func(addr string) {
		target = addr
		close(known)
	}}
}

// issuer returns who issued the certificate that is shown for name, "" if the
// handshake fails.
func issuer(addr, name string, roots *x509.CertPool) (string, error) {
	c, err := tls.Dial("tcp", addr, &tls.Config{ServerName: name, RootCAs: roots})
	if err != nil {
		return "", err
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].Issuer.CommonName, nil
}

func awaitIssued(t testing.TB, p *Proxy, ca *testacme.Authority, addr, name string) {
	t.Helper()
	var err error
	eventually(t, func() bool {
		_, err = issuer(addr, name, ca.Roots(t))
		return err == nil
	}, func() string { return fmt.Sprintf("a certificate for %s: %v\n%s", name, err, p.Log()) })
}

func acmeBlock(ca *testacme.Authority, storage, more string) string {
	return fmt.Sprintf(`acme {
      domains   = ["one.test", "two.test"]
      email     = "ops@example.test"
      directory = %q
      ca_file   = %q
      storage   = %q
      %s
    }`, ca.Directory(), ca.CAFile(), storage, more)
}

// The authority's probe finds the tls block whatever the routes say, and what
// it issued is in use without a reload, after a reload, and after a restart.
func TestACMEByTLSALPN(t *testing.T) {
	t.Parallel()
	static := testcert.NewCA(t, "static")
	dir := shortTempDir(t)
	certFile, keyFile := static.Server(t, "static.test").Write(t, dir, "static")
	storage := filepath.Join(dir, "acme")
	g := newGate(t)
	ca := testacme.Start(t, testacme.Options{TLSPort: g.port})
	s := Serve(t, echo)
	body := func(idle string) string {
		return fmt.Sprintf(`
tls "public" {
  certificate {
    cert_file = %q
    key_file  = %q
  }
  certificate {
    %s
  }
  alpn = ["echo"]
}
listener "tcp" "edge" {
  address = "127.0.0.1:0"
  timeouts { idle = %q }
  route "ours" {
    match { alpn = ["echo"] }
    tls      = tls.public
    upstream = upstream.app
  }
  route "plain" {
    match { protocol = ["http"] }
    upstream = upstream.app
  }
  route "passed" {
    match { sni = ["static.test"] }
    tls      = tls.public
    upstream = upstream.app
  }
  route "rest" {
    match { sni = ["*.test"] }
    tls      = tls.public
    upstream = upstream.app
  }
}
upstream "app" {
  server "a" { address = %q }
}
`, certFile, keyFile, acmeBlock(ca, storage, ""), idle, s.Addr())
	}
	p := Start(t, body("1m"))
	addr := p.Addr("edge")
	// The order waits at the gate: names that are not issued have the default.
	if who, err := issuer(addr, "static.test", static.Pool()); err != nil || who != "static" {
		t.Errorf("static.test is certified by %q, %v", who, err)
	}
	g.open(addr)
	for _, name := range []string{"one.test", "two.test"} {
		awaitIssued(t, p, ca, addr, name)
	}
	c, err := tls.Dial("tcp", addr, &tls.Config{ServerName: "one.test", RootCAs: ca.Roots(t), NextProtos: []string{"echo"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	say := func(text string) {
		t.Helper()
		buf := make([]byte, len(text))
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil || string(buf) != text {
			t.Fatalf("%q, %v", buf, err)
		}
	}
	say("before the reload")
	// Nobody else gets the challenge's certificate, nor a session by it.
	if c, err := tls.Dial("tcp", addr, &tls.Config{ServerName: "one.test", RootCAs: ca.Roots(t), NextProtos: []string{"acme-tls/1"}}); err == nil {
		c.Close()
		t.Error("a probe that nobody ordered was answered")
	}
	orders, _ := ca.Orders()
	p.Reload(body("2m"))
	say("after the reload")
	awaitIssued(t, p, ca, addr, "two.test")
	if until := p.Metrics().Sum("edgeproxy_certificate_expiry_timestamp_seconds", "tls", "public", "subject", "two.test"); until < float64(time.Now().Unix()) {
		t.Errorf("edgeproxy_certificate_expiry_timestamp_seconds of two.test is %v", until)
	}
	c.Close()
	p.Term()

	ca.Stop()
	p = Start(t, body("1m"))
	for _, name := range []string{"one.test", "two.test"} {
		if _, err := issuer(p.Addr("edge"), name, ca.Roots(t)); err != nil {
			t.Errorf("%s after a restart without the authority: %v", name, err)
		}
	}
	if now, _ := ca.Orders(); now != orders {
		t.Errorf("%d orders after a reload and a restart, %d before", now, orders)
	}
	if info, err := os.Stat(storage); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the storage folder: %v, %v", info.Mode(), err)
	}
}

// http-01 through the proxy's own listener of port 80, which leads the
// authority to http_address and everybody else to the server.
func TestACMEByHTTP(t *testing.T) {
	t.Parallel()
	storage := filepath.Join(shortTempDir(t), "acme")
	g := newGate(t)
	ca := testacme.Start(t, testacme.Options{HTTPPort: g.port})
	s := Serve(t, lines("app", 0))
	answers := local(FreePorts(t, 1))
	p := Start(t, fmt.Sprintf(`
tls "public" {
  certificate {
    %s
  }
}
listener "tcp" "edge" {
  address  = "127.0.0.1:0"
  tls      = tls.public
  upstream = upstream.app
}
listener "tcp" "plain" {
  address = "127.0.0.1:0"
  route "challenges" {
    match { path = ["/.well-known/acme-challenge/"] }
    upstream = upstream.challenges
  }
  route "rest" { upstream = upstream.app }
}
upstream "app" {
  server "a" { address = %q }
}
upstream "challenges" {
  server "self" { address = %q }
}
`, acmeBlock(ca, storage, fmt.Sprintf("http_address = %q\n      tls_alpn = false", answers)), s.Addr(), answers))
	g.open(p.Addr("plain"))
	awaitIssued(t, p, ca, p.Addr("edge"), "one.test")
	awaitIssued(t, p, ca, p.Addr("edge"), "two.test")
}

// terminating is a configuration with one tls block and no certificate yet.
func terminating(ca *testacme.Authority, storage, server string) string {
	return fmt.Sprintf(`
tls "public" {
  certificate {
    %s
  }
}
listener "tcp" "edge" {
  address  = "127.0.0.1:0"
  tls      = tls.public
  upstream = upstream.app
}
upstream "app" {
  server "a" { address = %q }
}
`, acmeBlock(ca, storage, ""), server)
}

// An order that is under way holds up no end, and leaves no lock to whoever
// comes next.
func TestACMEOrderCutShort(t *testing.T) {
	t.Parallel()
	storage := filepath.Join(shortTempDir(t), "acme")
	g := newGate(t)
	ca := testacme.Start(t, testacme.Options{TLSPort: g.port})
	s := Serve(t, echo)
	p := Start(t, terminating(ca, storage, s.Addr()))
	eventually(t, func() bool { all, _ := ca.Orders(); return all > 0 }, func() string { return "an order\n" + p.Log() })
	began := time.Now()
	p.Term()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the end took %v", took)
	}
	p = Start(t, terminating(ca, storage, s.Addr()))
	g.open(p.Addr("edge"))
	awaitIssued(t, p, ca, p.Addr("edge"), "one.test")
}

// The folder belongs to whom the process becomes, or nothing is ever renewed.
func TestACMEAsAnotherUser(t *testing.T) {
	t.Parallel()
	who, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	name := who.Username
	if os.Geteuid() == 0 {
		name = "nobody"
	}
	dir := shortTempDir(t)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	g := newGate(t)
	ca := testacme.Start(t, testacme.Options{TLSPort: g.port})
	s := Serve(t, echo)
	p := Start(t, terminating(ca, filepath.Join(dir, "acme"), s.Addr()), WithProcess(fmt.Sprintf("user = %q", name)))
	g.open(p.Addr("edge"))
	awaitIssued(t, p, ca, p.Addr("edge"), "one.test")
}
