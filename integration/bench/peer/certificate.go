package peer

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// Certificate is the one that all proxies show: ECDSA with P-256, self-signed.
type Certificate struct {
	CertFile string
	KeyFile  string
	Both     string // in one file, as HAProxy wants it
	Name     string
}

// NewCertificate writes one for name into dir.
func NewCertificate(dir, name string) (*Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     []string{name},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(7 * 24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	c := &Certificate{
		CertFile: filepath.Join(dir, "bench.crt"),
		KeyFile:  filepath.Join(dir, "bench.key"),
		Both:     filepath.Join(dir, "bench.pem"),
		Name:     name,
	}
	return c, errors.Join(
		os.WriteFile(c.CertFile, certPEM, 0o600),
		os.WriteFile(c.KeyFile, keyPEM, 0o600),
		os.WriteFile(c.Both, bytes.Join([][]byte{certPEM, keyPEM}, nil), 0o600),
	)
}
