package tlsterm

import (
	"crypto/x509"
	"runtime"
	"sync"
	"weak"
)

// issuers holds each certificate of an authority once, however many chains it
// is part of, for as long as one of them is in use: of 100 000 pairs of one
// authority a copy each would be half of the memory.
var issuers sync.Map // DER as a string → weak.Pointer[x509.Certificate]

// parseIssuer is x509.ParseCertificate for a certificate that is likely to have
// been parsed before. The result is shared and must not be changed.
func parseIssuer(der []byte) (*x509.Certificate, error) {
	if p, ok := issuers.Load(string(der)); ok {
		if cert := p.(weak.Pointer[x509.Certificate]).Value(); cert != nil {
			return cert, nil
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	key, p := string(der), weak.Make(cert)
	issuers.Store(key, p)
	// Another may have taken the place meanwhile: that one stays.
	runtime.AddCleanup(cert, func(p weak.Pointer[x509.Certificate]) { issuers.CompareAndDelete(key, p) }, p)
	return cert, nil
}
