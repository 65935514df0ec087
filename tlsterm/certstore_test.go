package tlsterm

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"edgeproxy/internal/testcert"
)

// recorder writes down what it is told.
type recorder struct {
	mu    sync.Mutex
	lines []string
}

func (r *recorder) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, fmt.Sprintf(format, args...))
}

func (r *recorder) CertificateLoaded(_, file string, subjects []string, _ time.Time) {
	r.add("loaded %s %v", filepath.Base(file), subjects)
}
func (r *recorder) CertificateRefused(_, file string, err error) {
	r.add("refused %s: %v", filepath.Base(file), err)
}
func (r *recorder) CertificateDropped(_, file string) { r.add("dropped %s", filepath.Base(file)) }
func (r *recorder) CertificateWarning(_, file, warning string) {
	r.add("warning %s: %s", filepath.Base(file), warning)
}
func (r *recorder) CertificateRevoked(_, file, subject string, _ time.Time) {
	r.add("revoked %s %s", filepath.Base(file), subject)
}
func (r *recorder) StapleFailed(_, file, subject string, err error) {
	r.add("staple %s %s: %v", filepath.Base(file), subject, err)
}

// has reports whether a line with all of parts was recorded.
func (r *recorder) has(parts ...string) bool { return r.count(parts...) > 0 }

func (r *recorder) count(parts ...string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, line := range r.lines {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			n++
		}
	}
	return n
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.lines, "\n")
}

// until waits for a condition that other goroutines bring about.
func until(t *testing.T, within time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > within {
			t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(began)
}

func files(certFile, keyFile string) CertificateOptions {
	return CertificateOptions{CertFile: certFile, KeyFile: keyFile}
}

func mustStore(t *testing.T, o *Options, env certEnv) *certStore {
	t.Helper()
	s, err := newCertStore(o, env)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// handshake makes a session and gives what the server showed and both errors.
func handshake(t *testing.T, server, client *tls.Config) (state tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	c, s := net.Pipe()
	defer c.Close()
	defer s.Close()
	done := make(chan error, 1)
	go func() {
		conn := tls.Server(s, server)
		done <- conn.HandshakeContext(t.Context())
	}()
	conn := tls.Client(c, client)
	clientErr = conn.HandshakeContext(t.Context())
	c.Close()
	return conn.ConnectionState(), clientErr, <-done
}

func rsaOnly(c *tls.Config) {
	c.MaxVersion = tls.VersionTLS12
	c.CipherSuites = []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
}

// RFC 6066, section 3; RFC 9525, section 6.3.
func TestServerNames(t *testing.T) {
	t.Parallel()
	ca := testcert.NewCA(t, "ca")
	dir := t.TempDir()
	var certs []CertificateOptions
	subjects := map[string]string{} // by serial number
	for _, c := range []struct {
		file string
		tpl  testcert.Template
	}{
		{"default", testcert.Template{Names: []string{"default.test"}}},
		{"default-rsa", testcert.Template{Names: []string{"default.test"}, RSA: true}},
		{"exact", testcert.Template{Names: []string{"www.example.com"}}},
		{"wild", testcert.Template{Names: []string{"*.example.com", "example.org"}}},
		{"case", testcert.Template{Names: []string{"MiXed.example.net"}}},
		{"both-rsa", testcert.Template{Names: []string{"both.test"}, RSA: true}},
		{"both-ecdsa", testcert.Template{Names: []string{"both.test"}}},
		{"wild-rsa", testcert.Template{Names: []string{"*.mixed.test"}, RSA: true}},
		{"one-ecdsa", testcert.Template{Names: []string{"one.mixed.test"}}},
		{"old", testcert.Template{Names: []string{"old.test"}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour)}},
		{"new-rsa", testcert.Template{Names: []string{"old.test"}, RSA: true}},
		{"past", testcert.Template{Names: []string{"past.test"}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour)}},
	} {
		pair := ca.Issue(t, c.tpl)
		subjects[pair.Leaf.SerialNumber.String()] = c.file
		certs = append(certs, files(pair.Write(t, dir, c.file)))
	}
	const refused = "unrecognized name"
	for _, tt := range []struct {
		name, sni string
		rsa       bool
		want      string
		strict    string // what StrictSNI makes of it; "": the same
	}{
		{"exact", "www.example.com", false, "exact", ""},
		{"exact before wildcard", "www.example.com", true, "exact", ""}, // no RSA pair: the handshake fails below
		{"wildcard", "a.example.com", false, "wild", ""},
		{"wildcard, upper case", "A.EXAMPLE.COM", false, "wild", ""},
		{"wildcard stands for one label only", "a.b.example.com", false, "default", refused},
		{"wildcard does not stand for none", "example.com", false, "default", refused},
		{"second name", "example.org", false, "wild", ""},
		{"no wildcard for it", "a.example.org", false, "default", refused},
		{"upper case in the certificate", "mixed.EXAMPLE.net", false, "case", ""},
		{"both, ECDSA preferred", "both.test", false, "both-ecdsa", ""},
		{"both, RSA alone understood", "both.test", true, "both-rsa", ""},
		{"exact ECDSA not understood, wildcard RSA is", "one.mixed.test", true, "wild-rsa", ""},
		{"exact and wildcard understood", "one.mixed.test", false, "one-ecdsa", ""},
		{"expired ones last", "old.test", false, "new-rsa", ""},
		{"expired, but the only one", "past.test", false, "past", ""},
		{"unknown", "unknown.test", false, "default", refused},
		{"unknown, RSA alone", "unknown.test", true, "default-rsa", refused},
		{"none", "", false, "default", refused},
	} {
		for _, strict := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/strict=%v", tt.name, strict), func(t *testing.T) {
				t.Parallel()
				s := mustStore(t, &Options{Name: "public", Certificates: certs, StrictSNI: strict}, certEnv{})
				client := &tls.Config{ServerName: tt.sni, InsecureSkipVerify: true}
				if tt.rsa {
					rsaOnly(client)
				}
				want := tt.want
				if strict && tt.strict != "" {
					want = tt.strict
				}
				state, clientErr, serverErr := handshake(t, &tls.Config{GetCertificate: s.get}, client)
				switch {
				case want == refused:
					if clientErr == nil || clientErr.Error() != "remote error: tls: unrecognized name" {
						t.Errorf("client: %v; expected the alert unrecognized_name", clientErr)
					}
				case want == "exact" && tt.rsa:
					if clientErr == nil || serverErr == nil {
						t.Error("a client without ECDSA was shown an ECDSA certificate")
					}
				case clientErr != nil || serverErr != nil:
					t.Fatalf("client: %v; server: %v", clientErr, serverErr)
				default:
					if got := subjects[state.PeerCertificates[0].SerialNumber.String()]; got != want {
						t.Errorf("shown %q; expected %q", got, want)
					}
				}
			})
		}
	}
}

// Lesson Traefik CVE-2026-48491, -53622, CVE-2022-23632: case, wildcard and
// trailing dot must not tell the policy of a name from its certificate.
func TestLookUpNormalises(t *testing.T) {
	t.Parallel()
	ca := testcert.NewCA(t, "ca")
	dir := t.TempDir()
	s := mustStore(t, &Options{StrictSNI: true, Certificates: []CertificateOptions{
		files(ca.Server(t, "www.example.com", "k.example.org").Write(t, dir, "exact")),
		files(ca.Server(t, "*.wild.test").Write(t, dir, "wild")),
	}}, certEnv{})
	for sni, want := range map[string]string{
		"www.example.com":        "exact",
		"www.example.com.":       "exact",
		"WWW.Example.COM.":       "exact",
		"www.example.com..":      "", // one dot only
		".www.example.com":       "",
		"a.wild.test.":           "wild",
		"A.Wild.Test":            "wild",
		"a.b.wild.test":          "",
		".wild.test":             "", // an empty label is none
		"wild.test":              "",
		"":                       "",
		".":                      "",
		"\u212a.example.org":     "", // KELVIN SIGN: strings.ToLower makes a k of it
		"www.example.com\x00.it": "",
	} {
		got := ""
		cert, err := s.get(&tls.ClientHelloInfo{ServerName: sni})
		if err != nil {
			t.Errorf("%q: %v", sni, err)
		}
		if cert != nil {
			got = map[bool]string{true: "wild", false: "exact"}[cert.Leaf.DNSNames[0] == "*.wild.test"]
		}
		if got != want {
			t.Errorf("%q: %q; expected %q", sni, got, want)
		}
	}
}

func TestStoreErrors(t *testing.T) {
	t.Parallel()
	ca := testcert.NewCA(t, "ca")
	a, b := ca.Server(t, "a.test"), ca.Server(t, "b.test")
	dir := t.TempDir()
	aCert, aKey := a.Write(t, dir, "a")
	bCert, _ := b.Write(t, dir, "b")
	broken := t.TempDir()
	a.Write(t, broken, "good")
	testcert.WriteFile(t, broken, "bad.crt", []byte("nothing"))
	testcert.WriteFile(t, broken, "bad.key", a.KeyPEM)
	testcert.WriteFile(t, broken, "lone.crt", b.CertPEM)
	testcert.WriteFile(t, broken, "ca.crt", ca.PEM())   // no error: the issuer's
	testcert.WriteFile(t, broken, "soon.key", b.KeyPEM) // no error: not issued yet
	testcert.WriteFile(t, broken, "README", nil)
	empty := t.TempDir()
	for name, tt := range map[string]struct {
		certs []CertificateOptions
		want  []string // each is in an error of its own
	}{
		"mismatch": {[]CertificateOptions{files(bCert, aKey)}, []string{`tls "public": ` + aKey + " does not belong to " + bCert}},
		"missing":  {[]CertificateOptions{files(aCert, filepath.Join(dir, "no.key"))}, []string{filepath.Join(dir, "no.key") + ": no such file"}},
		"all at once": {
			[]CertificateOptions{files(bCert, aKey), files("/nonexistent/x.crt", aKey), {ACME: &ACMEOptions{}}},
			[]string{"does not belong", "/nonexistent/x.crt: no such file", "ACME"},
		},
		"broken folder": {[]CertificateOptions{{Dir: broken}}, []string{"bad.crt: no complete PEM block", "lone.crt has no key beside it; expected " + filepath.Join(broken, "lone.key")}},
		"no folder":     {[]CertificateOptions{files(aCert, aKey), {Dir: filepath.Join(dir, "none")}}, []string{"none: no such file"}},
		"nothing":       {[]CertificateOptions{{Dir: empty}}, []string{"no certificate in " + empty}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := newCertStore(&Options{Name: "public", Certificates: tt.certs}, certEnv{})
			if err == nil {
				t.Fatal("no error")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tt.want) {
				t.Errorf("%d errors; expected %d:\n%v", len(lines), len(tt.want), err)
			}
			for _, want := range tt.want {
				if !slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, want) && strings.HasPrefix(l, `tls "public": `) }) {
					t.Errorf("no error says %q:\n%v", want, err)
				}
			}
		})
	}
	s := mustStore(t, &Options{Certificates: []CertificateOptions{{Dir: empty}, files(aCert, aKey)}}, certEnv{})
	if n := len(s.expiry()); n != 1 {
		t.Errorf("an empty folder beside a pair: %d certificates", n)
	}
}

func TestRenewedWithinASecond(t *testing.T) {
	t.Parallel()
	ca := testcert.NewCA(t, "ca")
	for name, setUp := range map[string]func(t *testing.T, dir string) (o CertificateOptions, renew func(p *testcert.Pair)){
		"files": func(t *testing.T, dir string) (CertificateOptions, func(*testcert.Pair)) {
			return files(filepath.Join(dir, "web.crt"), filepath.Join(dir, "web.key")), func(p *testcert.Pair) { p.Write(t, dir, "web") }
		},
		"files written in place": func(t *testing.T, dir string) (CertificateOptions, func(*testcert.Pair)) {
			return files(filepath.Join(dir, "web.crt"), filepath.Join(dir, "web.key")), func(p *testcert.Pair) {
				for file, data := range map[string][]byte{"web.crt": p.CertPEM, "web.key": p.KeyPEM} {
					if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
						t.Error(err)
					}
				}
			}
		},
		"one file for both": func(t *testing.T, dir string) (CertificateOptions, func(*testcert.Pair)) {
			return files(filepath.Join(dir, "web.pem"), ""), func(p *testcert.Pair) {
				testcert.WriteFile(t, dir, "web.pem", slices.Concat(p.KeyPEM, p.CertPEM))
			}
		},
		"folder": func(t *testing.T, dir string) (CertificateOptions, func(*testcert.Pair)) {
			return CertificateOptions{Dir: dir}, func(p *testcert.Pair) { p.Write(t, dir, "web") }
		},
		"folder that is replaced": func(t *testing.T, dir string) (CertificateOptions, func(*testcert.Pair)) {
			dir = filepath.Join(dir, "certs")
			n := 0
			return CertificateOptions{Dir: dir}, func(p *testcert.Pair) {
				next := t.TempDir()
				p.Write(t, next, "web")
				if n++; n > 1 {
					if err := os.Rename(dir, fmt.Sprintf("%s.%d", dir, n)); err != nil {
						t.Error(err)
					}
				}
				if err := os.Rename(next, dir); err != nil {
					t.Error(err)
				}
			}
		},
		"folder behind a link": func(t *testing.T, dir string) (CertificateOptions, func(*testcert.Pair)) {
			link := filepath.Join(dir, "current")
			return CertificateOptions{Dir: link}, func(p *testcert.Pair) {
				next := t.TempDir()
				p.Write(t, next, "web")
				relink(t, next, link)
			}
		},
		"Kubernetes volume": func(t *testing.T, dir string) (CertificateOptions, func(*testcert.Pair)) {
			n := 0
			return CertificateOptions{Dir: dir}, func(p *testcert.Pair) {
				n++
				data := fmt.Sprintf("..2026_%d", n)
				if err := os.Mkdir(filepath.Join(dir, data), 0o700); err != nil {
					t.Error(err)
				}
				p.Write(t, filepath.Join(dir, data), "tls")
				relink(t, data, filepath.Join(dir, "..data"))
				if n == 1 {
					relink(t, "..data/tls.crt", filepath.Join(dir, "tls.crt"))
					relink(t, "..data/tls.key", filepath.Join(dir, "tls.key"))
				}
			}
		},
		"certbot": func(t *testing.T, dir string) (CertificateOptions, func(*testcert.Pair)) {
			for _, d := range []string{"live", "archive"} {
				if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
					t.Error(err)
				}
			}
			n := 0
			return files(filepath.Join(dir, "live/fullchain.pem"), filepath.Join(dir, "live/privkey.pem")), func(p *testcert.Pair) {
				n++
				for file, data := range map[string][]byte{"fullchain": p.CertPEM, "privkey": p.KeyPEM} {
					real := fmt.Sprintf("%s%d.pem", file, n)
					testcert.WriteFile(t, filepath.Join(dir, "archive"), real, data)
					relink(t, "../archive/"+real, filepath.Join(dir, "live", file+".pem"))
				}
			}
		},
		"linked files written in place": func(t *testing.T, dir string) (CertificateOptions, func(*testcert.Pair)) {
			real := t.TempDir()
			relink(t, filepath.Join(real, "a.crt"), filepath.Join(dir, "web.crt"))
			relink(t, filepath.Join(real, "a.key"), filepath.Join(dir, "web.key"))
			return CertificateOptions{Dir: dir}, func(p *testcert.Pair) { p.Write(t, real, "a") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, renew := setUp(t, t.TempDir())
			pair := ca.Server(t, "web.test")
			renew(pair)
			var events recorder
			// No sweep: inotify alone has to see it.
			s := mustStore(t, &Options{Certificates: []CertificateOptions{o}}, certEnv{events: &events, sweep: time.Hour})
			s.start()
			for range 3 {
				pair = ca.Server(t, "web.test")
				renew(pair)
				until(t, time.Second, "the renewed pair is in use", func() bool {
					cert, err := s.get(&tls.ClientHelloInfo{ServerName: "web.test"})
					return err == nil && cert != nil && cert.Leaf.Equal(pair.Leaf)
				})
			}
			if events.has("refused") {
				t.Errorf("a renewal was reported as an error:\n%v", &events)
			}
		})
	}
}

// relink makes link point to target, atomically.
func relink(t *testing.T, target, link string) {
	t.Helper()
	tmp := link + ".tmp"
	if err := os.Symlink(target, tmp); err != nil {
		t.Error(err)
	}
	if err := os.Rename(tmp, link); err != nil {
		t.Error(err)
	}
}
