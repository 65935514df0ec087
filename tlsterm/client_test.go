package tlsterm

import (
	"crypto/tls"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"edgeproxy/internal/testcert"
)

func (l *lab) upstream(t *testing.T, o ClientOptions) *ClientContext {
	t.Helper()
	if o.CAFile == "" && !o.Insecure {
		o.CAFile = l.servers.Write(t, l.dir, "servers")
	}
	cc, err := PrepareClient("web", &o, nil)
	if err != nil {
		t.Fatal(err)
	}
	return cc
}

// Verification is on unless it is switched off, by crypto/x509 alone, with name
// and usage (Envoy CVE-2022-21656, -21657).
func TestServersAreVerified(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	pair := func(names ...string) *testcert.Pair { return l.servers.Server(t, names...) }
	named, addressed := pair("a.example.com"), pair("192.0.2.1", "2001:db8::1", "fe80::1")
	stranger := testcert.NewCA(t, "servers").Server(t, "a.example.com")
	client := l.servers.Issue(t, testcert.Template{Names: []string{"a.example.com"}, Client: true})
	expired := l.servers.Issue(t, testcert.Template{Names: []string{"a.example.com"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
	for _, tt := range []struct {
		name string
		o    ClientOptions
		host string
		pair *testcert.Pair
		sni  string
		want string // in the error
	}{
		{"the server's host", ClientOptions{}, "a.example.com", named, "a.example.com", ""},
		{"in another form", ClientOptions{}, "A.Example.COM.", named, "a.example.com", ""},
		{"server_name", ClientOptions{ServerName: "a.example.com"}, "192.0.2.7", named, "a.example.com", ""},
		{"another host", ClientOptions{}, "b.example.com", named, "", "not b.example.com"},
		{"another server_name", ClientOptions{ServerName: "b.example.com"}, "a.example.com", named, "", "not b.example.com"},
		{"an address", ClientOptions{}, "192.0.2.1", addressed, "", ""},
		{"an IPv6 address", ClientOptions{}, "[2001:db8::1]", addressed, "", ""},
		{"one with a zone", ClientOptions{}, "fe80::1%eth0", addressed, "", ""},
		{"another address", ClientOptions{}, "192.0.2.2", addressed, "", "not 192.0.2.2"},
		{"an address, but a name in the certificate", ClientOptions{}, "192.0.2.1", named, "", "cannot validate certificate for 192.0.2.1"},
		{"a stranger", ClientOptions{}, "a.example.com", stranger, "", "unknown authority"},
		{"the system's authorities", ClientOptions{CAFile: "-"}, "a.example.com", named, "", "unknown authority"},
		{"a client's certificate", ClientOptions{}, "a.example.com", client, "", "incompatible key usage"},
		{"expired", ClientOptions{}, "a.example.com", expired, "", "has expired"},
		{"no name at all", ClientOptions{}, "", named, "", "ServerName"},
		{"anything goes", ClientOptions{Insecure: true}, "", stranger, "", ""},
		{"anything goes, with SNI", ClientOptions{Insecure: true}, "x.example.com", expired, "x.example.com", ""},
	} {
		if tt.o.CAFile == "-" {
			tt.o.CAFile = testcert.NewCA(t, "others").Write(t, l.dir, "others")
		}
		server := &tls.Config{Certificates: []tls.Certificate{tt.pair.TLS()}}
		o := meet(server, l.upstream(t, tt.o).Config(tt.host))
		switch {
		case tt.want != "" && (o.clientErr == nil || !strings.Contains(o.clientErr.Error(), tt.want)):
			t.Errorf("%s: %v; want %q", tt.name, o.clientErr, tt.want)
		case tt.want == "" && (o.failed() || o.server.ServerName != tt.sni):
			t.Errorf("%s: SNI %q; server: %v; client: %v", tt.name, o.server.ServerName, o.serverErr, o.clientErr)
		}
	}
}

func TestClientPolicy(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	pair := l.servers.Server(t, "a.example.com").TLS()
	for name, tt := range map[string]struct {
		o      ClientOptions
		server *tls.Config
		alpn   string
		fails  bool
	}{
		"ALPN":                      {ClientOptions{ALPN: []string{"h2"}}, &tls.Config{NextProtos: []string{"http/1.1", "h2"}}, "h2", false},
		"a server without ALPN":     {ClientOptions{ALPN: []string{"h2"}}, &tls.Config{}, "", false},
		"a server of another":       {ClientOptions{ALPN: []string{"h2"}}, &tls.Config{NextProtos: []string{"ftp"}}, "", true},
		"an old server":             {ClientOptions{}, &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, "", true},
		"TLS 1.2":                   {ClientOptions{}, &tls.Config{MaxVersion: tls.VersionTLS12}, "", false},
		"only TLS 1.3":              {ClientOptions{MinVersion: tls.VersionTLS13}, &tls.Config{MaxVersion: tls.VersionTLS12}, "", true},
		"CBC":                       {ClientOptions{}, &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}, "", true},
		"CBC if configured":         {ClientOptions{CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}, &tls.Config{MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}}, "", false},
		"groups":                    {ClientOptions{Groups: []tls.CurveID{tls.CurveP384}}, &tls.Config{CurvePreferences: []tls.CurveID{tls.X25519}}, "", true},
		"who wants a certificate":   {ClientOptions{}, &tls.Config{ClientAuth: tls.RequireAnyClientCert}, "", true},
		"who would like to see one": {ClientOptions{}, &tls.Config{ClientAuth: tls.RequestClientCert}, "", false},
	} {
		tt.server.Certificates = []tls.Certificate{pair}
		o := meet(tt.server, l.upstream(t, tt.o).Config("a.example.com"))
		if o.failed() != tt.fails || o.client.NegotiatedProtocol != tt.alpn {
			t.Errorf("%s: %q; server: %v; client: %v", name, o.client.NegotiatedProtocol, o.serverErr, o.clientErr)
		}
	}
}

// Sessions are resumed with the server they were made with, and within one
// upstream alone: what another one does not verify is nothing to this.
func TestClientSessionsStayWithinTheirUpstream(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for vname, version := range versions {
		server := &tls.Config{Certificates: []tls.Certificate{l.servers.Server(t, "a.example.com", "b.example.com").TLS()}, MaxVersion: version}
		lax, strict := l.upstream(t, ClientOptions{Insecure: true}), l.upstream(t, ClientOptions{})
		for _, tt := range []struct {
			cc      *ClientContext
			host    string
			resumes bool
		}{
			{lax, "a.example.com", false}, {lax, "a.example.com", true}, {lax, "A.EXAMPLE.COM", true}, {lax, "b.example.com", false},
			{strict, "a.example.com", false}, {strict, "a.example.com", true}, {strict, "b.example.com", false},
		} {
			if o := mustMeet(t, server, tt.cc.Config(tt.host)); o.client.DidResume != tt.resumes {
				t.Errorf("%s, %s: resumed: %v", vname, tt.host, o.client.DidResume)
			}
		}
	}
}

// A renewed client certificate is shown within a second, in resumed sessions,
// too; a broken one is told once and the old one goes on being shown.
func TestClientCertificateIsRenewed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		server := &tls.Config{Certificates: []tls.Certificate{l.servers.Server(t, "a.example.com").TLS()}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: l.clients.Pool()}
		o := ClientOptions{CAFile: l.servers.Write(t, l.dir, "servers")}
		o.CertFile, o.KeyFile = l.clients.Client(t, "one").Write(t, l.dir, "proxy")
		events := &eventRecorder{}
		cc, err := PrepareClient("web", &o, events)
		if err != nil {
			t.Fatal(err)
		}
		shows := func(name string) {
			t.Helper()
			o := mustMeet(t, server, cc.Config("a.example.com"))
			if got := o.server.PeerCertificates[0].Subject.CommonName; got != name {
				t.Errorf("shows %q; want %q", got, name)
			}
		}
		shows("one")
		shows("one")
		l.clients.Client(t, "two").Write(t, l.dir, "proxy")
		time.Sleep(time.Second)
		shows("two")
		testcert.WriteFile(t, l.dir, "proxy.key", []byte("broken"))
		for range 5 {
			time.Sleep(time.Second)
			shows("two")
		}
		if n := events.count("refused", "proxy.key"); n != 1 {
			t.Errorf("%d reports of a broken key", n)
		}
		l.clients.Client(t, "three").Write(t, l.dir, "proxy")
		time.Sleep(time.Second)
		shows("three")
		if n := events.count("loaded"); n != 2 {
			t.Errorf("%d reports of two renewals", n)
		}
	})
}

func TestPrepareClientReportsAllErrors(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	_, err := PrepareClient("web", &ClientOptions{CAFile: l.dir + "/nowhere.pem", CertFile: l.cert, KeyFile: l.dir + "/nowhere.key"}, nil)
	for _, want := range []string{`upstream "web": tls: ca_file: `, `upstream "web": tls: ` + l.dir + "/nowhere.key: no such file"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("missing %q in: %v", want, err)
		}
	}
	if _, err := PrepareClient("web", &ClientOptions{KeyFile: l.key}, nil); err == nil {
		t.Error("a key without its certificate")
	}
}

// A reload goes on with what is the same, and only with that: what ca_file says
// counts, not its name.
func TestClientContextsAreKept(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cert, key := l.clients.Client(t, "proxy").Write(t, l.dir, "proxy")
	o := ClientOptions{CAFile: l.servers.Write(t, l.dir, "servers"), CertFile: cert, KeyFile: key}
	first := l.upstream(t, o)
	l.clients.Client(t, "proxy").Write(t, l.dir, "proxy")
	if !first.Same(l.upstream(t, o)) {
		t.Error("a renewed client certificate is no other policy")
	}
	for name, change := range map[string]func(o *ClientOptions){
		"ca_file":  func(*ClientOptions) { testcert.NewCA(t, "servers").Write(t, l.dir, "servers") },
		"insecure": func(o *ClientOptions) { o.Insecure = true },
		"ALPN":     func(o *ClientOptions) { o.ALPN = []string{"h2"} },
	} {
		l.servers.Write(t, l.dir, "servers")
		o := o
		change(&o)
		if first.Same(l.upstream(t, o)) {
			t.Errorf("%s: the same", name)
		}
	}
}

// A configuration is made once for each server, whoever asks; their number is
// bounded, since servers come and go.
func TestClientConfigsAreKept(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	cc := l.upstream(t, ClientOptions{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 3 * maxClientConfigs {
				host := fmt.Sprint("s", i, ".example.com")
				if c := cc.Config(host); c.ServerName != host {
					t.Errorf("%s: %s", host, c.ServerName)
				}
			}
		})
	}
	wg.Wait()
	if first := cc.Config("a.example.com"); first != cc.Config("a.example.com") {
		t.Error("made anew")
	}
	n := 0
	cc.configs.Range(func(any, any) bool { n++; return true })
	if n > maxClientConfigs+8 {
		t.Errorf("%d are kept", n)
	}
	one := l.upstream(t, ClientOptions{ServerName: "a.example.com"})
	if one.Config("x") != one.Config("y") {
		t.Error("server_name is the same for all servers")
	}
}
