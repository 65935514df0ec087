// Package acme has certificates issued and renewed by an authority that speaks
// ACME (RFC 8555). Renewal, storage and the choice of when to renew (RFC 9773)
// are those of certmagic; what answers the authority's challenges is ours,
// because certmagic would open listening sockets on ports that are edgeproxy's
// own.
//
// The life of a certificate:
//
//  1. [Service.New] loads what the storage folder has, so that it is served
//     from the first handshake on
//  2. [Manager.Start] orders what is missing, in the background
//  3. the authority asks for proof: a handshake that offers only "acme-tls/1"
//     reaches [Manager.GetCertificate] (tls-alpn-01, RFC 8737), or a request
//     reaches Options.HTTPAddress (http-01, RFC 8555, section 8.3)
//  4. the certificate is stored and served; it is replaced in time, without a
//     reload
//
// A failed order is tried again with growing pauses, for as long as the
// Manager lives.
package acme

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"go.uber.org/zap"
)

// DefaultDirectory is where certificates are ordered unless Options say
// otherwise: Let's Encrypt.
const DefaultDirectory = certmagic.LetsEncryptProductionCA

// ALPNProtocol is what a tls-alpn-01 challenge offers, and all that it offers
// (RFC 8737, section 4). It must be among the tls.Config's NextProtos when such
// a hello is answered, and at no other time.
const ALPNProtocol = acmez.ACMETLS1Protocol

// Options describe what is to be issued, and by whom.
type Options struct {
	Domains   []string // ≥ 1 host names, each with a certificate of its own
	Email     string   // for the account; "": none
	Directory string   // URL; "": DefaultDirectory
	Storage   string   // folder for accounts, keys and certificates; may be shared by a fleet
	CAFile    string   // PEM: roots to trust the directory by; "": the system's
	// HTTPAddress is where http-01 challenges are answered; several Managers
	// may name the same. "": http-01 is not offered.
	HTTPAddress string
	NoTLSALPN   bool // tls-alpn-01 is not offered
}

// Check finds what is wrong with o without changing anything.
func (o Options) Check() error {
	_, _, err := o.normalised()
	return err
}

// normalised returns o with its defaults and its domains the way look-ups
// write them, and what is in CAFile.
func (o Options) normalised() (Options, []byte, error) {
	if len(o.Domains) == 0 {
		return o, nil, errors.New("acme: no domains")
	}
	domains := make([]string, 0, len(o.Domains))
	for _, d := range o.Domains {
		name := normaliseName(d)
		if err := checkName(name); err != nil {
			return o, nil, fmt.Errorf("acme: domain %q: %w", d, err)
		}
		if !slices.Contains(domains, name) {
			domains = append(domains, name)
		}
	}
	o.Domains = domains
	if o.Email != "" {
		if a, err := mail.ParseAddress(o.Email); err != nil || a.Address != o.Email {
			return o, nil, fmt.Errorf("acme: email %q is not of the form name@domain", o.Email)
		}
	}
	if o.Directory == "" {
		o.Directory = DefaultDirectory
	}
	// RFC 8555, section 6.1: HTTPS only.
	if u, err := url.Parse(o.Directory); err != nil || u.Scheme != "https" || u.Host == "" {
		return o, nil, fmt.Errorf("acme: directory %q is not an https:// URL", o.Directory)
	}
	if o.Storage == "" {
		return o, nil, errors.New("acme: no storage folder")
	}
	if o.HTTPAddress != "" {
		_, port, err := net.SplitHostPort(o.HTTPAddress)
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		}
		if err != nil {
			return o, nil, fmt.Errorf("acme: http_address %q is not of the form host:port", o.HTTPAddress)
		}
	}
	if o.NoTLSALPN && o.HTTPAddress == "" {
		return o, nil, errors.New("acme: tls-alpn-01 is switched off and there is no http_address for http-01: nothing could prove who owns the domains")
	}
	roots, err := readRoots(o.CAFile)
	return o, roots, err
}

func readRoots(file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("acme: ca_file: %w", err)
	}
	if pool(pem).Equal(x509.NewCertPool()) {
		return nil, fmt.Errorf("acme: ca_file %s has no PEM certificate", file)
	}
	return pem, nil
}

// pool makes a pool of roots; nil, the system's, of none.
func pool(pem []byte) *x509.CertPool {
	if pem == nil {
		return nil
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return roots
}

// normaliseName is how a name is written for comparison: DNS names are
// case-insensitive (RFC 4343) and the root's dot says nothing.
func normaliseName(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

// checkName wants a host name as certificates have them (RFC 5890, section
// 2.3.1; RFC 1035, section 2.3.4).
func checkName(name string) error {
	if strings.HasPrefix(name, "*.") {
		return errors.New("wildcards need the dns-01 challenge, which is not available; list the names, or use certificate files")
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return errors.New("addresses are not supported; use certificate files")
	}
	if name == "" || len(name) > 253 {
		return errors.New("a host name has 1 to 253 characters")
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return errors.New("not a host name")
		}
		for _, c := range []byte(label) {
			if c >= 0x80 {
				return errors.New("write names beyond ASCII in their xn-- form")
			}
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return fmt.Errorf("%q has no place in a host name", c)
			}
		}
	}
	return nil
}

// IsChallenge reports whether a hello is the probe of a tls-alpn-01 challenge
// (RFC 8737, section 3): that one protocol and a name.
func IsChallenge(serverName string, alpn []string) bool {
	return serverName != "" && len(alpn) == 1 && alpn[0] == ALPNProtocol
}

// Service is what the Managers of a process share: the challenges that are
// under way, whoever ordered them, and the addresses where http-01 is answered.
type Service struct {
	log        *zap.Logger
	challenges challenges

	mu         sync.Mutex
	keepers    map[string]*keeper    // by what they were asked for
	responders map[string]*responder // by address as configured

	// Changed by tests only.
	renewEvery time.Duration // how often it is looked whether something is to be renewed
	pause      func(failures int, err error) time.Duration
}

// NewService makes a Service that reports to log; nil: to nobody.
func NewService(log *zap.Logger) *Service {
	if log == nil {
		log = zap.NewNop()
	}
	return &Service{
		log:        log.Named("acme"),
		keepers:    map[string]*keeper{},
		responders: map[string]*responder{},
		renewEvery: certmagic.DefaultRenewCheckInterval,
		pause:      pause,
	}
}

// HandOver makes the storage folders of all Managers another user's, for a
// process that gives up its privileges after New and before Start.
func (s *Service) HandOver(uid, gid int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, k := range s.keepers {
		errs = append(errs, k.storage.handOver(uid, gid))
	}
	return errors.Join(errs...)
}

// Status is the state of one domain.
type Status struct {
	Subject  string
	NotAfter time.Time // zero: there is no certificate yet
	Failure  string    // of the last order, until one succeeds
}

var errNoCertificate = errors.New("acme: no certificate for this name yet")

// GetCertificate answers tls-alpn-01 challenges, and other hellos with the
// certificate of the name they ask for. It reads no file unless the hello is
// a challenge for one of the Manager's domains.
func (m *Manager) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := normaliseName(hello.ServerName)
	if IsChallenge(name, hello.SupportedProtos) {
		return m.challengeCertificate(hello.Context(), name)
	}
	if c := m.certificate(name); c != nil {
		return c, nil
	}
	return nil, errNoCertificate
}
