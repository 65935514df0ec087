package tlsterm

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"edgeproxy/internal/testcert"
)

// dynamic stands for certificates by ACME.
type dynamic struct {
	domains   []string
	pair      *tls.Certificate // nil: not issued yet
	challenge *tls.Certificate
	closed    bool
}

func (d *dynamic) Domains() []string { return d.domains }
func (d *dynamic) Close()            { d.closed = true }

func (d *dynamic) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	for _, domain := range d.domains {
		suffix, wild := wildcardSuffix(domain)
		if hello.ServerName != domain && !(wild && strings.HasSuffix(hello.ServerName, suffix)) {
			continue
		}
		if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acmeTLS1 && d.challenge != nil {
			return d.challenge, nil
		}
		if d.pair != nil {
			return d.pair, nil
		}
	}
	return nil, errors.New("not issued yet")
}

func (d *dynamic) Leaves() []*x509.Certificate {
	if d.pair == nil {
		return nil
	}
	return []*x509.Certificate{d.pair.Leaf}
}

func TestDynamicCertificates(t *testing.T) {
	t.Parallel()
	ca := testcert.NewCA(t, "ca")
	pairOf := func(name string) *tls.Certificate {
		cert := ca.Server(t, name).TLS()
		return &cert
	}
	dir := t.TempDir()
	own := files(ca.Server(t, "own.test", "both.test", "*.wild.test").Write(t, dir, "own"))
	issued := pairOf("issued")
	challenge := pairOf("challenge")
	for _, tt := range []struct {
		name   string
		first  bool // the `acme` block stands first
		strict bool
		empty  bool // nothing issued yet
		sni    string
		alpn   []string
		want   string // "": unrecognized_name; "error": internal_error
	}{
		{name: "its domain", sni: "acme.test", want: "issued"},
		{name: "its domain, as no one writes it", sni: "ACME.test.", want: "issued"},
		{name: "its wildcard", sni: "a.acme.test", want: "issued"},
		{name: "files go first", sni: "both.test", want: "own.test"},
		{name: "an exact one goes before a wildcard of files", sni: "x.wild.test", want: "issued"},
		{name: "until it is issued the wildcard does", sni: "x.wild.test", empty: true, strict: true, want: "own.test"},
		{name: "another's", sni: "other.test", want: "own.test"},
		{name: "another's, first", sni: "other.test", first: true, want: "issued"},
		{name: "none, first", first: true, want: "issued"},
		{name: "none, first, not issued yet", first: true, empty: true, want: "own.test"},
		{name: "another's, strict", sni: "other.test", first: true, strict: true, want: ""},
		{name: "not issued yet", sni: "acme.test", empty: true, want: "own.test"},
		{name: "not issued yet, strict", sni: "acme.test", empty: true, strict: true, want: "error"},
		{name: "challenge", sni: "acme.test", alpn: []string{acmeTLS1}, want: "challenge"},
		{name: "challenge for a name that has a pair", sni: "both.test", alpn: []string{acmeTLS1}, want: "challenge"},
		{name: "challenge of another", sni: "own.test", alpn: []string{acmeTLS1}, want: "own.test"},
		{name: "no challenge: RFC 8737, section 3, wants that protocol alone", sni: "both.test", alpn: []string{"h2", acmeTLS1}, want: "own.test"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			d := &dynamic{domains: []string{"Acme.test", "*.acme.test", "both.test", "x.wild.test"}, pair: issued, challenge: challenge}
			d.domains[0] = "acme.test"
			if tt.empty {
				d.pair = nil
			}
			certs := []CertificateOptions{own, {ACME: &ACMEOptions{}}}
			if tt.first {
				certs[0], certs[1] = certs[1], certs[0]
			}
			s, err := newCertStore(&Options{Certificates: certs, StrictSNI: tt.strict}, certEnv{acme: func(string, *ACMEOptions) (dynamicCerts, error) { return d, nil }})
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			cert, err := s.get(&tls.ClientHelloInfo{ServerName: tt.sni, SupportedProtos: tt.alpn})
			switch {
			case err != nil:
				got = "error"
			case cert != nil:
				got = cert.Leaf.DNSNames[0]
			}
			if got != tt.want {
				t.Errorf("%q; expected %q", got, tt.want)
			}
			if n := len(s.expiry()); n != 1+map[bool]int{false: 1}[tt.empty] {
				t.Errorf("%d certificates", n)
			}
			if s.Close(); !d.closed {
				t.Error("not closed")
			}
		})
	}
}

func TestTooManyNames(t *testing.T) {
	t.Parallel()
	c := &certificate{names: make([]string, maxNames/2+1)}
	if _, err := buildIndex([]*certificate{c, c}, nil, false, false); err == nil {
		t.Error("no error")
	}
}

// indexOf makes an index of n certificates, each with an exact name and a
// wildcard. They share one pair: a look-up does not care.
func indexOf(tb testing.TB, n int) *certIndex {
	tb.Helper()
	pair := testcert.NewCA(tb, "ca").Server(tb, "x.test").TLS()
	certs := make([]*certificate, n)
	for i := range certs {
		certs[i] = &certificate{leaf: pair.Leaf, names: []string{fmt.Sprintf("*.host-%d.example.com", i), fmt.Sprintf("host-%d.example.com", i)}}
		certs[i].current.Store(&pair)
	}
	ix, err := buildIndex(certs, nil, false, true)
	if err != nil {
		tb.Fatal(err)
	}
	return ix
}

func BenchmarkLookUp(b *testing.B) {
	for _, n := range []int{10, 100_000} {
		ix := indexOf(b, n)
		// As many different names as fit a cache: this is about the look-up,
		// not about the memory behind it.
		hellos := make([]tls.ClientHelloInfo, 10)
		for i := range hellos {
			hellos[i].ServerName = fmt.Sprintf("host-%d.example.com", rand.N(n))
		}
		for kind, prefix := range map[string]string{"exact": "", "wildcard": "www."} {
			b.Run(fmt.Sprintf("%s/%d", kind, n), func(b *testing.B) {
				now := time.Now()
				b.ReportAllocs()
				own := make([]tls.ClientHelloInfo, len(hellos))
				for i := range own {
					own[i].ServerName = prefix + hellos[i].ServerName
				}
				for i := 0; b.Loop(); i++ {
					if cert, err := ix.get(&own[i%len(own)], now); cert == nil || err != nil {
						b.Fatal("not found", err)
					}
				}
			})
		}
	}
}
