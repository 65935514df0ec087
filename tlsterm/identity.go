package tlsterm

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"strings"
)

// Identity is who a client is by its verified certificate.
type Identity struct {
	Subject     string // RFC 4514; control characters as \HH
	CommonName  string // the last one of the subject; may be empty
	DNSNames    []string
	Emails      []string
	URIs        []string
	Serial      string // hexadecimal, lower case
	Fingerprint string // SHA-256 of the certificate, hexadecimal, lower case
}

// IdentityOf is the identity that a connection's client has proved; nil if it
// showed no certificate, or one that nobody verified.
func IdentityOf(cs tls.ConnectionState) *Identity {
	if len(cs.PeerCertificates) == 0 || len(cs.VerifiedChains) == 0 {
		return nil
	}
	leaf := cs.PeerCertificates[0]
	sum := sha256.Sum256(leaf.Raw)
	id := &Identity{
		Subject:     subjectOf(leaf.RawSubject),
		CommonName:  leaf.Subject.CommonName,
		DNSNames:    leaf.DNSNames,
		Emails:      leaf.EmailAddresses,
		Serial:      leaf.SerialNumber.Text(16),
		Fingerprint: hex.EncodeToString(sum[:]),
	}
	for _, u := range leaf.URIs {
		id.URIs = append(id.URIs, u.String())
	}
	return id
}

// Names are the names that routes look for: the subject alternative names and
// the common name, in lower case and without a trailing dot, as SNI is.
func (id *Identity) Names() []string {
	names := make([]string, 0, len(id.DNSNames)+len(id.Emails)+len(id.URIs)+1)
	add := func(list ...string) {
		for _, name := range list {
			if name = normalName(name); name != "" {
				names = append(names, name)
			}
		}
	}
	add(id.DNSNames...)
	add(id.Emails...)
	add(id.URIs...)
	add(id.CommonName)
	return names
}

// subjectOf writes a subject as RFC 4514 says, from its DER: pkix.Name has lost
// the order, and which of its parts came as one.
func subjectOf(der []byte) string {
	var rdns pkix.RDNSequence
	if rest, err := asn1.Unmarshal(der, &rdns); err != nil || len(rest) > 0 {
		return "" // crypto/x509 has parsed it before, so this cannot be
	}
	s := rdns.String()
	if strings.IndexFunc(s, isControl) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if isControl(r) {
			for _, c := range []byte(string(r)) {
				fmt.Fprintf(&b, `\%02X`, c)
			}
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// isControl tells characters that a name may bear and a log line, a terminal
// or a header may not.
func isControl(r rune) bool {
	return r < 0x20 || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029'
}
