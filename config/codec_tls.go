package config

import (
	"crypto/tls"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zclconf/go-cty/cty"

	"edgeproxy/listener"
)

// filePath is a file or folder, relative to the folder of the configuration
// file it is written in, as for file().
func filePath() codec[string] {
	c := checked("a path, relative to the configuration file's folder", func(s string) bool { return s != "" && len(s) < 4096 })
	read := c.read
	c.read = func(v *value) (string, bool) {
		s, ok := read(v)
		if !ok {
			return "", false
		}
		if strings.HasPrefix(s, "-----BEGIN") {
			v.fail(-1, "Keep keys and certificates in files of their own.", "the path of a file is needed, not what is in it")
			return "", false
		}
		at := v.expr.Range()
		if !filepath.IsAbs(s) {
			s = filepath.Join(filepath.Dir(at.Filename), s)
		}
		v.d.noteFile(s, at)
		return s, true
	}
	return c
}

var tlsVersions = []string{"1.0", "1.1", "1.2", "1.3"}

func tlsVersion() codec[uint16] {
	c := word(tlsVersions, []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13})
	read := c.read
	c.read = func(v *value) (uint16, bool) {
		n, ok := read(v)
		if ok && n < tls.VersionTLS12 {
			v.warn(-1, "RFC 8996 forbids both. Keep it for as long as old clients need it, in a tls block of their own.", "TLS %s is broken", tlsVersions[n-tls.VersionTLS10])
		}
		return n, ok
	}
	return c
}

// cipherSuites takes the names of TLS 1.2 and below.
func cipherSuites() codec[[]uint16] {
	return codec[[]uint16]{
		typ: "a cipher suite or a list of them",
		rng: `IANA names, such as "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"`,
		read: func(v *value) ([]uint16, bool) {
			list, ok := each(v, func(elem int, c cty.Value) (uint16, bool) {
				s, ok := v.text(elem, c)
				if !ok {
					return 0, false
				}
				suite, why := suiteByName(s)
				switch {
				case suite == nil:
					v.fail(elem, why+didYouMean(s, suiteNames()), "%s is not known", show(c))
					return 0, false
				case suite.SupportedVersions[0] == tls.VersionTLS13:
					v.fail(elem, "All three suites of TLS 1.3 are sound and always on.", "%s is a suite of TLS 1.3, which are not configurable", show(c))
					return 0, false
				case suite.Insecure:
					v.warn(elem, "Leave it out, unless there are clients that know nothing better.", "%s is not secure", show(c))
				}
				return suite.ID, true
			})
			if ok && len(list) == 0 {
				v.fail(-1, "", "the list is empty")
				return nil, false
			}
			return list, ok
		},
	}
}

func suites() []*tls.CipherSuite { return append(tls.CipherSuites(), tls.InsecureCipherSuites()...) }

func suiteNames() []string {
	var names []string
	for _, s := range suites() {
		if s.SupportedVersions[0] != tls.VersionTLS13 {
			names = append(names, s.Name)
		}
	}
	return names
}

// suiteByName finds an IANA name, or says which one was meant by OpenSSL's.
func suiteByName(name string) (s *tls.CipherSuite, why string) {
	for _, s := range suites() {
		if s.Name == name {
			return s, ""
		}
		if openSSLName(s.Name) == name {
			why = fmt.Sprintf("That is OpenSSL's name of \"%s\".", s.Name)
		}
	}
	return nil, why
}

// openSSLName is "ECDHE-RSA-AES128-GCM-SHA256" for
// "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".
func openSSLName(iana string) string {
	s := strings.NewReplacer("AES_128", "AES128", "AES_256", "AES256", "_CBC_SHA", "_SHA", "POLY1305_SHA256", "POLY1305", "TLS_RSA_WITH_", "", "TLS_", "", "WITH_", "").Replace(iana)
	return strings.ReplaceAll(s, "_", "-")
}

var (
	groupNames = []string{"X25519MLKEM768", "SecP256r1MLKEM768", "SecP384r1MLKEM1024", "X25519", "P-256", "P-384", "P-521"}
	groupIDs   = []tls.CurveID{tls.X25519MLKEM768, tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024, tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}
	// groupSpelling is what other programs call them.
	groupSpelling = map[string]string{
		"secp256r1": "P-256", "prime256v1": "P-256", "p256": "P-256", "secp384r1": "P-384", "p384": "P-384", "secp521r1": "P-521", "p521": "P-521",
		"x25519": "X25519", "x25519mlkem768": "X25519MLKEM768",
	}
)

func groups() codec[[]tls.CurveID] {
	quoted := make([]string, len(groupNames))
	for i, n := range groupNames {
		quoted[i] = quote(n)
	}
	return codec[[]tls.CurveID]{typ: "a group or a list of them", rng: anyOf(quoted, "or"), read: func(v *value) ([]tls.CurveID, bool) {
		list, ok := each(v, func(elem int, c cty.Value) (tls.CurveID, bool) {
			s, ok := v.text(elem, c)
			if !ok {
				return 0, false
			}
			if i := slices.Index(groupNames, s); i >= 0 {
				return groupIDs[i], true
			}
			hint := didYouMean(s, groupNames)
			if right := groupSpelling[strings.ToLower(s)]; right != "" {
				hint = fmt.Sprintf("Write \"%s\".", right)
			}
			v.fail(elem, strings.TrimSpace(hint), "%s is not known", show(c))
			return 0, false
		})
		if ok && len(list) == 0 {
			v.fail(-1, "", "the list is empty")
			return nil, false
		}
		return list, ok
	}}
}

// issuedNames takes names that a certificate can be had for by ACME.
func issuedNames() codec[[]string] {
	return codec[[]string]{typ: "a host name or a list of them", read: func(v *value) ([]string, bool) {
		list, ok := each(v, func(elem int, c cty.Value) (string, bool) {
			s, ok := v.text(elem, c)
			if !ok {
				return "", false
			}
			if strings.HasPrefix(s, "*.") {
				v.fail(elem, "Authorities issue those only for dns-01, which edgeproxy does not do. List the names, or get the certificate by another program and use dir.",
					"%s is a wildcard", show(c))
				return "", false
			}
			name, why, hint := hostPattern(s, false)
			switch {
			case why == "is an IP address":
				hint = "ACME certificates are for names here; get one for an address by another program and use dir."
			case why == "has a port":
				hint = ""
			case strings.Contains(name, "_"):
				why = "is not a host name" // authorities issue none for underscores (CA/B BR 7.1.4.2.1)
			}
			if why != "" {
				v.fail(elem, hint, "%s %s", show(c), why)
				return "", false
			}
			return name, true
		})
		if ok && len(list) == 0 {
			v.fail(-1, "", "the list is empty")
			return nil, false
		}
		return unique(list), ok
	}}
}

func emailAddress() codec[string] {
	return checked("an e-mail address", func(s string) bool {
		user, host, ok := strings.Cut(s, "@")
		return ok && user != "" && strings.Contains(host, ".") && len(s) < 255 && visible(s)
	})
}

// directoryURL is that of RFC 8555, section 7.1.1; section 6.1 asks for https.
func directoryURL() codec[string] {
	return checked("an https URL", func(s string) bool {
		u, err := url.Parse(s)
		return err == nil && u.Scheme == "https" && u.Host != "" && visible(s)
	})
}

// tcpAddress is one address to listen on, with a port.
func tcpAddress() codec[string] {
	return codec[string]{typ: "an address", rng: `":80", "192.0.2.1:80" or "[::1]:8402"`, read: func(v *value) (string, bool) {
		s, list, ok := v.listenAddress(-1, v.v)
		if !ok {
			return "", false
		}
		if len(list) != 1 || list[0].Systemd != "" || list[0].Unix != "" || list[0].AddrPort.Port() == 0 {
			v.fail(-1, "", "%s is not a single TCP address", show(v.v))
			return "", false
		}
		return listenable(list[0], s), true
	}}
}

// listenable is an address as the net package takes it.
func listenable(a listener.Address, text string) string {
	if a.Dual {
		return fmt.Sprintf(":%d", a.AddrPort.Port())
	}
	if !a.AddrPort.IsValid() {
		return text
	}
	return a.AddrPort.String()
}

// serverName is what servers are asked for, and must be certified for.
func serverName() codec[string] {
	return codec[string]{typ: "a host name or IP address", read: func(v *value) (string, bool) {
		s, ok := v.text(-1, v.v)
		if !ok {
			return "", false
		}
		name, why, hint := hostPattern(s, true)
		switch {
		case why == "" && !strings.HasPrefix(name, "*."):
			return strings.Trim(name, "[]"), true
		case why == "" || why == "stands for nothing":
			v.fail(-1, "", "%s is a wildcard", show(v.v))
		case why == "has a port":
			v.fail(-1, "", "%s has a port", show(v.v))
		default:
			v.fail(-1, hint, "%s %s", show(v.v), why)
		}
		return "", false
	}}
}
