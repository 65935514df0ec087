package tlsterm

import (
	"crypto/tls"
	"time"
)

// Options describe one `tls` block: how sessions are terminated.
type Options struct {
	Name         string
	Certificates []CertificateOptions // ≥ 1; chosen by SNI, the first usable one is the default
	// StrictSNI refuses hellos that name no known certificate, or none at
	// all, with the alert unrecognized_name (RFC 6066, section 3), instead of
	// showing the default certificate.
	StrictSNI    bool
	MinVersion   uint16        // tls.VersionTLS10 … 13; 0: TLS 1.2
	MaxVersion   uint16        // 0: TLS 1.3
	CipherSuites []uint16      // of TLS 1.2 and below, unordered; empty: those with forward secrecy and an AEAD. TLS 1.3 suites are not configurable
	Groups       []tls.CurveID // key exchange, most preferred first; empty: the library's, X25519MLKEM768 first
	ALPN         []string      // most preferred first; empty: no ALPN is negotiated
	OCSPStapling bool
	NoTickets    bool   // no session resumption
	TicketKeys   string // file of ticket keys shared by a fleet; "": own keys, rotated
	ClientAuth   ClientAuthOptions
}

// CertificateOptions is one source of certificates. Exactly one of CertFile,
// Dir and ACME is set.
type CertificateOptions struct {
	CertFile string // PEM: the certificate and its chain
	KeyFile  string // PEM
	Dir      string // NAME.crt + NAME.key pairs, watched
	ACME     *ACMEOptions
}

// ACMEOptions let a certificate authority issue the certificates (RFC 8555).
type ACMEOptions struct {
	Domains   []string
	Email     string
	Directory string // URL; "": Let's Encrypt production
	Storage   string // folder for account and certificates; "": DefaultACMEStorage
	CAFile    string // PEM: roots to trust the directory by; "": the system's
	// HTTPAddress is where http-01 challenges are answered (RFC 8555, section
	// 8.3); "": http-01 is not offered.
	HTTPAddress string
	NoTLSALPN   bool // do not answer tls-alpn-01 (RFC 8737)
}

// DefaultACMEStorage is where ACME keeps accounts and certificates.
const DefaultACMEStorage = "/var/lib/edgeproxy/acme"

// ClientAuthMode says what is asked of clients.
type ClientAuthMode uint8

const (
	ClientAuthNone    ClientAuthMode = iota
	ClientAuthRequest                // asked for; one that is shown must verify
	ClientAuthRequire
)

// ClientAuthOptions describe the verification of client certificates.
type ClientAuthOptions struct {
	Mode    ClientAuthMode
	CAFile  string // PEM: the authorities trusted to issue client certificates
	CRLFile string // PEM or DER, any number of lists, watched; "": no revocation check
}

// ClientOptions describe an upstream's `tls` block: re-encryption.
type ClientOptions struct {
	ServerName   string // SNI and the name verified; "": the host of the server's address
	CAFile       string // PEM; "": the system's authorities
	CertFile     string // client certificate; "": none
	KeyFile      string
	ALPN         []string
	MinVersion   uint16 // 0: TLS 1.2
	MaxVersion   uint16 // 0: TLS 1.3
	CipherSuites []uint16
	Groups       []tls.CurveID
	Insecure     bool // any certificate will do
}

// TicketLifetime is how long a session ticket is good for.
const TicketLifetime = 12 * time.Hour
