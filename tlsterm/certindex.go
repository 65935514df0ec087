package tlsterm

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"time"
)

// maxNames bounds the names of one store; with more a single look-up table is
// the wrong tool, and the memory of the certificates is felt long before.
const maxNames = 1_000_000

// acmeTLS1 is the ALPN of tls-alpn-01 challenges (RFC 8737, section 4).
const acmeTLS1 = "acme-tls/1"

// dynamicCerts are certificates that somebody else obtains and renews. Domains
// never change; both may be called from any goroutine.
type dynamicCerts interface {
	// GetCertificate answers hellos for Domains, with ServerName normalised,
	// and challenges: hellos that offer the ALPN acme-tls/1 alone.
	GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
	Domains() []string
}

// certIndex finds certificates by name. It is never changed once it is made:
// a look-up reads it without a lock, while the next one is being built.
//
// The candidates of a name stand in order of preference: ECDSA, Ed25519, RSA,
// and among equals as they were configured.
type certIndex struct {
	exact    map[string][]*certificate
	wildcard map[string][]*certificate // by what follows the "*": ".example.com"
	all      []*certificate            // as configured

	dynamicExact    map[string]dynamicCerts
	dynamicWildcard map[string]dynamicCerts
	dynamic         []dynamicCerts

	// The default: what the first source has. If that is a dynamic one,
	// defaultDynamic is asked for defaultDomain first.
	defaults       []*certificate
	defaultDynamic dynamicCerts
	defaultDomain  string
	strict         bool
}

// buildIndex makes the index of certs, in the order of their configuration,
// and dynamic. dynamicFirst says that the default is one of the latter.
func buildIndex(certs []*certificate, dynamic []dynamicCerts, dynamicFirst, strict bool) (*certIndex, error) {
	n := 0
	for _, c := range certs {
		n += len(c.names)
	}
	if n > maxNames {
		return nil, fmt.Errorf("the certificates have %d names; expected at most %d", n, maxNames)
	}
	ix := &certIndex{
		exact:           make(map[string][]*certificate, n),
		wildcard:        make(map[string][]*certificate),
		dynamicExact:    make(map[string]dynamicCerts),
		dynamicWildcard: make(map[string]dynamicCerts),
		all:             certs,
		dynamic:         dynamic,
		strict:          strict,
	}
	insert := func(table map[string][]*certificate, name string, c *certificate) {
		list := table[name]
		at, _ := slices.BinarySearchFunc(list, c.rank+1, func(c *certificate, rank int) int { return cmp.Compare(c.rank, rank) })
		table[name] = slices.Insert(list, at, c)
	}
	for _, c := range certs {
		for _, name := range c.names {
			if suffix, ok := wildcardSuffix(name); ok {
				insert(ix.wildcard, suffix, c)
			} else {
				insert(ix.exact, name, c)
			}
		}
	}
	for _, d := range dynamic {
		for _, name := range d.Domains() {
			table := ix.dynamicExact
			name = normalName(name)
			if suffix, ok := wildcardSuffix(name); ok {
				table, name = ix.dynamicWildcard, suffix
			}
			if table[name] == nil {
				table[name] = d
			}
		}
	}
	if len(certs) > 0 {
		ix.defaults = certs[:1]
		if names := certs[0].names; len(names) > 0 {
			if suffix, ok := wildcardSuffix(names[0]); ok {
				ix.defaults = ix.wildcard[suffix]
			} else {
				ix.defaults = ix.exact[names[0]]
			}
		}
	}
	if (dynamicFirst || len(certs) == 0) && len(dynamic) > 0 {
		if domains := dynamic[0].Domains(); len(domains) > 0 {
			ix.defaultDynamic, ix.defaultDomain = dynamic[0], normalName(domains[0])
		}
	}
	return ix, nil
}

func wildcardSuffix(name string) (suffix string, ok bool) {
	if strings.HasPrefix(name, "*.") {
		return name[1:], true
	}
	return "", false
}

// suffixOf is name without its first label: what a wildcard must follow its
// "*" with to match it. A wildcard stands for exactly one label that is not
// empty (RFC 9525, section 6.3).
func suffixOf(name string) (suffix string, ok bool) {
	if i := strings.IndexByte(name, '.'); i > 0 {
		return name[i:], true
	}
	return "", false
}

// get is tls.Config.GetCertificate. It returns neither a certificate nor an
// error if there is none for the name and no other is to be shown: with a
// configuration that has no Certificates crypto/tls then sends
// unrecognized_name; any error of ours would become internal_error.
func (ix *certIndex) get(hello *tls.ClientHelloInfo, now time.Time) (*tls.Certificate, error) {
	if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acmeTLS1 {
		for _, d := range ix.dynamic {
			if cert, err := ask(d, hello, normalName(hello.ServerName)); err == nil && cert != nil {
				return cert, nil
			}
		}
	}
	name := normalName(hello.ServerName)
	suffix, hasSuffix := suffixOf(name)
	exact := ix.exact[name]
	var wild []*certificate
	var dynamicErr error
	if hasSuffix {
		wild = ix.wildcard[suffix]
	}
	if len(exact) == 0 {
		d := ix.dynamicExact[name]
		if d == nil && hasSuffix && len(wild) == 0 {
			d = ix.dynamicWildcard[suffix]
		}
		if d != nil {
			cert, err := ask(d, hello, name)
			if err == nil && cert != nil {
				return cert, nil
			}
			dynamicErr = err // not issued yet; a wildcard may still do
		}
	}
	if c := choose(hello, now, exact, wild); c != nil {
		return c.current.Load(), nil
	}
	if ix.strict {
		return nil, dynamicErr
	}
	if ix.defaultDynamic != nil {
		cert, err := ask(ix.defaultDynamic, hello, ix.defaultDomain)
		if err == nil && cert != nil {
			return cert, nil
		}
		dynamicErr = cmp.Or(dynamicErr, err)
	}
	if c := choose(hello, now, ix.defaults, nil); c != nil {
		return c.current.Load(), nil
	}
	return nil, dynamicErr
}

func ask(d dynamicCerts, hello *tls.ClientHelloInfo, name string) (*tls.Certificate, error) {
	if hello.ServerName != name {
		h := *hello
		h.ServerName = name
		hello = &h
	}
	return d.GetCertificate(hello)
}

// choose takes the first candidate that the client can verify and that is
// valid now; failing that, the first that it can verify; failing that, the
// first, for the handshake to fail with the right alert. exact goes before wild.
func choose(hello *tls.ClientHelloInfo, now time.Time, exact, wild []*certificate) *certificate {
	switch {
	case len(exact)+len(wild) == 0:
		return nil
	case len(exact) == 1 && len(wild) == 0:
		return exact[0]
	case len(exact) == 0 && len(wild) == 1:
		return wild[0]
	}
	// Without a name SupportsCertificate does not compare it: the index
	// has, and the default is not for the name anyway.
	h := *hello
	h.ServerName = ""
	var expired, first *certificate
	for _, list := range [2][]*certificate{exact, wild} {
		for _, c := range list {
			if first == nil {
				first = c
			}
			if old := c.expired(now); old && expired != nil || h.SupportsCertificate(c.current.Load()) != nil {
				continue
			} else if old {
				expired = c
				continue
			}
			return c
		}
	}
	return cmp.Or(expired, first)
}
