package config

import (
	"crypto/tls"
	"fmt"
	"slices"

	"edgeproxy/tlsterm"
)

func (l *loader) checkTLS(n *tlsNode) {
	n.opts.Name = n.name
	l.d.blocks["tls."+n.name] = n.header
	if len(n.certificates) == 0 && !n.partial {
		l.d.errorf(n.header, `Add one: certificate { cert_file = "web.crt", … }, certificate { dir = "certs" } or certificate { acme { domains = ["example.com"] } }`,
			"tls %q has no certificate", n.name)
	}
	for _, c := range n.certificates {
		l.checkCertificate(c)
		n.opts.Certificates = append(n.opts.Certificates, c.opts)
	}
	l.checkVersions(&n.node, n.opts.MinVersion, n.opts.MaxVersion, n.opts.CipherSuites, n.opts.Groups)
	if n.opts.NoTickets && n.has("ticket_keys") {
		l.d.errorf(n.at("ticket_keys"), "Keep one of them.", "ticket_keys without session tickets")
	}
	if c := n.clientAuth; c != nil && !c.partial {
		if c.opts.Mode != tlsterm.ClientAuthNone && !c.has("ca_file") {
			l.d.errorf(c.header, "Name a PEM file of the authorities that issue certificates to your clients. Those of the system would let in whoever has bought a certificate.",
				"client_auth has no ca_file")
		}
		if c.has("crl_file") && !c.has("ca_file") && c.opts.Mode == tlsterm.ClientAuthNone {
			l.d.warnf(c.at("crl_file"), "No certificates are asked for with mode = \"none\".", "crl_file has no effect")
		}
	}
}

func (l *loader) checkCertificate(c *certificateNode) {
	ways := btoi(c.has("cert_file")) + btoi(c.has("dir")) + btoi(c.acme != nil)
	switch {
	case c.partial:
	case c.has("key_file") && !c.has("cert_file"):
		l.d.errorf(c.at("key_file"), "It is the private key of cert_file.", "key_file without cert_file")
	case ways == 0:
		l.d.errorf(c.header, "Write one of: cert_file and key_file, dir, acme { … }.", "certificate does not say where it comes from")
	case ways > 1:
		l.d.errorf(c.header, "Keep one of cert_file, dir and acme; write further certificate blocks for the others.", "certificate says more than once where it comes from")
	}
	if c.opts.KeyFile == "" && !c.has("key_file") {
		c.opts.KeyFile = c.opts.CertFile // a PEM with both
	}
	if a := c.acme; a != nil && a.opts.NoTLSALPN && a.opts.HTTPAddress == "" && !a.bad && !a.partial {
		l.d.errorf(a.at("tls_alpn"), "Leave tls_alpn on, or set http_address: the authority must be able to see that the names are yours.", "acme has no challenge left")
	}
}

// checkVersions looks at what versions, suites and groups make of each other.
func (l *loader) checkVersions(n *node, low, high uint16, suites []uint16, groups []tls.CurveID) {
	if n.bad || n.partial {
		return
	}
	if low == 0 {
		low = tls.VersionTLS12
	}
	if high == 0 {
		high = tls.VersionTLS13
	}
	if low > high {
		where := "max_version"
		if !n.has(where) {
			where = "min_version"
		}
		l.d.errorf(n.at(where), fmt.Sprintf("min_version is %s, max_version is %s; the defaults are 1.2 and 1.3.", tlsVersions[low-tls.VersionTLS10], tlsVersions[high-tls.VersionTLS10]),
			"no version of TLS is left")
		return
	}
	if low == tls.VersionTLS13 && len(suites) > 0 {
		l.d.warnf(n.at("cipher_suites"), "They are for TLS 1.2 and below, and min_version is 1.3.", "cipher_suites has no effect")
	}
	if low < tls.VersionTLS12 && len(suites) > 0 && !slices.ContainsFunc(suites, speaksTLS10) {
		const how = "Name a suite that they have, such as TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, in cipher_suites, beside those for TLS 1.2."
		if high < tls.VersionTLS12 {
			l.d.errorf(n.at("max_version"), how, "TLS 1.0 and 1.1 have none of the cipher suites")
		} else {
			l.d.warnf(n.at("min_version"), how, "TLS 1.0 and 1.1 have none of the cipher suites")
		}
	}
	if len(groups) > 0 && low < tls.VersionTLS13 && !slices.ContainsFunc(groups, func(g tls.CurveID) bool { return !hybrid(g) }) {
		const how = "The hybrids with MLKEM exist in TLS 1.3 only; add X25519 or P-256, or set min_version = \"1.3\"."
		if high < tls.VersionTLS13 {
			l.d.errorf(n.at("groups"), how, "TLS 1.2 has none of the groups")
		} else {
			l.d.warnf(n.at("groups"), how, "TLS 1.2 has none of the groups")
		}
	}
}

func speaksTLS10(id uint16) bool {
	return slices.ContainsFunc(suites(), func(s *tls.CipherSuite) bool {
		return s.ID == id && slices.Contains(s.SupportedVersions, tls.VersionTLS10)
	})
}

func hybrid(g tls.CurveID) bool {
	return g == tls.X25519MLKEM768 || g == tls.SecP256r1MLKEM768 || g == tls.SecP384r1MLKEM1024
}

// checkChallenges finds http-01 servers whose address is a listener's. Several
// tls blocks may share one.
func (l *loader) checkChallenges(ov *overlaps) {
	seen := make(map[string]bool)
	for _, t := range l.root.tls {
		for _, c := range t.certificates {
			if c.acme == nil || c.acme.opts.HTTPAddress == "" || seen[c.acme.opts.HTTPAddress] {
				continue
			}
			seen[c.acme.opts.HTTPAddress] = true
			l.checkBinder(ov, c.acme.node, fmt.Sprintf("the http-01 server of tls %q", t.name), "http_address", c.acme.opts.HTTPAddress)
		}
	}
}

func (l *loader) checkClientTLS(n *upstreamNode) {
	c := n.tls
	if c == nil {
		return
	}
	if c.has("key_file") && !c.has("cert_file") && !c.partial {
		l.d.errorf(c.at("key_file"), "It is the private key of cert_file.", "key_file without cert_file")
	}
	if c.opts.KeyFile == "" && !c.has("key_file") {
		c.opts.KeyFile = c.opts.CertFile
	}
	l.checkVersions(&c.node, c.opts.MinVersion, c.opts.MaxVersion, c.opts.CipherSuites, c.opts.Groups)
	if c.opts.Insecure {
		l.d.warnf(c.at("verify"), "Whoever can get between edgeproxy and the servers reads and changes everything. Name their authority by ca_file instead.",
			"servers of upstream %q are not verified", n.name)
		if c.has("ca_file") {
			l.d.warnf(c.at("ca_file"), "", "ca_file has no effect without verify")
		}
		return
	}
	if c.opts.ServerName != "" || c.has("server_name") || c.partial {
		return
	}
	for _, s := range n.servers {
		if s.opts.Address.Unix != "" {
			l.d.errorf(c.header, "Write server_name = \"…\": the name in the servers' certificates.", "server %q at %s is a unix socket, which has no name to verify", s.name, place(s.header))
			return
		}
	}
}
