package tlsterm

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// maxCRLFile bounds the file of revocation lists; 64 MiB are more than a
// million entries.
const maxCRLFile = 64 << 20

// crlWarning is how long before a list expires that is told.
const crlWarning = 24 * time.Hour

// authority identifies an issuer: authorities that have been given a new key
// keep their name, and each key has its own list.
type authority struct {
	subject string // DER
	key     [sha256.Size]byte
}

func authorityOf(cert *x509.Certificate) authority {
	return authority{string(cert.RawSubject), sha256.Sum256(cert.RawSubjectPublicKeyInfo)}
}

// revocations are the lists of one file, immutable.
type revocations struct {
	lists map[authority]*revocationList
	sum   [sha256.Size]byte // of the file
}

// revocationList is what one authority has revoked. If there are several lists
// of it, what any of them has is revoked, and the latest one's dates count.
type revocationList struct {
	issuer     string // for messages
	thisUpdate time.Time
	nextUpdate time.Time
	serials    map[string]struct{} // big-endian
}

// loadRevocations reads and verifies a file of lists, each of which must be
// signed by one of cas. If it is the file of known, that is returned.
func loadRevocations(file string, cas []*x509.Certificate, known *revocations) (*revocations, error) {
	data, err := readLists(file)
	if err != nil {
		return nil, err
	}
	if known != nil && sha256.Sum256(data) == known.sum {
		return known, nil
	}
	r, err := parseRevocations(data, cas)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}

func parseRevocations(data []byte, cas []*x509.Certificate) (*revocations, error) {
	r := &revocations{lists: map[authority]*revocationList{}, sum: sha256.Sum256(data)}
	n := 0
	add := func(der []byte) error {
		n++
		if err := r.add(der, cas); err != nil {
			return fmt.Errorf("list %d: %w", n, err)
		}
		return nil
	}
	if !bytes.Contains(data, []byte("-----BEGIN")) {
		return r, add(data)
	}
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			// pem.Decode skips what it cannot read. A list that was cut short
			// must not turn into one that is not there.
			if i := bytes.Index(rest, []byte("-----BEGIN")); i >= 0 {
				return nil, errors.New("the end of the file is no complete PEM block; write the file anew, and replace it by renaming")
			}
			break
		}
		if block.Type != "X509 CRL" {
			return nil, fmt.Errorf("PEM block %q; want only X509 CRL", block.Type)
		}
		if err := add(block.Bytes); err != nil {
			return nil, err
		}
	}
	if n == 0 {
		return nil, errors.New("no list; want PEM blocks X509 CRL, or one list in DER")
	}
	if got := bytes.Count(data, []byte("-----BEGIN")); got != n {
		return nil, fmt.Errorf("%d PEM blocks, of which %d can be read; write the file anew", got, n)
	}
	return r, nil
}

func (r *revocations) add(der []byte, cas []*x509.Certificate) error {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return err
	}
	if len(list.Raw) != len(der) {
		return fmt.Errorf("%d bytes behind its end; write the file anew", len(der)-len(list.Raw))
	}
	issuer := list.Issuer.String()
	// A list with a critical extension that is not understood, a part of a
	// list or a delta, must not be used (RFC 5280, section 5.2).
	for _, ext := range list.Extensions {
		if ext.Critical {
			return fmt.Errorf("of %q: critical extension %s, a list of only some certificates or reasons; want complete lists", issuer, ext.Id)
		}
	}
	if list.NextUpdate.IsZero() {
		return fmt.Errorf("of %q: it does not say when the next one is due (nextUpdate; RFC 5280, section 5.1.2.5)", issuer)
	}
	var signers []authority
	var because error
	for _, ca := range cas {
		if !bytes.Equal(ca.RawSubject, list.RawIssuer) {
			continue
		}
		if err := list.CheckSignatureFrom(ca); err != nil {
			because = err
			continue
		}
		if a := authorityOf(ca); !slices.Contains(signers, a) {
			signers = append(signers, a)
		}
	}
	switch {
	case len(signers) > 0:
	case because != nil:
		return fmt.Errorf("of %q: not signed by the authority of that name in ca_file: %w", issuer, because)
	default:
		return fmt.Errorf("of %q: no such authority in ca_file; add its certificate there", issuer)
	}
	for _, a := range signers {
		l := r.lists[a]
		if l == nil {
			l = &revocationList{issuer: issuer, serials: make(map[string]struct{}, len(list.RevokedCertificateEntries))}
			r.lists[a] = l
		}
		if l.nextUpdate.Before(list.NextUpdate) {
			l.thisUpdate, l.nextUpdate = list.ThisUpdate, list.NextUpdate
		}
		for _, entry := range list.RevokedCertificateEntries {
			for _, ext := range entry.Extensions {
				if ext.Critical {
					return fmt.Errorf("of %q: critical extension %s of an entry, an indirect list; want each authority's own list", issuer, ext.Id)
				}
			}
			l.serials[string(entry.SerialNumber.Bytes())] = struct{}{}
		}
	}
	return nil
}

// revokedError says that a certificate may not be used, or that nobody knows
// whether it may.
type revokedError struct {
	subject string
	reason  string
}

func revokedBy(cert *x509.Certificate, list *revocationList) error {
	return &revokedError{subjectOf(cert.RawSubject), fmt.Sprintf("revoked by %q", list.issuer)}
}

func (e *revokedError) Error() string {
	return fmt.Sprintf("client certificate %q: %s", e.subject, e.reason)
}

// check fails closed (nginx CVE-2026-28755): a certificate that any of the
// chains shows to be revoked is refused, and there must be a chain of which
// every certificate but the root has a list of its issuer that is in force.
func (r *revocations) check(chains [][]*x509.Certificate, now time.Time) error {
	var unknown error = errNoChain
	complete := false
	for _, chain := range chains {
		if len(chain) == 0 {
			continue
		}
		// A trust anchor needs no list; but if one of an authority of that
		// name revokes it, it is not to be trusted any more.
		anchor := chain[len(chain)-1]
		for a, list := range r.lists {
			if a.subject == string(anchor.RawIssuer) && list.has(anchor) {
				return revokedBy(anchor, list)
			}
		}
		var gap error
		for i, cert := range chain {
			status := ""
			if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
				status = "the certificate is out of its time" // of a resumed session; see verify
			}
			if i == len(chain)-1 {
				if status != "" && gap == nil {
					gap = &revokedError{subjectOf(cert.RawSubject), status}
				}
				break
			}
			list := r.lists[authorityOf(chain[i+1])]
			switch {
			case list == nil:
				status = fmt.Sprintf("crl_file has no list of its issuer %q", chain[i+1].Subject)
			case list.has(cert):
				return revokedBy(cert, list)
			case now.After(list.nextUpdate):
				status = fmt.Sprintf("the revocation list of %q has expired at %s", list.issuer, list.nextUpdate.UTC().Format(time.RFC3339))
			case now.Before(list.thisUpdate):
				status = fmt.Sprintf("the revocation list of %q is not in force before %s", list.issuer, list.thisUpdate.UTC().Format(time.RFC3339))
			}
			if status != "" && gap == nil {
				gap = &revokedError{subjectOf(cert.RawSubject), status}
			}
		}
		switch {
		case len(chain) == 0:
		case gap != nil:
			unknown = gap
		default:
			complete = true
		}
	}
	if complete {
		return nil
	}
	return unknown
}

var errNoChain = errors.New("client certificate: no verified chain")

func (l *revocationList) has(cert *x509.Certificate) bool {
	_, ok := l.serials[string(cert.SerialNumber.Bytes())]
	return ok
}

// expires is when the first of the lists does, and whose it is.
func (r *revocations) expires() (at time.Time, issuer string) {
	for _, l := range r.lists {
		if at.IsZero() || l.nextUpdate.Before(at) {
			at, issuer = l.nextUpdate, l.issuer
		}
	}
	return at, issuer
}

// readLists reads a file of revocation lists.
func readLists(file string) ([]byte, error) {
	st, err := os.Stat(file)
	switch {
	case err != nil:
		return nil, describeReadError(err)
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no regular file; expected revocation lists", file)
	case st.Size() > maxCRLFile:
		return nil, fmt.Errorf("%s: %d bytes, more than %d; drop what has expired from the lists", file, st.Size(), maxCRLFile)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, describeReadError(err)
	}
	return data, nil
}
