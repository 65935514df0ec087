package testcert

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"testing"
)

func TestPairsVerify(t *testing.T) {
	t.Parallel()
	root := NewCA(t, "root")
	below := root.Intermediate(t, "below")
	for name, tt := range map[string]struct {
		pair  *Pair
		usage x509.ExtKeyUsage
		dns   string
	}{
		"server":       {root.Server(t, "a.example.com", "127.0.0.1"), x509.ExtKeyUsageServerAuth, "a.example.com"},
		"address":      {root.Server(t, "a.example.com", "127.0.0.1"), x509.ExtKeyUsageServerAuth, "127.0.0.1"},
		"intermediate": {below.Server(t, "*.example.com"), x509.ExtKeyUsageServerAuth, "b.example.com"},
		"RSA":          {below.Issue(t, Template{Names: []string{"r.example.com"}, RSA: true}), x509.ExtKeyUsageServerAuth, "r.example.com"},
		"client":       {root.Client(t, "alice"), x509.ExtKeyUsageClientAuth, ""},
	} {
		certFile, keyFile := tt.pair.Write(t, t.TempDir(), "x")
		cert, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		inter := x509.NewCertPool()
		for _, der := range cert.Certificate[1:] {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			inter.AddCert(c)
		}
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{
			DNSName: tt.dns, Roots: root.Pool(), Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{tt.usage},
		}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCRL(t *testing.T) {
	t.Parallel()
	ca := NewCA(t, "root")
	bad := ca.Client(t, "mallory")
	block, _ := pem.Decode(ca.CRL(t, bad))
	list, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := list.CheckSignatureFrom(ca.Cert); err != nil {
		t.Error(err)
	}
	if n := len(list.RevokedCertificateEntries); n != 1 || list.RevokedCertificateEntries[0].SerialNumber.Cmp(bad.Leaf.SerialNumber) != 0 {
		t.Errorf("%d revoked certificates", n)
	}
}
