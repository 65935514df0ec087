package tlsterm

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"edgeproxy/internal/testcert"
)

// running makes a set that is in force until the end of the test.
func (l *lab) running(t *testing.T, env *Env, old *Set, opts ...Options) *Set {
	t.Helper()
	s, err := Prepare(env, old, opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Commit(old)
	t.Cleanup(s.Close)
	return s
}

func TestReloadKeepsWhatIsUnchanged(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	events := &eventRecorder{}
	env := &Env{Events: events}
	a, b := l.options(), l.mutual()
	a.Name, b.Name = "a", "b"
	b.TicketKeys = testcert.WriteFile(t, l.dir, "tickets", newKey80(t))
	s1 := l.running(t, env, nil, a, b)
	if s1.Context("a") == nil || s1.Context("x") != nil || len(s1.Contexts()) != 2 || s1.Context("a").Name() != "a" {
		t.Fatal("contexts")
	}
	if c := s1.Context("a").Certificates(); len(c) != 1 || c[0].Subject != "a.example.com" {
		t.Errorf("%+v", c)
	}
	loaded := events.count("loaded", "web.crt")

	s2 := l.running(t, env, s1, b, a)
	if s2.Context("a") != s1.Context("a") || s2.Context("b") != s1.Context("b") {
		t.Error("unchanged blocks were made anew")
	}
	a.ALPN = []string{"h2"}
	s3 := l.running(t, env, s2, a, b)
	a2, a3 := s2.Context("a"), s3.Context("a")
	if a3 == a2 || a3.certs != a2.certs || a3.keys != a2.keys {
		t.Error("other protocols need a new context, with the same certificates and keys")
	}
	if got := events.count("loaded", "web.crt"); got != loaded {
		t.Errorf("certificates were loaded %d times more", got-loaded)
	}
	// The file of authorities is read at reloads, and what it says matters.
	testcert.WriteFile(t, l.dir, "clients.pem", testcert.NewCA(t, "clients").PEM())
	s4 := l.running(t, env, s3, a, b)
	if s4.Context("b") == s3.Context("b") || s4.Context("b").keys != s3.Context("b").keys {
		t.Error("another ca_file needs a new context with the same keys")
	}
	if o := meet(s4.Context("b").Template(), l.client(l.alice)); !o.failed() {
		t.Error("a client of the authority that is gone was let in")
	}
	// Sessions that began before go on with what they have.
	mustMeet(t, s1.Context("b").Template(), l.client(l.alice))
	mustMeet(t, a2.Template(), l.client())
}

// All errors come at once, each with its block and file, and change nothing.
func TestPrepareReportsAllErrors(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	good := l.mutual()
	good.TicketKeys = testcert.WriteFile(t, l.dir, "tickets", newKey80(t))
	s := l.running(t, &Env{}, nil, good)
	bad := l.options()
	bad.Name = "bad"
	bad.Certificates = []CertificateOptions{{CertFile: l.dir + "/nowhere.crt", KeyFile: l.key}, {ACME: &ACMEOptions{Domains: []string{"a.example.com"}}}}
	bad.ClientAuth = ClientAuthOptions{Mode: ClientAuthRequire, CAFile: l.key}
	bad.TicketKeys = l.cert
	testcert.WriteFile(t, l.dir, "tickets", []byte("broken"))
	_, err := Prepare(&Env{}, s, []Options{good, bad})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{`tls "public": ticket_keys: ` + good.TicketKeys, `tls "bad": ` + l.dir + "/nowhere.crt", `tls "bad": client_auth: ca_file: ` + l.key,
		`tls "bad": ticket_keys: ` + l.cert, `tls "bad": certificates by ACME`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("missing %q in:\n%v", want, err)
		}
	}
	mustMeet(t, s.Context("public").Template(), l.client(l.alice))
}

// A changed file is in force within a second; a broken one is refused, with an
// event, and what was read before stays.
func TestFilesAreWatched(t *testing.T) {
	t.Parallel()
	if watchInterval > 500*time.Millisecond {
		t.Error("the interval leaves no time for anything else within that second") // which a busy machine may not keep to
	}
	l := newLab(t)
	events := &eventRecorder{}
	o := l.revoking(t)
	o.TicketKeys = testcert.WriteFile(t, l.dir, "tickets", newKey80(t))
	c := l.running(t, &Env{Events: events}, nil, o).Context("public")
	let := func() bool { return !meet(c.Template(), l.client(l.alice)).failed() }
	if !let() || !events.has("CRL loaded public") {
		t.Fatal("alice is not let in")
	}

	began := time.Now()
	l.revoking(t, l.alice)
	eventually(t, "alice is refused", func() bool { return !let() })
	t.Logf("a new list was in force after %v", time.Since(began))
	testcert.WriteFile(t, l.dir, "revoked.pem", []byte("-----BEGIN X509 CRL-----\nAAAA"))
	eventually(t, "the broken list is reported", func() bool { return events.has("CRL refused", "revoked.pem") })
	if let() {
		t.Error("a broken list lets the revoked in")
	}
	if err := os.Remove(filepath.Join(l.dir, "revoked.pem")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the missing list is reported", func() bool { return events.has("CRL refused", "no such file") })
	if let() {
		t.Error("a missing list lets the revoked in")
	}
	l.revoking(t)
	eventually(t, "alice is let in again", let)
	if n := events.count("CRL refused"); n != 2 {
		t.Errorf("%d reports of two errors", n)
	}

	client := l.client(l.alice)
	mustMeet(t, c.Template(), client)
	began = time.Now()
	testcert.WriteFile(t, l.dir, "tickets", newKey80(t))
	eventually(t, "new ticket keys are in force", func() bool { return events.has("keys loaded") })
	t.Logf("new keys were in force after %v", time.Since(began))
	if o := mustMeet(t, c.Template(), client); o.server.DidResume {
		t.Error("resumed by a key that is gone")
	}
	testcert.WriteFile(t, l.dir, "tickets", []byte("broken"))
	eventually(t, "broken ticket keys are reported", func() bool { return events.has("keys refused") })
	if o := mustMeet(t, c.Template(), client); !o.server.DidResume {
		t.Error("the old keys have not stayed")
	}
}

// Who runs the proxy hears of a list that expires before its clients do.
func TestExpiryOfListsIsTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		o := l.mutual()
		o.ClientAuth.CRLFile = testcert.WriteFile(t, l.dir, "crl.pem", l.clients.CRLUntil(t, time.Now().Add(47*time.Hour)))
		c := l.context(t, o)
		events := &eventRecorder{}
		w := &watching{events: events, told: map[*clientAuth]expiry{}}
		look := func() { w.expiry(c.auth, c, time.Now()) }
		for _, tt := range []struct {
			after          time.Duration
			warned, expire int
		}{{time.Hour, 0, 0}, {23 * time.Hour, 1, 0}, {time.Hour, 1, 0}, {23 * time.Hour, 1, 1}, {time.Hour, 1, 1}} {
			time.Sleep(tt.after)
			look()
			if a, b := events.count("expired=false"), events.count("expired=true"); a != tt.warned || b != tt.expire {
				t.Errorf("after %v: %d warnings, %d expired", tt.after, a, b)
			}
		}
	})
}

// Reloads, renewals and handshakes at the same time.
func TestReloadsUnderHandshakes(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	o := l.revoking(t)
	o.TicketKeys = testcert.WriteFile(t, l.dir, "tickets", newKey80(t))
	env := &Env{Events: &eventRecorder{}}
	current, err := Prepare(env, nil, []Options{o})
	if err != nil {
		t.Fatal(err)
	}
	current.Commit(nil)
	var mu sync.Mutex
	contextNow := func() *Context {
		mu.Lock()
		defer mu.Unlock()
		return current.Context("public")
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			client := l.client(l.alice)
			client.MaxVersion = tls.VersionTLS12 + uint16(i%2)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if o := meet(contextNow().Template(), client); o.failed() {
					t.Errorf("server: %v; client: %v", o.serverErr, o.clientErr)
					return
				}
			}
		})
	}
	for i := range 30 {
		testcert.WriteFile(t, l.dir, "tickets", newKey80(t))
		l.revoking(t)
		o.ALPN = []string{fmt.Sprint("p", i/2)} // every other reload changes nothing
		next, err := Prepare(env, current, []Options{o})
		if err != nil {
			t.Fatal(err)
		}
		if i%5 == 4 {
			next.Discard()
			continue
		}
		old := current
		next.Commit(old)
		mu.Lock()
		current = next
		mu.Unlock()
	}
	close(stop)
	wg.Wait()
	current.Close()
}
