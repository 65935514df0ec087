package config

import (
	"crypto/tls"

	"edgeproxy/tlsterm"
)

type tlsNode struct {
	node
	opts         tlsterm.Options
	certificates []*certificateNode
	clientAuth   *clientAuthNode
}

type certificateNode struct {
	node
	opts tlsterm.CertificateOptions
	acme *acmeNode
}

type acmeNode struct {
	node
	opts *tlsterm.ACMEOptions
}

type clientAuthNode struct {
	node
	opts *tlsterm.ClientAuthOptions
}

var tlsBlock = &block{
	name: "tls", named: true, many: true, sample: "public",
	doc: "How TLS is terminated: certificates, versions, client certificates. Listeners and routes refer to it as `tls.NAME`. See [TLS](tls.md).",
	open: in(func(r *root) *tlsNode {
		t := new(tlsNode)
		r.tls = append(r.tls, t)
		return t
	}),
	attrs: []attr{
		{
			name: "min_version", def: `"1.2"`, example: `"1.2"`,
			doc:     "The oldest version of TLS that is spoken.",
			binding: to(tlsVersion(), func(t *tlsNode) *uint16 { return &t.opts.MinVersion }),
		},
		{
			name: "max_version", def: `"1.3"`, example: `"1.3"`,
			doc:     "The newest version of TLS that is spoken.",
			binding: to(tlsVersion(), func(t *tlsNode) *uint16 { return &t.opts.MaxVersion }),
		},
		{
			name: "cipher_suites", def: "ECDHE with AES-GCM or ChaCha20-Poly1305; for TLS 1.0 and 1.1 also ECDHE with AES-CBC", example: `["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]`,
			doc:     "Suites of TLS 1.2 and below; their order does not matter. Those of TLS 1.3 are always on.",
			binding: to(cipherSuites(), func(t *tlsNode) *[]uint16 { return &t.opts.CipherSuites }),
		},
		{
			name: "groups", def: "those of Go's crypto/tls, X25519MLKEM768 first", example: `["X25519MLKEM768", "X25519", "P-256"]`,
			doc:     "Key exchanges, the most preferred first. Names with MLKEM are hybrids that withstand quantum computers; they exist in TLS 1.3 only.",
			binding: to(groups(), func(t *tlsNode) *[]tls.CurveID { return &t.opts.Groups }),
		},
		{
			name: "alpn", def: "none is negotiated", example: `["h2", "http/1.1"]`,
			doc:     "Application protocols, the most preferred first. A client that offers only others is refused with `no_application_protocol` (RFC 7301).",
			binding: to(alpnNames(), func(t *tlsNode) *[]string { return &t.opts.ALPN }),
		},
		{
			name: "strict_sni", def: "false", example: "true",
			doc:     "Clients that ask for a name without a certificate, or for none, are refused with `unrecognized_name` (RFC 6066) instead of being shown the first certificate.",
			binding: to(boolean(), func(t *tlsNode) *bool { return &t.opts.StrictSNI }),
		},
		{
			name: "ocsp_stapling", def: "false", example: "true",
			doc:     "Answers of the authorities' OCSP responders are fetched, kept fresh and sent along (RFC 6066, RFC 6960). Takes HTTP requests to those that the certificates name.",
			binding: to(boolean(), func(t *tlsNode) *bool { return &t.opts.OCSPStapling }),
		},
		{
			name: "session_tickets", def: "true", example: "true",
			doc:     "Clients may resume their sessions, which spares both sides most of a handshake.",
			binding: to(negated(), func(t *tlsNode) *bool { return &t.opts.NoTickets }),
		},
		{
			name: "ticket_keys", def: "own keys, rotated", example: `"tickets.bin"`,
			doc:     "File of keys that several machines share, so that sessions can be resumed on any of them. It is watched. See [session tickets](tls.md#session-tickets).",
			binding: to(filePath(), func(t *tlsNode) *string { return &t.opts.TicketKeys }),
		},
	},
	blocks: []*block{certificateBlock, clientAuthBlock},
}

var certificateBlock = &block{
	name: "certificate", many: true,
	doc: "Where certificates come from: a file, a folder, or an authority by ACME. At least one block; the certificate is chosen by the name that the client asks for, " +
		"and the first of all is the one for everybody else.",
	open: in(func(t *tlsNode) *certificateNode {
		c := new(certificateNode)
		t.certificates = append(t.certificates, c)
		return c
	}),
	attrs: []attr{
		{
			name: "cert_file", def: "–", example: `"web.crt"`,
			doc:     "PEM: the certificate, then its chain. It is watched.",
			binding: to(filePath(), func(c *certificateNode) *string { return &c.opts.CertFile }),
		},
		{
			name: "key_file", def: "`cert_file`", example: `"web.key"`,
			doc:     "PEM: its private key, unencrypted.",
			binding: to(filePath(), func(c *certificateNode) *string { return &c.opts.KeyFile }),
		},
		{
			name: "dir", def: "–",
			doc:     "Folder of pairs `NAME.crt` and `NAME.key`. It is watched: pairs come, change and go without a reload.",
			binding: to(filePath(), func(c *certificateNode) *string { return &c.opts.Dir }),
		},
	},
	blocks: []*block{acmeBlock},
}

var acmeBlock = &block{
	name: "acme",
	doc:  "Certificates are requested and renewed by ACME (RFC 8555). See [ACME](tls.md#acme).",
	open: in(func(c *certificateNode) *acmeNode {
		c.opts.ACME = new(tlsterm.ACMEOptions)
		c.acme = &acmeNode{opts: c.opts.ACME}
		return c.acme
	}),
	attrs: []attr{
		{
			name: "domains", required: true, example: `["example.com", "www.example.com"]`,
			doc:     "Names to have certificates for; no wildcards.",
			binding: to(issuedNames(), func(a *acmeNode) *[]string { return &a.opts.Domains }),
		},
		{
			name: "email", def: "none", example: `"admin@example.com"`,
			doc:     "Where the authority writes to when something is wrong.",
			binding: to(emailAddress(), func(a *acmeNode) *string { return &a.opts.Email }),
		},
		{
			name: "directory", def: "Let's Encrypt", example: `"https://acme-v02.api.letsencrypt.org/directory"`,
			doc:     "URL of the authority's directory.",
			binding: to(directoryURL(), func(a *acmeNode) *string { return &a.opts.Directory }),
		},
		{
			name: "storage", def: `"` + tlsterm.DefaultACMEStorage + `"`, example: `"` + tlsterm.DefaultACMEStorage + `"`,
			doc:     "Folder for the account and the certificates with their keys. Keep it: authorities limit how often they issue.",
			binding: to(filePath(), func(a *acmeNode) *string { return &a.opts.Storage }),
		},
		{
			name: "ca_file", def: "the system's", example: `"acme-ca.pem"`,
			doc:     "PEM: authorities to trust the directory by.",
			binding: to(filePath(), func(a *acmeNode) *string { return &a.opts.CAFile }),
		},
		{
			name: "http_address", def: "http-01 is not offered", example: `"127.0.0.1:8402"`,
			doc:     "Where http-01 challenges are answered; everything else gets 404. The authority asks at port 80: listen there, or have a route send `/.well-known/acme-challenge/` here.",
			binding: to(tcpAddress(), func(a *acmeNode) *string { return &a.opts.HTTPAddress }),
		},
		{
			name: "tls_alpn", def: "true", example: "true",
			doc:     "Answer tls-alpn-01 challenges (RFC 8737), which come at port 443 and must reach a route that terminates with this tls block.",
			binding: to(negated(), func(a *acmeNode) *bool { return &a.opts.NoTLSALPN }),
		},
	},
}

var clientAuthBlock = &block{
	name: "client_auth",
	doc:  "Certificates of clients. Every doubt refuses: a list of revocations that is out of date, too.",
	open: in(func(t *tlsNode) *clientAuthNode {
		t.clientAuth = &clientAuthNode{opts: &t.opts.ClientAuth}
		return t.clientAuth
	}),
	attrs: []attr{
		{
			name: "mode", required: true, example: `"require"`,
			doc: "`none` asks for nothing; `request` asks, takes clients without a certificate, and refuses one that does not verify; `require` takes only clients with one that does.",
			binding: to(word([]string{"none", "request", "require"}, []tlsterm.ClientAuthMode{tlsterm.ClientAuthNone, tlsterm.ClientAuthRequest, tlsterm.ClientAuthRequire}),
				func(c *clientAuthNode) *tlsterm.ClientAuthMode { return &c.opts.Mode }),
		},
		{
			name: "ca_file", def: "–", example: `"clients.pem"`,
			doc:     "PEM: the authorities that issue certificates to clients. Needed unless `mode` is `none`.",
			binding: to(filePath(), func(c *clientAuthNode) *string { return &c.opts.CAFile }),
		},
		{
			name: "crl_file", def: "revocation is not checked", example: `"revoked.pem"`,
			doc:     "PEM or DER: revocation lists (RFC 5280) of those authorities. It is watched.",
			binding: to(filePath(), func(c *clientAuthNode) *string { return &c.opts.CRLFile }),
		},
	},
}

// clientTLSNode is an upstream's tls block.
type clientTLSNode struct {
	node
	opts *tlsterm.ClientOptions
}

var clientTLSBlock = &block{
	name: "tls",
	doc:  "Sessions to the servers are encrypted. Servers are verified unless `verify` is false. Health checks are not encrypted by it.",
	open: in(func(u *upstreamNode) *clientTLSNode {
		u.opts.TLS = new(tlsterm.ClientOptions)
		u.tls = &clientTLSNode{opts: u.opts.TLS}
		return u.tls
	}),
	attrs: []attr{
		{
			name: "server_name", def: "the host of the server's address", example: `"web.internal"`,
			doc:     "What the servers are asked for (SNI), and what their certificates must name. For an IP address the certificate must hold that address, and no SNI is sent.",
			binding: to(serverName(), func(c *clientTLSNode) *string { return &c.opts.ServerName }),
		},
		{
			name: "verify", def: "true", example: "true",
			doc:     "Servers must show a certificate for that name, of one of the authorities.",
			binding: to(negated(), func(c *clientTLSNode) *bool { return &c.opts.Insecure }),
		},
		{
			name: "ca_file", def: "the system's", example: `"internal.pem"`,
			doc:     "PEM: the authorities that servers are verified by.",
			binding: to(filePath(), func(c *clientTLSNode) *string { return &c.opts.CAFile }),
		},
		{
			name: "cert_file", def: "none", example: `"proxy.crt"`,
			doc:     "PEM: the certificate shown to servers that ask for one, then its chain.",
			binding: to(filePath(), func(c *clientTLSNode) *string { return &c.opts.CertFile }),
		},
		{
			name: "key_file", def: "`cert_file`", example: `"proxy.key"`,
			doc:     "PEM: its private key, unencrypted.",
			binding: to(filePath(), func(c *clientTLSNode) *string { return &c.opts.KeyFile }),
		},
		{
			name: "alpn", def: "none is offered", example: `["h2"]`,
			doc:     "Application protocols that are offered, the most preferred first.",
			binding: to(alpnNames(), func(c *clientTLSNode) *[]string { return &c.opts.ALPN }),
		},
		{
			name: "min_version", def: `"1.2"`, example: `"1.2"`,
			doc:     "The oldest version of TLS that is spoken.",
			binding: to(tlsVersion(), func(c *clientTLSNode) *uint16 { return &c.opts.MinVersion }),
		},
		{
			name: "max_version", def: `"1.3"`, example: `"1.3"`,
			doc:     "The newest version of TLS that is spoken.",
			binding: to(tlsVersion(), func(c *clientTLSNode) *uint16 { return &c.opts.MaxVersion }),
		},
		{
			name: "cipher_suites", def: "as in the other `tls` block", example: `["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"]`,
			doc:     "Suites of TLS 1.2 and below; their order does not matter. Those of TLS 1.3 are always on.",
			binding: to(cipherSuites(), func(c *clientTLSNode) *[]uint16 { return &c.opts.CipherSuites }),
		},
		{
			name: "groups", def: "those of Go's crypto/tls, X25519MLKEM768 first", example: `["X25519", "P-256"]`,
			doc:     "Key exchanges, the most preferred first.",
			binding: to(groups(), func(c *clientTLSNode) *[]tls.CurveID { return &c.opts.Groups }),
		},
	},
}
