package tlsterm

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
)

// Context is one `tls` block in force: how sessions are terminated. What was
// configured never changes during its life; certificates, ticket keys and
// revocation lists do. A session that began with it may go on using it after a
// reload has replaced it.
type Context struct {
	opts     Options
	certs    *certStore
	keys     *ticketKeys // nil: no tickets
	auth     *clientAuth
	template *tls.Config
}

// newContext makes a Context of parts that may belong to one before it, too.
func newContext(o Options, certs *certStore, keys *ticketKeys, auth *clientAuth) *Context {
	c := &Context{opts: o, certs: certs, keys: keys, auth: auth}
	t := &tls.Config{
		MinVersion:       minVersion(o.MinVersion),
		MaxVersion:       o.MaxVersion,
		CipherSuites:     cipherSuites(o.CipherSuites, minVersion(o.MinVersion)),
		CurvePreferences: slices.Clone(o.Groups), // nil: the library's, the hybrid post-quantum ones first
		NextProtos:       slices.Clone(o.ALPN),
		GetCertificate:   certs.get,
		ClientAuth:       auth.mode,
		ClientCAs:        auth.pool,
		VerifyConnection: auth.verify,
	}
	if keys != nil {
		sealer := newSealer(keys, c.scope())
		t.WrapSession, t.UnwrapSession = sealer.wrap, sealer.unwrap
		if o.StrictSNI {
			t.UnwrapSession = func(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
				if !c.certs.index.Load().names(cs.ServerName) {
					return nil, nil // which ends with unrecognized_name
				}
				return sealer.unwrap(ticket, cs)
			}
		}
	} else {
		t.SessionTicketsDisabled = true
	}
	t.GetConfigForClient = c.variants(t)
	c.template = t
	return c
}

// Name is that of the block.
func (c *Context) Name() string { return c.opts.Name }

// Template is the configuration of crypto/tls, the same during the Context's
// life. It may be cloned to set KeyLogWriter; whoever does that does the same to
// the configurations that its GetConfigForClient returns, of which there are
// few and always the same.
func (c *Context) Template() *tls.Config { return c.template }

// Certificates tells of those in use.
func (c *Context) Certificates() []CertificateStatus { return c.certs.expiry() }

// ChallengeProtocol is the ALPN of a handshake that was no client's, but an
// authority's that wants to see whether the name is ours (RFC 8737). Such a
// connection carries nothing, no client certificate was asked for, and it must
// be closed when the handshake is done.
const ChallengeProtocol = acmeTLS1

// variants returns the tls.Config.GetConfigForClient for hellos that need more
// than a list of protocols says; nil if there can be none.
func (c *Context) variants(base *tls.Config) func(*tls.ClientHelloInfo) (*tls.Config, error) {
	var challenge, refuse *tls.Config
	if len(c.certs.dynamic) > 0 {
		challenge = base.Clone()
		challenge.NextProtos = []string{ChallengeProtocol}
		challenge.GetCertificate = c.challengeCertificate
		challenge.ClientAuth, challenge.ClientCAs, challenge.VerifyConnection = tls.NoClientCert, nil, nil
		challenge.SessionTicketsDisabled, challenge.WrapSession, challenge.UnwrapSession = true, nil, nil
	}
	if slices.Contains(base.NextProtos, "h2") && !slices.Contains(base.NextProtos, "http/1.1") {
		// crypto/tls serves clients that offer http/1.1 alone, as if they
		// had offered nothing, to servers of h2 alone (golang.org/issue/46310).
		// That is just what ALPACA (CVE-2021-3618) needs. A list that has no
		// h2, but what nobody can guess, is refused as it should be.
		refuse = base.Clone()
		refuse.NextProtos = []string{rand.Text()}
	}
	if challenge == nil && refuse == nil {
		return nil
	}
	return func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		switch offered := hello.SupportedProtos; {
		case challenge != nil && len(offered) == 1 && offered[0] == ChallengeProtocol:
			return challenge, nil
		case refuse != nil && len(offered) > 0 && !overlap(offered, base.NextProtos):
			return refuse, nil
		}
		return nil, nil
	}
}

// challengeCertificate shows what proves a name, and none of our certificates:
// outside of challenges nobody gets a session without client certificate by
// asking for that protocol.
func (c *Context) challengeCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	for _, d := range c.certs.dynamic {
		if cert, err := ask(d, hello, normalName(hello.ServerName)); err == nil && cert != nil {
			return cert, nil
		}
	}
	return nil, nil
}

// names reports whether there is a certificate for name. A resumed session is
// not asked for one, and the one it began with may be gone.
func (ix *certIndex) names(name string) bool {
	name = normalName(name)
	if len(ix.exact[name]) > 0 || ix.dynamicExact[name] != nil {
		return true
	}
	suffix, ok := suffixOf(name)
	return ok && (len(ix.wildcard[suffix]) > 0 || ix.dynamicWildcard[suffix] != nil)
}

func overlap(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}

// scope is a hash of the block's name and of all that decides who gets a
// session there and what kind of session it is. Machines of a fleet that have
// the same `tls` block have the same scope.
func (c *Context) scope() [sha256.Size]byte {
	type source struct {
		Cert, Dir string
		Domains   []string
	}
	o := &c.opts
	policy := struct {
		Name             string
		Min, Max         uint16
		Suites           []uint16
		Groups           []tls.CurveID
		ALPN             []string
		Strict           bool
		Sources          []source
		Mode             ClientAuthMode
		CA               [sha256.Size]byte
		RevocationChecks bool
	}{
		Name: o.Name, Min: minVersion(o.MinVersion), Max: o.MaxVersion, Suites: o.CipherSuites, Groups: o.Groups,
		ALPN: o.ALPN, Strict: o.StrictSNI, Mode: o.ClientAuth.Mode, CA: c.auth.sum, RevocationChecks: c.auth.crlFile != "",
	}
	for _, co := range o.Certificates {
		s := source{Cert: co.CertFile, Dir: co.Dir}
		if co.ACME != nil {
			s.Domains = co.ACME.Domains
		}
		policy.Sources = append(policy.Sources, s)
	}
	b, err := json.Marshal(policy)
	if err != nil {
		panic(fmt.Sprintf("tlsterm: %v", err)) // there is nothing in it that JSON cannot say
	}
	return sha256.Sum256(b)
}

// sameCertificates reports whether two blocks can share a store.
func sameCertificates(a, b *Options) bool {
	return a.Name == b.Name && a.StrictSNI == b.StrictSNI && a.OCSPStapling == b.OCSPStapling && reflect.DeepEqual(a.Certificates, b.Certificates)
}

func minVersion(v uint16) uint16 {
	if v == 0 {
		return tls.VersionTLS12
	}
	return v
}

// cipherSuites gives the suites of TLS 1.2 and below. Without any configured
// they are those with forward secrecy and an AEAD, of which there is none
// below TLS 1.2; so who asks for old versions gets the least bad of those.
func cipherSuites(configured []uint16, lowest uint16) []uint16 {
	if len(configured) > 0 {
		return slices.Clone(configured)
	}
	suites := []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	}
	if lowest < tls.VersionTLS12 {
		suites = append(suites,
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA)
	}
	return suites
}
