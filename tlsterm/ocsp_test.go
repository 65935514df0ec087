package tlsterm

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ocsp"

	"edgeproxy/internal/testcert"
)

const responderURL = "http://ocsp.test/"

// responder answers for one certificate, without a network.
type responder struct {
	t    *testing.T
	ca   *testcert.CA
	pair *testcert.Pair

	mu     sync.Mutex
	asked  []time.Time
	answer func(req *http.Request, now time.Time) ([]byte, error)
}

func (r *responder) RoundTrip(req *http.Request) (*http.Response, error) {
	r.mu.Lock()
	r.asked = append(r.asked, time.Now())
	answer := r.answer
	r.mu.Unlock()
	body, err := answer(req, time.Now())
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(body)), Request: req}, nil
}

func (r *responder) set(answer func(*http.Request, time.Time) ([]byte, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

func (r *responder) times() []time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

// says answers with a status that is good for so long.
func (r *responder) says(status int, validity time.Duration) func(*http.Request, time.Time) ([]byte, error) {
	return func(_ *http.Request, now time.Time) ([]byte, error) {
		return ocsp.CreateResponse(r.ca.Cert, r.ca.Cert, ocsp.Response{
			Status: status, SerialNumber: r.pair.Leaf.SerialNumber, ThisUpdate: now, NextUpdate: now.Add(validity), RevokedAt: now.Add(-time.Hour),
		}, r.ca.Key)
	}
}

func fails(*http.Request, time.Time) ([]byte, error) { return nil, errors.New("no route to host") }

func hangs(req *http.Request, _ time.Time) ([]byte, error) {
	<-req.Context().Done()
	return nil, req.Context().Err()
}

// stapled makes a store with a certificate whose responder is r, and begins to
// ask. Files are not watched: in a bubble of synctest nothing else may wait
// for the kernel.
func stapled(t *testing.T, tpl testcert.Template, answer func(r *responder) func(*http.Request, time.Time) ([]byte, error)) (*certStore, *responder, *recorder) {
	t.Helper()
	ca := testcert.NewCA(t, "root").Intermediate(t, "ca")
	tpl.Names, tpl.OCSPServer = []string{"a.test"}, responderURL
	r := &responder{t: t, ca: ca, pair: ca.Issue(t, tpl)}
	r.answer = answer(r)
	var events recorder
	s, err := newCertStore(&Options{Name: "public", OCSPStapling: true, Certificates: []CertificateOptions{files(r.pair.Write(t, t.TempDir(), "a"))}},
		certEnv{events: &events, http: &http.Client{Transport: r}})
	if err != nil {
		t.Fatal(err)
	}
	s.running.Go(s.stapling.run)
	return s, r, &events
}

func shown(t *testing.T, s *certStore) []byte {
	t.Helper()
	cert, err := s.get(&tls.ClientHelloInfo{ServerName: "a.test"})
	if err != nil || cert == nil {
		t.Fatal("no certificate", err)
	}
	return cert.OCSPStaple
}

func TestStapleIsRenewedBeforeHalfItsValidity(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, r, _ := stapled(t, testcert.Template{}, func(r *responder) func(*http.Request, time.Time) ([]byte, error) {
			return r.says(ocsp.Good, 100*time.Hour)
		})
		defer s.Close()
		time.Sleep(30 * 24 * time.Hour)
		synctest.Wait()
		asked := r.times()
		for i := 1; i < len(asked); i++ {
			if gap := asked[i].Sub(asked[i-1]); gap < 40*time.Hour || gap > 50*time.Hour {
				t.Errorf("asked again after %v; expected 40 to 50 h", gap)
			}
		}
		if len(asked) < 14 {
			t.Errorf("asked %d times in 30 days", len(asked))
		}
		if shown(t, s) == nil || s.expiry()[0].OCSP != OCSPGood {
			t.Error("nothing is stapled")
		}
	})
}

func TestStapleStaysUntilItExpires(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string]func(*responder) func(*http.Request, time.Time) ([]byte, error){
		"responder away":  func(*responder) func(*http.Request, time.Time) ([]byte, error) { return fails },
		"responder hangs": func(*responder) func(*http.Request, time.Time) ([]byte, error) { return hangs },
		"status unknown": func(r *responder) func(*http.Request, time.Time) ([]byte, error) {
			return r.says(ocsp.Unknown, time.Hour)
		},
		"outdated response": func(r *responder) func(*http.Request, time.Time) ([]byte, error) {
			return r.says(ocsp.Good, -time.Hour)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, r, events := stapled(t, testcert.Template{MustStaple: true}, func(r *responder) func(*http.Request, time.Time) ([]byte, error) {
					return r.says(ocsp.Good, 10*time.Hour)
				})
				defer s.Close()
				synctest.Wait()
				r.set(bad(r))
				time.Sleep(10*time.Hour - time.Second)
				synctest.Wait()
				if shown(t, s) == nil {
					t.Error("the staple went before its time")
				}
				if !events.has("staple", "a.test", responderURL) {
					t.Errorf("nobody was told:\n%v", events)
				}
				if events.has("must-staple") {
					t.Errorf("told too early that nothing is stapled:\n%v", events)
				}
				time.Sleep(2 * time.Second)
				synctest.Wait()
				if shown(t, s) != nil || s.expiry()[0].OCSP != OCSPPending {
					t.Error("an expired response is stapled")
				}
				time.Sleep(90 * time.Minute)
				synctest.Wait()
				if !events.has("staple", "must-staple") {
					t.Errorf("not told that clients will refuse it:\n%v", events)
				}
				asked := r.times()
				if n := len(asked); n < 8 || n > 25 {
					t.Errorf("asked %d times in 11.5 h; expected pauses that grow up to an hour", n)
				}
				r.set(r.says(ocsp.Good, 10*time.Hour))
				time.Sleep(90 * time.Minute)
				synctest.Wait()
				if shown(t, s) == nil {
					t.Error("a good response after bad ones is not stapled")
				}
			})
		})
	}
}

func TestRevokedIsToldAndNotStapled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, r, events := stapled(t, testcert.Template{}, func(r *responder) func(*http.Request, time.Time) ([]byte, error) {
			return r.says(ocsp.Good, 10*time.Hour)
		})
		defer s.Close()
		synctest.Wait()
		if shown(t, s) == nil {
			t.Fatal("nothing is stapled")
		}
		r.set(r.says(ocsp.Revoked, 10*time.Hour))
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if shown(t, s) != nil || s.expiry()[0].OCSP != OCSPRevoked {
			t.Error("a staple of a revoked certificate")
		}
		if n := events.count("revoked a.crt a.test"); n != 1 {
			t.Errorf("told %d times:\n%v", n, events)
		}
	})
}

func TestStapleOutlivesReload(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, r, _ := stapled(t, testcert.Template{}, func(r *responder) func(*http.Request, time.Time) ([]byte, error) {
			return r.says(ocsp.Good, 10*time.Hour)
		})
		synctest.Wait()
		want := shown(t, s)
		r.set(fails)
		dir := t.TempDir()
		next, err := newCertStore(&Options{OCSPStapling: true, Certificates: []CertificateOptions{files(r.pair.Write(t, dir, "b"))}},
			certEnv{http: &http.Client{Transport: r}, previous: s})
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		next.running.Go(next.stapling.run)
		defer next.Close()
		if got := shown(t, next); want == nil || !bytes.Equal(got, want) {
			t.Error("a reload lost the staple")
		}
		// The same pair, written once more.
		r.pair.Write(t, dir, "b")
		testcert.WriteFile(t, dir, "b.crt", append([]byte("again\n"), r.pair.CertPEM...))
		if !next.scan(everything, time.Now()) {
			t.Fatal("the rewritten pair was not read")
		}
		next.stapling.changed()
		if got := shown(t, next); !bytes.Equal(got, want) {
			t.Error("a rewritten pair lost the staple")
		}
		time.Sleep(11 * time.Hour)
		synctest.Wait()
		if shown(t, next) != nil {
			t.Error("the staple taken over never expires")
		}
	})
}

// RFC 6960, section 3.2: what is accepted from a responder.
func TestResponsesAreVerified(t *testing.T) {
	t.Parallel()
	root := testcert.NewCA(t, "root")
	ca, stranger := root.Intermediate(t, "ca"), testcert.NewCA(t, "stranger")
	delegate := ca.Issue(t, testcert.Template{CommonName: "responder", OCSPSigning: true})
	late := ca.Issue(t, testcert.Template{CommonName: "responder", OCSPSigning: true, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour)})
	customer := ca.Server(t, "customer.test")
	foreign := stranger.Issue(t, testcert.Template{CommonName: "responder", OCSPSigning: true})

	var leaf *testcert.Pair
	var answer atomic.Pointer[func(w http.ResponseWriter, r *http.Request)]
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*answer.Load())(w, r) }))
	defer server.Close()
	leaf = ca.Issue(t, testcert.Template{Names: []string{"a.test"}, OCSPServer: server.URL})
	client := newOCSPClient()

	now := time.Now()
	sign := func(status int, change func(*ocsp.Response), signer *x509.Certificate, key crypto.Signer) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, req *http.Request) {
			body, _ := io.ReadAll(req.Body)
			asked, err := ocsp.ParseRequest(body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			tpl := ocsp.Response{Status: status, SerialNumber: asked.SerialNumber, ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour), RevokedAt: now}
			if signer != ca.Cert {
				tpl.Certificate = signer
			}
			if change != nil {
				change(&tpl)
			}
			raw, err := ocsp.CreateResponse(ca.Cert, signer, tpl, key)
			if err != nil {
				t.Error(err)
			}
			w.Write(raw)
		}
	}
	raw := func(body string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }
	}
	for _, tt := range []struct {
		name   string
		answer func(http.ResponseWriter, *http.Request)
		want   string // "": good
	}{
		{"good", sign(ocsp.Good, nil, ca.Cert, ca.Key), ""},
		{"delegated", sign(ocsp.Good, nil, delegate.Leaf, delegate.Key), ""},
		{"no nextUpdate", sign(ocsp.Good, func(r *ocsp.Response) { r.NextUpdate = time.Time{} }, ca.Cert, ca.Key), ""},
		{"revoked", sign(ocsp.Revoked, nil, ca.Cert, ca.Key), "revoked"},
		{"unknown", sign(ocsp.Unknown, nil, ca.Cert, ca.Key), "does not know"},
		{"stale", sign(ocsp.Good, func(r *ocsp.Response) { r.NextUpdate = now.Add(-time.Minute) }, ca.Cert, ca.Key), "an old response"},
		{"from the future", sign(ocsp.Good, func(r *ocsp.Response) { r.ThisUpdate = now.Add(30 * time.Minute) }, ca.Cert, ca.Key), "future"},
		{"wrong serial", sign(ocsp.Good, func(r *ocsp.Response) { r.SerialNumber = big.NewInt(1 << 40) }, ca.Cert, ca.Key), "no response matching"},
		{"another authority's key", sign(ocsp.Good, nil, ca.Cert, stranger.Key), "bad OCSP signature"},
		{"another authority's delegate", sign(ocsp.Good, nil, foreign.Leaf, foreign.Key), "bad OCSP signature"},
		{"delegate that expired", sign(ocsp.Good, nil, late.Leaf, late.Key), "not valid now"},
		{"another customer of the authority", sign(ocsp.Good, nil, customer.Leaf, customer.Key), "not for OCSP"},
		{"try later", raw(string(ocsp.TryLaterErrorResponse)), "try later"},
		{"garbage", raw("<html>captive portal</html>"), "asn1"},
		{"empty", raw(""), "asn1"},
		{"huge", raw(strings.Repeat("0", maxOCSPResponse+1)), "more than 65536 bytes"},
		{"not found", func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }, "HTTP status 404"},
		{"round and round", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusTemporaryRedirect) }, "too many redirects"},
		{"to a file", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusTemporaryRedirect)
		}, "unsupported protocol"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			answer.Store(&tt.answer)
			body, err := fetchOCSP(t.Context(), client, server.URL, leaf.Leaf, ca.Cert)
			var s *staple
			if err == nil {
				s, err = verifyOCSP(body, leaf.Leaf, ca.Cert, now)
			}
			got := ""
			switch {
			case err != nil:
				got = err.Error()
			case !s.revoked.IsZero():
				got = "revoked"
				if s.raw != nil {
					t.Error("revoked is to be stapled")
				}
			case !bytes.Equal(s.raw, body):
				t.Error("not what the responder sent")
			}
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("%q; expected %q", got, tt.want)
			}
		})
	}
}

// A hanging responder does not keep a store from closing.
func TestCloseDoesNotWaitForResponders(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, r, _ := stapled(t, testcert.Template{}, func(*responder) func(*http.Request, time.Time) ([]byte, error) { return hangs })
		synctest.Wait()
		began := time.Now()
		s.Close()
		if took := time.Since(began); took != 0 || len(r.times()) != 1 {
			t.Errorf("took %v; asked %d times", took, len(r.times()))
		}
	})
}

// RFC 7633; a staple that will never come is told at the start.
func TestStaplingWarnings(t *testing.T) {
	t.Parallel()
	ca := testcert.NewCA(t, "root")
	below := ca.Intermediate(t, "below")
	for _, tt := range []struct {
		name     string
		ca       *testcert.CA
		tpl      testcert.Template
		stapling bool
		want     string
	}{
		{"plain", below, testcert.Template{}, true, ""},
		{"all there", below, testcert.Template{OCSPServer: responderURL, MustStaple: true}, true, ""},
		{"must-staple, stapling off", below, testcert.Template{OCSPServer: responderURL, MustStaple: true}, false, "set ocsp_stapling"},
		{"must-staple, no responder", below, testcert.Template{MustStaple: true}, true, "names no responder"},
		{"issuer missing", ca, testcert.Template{OCSPServer: responderURL}, true, "certificate of its issuer"},
		{"issuer missing, stapling off", ca, testcert.Template{OCSPServer: responderURL}, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.tpl.Names = []string{"a.test"}
			s := mustStore(t, &Options{OCSPStapling: tt.stapling, Certificates: []CertificateOptions{files(tt.ca.Issue(t, tt.tpl).Write(t, t.TempDir(), "a"))}}, certEnv{})
			if got := s.stapling.warning(s.index.Load().all[0]); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("%q; expected %q", got, tt.want)
			}
		})
	}
}

// Certificates come and go while responders are asked; many more than are
// asked at the same time.
func TestStaplesOfManyCertificates(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ca := testcert.NewCA(t, "root").Intermediate(t, "ca")
		dir := t.TempDir()
		for i := range 40 {
			ca.Issue(t, testcert.Template{Names: []string{fmt.Sprintf("%d.test", i)}, OCSPServer: responderURL}).Write(t, dir, fmt.Sprint(i))
		}
		var busy, most atomic.Int64
		client := &http.Client{Transport: roundTrip(func(req *http.Request) (*http.Response, error) {
			most.Store(max(most.Load(), busy.Add(1)))
			defer busy.Add(-1)
			body, _ := io.ReadAll(req.Body)
			asked, err := ocsp.ParseRequest(body)
			if err != nil {
				return nil, err
			}
			time.Sleep(time.Second)
			raw, err := ocsp.CreateResponse(ca.Cert, ca.Cert, ocsp.Response{SerialNumber: asked.SerialNumber, ThisUpdate: time.Now(), NextUpdate: time.Now().Add(100 * time.Hour)}, ca.Key)
			return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(raw))}, err
		})}
		s, err := newCertStore(&Options{OCSPStapling: true, Certificates: []CertificateOptions{{Dir: dir}}}, certEnv{http: client})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		s.running.Go(s.stapling.run)
		good := func() (n int) {
			for _, c := range s.expiry() {
				if c.OCSP == OCSPGood {
					n++
				}
			}
			return n
		}
		time.Sleep(4 * time.Second)
		for i := range 40 { // every second pair is replaced by one that is new
			if i%2 == 0 {
				ca.Issue(t, testcert.Template{Names: []string{fmt.Sprintf("%d.test", i)}, OCSPServer: responderURL}).Write(t, dir, fmt.Sprint(i))
			}
		}
		s.scan(everything, time.Now())
		s.stapling.changed()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := good(); n != 40 || most.Load() != ocspFetches {
			t.Errorf("%d of 40 are stapled; %d asked at the same time, expected %d", n, most.Load(), ocspFetches)
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func TestStapleOnTheWire(t *testing.T) {
	t.Parallel()
	ca := testcert.NewCA(t, "root").Intermediate(t, "ca")
	r := &responder{t: t, ca: ca, pair: ca.Issue(t, testcert.Template{Names: []string{"a.test"}, OCSPServer: responderURL})}
	r.answer = r.says(ocsp.Good, time.Hour)
	s := mustStore(t, &Options{OCSPStapling: true, Certificates: []CertificateOptions{files(r.pair.Write(t, t.TempDir(), "a"))}},
		certEnv{http: &http.Client{Transport: r}})
	s.start()
	until(t, 10*time.Second, "a staple", func() bool { return s.expiry()[0].OCSP == OCSPGood })
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		state, clientErr, serverErr := handshake(t, &tls.Config{GetCertificate: s.get}, &tls.Config{ServerName: "a.test", RootCAs: ca.Pool(), MaxVersion: version})
		if clientErr != nil || serverErr != nil {
			t.Fatal(clientErr, serverErr)
		}
		if _, err := ocsp.ParseResponseForCert(state.OCSPResponse, r.pair.Leaf, ca.Cert); err != nil {
			t.Errorf("%s: %v", tls.VersionName(version), err)
		}
	}
}
