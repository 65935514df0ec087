// Package testcert makes certificates for tests: an authority, what it issues,
// and the lists of what it revoked.
//
//	ca := testcert.NewCA(t, "test")
//	pair := ca.Server(t, "a.example.com", "*.b.example.com", "127.0.0.1")
//	certFile, keyFile := pair.Write(t, t.TempDir(), "web")
//	client := &tls.Config{RootCAs: ca.Pool(), ServerName: "a.example.com"}
//
// ECDSA P-256 keys are made anew each time. RSA keys take a tenth of a second
// or more and are few for the whole process: see [Template.RSA].
package testcert

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// oidMustStaple is the TLS feature extension (RFC 7633, section 4) and
// mustStaple its value: status_request.
var (
	oidMustStaple = []int{1, 3, 6, 1, 5, 5, 7, 1, 24}
	mustStaple    = []byte{0x30, 0x03, 0x02, 0x01, 0x05}
)

var serial atomic.Int64

// CA is an authority, a root or one below it.
type CA struct {
	Cert  *x509.Certificate
	Key   crypto.Signer
	chain [][]byte // DER: itself and those above it, without the root
	root  *x509.Certificate
}

// Template says what to issue. Its zero value is a server certificate without
// a name.
type Template struct {
	Names      []string // DNS names and IP addresses
	CommonName string   // "": the first name
	Org        []string

	// Key is the key to certify; nil: a new one, ECDSA P-256 unless RSA is set.
	Key crypto.Signer
	// RSA takes one RSA key of 2048 bits that is the same for the whole
	// process. Tests that need two different ones set Key.
	RSA bool

	NotBefore time.Time // zero: an hour ago
	NotAfter  time.Time // zero: in 30 days

	Client      bool // extended key usage clientAuth instead of serverAuth
	OCSPSigning bool // extended key usage OCSPSigning: a delegated responder
	OCSPServer  string
	MustStaple  bool
}

// Pair is a certificate with its chain and its key.
type Pair struct {
	Leaf    *x509.Certificate
	Key     crypto.Signer
	Issuer  *x509.Certificate
	CertPEM []byte // leaf first, then intermediates; never the root
	KeyPEM  []byte // PKCS#8
}

// NewCA makes a self-signed root.
func NewCA(t testing.TB, name string) *CA {
	t.Helper()
	key := newKey(t)
	tpl := caTemplate(name)
	cert := sign(t, tpl, tpl, key.Public(), key)
	return &CA{Cert: cert, Key: key, root: cert}
}

// Intermediate makes an authority below ca.
func (ca *CA) Intermediate(t testing.TB, name string) *CA {
	t.Helper()
	key := newKey(t)
	cert := sign(t, caTemplate(name), ca.Cert, key.Public(), ca.Key)
	return &CA{Cert: cert, Key: key, chain: slices.Concat([][]byte{cert.Raw}, ca.chain), root: ca.root}
}

// Server issues a server certificate for names, which may be addresses.
func (ca *CA) Server(t testing.TB, names ...string) *Pair {
	t.Helper()
	return ca.Issue(t, Template{Names: names})
}

// Client issues a client certificate.
func (ca *CA) Client(t testing.TB, commonName string) *Pair {
	t.Helper()
	return ca.Issue(t, Template{CommonName: commonName, Client: true})
}

// Issue issues what tpl says.
func (ca *CA) Issue(t testing.TB, tpl Template) *Pair {
	t.Helper()
	key := tpl.Key
	switch {
	case key != nil:
	case tpl.RSA:
		key = SharedRSA(t)
	default:
		key = newKey(t)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(serial.Add(1)),
		Subject:      pkix.Name{CommonName: tpl.CommonName, Organization: tpl.Org},
		NotBefore:    tpl.NotBefore,
		NotAfter:     tpl.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if cert.Subject.CommonName == "" && len(tpl.Names) > 0 {
		cert.Subject.CommonName = tpl.Names[0]
	}
	if cert.NotBefore.IsZero() {
		cert.NotBefore = time.Now().Add(-time.Hour)
	}
	if cert.NotAfter.IsZero() {
		cert.NotAfter = time.Now().Add(30 * 24 * time.Hour)
	}
	for _, name := range tpl.Names {
		if ip := net.ParseIP(name); ip != nil {
			cert.IPAddresses = append(cert.IPAddresses, ip)
		} else {
			cert.DNSNames = append(cert.DNSNames, name)
		}
	}
	switch {
	case tpl.Client:
		cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	case tpl.OCSPSigning:
		cert.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
	}
	if tpl.OCSPServer != "" {
		cert.OCSPServer = []string{tpl.OCSPServer}
	}
	if tpl.MustStaple {
		cert.ExtraExtensions = []pkix.Extension{{Id: oidMustStaple, Value: mustStaple}}
	}
	leaf := sign(t, cert, ca.Cert, key.Public(), ca.Key)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &Pair{
		Leaf:    leaf,
		Key:     key,
		Issuer:  ca.Cert,
		CertPEM: encode("CERTIFICATE", slices.Concat([][]byte{leaf.Raw}, ca.chain)...),
		KeyPEM:  encode("PRIVATE KEY", der),
	}
}

// Pool holds the root of ca alone.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.root)
	return pool
}

// PEM is the certificate of ca itself.
func (ca *CA) PEM() []byte { return encode("CERTIFICATE", ca.Cert.Raw) }

// Write writes the certificate of ca to dir/name.pem.
func (ca *CA) Write(t testing.TB, dir, name string) string {
	t.Helper()
	return WriteFile(t, dir, name+".pem", ca.PEM())
}

// CRL is a list, PEM, of what ca revoked. It is good for a day.
func (ca *CA) CRL(t testing.TB, revoked ...*Pair) []byte {
	t.Helper()
	return ca.CRLUntil(t, time.Now().Add(24*time.Hour), revoked...)
}

// CRLUntil is a list whose next update is due at next.
func (ca *CA) CRLUntil(t testing.TB, next time.Time, revoked ...*Pair) []byte {
	t.Helper()
	list := &x509.RevocationList{
		Number:     big.NewInt(serial.Add(1)),
		ThisUpdate: next.Add(-48 * time.Hour),
		NextUpdate: next,
	}
	for _, p := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: p.Leaf.SerialNumber, RevocationTime: list.ThisUpdate})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.Cert, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	return encode("X509 CRL", der)
}

// TLS is the pair as crypto/tls wants it.
func (p *Pair) TLS() tls.Certificate {
	cert, err := tls.X509KeyPair(p.CertPEM, p.KeyPEM)
	if err != nil {
		panic("testcert: a pair that does not match: " + err.Error())
	}
	return cert
}

// Write writes dir/name.crt and dir/name.key, each replaced atomically, the
// certificate first.
func (p *Pair) Write(t testing.TB, dir, name string) (certFile, keyFile string) {
	t.Helper()
	return WriteFile(t, dir, name+".crt", p.CertPEM), WriteFile(t, dir, name+".key", p.KeyPEM)
}

// WriteFile replaces dir/name atomically, readable by the owner alone.
func WriteFile(t testing.TB, dir, name string, data []byte) string {
	t.Helper()
	f, err := os.CreateTemp(dir, "."+name+"-*")
	if err != nil {
		t.Fatal(err)
	}
	if _, err = f.Write(data); err == nil {
		err = f.Close()
	}
	file := filepath.Join(dir, name)
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func caTemplate(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          big.NewInt(serial.Add(1)),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-24 * time.Hour * 365),
		NotAfter:              time.Now().Add(24 * time.Hour * 3650),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
}

func sign(t testing.TB, tpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tpl, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func encode(kind string, ders ...[]byte) []byte {
	var out []byte
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
	}
	return out
}

var sharedRSA = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// SharedRSA is the RSA key that the process's tests share.
func SharedRSA(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := sharedRSA()
	if err != nil {
		t.Fatal(err)
	}
	return key
}
