package tlsterm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Bounds of what is read from files. A certificate of 100 names has about
// 5 KB, a key of RSA 8192 4.7 KB.
const (
	maxCertFileSize = 1 << 20
	maxKeyDER       = 16 << 10

	// minRSABits is where crypto/rsa refuses to sign, weakRSABits where
	// browsers refuse to connect (a warning: there are other clients), and
	// maxRSABits where Go's clients do; a longer key only burns CPU.
	minRSABits  = 1024
	weakRSABits = 2048
	maxRSABits  = 8192
)

// certificate is one pair in use. It is immutable but for the staple, which
// comes and goes by swapping current.
type certificate struct {
	file     string // the certificate's file
	leaf     *x509.Certificate
	issuer   *x509.Certificate // from the chain; nil: not there
	names    []string          // normalised; wildcards with their "*."
	rank     int               // by key: the lower is preferred
	warnings []string          // for the operator; none of them keeps it from being used

	current atomic.Pointer[tls.Certificate]
	staple  atomic.Pointer[staple]
}

// subject is what a person or a metric calls the certificate.
func (c *certificate) subject() string {
	if len(c.leaf.DNSNames) > 0 {
		return c.leaf.DNSNames[0]
	}
	return c.leaf.Subject.CommonName
}

func (c *certificate) expired(now time.Time) bool {
	return now.After(c.leaf.NotAfter) || now.Before(c.leaf.NotBefore)
}

// fileState is what was seen of a file when it was last read, and tells
// whether it has to be read again.
type fileState struct {
	info fs.FileInfo // nil: it was not there
	err  error
}

func statFile(name string) fileState {
	info, err := os.Stat(name)
	if err != nil {
		return fileState{err: err}
	}
	return fileState{info: info}
}

func (f fileState) missing() bool { return errors.Is(f.err, fs.ErrNotExist) }

// same reports whether nothing was seen to change since old.
func (f fileState) same(old fileState) bool {
	if f.info == nil || old.info == nil {
		return f.info == nil && old.info == nil && f.missing() == old.missing()
	}
	return os.SameFile(f.info, old.info) && f.info.Size() == old.info.Size() &&
		f.info.ModTime().Equal(old.info.ModTime()) && f.info.Mode() == old.info.Mode()
}

// settledSince reports whether a write after t would show in the file's time.
// Time stamps have the resolution of the kernel's tick, of a second or two on
// some file systems; a file younger than that may change unseen.
func (f fileState) settledSince(t time.Time) bool {
	return f.info == nil || t.Sub(f.info.ModTime()) > 2*time.Second
}

// readBounded reads a regular file, at most [maxCertFileSize] bytes of it.
func readBounded(name string) ([]byte, fileState) {
	// A FIFO would block an open without O_NONBLOCK.
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fileState{err: err}
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fileState{err: err}
	}
	state := fileState{info: info}
	if !info.Mode().IsRegular() {
		state.err = fmt.Errorf("%s is no regular file; expected PEM", name)
		return nil, state
	}
	data, err := io.ReadAll(io.LimitReader(f, maxCertFileSize+1))
	switch {
	case err != nil:
		state.err = err
	case len(data) > maxCertFileSize:
		state.err = fmt.Errorf("%s is larger than 1 MiB; expected a certificate with its chain, or a key, in PEM", name)
		data = nil
	}
	return data, state
}

// loaded is the outcome of reading one pair.
type loaded struct {
	cert, key fileState
	sum       [sha256.Size]byte // of all that was read
	err       error
	pair      *certificate // nil exactly if err is not
}

// loadPair reads a certificate and its key. keyFile may be "" for a key that
// is in certFile as well. A panic of the parsers is an error of the file.
func loadPair(certFile, keyFile string, now time.Time) (l loaded) {
	defer func() {
		if v := recover(); v != nil {
			l.pair, l.err = nil, fmt.Errorf("%s: cannot be parsed: %v; replace it", certFile, v)
		}
	}()
	var certData, keyData []byte
	h := sha256.New()
	certData, l.cert = readBounded(certFile)
	h.Write(certData)
	fmt.Fprintf(h, "|%d|", len(certData))
	if keyFile == "" {
		keyFile, keyData, l.key = certFile, certData, l.cert
	} else {
		keyData, l.key = readBounded(keyFile)
		h.Write(keyData)
	}
	h.Sum(l.sum[:0])
	for _, err := range []error{l.cert.err, l.key.err} {
		if err != nil {
			l.err = describeReadError(err)
			return l
		}
	}
	l.pair, l.err = parsePair(certFile, certData, keyFile, keyData, now)
	if l.err == nil && l.key.info.Mode().Perm()&0o004 != 0 {
		l.pair.warnings = append(l.pair.warnings, fmt.Sprintf("%s holds a private key that every user of this machine can read; chmod o-r it", keyFile))
	}
	return l
}

func describeReadError(err error) error {
	var pathErr *fs.PathError
	switch {
	case errors.Is(err, fs.ErrPermission) && errors.As(err, &pathErr):
		return fmt.Errorf("%s: permission denied; make it readable for the user that edgeproxy runs as", pathErr.Path)
	case errors.Is(err, fs.ErrNotExist) && errors.As(err, &pathErr):
		return fmt.Errorf("%s: no such file", pathErr.Path)
	}
	return err
}

// parsePair makes a certificate of PEM text. Both texts may hold other blocks,
// as long as there is one certificate in the first and one key in the second.
func parsePair(certFile string, certData []byte, keyFile string, keyData []byte, now time.Time) (*certificate, error) {
	chain, err := parseChain(certFile, certData)
	if err != nil {
		return nil, err
	}
	leaf := chain[0]
	key, err := parseKey(keyFile, keyData)
	if err != nil {
		return nil, err
	}
	c := &certificate{file: certFile, leaf: leaf}
	switch pub := leaf.PublicKey.(type) {
	case *ecdsa.PublicKey:
		c.rank = 0
	case ed25519.PublicKey:
		c.rank = 1
	case *rsa.PublicKey:
		c.rank = 2
		if n := pub.N.BitLen(); n < weakRSABits {
			c.warnings = append(c.warnings, fmt.Sprintf("%s: an RSA key of %d bits, which many clients refuse; issue one of at least %d, or ECDSA P-256", certFile, n, weakRSABits))
		}
	}
	if !matches(leaf, key) {
		if i := slices.IndexFunc(chain, func(cert *x509.Certificate) bool { return matches(cert, key) }); i > 0 {
			return nil, fmt.Errorf("%s belongs to certificate %d of %s; expected that one first, then those that issued it", keyFile, i+1, certFile)
		}
		if keyFile == certFile {
			return nil, fmt.Errorf("%s: the private key does not belong to the certificate; expected a pair", certFile)
		}
		return nil, fmt.Errorf("%s does not belong to %s: their public keys differ; expected a pair", keyFile, certFile)
	}
	pair := &tls.Certificate{PrivateKey: key, Leaf: leaf}
	for _, cert := range chain {
		pair.Certificate = append(pair.Certificate, cert.Raw)
	}
	c.current.Store(pair)
	c.names = namesOf(leaf)
	if len(chain) > 1 {
		if err := leaf.CheckSignatureFrom(chain[1]); err == nil {
			c.issuer = chain[1]
		} else {
			c.warnings = append(c.warnings, fmt.Sprintf("%s: its second certificate did not issue the first, clients may be unable to verify it; put the issuing ones behind it in order", certFile))
		}
	}
	switch {
	case now.After(leaf.NotAfter):
		c.warnings = append(c.warnings, fmt.Sprintf("%s: expired at %s; renew it", certFile, leaf.NotAfter.UTC().Format(time.RFC3339)))
	case now.Before(leaf.NotBefore):
		c.warnings = append(c.warnings, fmt.Sprintf("%s: not valid before %s; is this machine's clock right?", certFile, leaf.NotBefore.UTC().Format(time.RFC3339)))
	}
	if len(c.names) == 0 {
		c.warnings = append(c.warnings, fmt.Sprintf("%s: names no host, can only be the default", certFile))
	}
	return c, nil
}

func parseChain(file string, data []byte) ([]*x509.Certificate, error) {
	var chain []*x509.Certificate
	var other []string
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			other = append(other, block.Type)
			continue
		}
		if len(chain) == 100 {
			return nil, fmt.Errorf("%s: more than 100 certificates; expected one and those that issued it", file)
		}
		parse := x509.ParseCertificate
		if len(chain) > 0 {
			parse = parseIssuer
		}
		cert, err := parse(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: certificate %d: %s; is it complete?", file, len(chain)+1, bounded(err))
		}
		if pub, ok := cert.PublicKey.(*rsa.PublicKey); ok && (pub.N.BitLen() < minRSABits || pub.N.BitLen() > maxRSABits) {
			return nil, fmt.Errorf("%s: certificate %d: an RSA key of %d bits; expected %d to %d", file, len(chain)+1, pub.N.BitLen(), minRSABits, maxRSABits)
		}
		chain = append(chain, cert)
	}
	if len(chain) > 0 {
		return chain, nil
	}
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return nil, fmt.Errorf("%s: empty; expected a certificate in PEM", file)
	case slices.Contains(other, "TRUSTED CERTIFICATE"):
		return nil, fmt.Errorf("%s: OpenSSL's trusted format; expected plain PEM: openssl x509 -in FILE", file)
	case len(other) > 0:
		return nil, fmt.Errorf("%s: no certificate in it, but %q; expected a block CERTIFICATE", file, bounded(errors.New(strings.Join(other, ", "))))
	case data[0] == 0x30:
		return nil, fmt.Errorf("%s: looks like DER; expected PEM: openssl x509 -inform DER -in FILE", file)
	}
	return nil, fmt.Errorf("%s: no complete PEM block; expected a certificate", file)
}

func parseKey(file string, data []byte) (crypto.Signer, error) {
	var found *pem.Block
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "PRIVATE KEY" && !strings.HasSuffix(block.Type, " PRIVATE KEY") {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%s: more than one private key; expected the one of the certificate", file)
		}
		found = block
	}
	switch {
	case found == nil:
		return nil, fmt.Errorf("%s: no private key in it; expected a PEM block PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY", file)
	case found.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(found.Headers["Proc-Type"], "ENCRYPTED"):
		return nil, fmt.Errorf("%s: the private key is encrypted; expected it in the clear, readable for edgeproxy alone: openssl pkey -in FILE -out NEW", file)
	case len(found.Bytes) > maxKeyDER:
		return nil, fmt.Errorf("%s: a private key of %d bytes; expected at most %d", file, len(found.Bytes), maxKeyDER)
	}
	var key any
	var err error
	switch found.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(found.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(found.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(found.Bytes)
	default:
		return nil, fmt.Errorf("%s: a private key of the form %q; expected PRIVATE KEY (PKCS#8), RSA PRIVATE KEY or EC PRIVATE KEY", file, bounded(errors.New(found.Type)))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: private key: %s; is it complete?", file, bounded(err))
	}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		return key, nil
	case *ecdsa.PrivateKey:
		return key, nil
	case ed25519.PrivateKey:
		return key, nil
	}
	return nil, fmt.Errorf("%s: a private key that cannot sign in TLS (%T); expected ECDSA, RSA or Ed25519", file, key)
}

func matches(cert *x509.Certificate, key crypto.Signer) bool {
	pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub.Equal(key.Public())
}

// bounded cuts an error's text, which may quote a hostile certificate.
func bounded(err error) string {
	s := err.Error()
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

// namesOf are the DNS names of a certificate as they are looked up. The common
// name counts only where there are no alternative names at all, for clients
// older than RFC 6125.
func namesOf(leaf *x509.Certificate) []string {
	names := leaf.DNSNames
	if len(names) == 0 && len(leaf.IPAddresses) == 0 && len(leaf.URIs) == 0 && len(leaf.EmailAddresses) == 0 {
		names = []string{leaf.Subject.CommonName}
	}
	var out []string
	for _, name := range names {
		if name = normalName(name); indexable(name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// indexable reports whether a client may ask for name: a host name, or a
// wildcard whose first label is all of "*" (RFC 9525, section 6.3).
func indexable(name string) bool {
	rest, wild := strings.CutPrefix(name, "*.")
	if wild && !strings.Contains(rest, ".") && rest == "" {
		return false
	}
	return rest != "" && len(name) <= 255 && !strings.ContainsAny(rest, "* \x00")
}

// normalName brings a server name into the form in which it is compared:
// lower case (ASCII, as DNS has it) and without one final dot. Routes and
// certificates must agree on it, or a name is routed by one policy and served
// by another.
func normalName(name string) string {
	name = strings.TrimSuffix(name, ".")
	for i := range len(name) {
		if c := name[i]; 'A' <= c && c <= 'Z' {
			return lowerASCII(name)
		}
	}
	return name
}

func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// isAuthority reports whether file holds certificates of authorities alone:
// the ca.crt beside tls.crt, or the issuer's beside a server's.
func isAuthority(file string) (yes bool) {
	defer func() {
		if recover() != nil {
			yes = false
		}
	}()
	data, state := readBounded(file)
	if state.err != nil {
		return false
	}
	chain, err := parseChain(filepath.Base(file), data)
	return err == nil && !slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return !c.IsCA })
}
