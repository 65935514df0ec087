package tlsterm

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// clientAuth verifies client certificates. crypto/tls builds and verifies the
// chain, with the extended key usage clientAuth (Envoy CVE-2022-21656,
// -21657: nothing of that is matched here); what it does not know is added:
// revocation, and that a resumed session is looked at again.
//
// The client is told unknown_ca, certificate_expired or certificate_required
// (handshake_failure in TLS 1.2). A certificate that is revoked, or of which
// that is unknown, ends with bad_certificate: crypto/tls lets a callback choose
// no alert. Our log says which it was.
type clientAuth struct {
	mode    tls.ClientAuthType
	cas     []*x509.Certificate
	pool    *x509.CertPool
	sum     [sha256.Size]byte // of cas
	crlFile string
	crl     atomic.Pointer[revocations] // nil exactly if crlFile is ""
}

func newClientAuth(o *ClientAuthOptions) (*clientAuth, error) {
	a := &clientAuth{}
	switch o.Mode {
	case ClientAuthNone:
		return a, nil // nobody is asked, so that there is nothing to verify
	case ClientAuthRequest:
		a.mode = tls.VerifyClientCertIfGiven
	case ClientAuthRequire:
		a.mode = tls.RequireAndVerifyClientCert
	default:
		return nil, fmt.Errorf("client_auth: unknown mode %d", o.Mode)
	}
	if o.CAFile == "" {
		return nil, errors.New("client_auth: without ca_file no certificate can be verified; name the authorities that issue them")
	}
	var err error
	if a.cas, err = loadAuthorities(o.CAFile); err != nil {
		return nil, fmt.Errorf("client_auth: ca_file: %w", err)
	}
	a.pool, a.sum = poolOf(a.cas)
	if o.CRLFile != "" {
		a.crlFile = o.CRLFile
		lists, err := loadRevocations(o.CRLFile, a.cas, nil)
		if err != nil {
			return nil, fmt.Errorf("client_auth: crl_file: %w", err)
		}
		a.crl.Store(lists)
	}
	return a, nil
}

// loadAuthorities reads a file of trusted certificates, PEM. crypto/x509's own
// way of doing so skips what it cannot read.
func loadAuthorities(file string) ([]*x509.Certificate, error) {
	data, state := readBounded(file)
	if state.err != nil {
		return nil, describeReadError(state.err)
	}
	var cas []*x509.Certificate
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: certificate %d: %s; is it complete?", file, len(cas)+1, bounded(err))
		}
		cas = append(cas, ca)
	}
	if len(cas) == 0 {
		return nil, fmt.Errorf("%s: no certificate in it; expected PEM blocks CERTIFICATE", file)
	}
	return cas, nil
}

// poolOf makes a pool of certificates, and a hash of what is in it.
func poolOf(cas []*x509.Certificate) (pool *x509.CertPool, sum [sha256.Size]byte) {
	pool = x509.NewCertPool()
	sums := make([]string, 0, len(cas))
	for _, ca := range cas {
		pool.AddCert(ca)
		one := sha256.Sum256(ca.Raw)
		sums = append(sums, string(one[:]))
	}
	slices.Sort(sums)
	h := sha256.New()
	for _, one := range slices.Compact(sums) {
		h.Write([]byte(one))
	}
	h.Sum(sum[:0])
	return pool, sum
}

// verify is tls.Config.VerifyConnection: it runs in full and in resumed
// handshakes. crypto/tls resumes a session only if it bears a certificate where
// one is required, that has not expired, of a chain whose root is still
// trusted; of revocation it knows nothing.
func (a *clientAuth) verify(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		if a.mode == tls.RequireAndVerifyClientCert {
			return errNoClientCertificate // crypto/tls has seen to that
		}
		return nil
	}
	switch {
	case a.mode == tls.NoClientCert:
		return errNotAsked // as above
	case len(cs.VerifiedChains) == 0:
		return errNoChain
	}
	if lists := a.crl.Load(); lists != nil {
		return lists.check(cs.VerifiedChains, time.Now())
	}
	return nil
}

var (
	errNoClientCertificate = errors.New("client certificate: required, but not shown")
	errNotAsked            = errors.New("client certificate: shown, but not asked for")
)

// reloadCRL reads the lists anew. With an error they stay as they are: going
// on without would let the revoked in.
func (a *clientAuth) reloadCRL() (changed bool, err error) {
	lists, err := loadRevocations(a.crlFile, a.cas, a.crl.Load())
	if err != nil || lists == a.crl.Load() {
		return false, err
	}
	a.crl.Store(lists)
	return true, nil
}
