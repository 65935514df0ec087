package integration

import (
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"edgeproxy/internal/testcert"
)

// shown is the serial number of the certificate that a new connection sees.
func (l *tlsLab) shown(addr string) string {
	c, err := tlsConnect(addr, l.client())
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

func serialOf(p *testcert.Pair) string { return p.Leaf.SerialNumber.String() }

// awaitShown waits until new connections see a certificate.
func (l *tlsLab) awaitShown(addr string, pair *testcert.Pair, within time.Duration) {
	l.t.Helper()
	begin, got := time.Now(), ""
	if !waitFor(patience, func() bool { got = l.shown(addr); return got == serialOf(pair) }) {
		l.t.Fatalf("new connections see certificate %s, want %s", got, serialOf(pair))
	}
	if d := time.Since(begin); d > raceFactor*within {
		l.t.Errorf("the certificate was in use after %v, want ≤ %v", d, within)
	}
}

// A reload with new certificates, settings and timeouts leaves sessions alone,
// however many.
func TestTLSReloadKeepsSessions(t *testing.T) {
	const sessions = 3000
	l := newTLSLab(t)
	s := Serve(t, echo)
	p := Start(t, l.edge(s.Addr()))
	body := func(servers ...string) string {
		return l.edgeWith(`alpn = ["echo"]`, `timeouts { idle = "30m" }`, "", servers...)
	}
	addr := p.Addr("edge")
	clients := make([]*tlsClient, sessions)
	inParallel := func(what string, do func(i int) error) {
		t.Helper()
		var wg sync.WaitGroup
		next := make(chan int)
		errs := make(chan error, sessions)
		for range 16 {
			wg.Go(func() {
				for i := range next {
					if err := do(i); err != nil {
						errs <- fmt.Errorf("%s: session %d: %w", what, i, err)
					}
				}
			})
		}
		for i := range sessions {
			next <- i
		}
		close(next)
		wg.Wait()
		if n := len(errs); n > 0 {
			t.Fatalf("%d errors, the first: %v", n, <-errs)
		}
	}
	exchange := func(i int) error {
		text := fmt.Sprintf("session %d", i)
		clients[i].under.SetDeadline(time.Now().Add(2 * patience))
		if _, err := io.WriteString(clients[i], text); err != nil {
			return err
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(clients[i], got); err != nil || string(got) != text {
			return fmt.Errorf("%q, %w", got, err)
		}
		return nil
	}
	t.Cleanup(func() {
		for _, c := range clients {
			if c != nil {
				c.under.Close()
			}
		}
	})
	cache := tls.NewLRUClientSessionCache(1) // resumed, most of them: the point is not the handshakes
	inParallel("handshake", func(i int) (err error) {
		cfg := only(l.client(), tls.VersionTLS12+uint16(i%2), 0)
		if i%2 == 1 {
			cfg.ClientSessionCache = cache
		}
		if clients[i], err = tlsConnect(addr, cfg); err != nil {
			return err
		}
		return exchange(i)
	})
	if n := p.tlsSessions(); n != sessions {
		t.Errorf("%v TLS sessions, want %d", n, sessions)
	}
	renewed := l.ca.Server(t, "app.test")
	renewed.Write(t, l.dir, "app")
	p.Reload(body(s.Addr()))
	if got := l.shown(addr); got != serialOf(renewed) {
		t.Errorf("new connections see certificate %s, want %s", got, serialOf(renewed))
	}
	inParallel("after the reload", exchange)
	p.Reload(body(s.Addr(), s.Addr()))
	inParallel("after another", exchange)
	if n := p.tlsSessions(); n != sessions {
		t.Errorf("%v TLS sessions, want %d", n, sessions)
	}
	inParallel("the end", func(i int) error { return clients[i].Close() })
	ends := countBy(p.AccessLog(sessions+1), func(e Entry) string { return e.End })
	if ends["client_closed"] < sessions || len(ends) != 1 {
		t.Errorf("ends %v", ends)
	}
}

// A reload is done when the files of blocks that have not changed are in use,
// too; what is wrong with them is its error.
func TestTLSReloadReadsFiles(t *testing.T) {
	t.Parallel()
	l := newTLSLab(t)
	s := Serve(t, echo)
	p := Start(t, l.edge(s.Addr()))
	for range 5 {
		renewed := l.ca.Server(t, "app.test")
		renewed.Write(t, l.dir, "app")
		p.SignalReload()
		if got := l.shown(p.Addr("edge")); got != serialOf(renewed) {
			t.Fatalf("new connections see certificate %s, want %s", got, serialOf(renewed))
		}
	}
	before := l.shown(p.Addr("edge"))
	testcert.WriteFile(t, l.dir, "app.crt", []byte("no certificate"))
	p.Expect("app.crt")
	if log := p.ReloadFails(l.edge(s.Addr())); !strings.Contains(log, "app.crt") {
		t.Errorf("the log does not name the file: %s", log)
	}
	if got := l.shown(p.Addr("edge")); got != before {
		t.Errorf("new connections see certificate %s, want %s", got, before)
	}
}

// A pair that is renewed is in use within a second, by itself; a broken one
// never is.
func TestTLSReloadByItself(t *testing.T) {
	t.Parallel()
	for _, source := range []string{"file", "dir"} {
		t.Run(source, func(t *testing.T) {
			t.Parallel()
			l := newTLSLab(t)
			certs := filepath.Join(l.dir, "certs")
			if err := os.Mkdir(certs, 0o755); err != nil {
				t.Fatal(err)
			}
			first := l.ca.Server(t, "app.test")
			first.Write(t, certs, "app")
			block := fmt.Sprintf("certificate {\n cert_file = \"%s/app.crt\"\n key_file = \"%[1]s/app.key\"\n}", certs)
			if source == "dir" {
				block = fmt.Sprintf("certificate { dir = %q }", certs)
			}
			p := Start(t, "tls \"public\" {\n"+block+"\n}\n"+oneUpstream("tls = tls.public", "", Serve(t, echo).Addr()))
			addr := p.Addr("edge")
			l.awaitShown(addr, first, time.Second)
			live := DialTLS(t, addr, l.client())
			RoundTrip(t, live, "before")

			second := l.ca.Server(t, "app.test")
			second.Write(t, certs, "app")
			l.awaitShown(addr, second, time.Second)
			RoundTrip(t, live, "after")

			p.Expect("certificate")
			from := len(p.Log())
			testcert.WriteFile(t, certs, "app.crt", []byte("-----BEGIN CERTIFICATE-----\nbroken\n"))
			eventually(t, func() bool { return len(p.Log()) > from }, func() string { return "a word about the broken certificate" })
			if got := l.shown(addr); got != serialOf(second) {
				t.Errorf("new connections see %s, want the old certificate", got)
			}
			third := l.ca.Server(t, "app.test")
			third.Write(t, certs, "app")
			l.awaitShown(addr, third, time.Second)
			RoundTrip(t, live, "and then")
		})
	}
}

// A configuration whose certificates cannot be loaded changes nothing.
func TestTLSReloadRefused(t *testing.T) {
	t.Parallel()
	l := newTLSLab(t)
	s := Serve(t, echo)
	p := Start(t, l.edge(s.Addr()))
	addr := p.Addr("edge")
	live := DialTLS(t, addr, l.client())
	RoundTrip(t, live, "before")
	other := l.ca.Server(t, "app.test")
	other.Write(t, l.dir, "other")
	testcert.WriteFile(t, l.dir, "mixed.crt", other.CertPEM)
	testcert.WriteFile(t, l.dir, "mixed.key", l.pair.KeyPEM)
	testcert.WriteFile(t, l.dir, "empty.crt", nil)
	testcert.WriteFile(t, l.dir, "empty.key", nil)
	for name, fault := range map[string]string{
		"missing": "missing.crt", "mixed": "mixed.", "empty": "empty.crt",
	} {
		body := "tls \"public\" {\n" + l.certificate(name) + "\n}\n" + oneUpstream("tls = tls.public", "", s.Addr())
		if log := p.ReloadFails(body); !strings.Contains(log, fault) {
			t.Errorf("%s: the log does not name %s:\n%s", name, fault, log)
		}
		RoundTrip(t, live, "still")
		if got := l.shown(addr); got != serialOf(l.pair) {
			t.Errorf("%s: new connections see %s", name, got)
		}
	}
	os.Remove(filepath.Join(l.dir, "other.key"))
	body := "tls \"public\" {\n" + l.certificate("other") + "\n}\n" + oneUpstream("tls = tls.public", "", s.Addr())
	if log := p.ReloadFails(body); !strings.Contains(log, "other.key") {
		t.Errorf("the log does not name the key file:\n%s", log)
	}
	p.Reload(l.edge(s.Addr(), s.Addr()))
	RoundTrip(t, live, "in the end")
	RoundTrip(t, DialTLS(t, addr, l.client()), "new")
}
