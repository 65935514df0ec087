// Package testacme runs a certificate authority for tests: Pebble, the test
// server of Let's Encrypt, inside the test's process. Names under .test, and
// all others, resolve to 127.0.0.1 for it. It refuses a fifth of all nonces,
// as RFC 8555, section 6.5 allows.
//
//	ca := testacme.Start(t, testacme.Options{TLSPort: port})
//	… directory = ca.Directory(), ca_file = ca.CAFile() …
//	client := &tls.Config{RootCAs: ca.Roots(t), ServerName: "a.test"}
package testacme

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"

	"edgeproxy/internal/testcert"
)

// Options say how challenges are checked and what is issued.
type Options struct {
	TLSPort  int           // where tls-alpn-01 finds 127.0.0.1
	HTTPPort int           // where http-01 does
	Validity time.Duration // of certificates, whole seconds; 0: 90 days
}

// Authority is a running Pebble.
type Authority struct {
	options  Options
	resolver string
	log      *log.Logger
	pair     tls.Certificate
	caFile   string
	address  string
	server   *http.Server

	pebble atomic.Pointer[pebble]

	orders, renewals atomic.Int64
}

type pebble struct {
	ca      *ca.CAImpl
	handler http.Handler
}

var environment = sync.OnceValue(func() error {
	for name, value := range map[string]string{
		"PEBBLE_VA_NOSLEEP":      "1",
		"PEBBLE_WFE_NONCEREJECT": "20",
		"PEBBLE_AUTHZREUSE":      "0",
	} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	return nil
})

// Start runs an authority until the test ends.
func Start(t testing.TB, o Options) *Authority {
	t.Helper()
	if err := environment(); err != nil {
		t.Fatal(err)
	}
	if o.Validity == 0 {
		o.Validity = 90 * 24 * time.Hour
	}
	out := log.New(io.Discard, "", 0)
	if testing.Verbose() {
		out = log.New(t.Output(), "pebble: ", log.Lmicroseconds)
		// Its workers never end, and may say something after the test.
		t.Cleanup(func() { out.SetOutput(io.Discard) })
	}
	a := &Authority{options: o, resolver: resolver(t), log: out}
	a.Forget()
	root := testcert.NewCA(t, "the authority's own")
	a.pair = root.Server(t, "127.0.0.1").TLS()
	a.caFile = root.Write(t, t.TempDir(), "directory-ca")
	a.address = "127.0.0.1:0"
	a.Resume(t)
	t.Cleanup(a.Stop)
	return a
}

// Forget takes the authority back to its beginning: no accounts, no orders, and
// another root.
func (a *Authority) Forget() {
	memory := db.NewMemoryStore()
	profiles := map[string]ca.Profile{"default": {Description: "default", ValidityPeriod: uint64(a.options.Validity / time.Second)}}
	authority := ca.New(a.log, memory, "", "ecdsa", 0, 1, profiles)
	validator := va.New(a.log, a.options.HTTPPort, a.options.TLSPort, true, a.resolver, memory)
	front := wfe.New(a.log, memory, validator, authority, []string{"pebble.test"}, true, false, 0, 0)
	a.pebble.Store(&pebble{authority, front.Handler()})
}

// Stop makes the authority unreachable; what it knows is kept.
func (a *Authority) Stop() { a.server.Close() }

// Resume makes it reachable again, at the address it had.
func (a *Authority) Resume(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", a.address)
	if err != nil {
		t.Fatal(err)
	}
	a.address = l.Addr().String()
	a.server = &http.Server{
		Handler:   a,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{a.pair}},
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	go a.server.ServeTLS(l, "", "")
}

// Directory is where clients begin (RFC 8555, section 7.1.1).
func (a *Authority) Directory() string { return "https://" + a.address + wfe.DirectoryPath }

// CAFile is what clients trust the directory by.
func (a *Authority) CAFile() string { return a.caFile }

// Roots is what issued certificates verify against.
func (a *Authority) Roots(t testing.TB) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(a.pebble.Load().ca.GetRootCert(0).PEM()) {
		t.Fatal("the authority has no root")
	}
	return pool
}

// Orders is how many certificates were ordered, and how many of them in place
// of another (RFC 9773, section 5). An order whose nonce was refused counts
// again.
func (a *Authority) Orders() (all, renewals int64) { return a.orders.Load(), a.renewals.Load() }

// ServeHTTP counts orders on their way to Pebble.
func (a *Authority) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/order-plz" {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		var jws struct{ Payload string }
		var order struct{ Replaces string }
		if json.Unmarshal(body, &jws) == nil {
			payload, _ := base64.RawURLEncoding.DecodeString(jws.Payload)
			json.Unmarshal(payload, &order)
		}
		a.orders.Add(1)
		if order.Replaces != "" {
			a.renewals.Add(1)
		}
	}
	a.pebble.Load().handler.ServeHTTP(w, r)
}

// resolver runs a name server that knows one address.
func resolver(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{Listener: l, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		for _, question := range q.Question {
			if question.Qtype == dns.TypeA {
				m.Answer = append(m.Answer, &dns.A{
					Hdr: dns.RR_Header{Name: question.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1},
					A:   net.IPv4(127, 0, 0, 1),
				})
			}
		}
		w.WriteMsg(m)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.ActivateAndServe()
	}()
	t.Cleanup(func() {
		s.Shutdown()
		l.Close()
		<-done
	})
	return l.Addr().String()
}
