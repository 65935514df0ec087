package tlsterm

import (
	"crypto/tls"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"edgeproxy/internal/testcert"
)

func TestDefaultPolicy(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := l.context(t, l.options())
	for _, tt := range []struct {
		name   string
		client func(*tls.Config)
		alert  string // "": agreed
		want   func(tls.ConnectionState) bool
	}{
		{"X25519MLKEM768 by default", func(*tls.Config) {}, "", func(cs tls.ConnectionState) bool {
			return cs.Version == tls.VersionTLS13 && cs.CurveID == tls.X25519MLKEM768
		}},
		{"TLS 1.2", func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, "", func(cs tls.ConnectionState) bool {
			return cs.CipherSuite == tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
		}},
		{"TLS 1.1", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }, "protocol version not supported", nil},
		{"CBC", func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA}
		}, "handshake failure", nil},
	} {
		client := l.client()
		tt.client(client)
		o := meet(c.Template(), client)
		if got := alertOf(o); (tt.alert == "") != (got == "") || !strings.Contains(got, tt.alert) {
			t.Errorf("%s: the client saw %q, the server %v", tt.name, got, o.serverErr)
		} else if tt.want != nil && !tt.want(o.server) {
			t.Errorf("%s: %x %x %v", tt.name, o.server.Version, o.server.CipherSuite, o.server.CurveID)
		}
	}
}

func TestConfiguredPolicy(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cbc := []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
	for name, tt := range map[string]struct {
		server func(*Options)
		client func(*tls.Config)
		fails  bool
	}{
		"only TLS 1.3":         {func(o *Options) { o.MinVersion = tls.VersionTLS13 }, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, true},
		"only TLS 1.2":         {func(o *Options) { o.MaxVersion = tls.VersionTLS12 }, func(c *tls.Config) { c.MinVersion = tls.VersionTLS13 }, true},
		"TLS 1.0":              {func(o *Options) { o.MinVersion = tls.VersionTLS10 }, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 }, false},
		"CBC if configured":    {func(o *Options) { o.CipherSuites = cbc }, func(c *tls.Config) { c.MaxVersion, c.CipherSuites = tls.VersionTLS12, cbc }, false},
		"a group in common":    {func(o *Options) { o.Groups = []tls.CurveID{tls.CurveP384} }, func(*tls.Config) {}, false},
		"no group in common":   {func(o *Options) { o.Groups = []tls.CurveID{tls.CurveP384} }, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} }, true},
		"SNI that is unknown":  {func(*Options) {}, func(c *tls.Config) { c.ServerName = "x.example.com" }, true}, // the default certificate does not verify
		"strict, SNI is known": {func(o *Options) { o.StrictSNI = true }, func(*tls.Config) {}, false},
	} {
		o := l.options()
		tt.server(&o)
		client := l.client()
		tt.client(client)
		if got := meet(l.context(t, o).Template(), client); got.failed() != tt.fails {
			t.Errorf("%s: server: %v; client: %v", name, got.serverErr, got.clientErr)
		}
	}
	o := l.options()
	o.StrictSNI = true
	client := l.client()
	client.ServerName = "x.example.com"
	if got := alertOf(meet(l.context(t, o).Template(), client)); got != "remote error: tls: unrecognized name" {
		t.Errorf("strict, SNI is unknown: the client saw %q", got)
	}
}

// ALPACA (CVE-2021-3618): without a protocol in common there is no session.
// That includes the pair that crypto/tls lets through, h2 and http/1.1.
func TestStrictALPN(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for _, tt := range []struct {
		server, client []string
		want           string
		refused        bool
	}{
		{nil, nil, "", false},
		{nil, []string{"h2"}, "", false},
		{[]string{"h2"}, nil, "", false}, // who offers nothing is served
		{[]string{"h2", "http/1.1"}, []string{"http/1.1", "h2"}, "h2", false},
		{[]string{"http/1.1", "h2"}, []string{"h2", "http/1.1"}, "http/1.1", false}, // ours is the preference
		{[]string{"h2", "http/1.1"}, []string{"http/1.1"}, "http/1.1", false},
		{[]string{"h2"}, []string{"h2", "http/1.1"}, "h2", false},
		{[]string{"h2"}, []string{"http/1.1"}, "", true},
		{[]string{"h2", "ftp"}, []string{"http/1.1", "smtp"}, "", true},
		{[]string{"h2", "ftp"}, []string{"http/1.1", "ftp"}, "ftp", false},
		{[]string{"http/1.1"}, []string{"h2"}, "", true},
		{[]string{"http/1.1"}, []string{"ftp"}, "", true},
		{[]string{"H2"}, []string{"h2"}, "", true}, // bytes, not names (RFC 7301, section 6)
	} {
		for vname, version := range versions {
			o := l.options()
			o.ALPN = tt.server
			client := l.client()
			client.NextProtos, client.MaxVersion = tt.client, version
			got := meet(l.context(t, o).Template(), client)
			what := fmt.Sprintf("%s: %q for %q", vname, tt.server, tt.client)
			switch {
			case tt.refused && alertOf(got) != "remote error: tls: no application protocol":
				t.Errorf("%s: the client saw %q", what, alertOf(got))
			case !tt.refused && (got.failed() || got.server.NegotiatedProtocol != tt.want || got.client.NegotiatedProtocol != tt.want):
				t.Errorf("%s: %q; server: %v; client: %v", what, got.server.NegotiatedProtocol, got.serverErr, got.clientErr)
			}
		}
	}
}

// The configuration for what crypto/tls would let through keeps the log of the
// worker's keys, or such sessions could not be taken over from it.
func TestVariantsKeepTheKeyLog(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := challengeContext(t, l, l.options(), l.servers.Server(t, "a.example.com").TLS())
	w := &worker{configs: map[*tls.Config]*tls.Config{}, current: &Handshake{}}
	client := l.client()
	client.NextProtos, client.MinVersion = []string{ChallengeProtocol}, tls.VersionTLS13
	mustMeet(t, w.config(c.Template()), client)
	if w.current.secrets.clientLen == 0 || w.current.secrets.serverLen == 0 {
		t.Error("the key log has seen nothing")
	}
}

// challenged answers challenges for a.example.com while there are any, and has
// no certificate otherwise.
type challenged struct{ cert *tls.Certificate }

func (c challenged) Domains() []string { return []string{"a.example.com"} }

func (c challenged) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if slices.Equal(hello.SupportedProtos, []string{ChallengeProtocol}) && hello.ServerName == "a.example.com" && c.cert.Certificate != nil {
		return c.cert, nil
	}
	return nil, errNoSecrets
}

func challengeContext(t *testing.T, l *lab, o Options, cert tls.Certificate) *Context {
	t.Helper()
	o.Certificates = append(o.Certificates, CertificateOptions{ACME: &ACMEOptions{Domains: []string{"a.example.com"}}})
	certs, err := newCertStore(&o, certEnv{acme: func(string, *ACMEOptions) (dynamicCerts, error) { return challenged{&cert}, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(certs.Close)
	auth, err := newClientAuth(&o.ClientAuth)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := newTicketKeys("")
	if err != nil {
		t.Fatal(err)
	}
	return newContext(o, certs, keys, auth)
}

// Traefik CVE-2026-22045: what an authority's challenge may do, nobody else
// may. It needs no client certificate, gets no ticket, and is over when there is
// no challenge.
func TestACMEChallengeIsNoWayIn(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	proof := l.servers.Server(t, "a.example.com").TLS()
	o := l.mutual()
	o.ALPN = []string{"h2"}
	under, idle := challengeContext(t, l, o, proof), challengeContext(t, l, o, tls.Certificate{})
	for _, tt := range []struct {
		name    string
		c       *Context
		offers  []string
		pairs   []*testcert.Pair
		want    string // protocol
		refused string
	}{
		{"a challenge", under, []string{ChallengeProtocol}, nil, ChallengeProtocol, ""},
		{"no challenge under way", idle, []string{ChallengeProtocol}, nil, "", "unrecognized name"},
		{"a client that offers it, too", under, []string{ChallengeProtocol, "h2"}, nil, "", "certificate required"},
		{"the same with a certificate", under, []string{ChallengeProtocol, "h2"}, []*testcert.Pair{l.alice}, "h2", ""},
		{"nothing but it, and another", under, []string{ChallengeProtocol, "ftp"}, []*testcert.Pair{l.alice}, "", "no application protocol"},
		{"a client", under, []string{"h2"}, []*testcert.Pair{l.alice}, "h2", ""},
	} {
		client := l.client(tt.pairs...)
		client.NextProtos, client.MinVersion = tt.offers, tls.VersionTLS13
		for range 2 {
			got := meet(tt.c.Template(), client)
			switch {
			case tt.refused != "" && !strings.HasSuffix(alertOf(got), tt.refused):
				t.Errorf("%s: the client saw %q; server: %v", tt.name, alertOf(got), got.serverErr)
			case tt.refused == "" && (got.failed() || got.server.NegotiatedProtocol != tt.want):
				t.Errorf("%s: %q; server: %v; client: %v", tt.name, got.server.NegotiatedProtocol, got.serverErr, got.clientErr)
			case tt.want == ChallengeProtocol && got.server.DidResume:
				t.Errorf("%s: resumed", tt.name)
			}
		}
	}
	if !under.Challenges("a.example.com") || under.Challenges("b.example.com") {
		t.Error("Challenges")
	}
}

// Every option is either part of the scope or known to be no matter of who gets
// a session: whoever adds one has to decide.
func TestScopeCoversOptions(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	scope := func(o Options) [32]byte { return l.context(t, o).scope() }
	base := l.mutual()
	cert, key := l.servers.Server(t, "a.example.com").Write(t, l.dir, "other")
	for field, tt := range map[string]struct {
		change  func(*Options)
		matters bool
	}{
		"Name":         {func(o *Options) { o.Name = "x" }, true},
		"Certificates": {func(o *Options) { o.Certificates = []CertificateOptions{{CertFile: cert, KeyFile: key}} }, true},
		"StrictSNI":    {func(o *Options) { o.StrictSNI = true }, true},
		"MinVersion":   {func(o *Options) { o.MinVersion = tls.VersionTLS13 }, true},
		"MaxVersion":   {func(o *Options) { o.MaxVersion = tls.VersionTLS12 }, true},
		"CipherSuites": {func(o *Options) { o.CipherSuites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256} }, true},
		"Groups":       {func(o *Options) { o.Groups = []tls.CurveID{tls.CurveP256} }, true},
		"ALPN":         {func(o *Options) { o.ALPN = []string{"h2"} }, true},
		"OCSPStapling": {func(o *Options) { o.OCSPStapling = true }, false},
		"NoTickets":    {func(o *Options) { o.NoTickets = true }, false},
		"TicketKeys":   {func(o *Options) { o.TicketKeys = testcert.WriteFile(t, l.dir, "tickets", newKey80(t)) }, false},
		"ClientAuth":   {func(o *Options) { o.ClientAuth.Mode = ClientAuthRequest }, true},
	} {
		o := base
		tt.change(&o)
		if changed := scope(o) != scope(base); changed != tt.matters {
			t.Errorf("%s: the scope changes: %v; want %v", field, changed, tt.matters)
		}
		if _, ok := reflect.TypeFor[Options]().FieldByName(field); !ok {
			t.Errorf("there is no field %s", field)
		}
	}
	if n := reflect.TypeFor[Options]().NumField(); n != 12 {
		t.Errorf("Options has %d fields; add the new ones here, and to the scope if they decide who gets a session", n)
	}
}
