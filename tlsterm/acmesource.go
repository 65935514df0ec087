package tlsterm

import (
	"crypto/tls"
	"crypto/x509"
	"errors"

	"edgeproxy/tlsterm/acme"
)

// acmeSource makes what newCertStore asks for a `certificate { acme { … } }`.
func (e *Env) acmeSource(_ string, o *ACMEOptions) (dynamicCerts, error) {
	opts := acme.Options{
		Domains:     o.Domains,
		Email:       o.Email,
		Directory:   o.Directory,
		Storage:     o.Storage,
		CAFile:      o.CAFile,
		HTTPAddress: o.HTTPAddress,
		NoTLSALPN:   o.NoTLSALPN,
	}
	if opts.Storage == "" {
		opts.Storage = DefaultACMEStorage
	}
	if e != nil && e.checking {
		return newUnobtained(opts)
	}
	if e == nil || e.ACME == nil {
		return nil, errors.New("certificates by ACME are not possible here")
	}
	m, err := e.ACME.New(opts)
	if err != nil {
		return nil, err
	}
	return managed{m}, nil
}

// managed is a manager as a [certStore] wants it.
type managed struct{ *acme.Manager }

// Leaves are the certificates that there are so far.
func (m managed) Leaves() []*x509.Certificate {
	var leaves []*x509.Certificate
	for _, domain := range m.Domains() {
		cert, err := m.GetCertificate(&tls.ClientHelloInfo{ServerName: domain})
		if err == nil && cert != nil && cert.Leaf != nil {
			leaves = append(leaves, cert.Leaf)
		}
	}
	return leaves
}
