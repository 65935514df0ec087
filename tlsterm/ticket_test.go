package tlsterm

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"edgeproxy/internal/testcert"
)

// versions that resume by different means.
var versions = map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13}

func newKey80(t *testing.T) []byte {
	t.Helper()
	b := make([]byte, 80)
	rand.Read(b)
	return b
}

func keyLines(keys ...[]byte) []byte {
	var b bytes.Buffer
	for _, k := range keys {
		fmt.Fprintln(&b, base64.StdEncoding.EncodeToString(k))
	}
	return b.Bytes()
}

// Resumption never crosses what a session was verified against, not even with
// ticket keys shared: nginx CVE-2025-23419, Envoy CVE-2022-21654, Go
// CVE-2025-68121.
func TestResumptionMatrix(t *testing.T) {
	t.Parallel()
	type change struct {
		name    string
		change  func(t *testing.T, l *lab, o *Options, client *tls.Config)
		resumes bool
		fails   bool // the handshake as a whole
	}
	keep := func(*testing.T, *lab, *Options, *tls.Config) {}
	for _, tt := range []change{
		{"the same block", keep, true, false},
		{"another block with the same keys", func(_ *testing.T, _ *lab, o *Options, _ *tls.Config) { o.Name = "other" }, false, false},
		{"client certificates no longer asked for", func(_ *testing.T, _ *lab, o *Options, _ *tls.Config) { o.ClientAuth = ClientAuthOptions{} }, false, false},
		{"client certificates become optional", func(_ *testing.T, _ *lab, o *Options, _ *tls.Config) { o.ClientAuth.Mode = ClientAuthRequest }, false, false},
		{"another authority in ca_file", func(t *testing.T, l *lab, o *Options, _ *tls.Config) {
			o.ClientAuth.CAFile = testcert.NewCA(t, "clients").Write(t, l.dir, "clients2")
		}, false, true},
		{"one more authority in ca_file", func(t *testing.T, l *lab, o *Options, _ *tls.Config) {
			o.ClientAuth.CAFile = testcert.WriteFile(t, l.dir, "both.pem", slices.Concat(l.clients.PEM(), testcert.NewCA(t, "more").PEM()))
		}, false, false},
		{"the same ca_file under another name", func(t *testing.T, l *lab, o *Options, _ *tls.Config) {
			o.ClientAuth.CAFile = l.clients.Write(t, l.dir, "clients2")
		}, true, false},
		{"revocation is checked now", func(t *testing.T, l *lab, o *Options, _ *tls.Config) {
			o.ClientAuth.CRLFile = testcert.WriteFile(t, l.dir, "crl.pem", l.clients.CRL(t))
		}, false, false},
		{"another minimum version", func(_ *testing.T, _ *lab, o *Options, _ *tls.Config) { o.MinVersion = tls.VersionTLS11 }, false, false},
		{"other protocols", func(_ *testing.T, _ *lab, o *Options, _ *tls.Config) { o.ALPN = []string{"h2"} }, false, false},
		{"other certificates", func(t *testing.T, l *lab, o *Options, _ *tls.Config) {
			cert, key := l.servers.Server(t, "a.example.com", "b.example.com").Write(t, l.dir, "new")
			o.Certificates = []CertificateOptions{{CertFile: cert, KeyFile: key}}
		}, false, false},
		{"SNI is strict now", func(_ *testing.T, _ *lab, o *Options, _ *tls.Config) { o.StrictSNI = true }, false, false},
		{"no tickets any more", func(_ *testing.T, _ *lab, o *Options, _ *tls.Config) { o.NoTickets, o.TicketKeys = true, "" }, false, false},
		{"own keys now", func(_ *testing.T, _ *lab, o *Options, _ *tls.Config) { o.TicketKeys = "" }, false, false},
		{"OCSP stapling, which is nothing to the client's rights", func(_ *testing.T, _ *lab, o *Options, _ *tls.Config) { o.OCSPStapling = true }, true, false},
		{"another server name", func(_ *testing.T, _ *lab, _ *Options, client *tls.Config) {
			client.ServerName = "b.example.com"
			client.ClientSessionCache = anyName{client.ClientSessionCache}
		}, false, false},
		{"the same server name written otherwise", func(_ *testing.T, _ *lab, _ *Options, client *tls.Config) {
			client.ServerName = "A.EXAMPLE.com"
			client.ClientSessionCache = anyName{client.ClientSessionCache}
		}, true, false},
	} {
		for vname, version := range versions {
			t.Run(tt.name+"/"+vname, func(t *testing.T) {
				t.Parallel()
				l := newLab(t)
				o := l.mutual()
				o.TicketKeys = testcert.WriteFile(t, l.dir, "tickets", newKey80(t))
				client := l.client(l.alice)
				client.MaxVersion = version
				client.ClientSessionCache = anyName{client.ClientSessionCache}
				old := l.set(t, nil, o)
				mustMeet(t, old.Context(o.Name).Template(), client)

				tt.change(t, l, &o, client)
				for name, now := range map[string]*Set{"reload": l.set(t, old, o), "elsewhere in the fleet": l.set(t, nil, o)} {
					client := client.Clone()
					client.ClientSessionCache = readOnly{client.ClientSessionCache}
					got := meet(now.Context(o.Name).Template(), client)
					if got.failed() != tt.fails {
						t.Fatalf("%s: server: %v; client: %v", name, got.serverErr, got.clientErr)
					}
					if !tt.fails && (got.server.DidResume != tt.resumes || got.client.DidResume != tt.resumes) {
						t.Errorf("%s: resumed: %v; want %v", name, got.server.DidResume, tt.resumes)
					}
				}
			})
		}
	}
}

// anyName offers a session whatever the server's name is.
type anyName struct{ tls.ClientSessionCache }

func (c anyName) Get(string) (*tls.ClientSessionState, bool) { return c.ClientSessionCache.Get("") }
func (c anyName) Put(_ string, s *tls.ClientSessionState)    { c.ClientSessionCache.Put("", s) }

// readOnly offers the session that there was before again and again.
type readOnly struct{ tls.ClientSessionCache }

func (readOnly) Put(string, *tls.ClientSessionState) {}

// A resumed session is looked at as a new one is: nginx CVE-2025-23419, nginx
// CVE-2026-28755.
func TestResumptionVerifiesAgain(t *testing.T) {
	t.Parallel()
	for vname, version := range versions {
		t.Run("revoked since/"+vname, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			c := l.context(t, l.revoking(t))
			client := l.client(l.alice)
			client.MaxVersion = version
			mustMeet(t, c.Template(), client)
			if o := mustMeet(t, c.Template(), client); !o.server.DidResume {
				t.Fatal("not resumed")
			}
			l.revoking(t, l.alice) // writes the file anew
			if changed, err := c.auth.reloadCRL(); !changed || err != nil {
				t.Fatal(changed, err)
			}
			for range 2 {
				o := meet(c.Template(), client)
				if o.serverErr == nil || !strings.Contains(o.serverErr.Error(), "revoked") {
					t.Errorf("server: %v; want it revoked", o.serverErr)
				}
				if o.clientErr == nil {
					t.Error("the client was let in")
				}
			}
		})
		t.Run("expired since/"+vname, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				c := l.context(t, l.mutual())
				bob := l.clients.Issue(t, testcert.Template{CommonName: "bob", Client: true, NotAfter: time.Now().Add(time.Hour)})
				client := l.client(bob)
				client.MaxVersion = version
				mustMeet(t, c.Template(), client)
				time.Sleep(59 * time.Minute)
				if o := mustMeet(t, c.Template(), client); !o.server.DidResume {
					t.Fatal("not resumed")
				}
				time.Sleep(2 * time.Minute)
				o := meet(c.Template(), client)
				if got := alertOf(o); got != "remote error: tls: expired certificate" {
					t.Errorf("the client saw %q, the server %v", got, o.serverErr)
				}
			})
		})
		t.Run("list expired since/"+vname, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				c := l.context(t, l.revoking(t)) // for a day
				client := l.client(l.alice)
				client.MaxVersion = version
				time.Sleep(23 * time.Hour)
				mustMeet(t, c.Template(), client)
				time.Sleep(2 * time.Hour)
				o := meet(c.Template(), client)
				if o.serverErr == nil || !strings.Contains(o.serverErr.Error(), "has expired") || o.clientErr == nil {
					t.Errorf("server: %v; client: %v", o.serverErr, o.clientErr)
				}
			})
		})
	}
}

// A name whose certificate was taken away is not served to those who have been
// there before.
func TestStrictSNIAppliesToResumption(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	certs := t.TempDir()
	l.servers.Server(t, "a.example.com").Write(t, certs, "a")
	l.servers.Server(t, "*.example.org").Write(t, certs, "b")
	o := l.options()
	o.StrictSNI, o.Certificates = true, []CertificateOptions{{Dir: certs}}
	c := l.running(t, &Env{}, nil, o).Context("public")
	clients := map[string]*tls.Config{}
	for _, name := range []string{"a.example.com", "x.example.org"} {
		client := l.client()
		client.ServerName = name
		mustMeet(t, c.Template(), client)
		if o := mustMeet(t, c.Template(), client); !o.server.DidResume {
			t.Errorf("%s: not resumed", name)
		}
		clients[name] = client
	}
	for _, name := range []string{"b.crt", "b.key"} {
		if err := os.Remove(filepath.Join(certs, name)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the certificate is gone", func() bool { return len(c.Certificates()) == 1 })
	if o := meet(c.Template(), clients["x.example.org"]); alertOf(o) != "remote error: tls: unrecognized name" {
		t.Errorf("the client saw %q", alertOf(o))
	}
	if o := mustMeet(t, c.Template(), clients["a.example.com"]); !o.server.DidResume {
		t.Error("the other name is not resumed")
	}
}

// Own keys: the newest seals, and each opens for two rotations more.
func TestOwnKeysRotate(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		after   time.Duration
		resumes bool
	}{
		{0, true},
		{ticketRotation, true},
		{2 * ticketRotation, true}, // to the second; see TicketLifetime
		{2*ticketRotation + time.Second, false},
		{3 * ticketRotation, false},
		{4 * ticketRotation, false},
	} {
		for vname, version := range versions {
			t.Run(fmt.Sprint(tt.after, "/", vname), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					l := newLab(t)
					c := l.context(t, l.options())
					client := l.client()
					client.MaxVersion = version
					mustMeet(t, c.Template(), client)
					first := c.keys.masters()
					for range tt.after / ticketRotation {
						time.Sleep(ticketRotation)
						c.keys.masters()
					}
					time.Sleep(tt.after % ticketRotation)
					if o := mustMeet(t, c.Template(), client); o.server.DidResume != tt.resumes {
						t.Errorf("resumed: %v; want %v", o.server.DidResume, tt.resumes)
					}
					if now := c.keys.masters(); tt.after >= ticketRotation && now.seal == first.seal {
						t.Error("the key was not rotated")
					} else if len(now.open) > ticketKeysKept {
						t.Errorf("%d keys are kept", len(now.open))
					}
				})
			})
		}
	}
}

// After a night without clients nothing is left of the evening's keys.
func TestOwnKeysAreForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		keys, err := newTicketKeys("")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(ticketRotation + TicketLifetime)
		if m := keys.masters(); len(m.open) != 1 {
			t.Errorf("%d keys", len(m.open))
		}
	})
}

// With keys of a file, too, a session ends 12 hours after its client was
// authenticated, however often it was resumed and however fresh its ticket is.
func TestTicketsAge(t *testing.T) {
	t.Parallel()
	for vname, version := range versions {
		t.Run(vname, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t)
				o := l.mutual()
				o.TicketKeys = testcert.WriteFile(t, l.dir, "tickets", newKey80(t))
				c := l.context(t, o)
				// The pool's workers hand on when the client was authenticated.
				w := &worker{configs: map[*tls.Config]*tls.Config{}, current: &Handshake{}}
				server := w.config(c.Template())
				client := l.client(l.alice)
				client.MaxVersion = version
				mustMeet(t, server, client)
				for range 4 {
					time.Sleep(3 * time.Hour)
					w.current = &Handshake{}
					if o := mustMeet(t, server, client); !o.server.DidResume {
						t.Fatal("not resumed")
					}
				}
				time.Sleep(time.Second)
				w.current = &Handshake{}
				if o := mustMeet(t, server, client); o.server.DidResume {
					t.Error("resumed after 12 hours")
				}
				time.Sleep(time.Hour)
				w.current = &Handshake{}
				if o := mustMeet(t, server, client); !o.server.DidResume {
					t.Error("the new session is not resumed")
				}
			})
		})
	}
}

// Machines with the same block and the same file resume each other's sessions,
// all through a rotation: the new key is appended here first, there later.
func TestFleet(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	k1, k2, k3 := newKey80(t), newKey80(t), newKey80(t)
	machine := func(name string, keys ...[]byte) *Context {
		o := l.options()
		o.TicketKeys = testcert.WriteFile(t, l.dir, name, keyLines(keys...))
		return l.context(t, o)
	}
	here, there := machine("here", k1), machine("there", k1)
	write := func(c *Context, keys ...[]byte) {
		testcert.WriteFile(t, l.dir, filepath.Base(c.keys.file), keyLines(keys...))
		if _, err := c.keys.reload(); err != nil {
			t.Fatal(err)
		}
	}
	both := func(step string, resumes bool) {
		for vname, version := range versions {
			for _, pair := range [][2]*Context{{here, there}, {there, here}} {
				client := l.client()
				client.MaxVersion = version
				mustMeet(t, pair[0].Template(), client)
				if o := mustMeet(t, pair[1].Template(), client); o.server.DidResume != resumes {
					t.Errorf("%s, %s: resumed: %v; want %v", step, vname, o.server.DidResume, resumes)
				}
			}
		}
	}
	both("one key", true)
	write(here, k1, k2)
	both("appended here", true)
	write(there, k1, k2)
	both("appended there", true)
	write(here, k1, k2, k3)
	both("another one here", true)
	write(there, k1, k2, k3)
	both("another one there", true)
	write(here, newKey80(t))
	both("different files", false)
}

// Nobody can change a ticket, and nothing that is no ticket is an error, which
// would end the handshake.
func TestForgedTickets(t *testing.T) {
	t.Parallel()
	keys, err := newTicketKeys("")
	if err != nil {
		t.Fatal(err)
	}
	s := newSealer(keys, sha256.Sum256([]byte("scope")))
	cs := tls.ConnectionState{ServerName: "a.example.com"}
	l := newLab(t)
	var ticket []byte
	server := l.context(t, l.options()).Template().Clone()
	server.WrapSession = func(cs tls.ConnectionState, ss *tls.SessionState) (_ []byte, err error) {
		ticket, err = s.wrap(cs, ss)
		return ticket, err
	}
	mustMeet(t, server, l.client())
	if ss, err := s.unwrap(ticket, cs); ss == nil || err != nil {
		t.Fatal(ss, err)
	}
	for i := range ticket {
		forged := bytes.Clone(ticket)
		forged[i] ^= 1
		if ss, err := s.unwrap(forged, cs); ss != nil || err != nil {
			t.Errorf("byte %d changed: %v, %v", i, ss, err)
		}
	}
	for n := range ticket {
		if ss, err := s.unwrap(ticket[:n], cs); ss != nil || err != nil {
			t.Errorf("cut to %d bytes: %v, %v", n, ss, err)
		}
	}
	if ss, err := s.unwrap(make([]byte, 1<<16), cs); ss != nil || err != nil {
		t.Error(ss, err)
	}
}

// A client certificate with a chain too long for a ticket is no reason to end
// the handshake.
func TestHugeSessionsAreNotResumed(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ca := l.clients
	for i := range 4 {
		ca = ca.Intermediate(t, strings.Repeat(fmt.Sprint(i), 2000))
	}
	c := l.context(t, l.mutual())
	for _, version := range versions {
		client := l.client(ca.Client(t, "long"))
		client.MaxVersion = version
		for range 2 {
			if o := mustMeet(t, c.Template(), client); o.server.DidResume {
				t.Error("resumed")
			}
		}
	}
}

// The protocol is agreed on anew in a resumed session; it is not carried over.
func TestResumptionNegotiatesALPN(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	o := l.options()
	o.ALPN = []string{"h2", "http/1.1"}
	c := l.context(t, o)
	for vname, version := range versions {
		client := l.client()
		client.MaxVersion = version
		for i, proto := range []string{"h2", "http/1.1", "h2"} {
			client.NextProtos = []string{proto}
			o := mustMeet(t, c.Template(), client)
			if o.server.NegotiatedProtocol != proto || o.server.DidResume != (i > 0) {
				t.Errorf("%s: %q, resumed %v", vname, o.server.NegotiatedProtocol, o.server.DidResume)
			}
		}
		client.NextProtos = []string{"ftp"}
		if o := meet(c.Template(), client); !o.failed() {
			t.Errorf("%s: a protocol that is not ours was accepted with a ticket", vname)
		}
	}
}

func BenchmarkTickets(b *testing.B) {
	keys, err := newTicketKeys("")
	if err != nil {
		b.Fatal(err)
	}
	s := newSealer(keys, sha256.Sum256([]byte("scope")))
	ss, err := tls.ParseSessionState(slices.Concat([]byte{3, 4, 1, 0x13, 1, 0, 0, 0, 0, 0, 0, 0, 0, 32}, make([]byte, 32), []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}))
	if err != nil {
		b.Fatal(err)
	}
	cs := tls.ConnectionState{ServerName: "a.example.com"}
	ticket, err := s.wrap(cs, ss)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("seal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.wrap(cs, ss)
		}
	})
	b.Run("open", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if ss, _ := s.unwrap(ticket, cs); ss == nil {
				b.Fatal("not opened")
			}
		}
	})
}
