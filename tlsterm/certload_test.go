package tlsterm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"edgeproxy/internal/testcert"
)

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestKeysAndCertificatesOfAllForms(t *testing.T) {
	t.Parallel()
	ca := testcert.NewCA(t, "root").Intermediate(t, "ca")
	ecKey := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey := testcert.SharedRSA(t).(*rsa.PrivateKey)
	weakKey := must[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 1024))
	issue := func(tpl testcert.Template) *testcert.Pair {
		tpl.Names = []string{"a.test"}
		return ca.Issue(t, tpl)
	}
	ec, ed, rs := issue(testcert.Template{Key: ecKey}), issue(testcert.Template{Key: edKey}), issue(testcert.Template{RSA: true})
	weak, other := issue(testcert.Template{Key: weakKey}), issue(testcert.Template{})
	old := issue(testcert.Template{NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour)})
	early := issue(testcert.Template{NotBefore: time.Now().Add(24 * time.Hour)})
	sec1 := pemOf("EC PRIVATE KEY", must[[]byte](t)(x509.MarshalECPrivateKey(ecKey)))
	ecParameters := pemOf("EC PARAMETERS", []byte{6, 5, 0x2b, 0x81, 4, 0, 0x22})
	first, rest := pem.Decode(ec.CertPEM)
	swapped := slices.Concat(rest, pem.EncodeToMemory(first))
	encrypted := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}, Bytes: []byte{1}})

	for _, tt := range []struct {
		name      string
		cert, key []byte // no key: one file for both
		want      string // in the error
		warning   string
	}{
		{name: "PKCS#8 ECDSA", cert: ec.CertPEM, key: ec.KeyPEM},
		{name: "PKCS#8 RSA", cert: rs.CertPEM, key: rs.KeyPEM},
		{name: "PKCS#8 Ed25519", cert: ed.CertPEM, key: ed.KeyPEM},
		{name: "SEC 1", cert: ec.CertPEM, key: sec1},
		{name: "SEC 1 with its parameters before it", cert: ec.CertPEM, key: slices.Concat(ecParameters, sec1)},
		{name: "PKCS#1", cert: rs.CertPEM, key: pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey))},
		{name: "one file, key last", cert: slices.Concat(ec.CertPEM, ec.KeyPEM)},
		{name: "one file, key first", cert: slices.Concat(ec.KeyPEM, ec.CertPEM)},
		{name: "text around", cert: slices.Concat([]byte("subject=CN = a.test\n"), ec.CertPEM, []byte("\nend\n")), key: ec.KeyPEM},
		{name: "Windows line ends", cert: bytes.ReplaceAll(ec.CertPEM, []byte("\n"), []byte("\r\n")), key: ec.KeyPEM},
		{name: "expired", cert: old.CertPEM, key: old.KeyPEM, warning: "expired at"},
		{name: "not valid yet", cert: early.CertPEM, key: early.KeyPEM, warning: "not valid before"},
		{name: "RSA 1024", cert: weak.CertPEM, key: weak.KeyPEM, warning: "an RSA key of 1024 bits"},
		{name: "chain of another authority", cert: slices.Concat(pem.EncodeToMemory(first), other.CertPEM), key: ec.KeyPEM, warning: "did not issue the first"},

		{name: "another's key", cert: ec.CertPEM, key: other.KeyPEM, want: "does not belong to"},
		{name: "another's key in one file", cert: slices.Concat(ec.CertPEM, other.KeyPEM), want: "does not belong to the certificate"},
		{name: "issuer first", cert: swapped, key: ec.KeyPEM, want: "belongs to certificate 2"},
		{name: "encrypted PKCS#8", cert: ec.CertPEM, key: pemOf("ENCRYPTED PRIVATE KEY", []byte{1}), want: "is encrypted; expected it in the clear"},
		{name: "encrypted PKCS#1", cert: ec.CertPEM, key: encrypted, want: "is encrypted; expected it in the clear"},
		{name: "two keys", cert: ec.CertPEM, key: slices.Concat(ec.KeyPEM, other.KeyPEM), want: "more than one private key"},
		{name: "no key", cert: ec.CertPEM, want: "no private key in it"},
		{name: "certificate as key", cert: ec.CertPEM, key: ec.CertPEM, want: "no private key in it"},
		{name: "key as certificate", cert: ec.KeyPEM, key: ec.KeyPEM, want: `no certificate in it, but "PRIVATE KEY"`},
		{name: "OpenSSH key", cert: ec.CertPEM, key: pemOf("OPENSSH PRIVATE KEY", []byte{1}), want: `of the form "OPENSSH PRIVATE KEY"`},
		{name: "broken key", cert: ec.CertPEM, key: pemOf("PRIVATE KEY", []byte{0x30, 0}), want: "private key: "},
		{name: "huge key", cert: ec.CertPEM, key: pemOf("PRIVATE KEY", make([]byte, maxKeyDER+1)), want: "expected at most"},
		{name: "DER", cert: ec.Leaf.Raw, key: ec.KeyPEM, want: "looks like DER"},
		{name: "OpenSSL's trusted format", cert: pemOf("TRUSTED CERTIFICATE", ec.Leaf.Raw), key: ec.KeyPEM, want: "openssl x509"},
		{name: "half a certificate", cert: ec.CertPEM[:200], key: ec.KeyPEM, want: "no complete PEM block"},
		{name: "broken certificate", cert: pemOf("CERTIFICATE", ec.Leaf.Raw[:100]), key: ec.KeyPEM, want: "certificate 1: "},
		{name: "broken issuer", cert: slices.Concat(pem.EncodeToMemory(first), pemOf("CERTIFICATE", []byte{0x30})), key: ec.KeyPEM, want: "certificate 2: "},
		{name: "empty", cert: []byte("\n"), key: ec.KeyPEM, want: "empty"},
		{name: "large", cert: make([]byte, maxCertFileSize+1), key: ec.KeyPEM, want: "larger than 1 MiB"},
		{name: "endless chain", cert: bytes.Repeat(ca.PEM(), 101), key: ec.KeyPEM, want: "more than 100 certificates"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			certFile, keyFile := testcert.WriteFile(t, dir, "a.crt", tt.cert), ""
			if tt.key != nil {
				keyFile = testcert.WriteFile(t, dir, "a.key", tt.key)
			}
			l := loadPair(certFile, keyFile, time.Now())
			switch {
			case tt.want == "" && l.err != nil:
				t.Fatal(l.err)
			case tt.want == "":
				if got := strings.Join(l.pair.warnings, "\n"); (tt.warning == "") != (got == "") || !strings.Contains(got, tt.warning) {
					t.Errorf("warnings %q; expected %q", got, tt.warning)
				}
				if cert := l.pair.current.Load(); cert.Leaf == nil || cert.Leaf != l.pair.leaf {
					t.Error("the leaf is not parsed in advance")
				}
			case l.err == nil:
				t.Fatalf("no error; expected %q", tt.want)
			case !strings.Contains(l.err.Error(), tt.want) || !strings.Contains(l.err.Error(), dir):
				t.Errorf("%q; expected the file and %q", l.err, tt.want)
			case len(l.err.Error()) > 1000:
				t.Errorf("an error of %d bytes", len(l.err.Error()))
			}
		})
	}
}

func TestFilesThatAreNone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile := testcert.NewCA(t, "ca").Server(t, "a.test").Write(t, dir, "a")
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{fifo, dir, "/dev/zero"} {
		if l := loadPair(file, keyFile, time.Now()); l.err == nil || !strings.Contains(l.err.Error(), "no regular file") {
			t.Errorf("%s: %v", file, l.err)
		}
	}
	if err := os.Chmod(keyFile, 0o644); err != nil {
		t.Fatal(err)
	}
	if l := loadPair(certFile, keyFile, time.Now()); l.err != nil || len(l.pair.warnings) != 1 || !strings.Contains(l.pair.warnings[0], "chmod o-r") {
		t.Errorf("a key that everybody can read: %+v", l)
	}
}

// RFC 9525, section 6.3, and what no client asks for.
func TestNamesOfCertificates(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		leaf x509.Certificate
		want []string
	}{
		{x509.Certificate{DNSNames: []string{"b.test", "A.Test.", "a.test", "*.W.test"}}, []string{"*.w.test", "a.test", "b.test"}},
		{x509.Certificate{DNSNames: []string{"*", "*.", "f*.test", "*.*.test", "a.*.test", "", ".", "a\x00b.test", "a b"}}, nil},
		{x509.Certificate{DNSNames: []string{strings.Repeat("a", 300)}}, nil},
		{x509.Certificate{EmailAddresses: []string{"a@a.test"}}, nil},
	} {
		tt.leaf.Subject.CommonName = "cn.test"
		if got := namesOf(&tt.leaf); !slices.Equal(got, tt.want) {
			t.Errorf("%q: %q; expected %q", tt.leaf.DNSNames, got, tt.want)
		}
	}
	leaf := x509.Certificate{}
	leaf.Subject.CommonName = "CN.test"
	if got := namesOf(&leaf); !slices.Equal(got, []string{"cn.test"}) {
		t.Errorf("without alternative names: %q", got)
	}
}

func TestIssuersAreSharedWhileInUse(t *testing.T) {
	t.Parallel()
	ca := testcert.NewCA(t, "root").Intermediate(t, "ca")
	a, err := parseIssuer(ca.Cert.Raw)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := parseIssuer(slices.Clone(ca.Cert.Raw)); err != nil || a != b {
		t.Errorf("parsed twice (%v)", err)
	}
	runtime.KeepAlive(a)
	until(t, 10*time.Second, "an issuer of nobody is forgotten", func() bool {
		runtime.GC()
		_, ok := issuers.Load(string(ca.Cert.Raw))
		return !ok
	})
}

// Lesson Go CVE-2026-27138, CVE-2025-61729, CVE-2024-24783: hostile
// certificates are errors, and cheap ones.
func FuzzParsePair(f *testing.F) {
	ca := testcert.NewCA(f, "root").Intermediate(f, "ca")
	for _, tpl := range []testcert.Template{{Names: []string{"a.test", "*.b.test", "192.0.2.1"}}, {RSA: true}, {MustStaple: true, OCSPServer: "http://ocsp.test"}} {
		p := ca.Issue(f, tpl)
		f.Add(p.CertPEM, p.KeyPEM)
		f.Add(slices.Concat(p.KeyPEM, p.CertPEM), []byte{})
	}
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), []byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	f.Add(pemOf("CERTIFICATE", bytes.Repeat([]byte{0x30, 0x80}, 1000)), pemOf("EC PRIVATE KEY", bytes.Repeat([]byte{0x30, 0x80}, 1000)))
	f.Add(bytes.Repeat([]byte("-----BEGIN "), 1000), []byte("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\n-----END RSA PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, cert, key []byte) {
		keyFile := "x.key"
		if len(key) == 0 {
			keyFile, key = "x.crt", cert
		}
		c, err := parsePair("x.crt", cert, keyFile, key, time.Now())
		if err != nil {
			if len(err.Error()) > 1000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		if !matches(c.leaf, c.current.Load().PrivateKey.(crypto.Signer)) {
			t.Error("a key of another certificate")
		}
		for _, name := range c.names {
			if name != normalName(name) || !indexable(name) {
				t.Errorf("a name that nobody can ask for: %q", name)
			}
		}
	})
}
