package tlsterm

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"edgeproxy/internal/testcert"
)

// Every result of verification fails closed (nginx CVE-2026-28755), and only
// crypto/x509 decides, with the extended key usage (Envoy CVE-2022-21656,
// -21657).
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	bob, mallory := l.clients.Client(t, "bob"), l.clients.Client(t, "mallory")
	below := l.clients.Intermediate(t, "below")
	carol, dave := below.Client(t, "carol"), below.Client(t, "dave")
	stranger := testcert.NewCA(t, "clients").Client(t, "alice") // the authority's name is right
	old := l.clients.Issue(t, testcert.Template{CommonName: "old", Client: true, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
	early := l.clients.Issue(t, testcert.Template{CommonName: "early", Client: true, NotBefore: time.Now().Add(time.Hour)})
	server := l.clients.Server(t, "server.example.com")
	both := testcert.WriteFile(t, l.dir, "both.pem", slices.Concat(l.clients.PEM(), below.PEM()))
	pinned := testcert.WriteFile(t, l.dir, "pinned.pem", slices.Concat(l.clients.PEM(), mallory.CertPEM, bob.CertPEM))
	crl := func(name string, lists ...[]byte) string {
		return testcert.WriteFile(t, l.dir, name, slices.Concat(lists...))
	}
	belowRevoked := &testcert.Pair{Leaf: below.Cert}

	modes := func(mode ClientAuthMode, ca, crlFile string) ClientAuthOptions {
		return ClientAuthOptions{Mode: mode, CAFile: ca, CRLFile: crlFile}
	}
	none := crl("none", l.clients.CRL(t))
	revoked := crl("revoked", l.clients.CRL(t, mallory))
	for _, tt := range []struct {
		name string
		auth ClientAuthOptions
		pair *testcert.Pair
		want string // alert; "": welcome
		log  string
	}{
		{"none, nothing shown", modes(ClientAuthNone, "", ""), nil, "", ""},
		{"none, not asked for", modes(ClientAuthNone, "", ""), l.alice, "", ""},
		{"request, nothing shown", modes(ClientAuthRequest, l.caPE, ""), nil, "", ""},
		{"request, a good one", modes(ClientAuthRequest, l.caPE, ""), l.alice, "", ""},
		{"request, a stranger's", modes(ClientAuthRequest, l.caPE, ""), stranger, "unknown certificate authority", ""},
		{"require, a good one", modes(ClientAuthRequire, l.caPE, ""), l.alice, "", ""},
		{"require, nothing shown", modes(ClientAuthRequire, l.caPE, ""), nil, "certificate required", ""},
		{"require, a stranger's", modes(ClientAuthRequire, l.caPE, ""), stranger, "unknown certificate authority", ""},
		{"expired", modes(ClientAuthRequire, l.caPE, ""), old, "expired certificate", ""},
		{"not yet valid", modes(ClientAuthRequire, l.caPE, ""), early, "expired certificate", ""},
		{"extended key usage serverAuth", modes(ClientAuthRequire, l.caPE, ""), server, "bad certificate", "incompatible key usage"},
		{"with an intermediate", modes(ClientAuthRequire, l.caPE, ""), carol, "", ""},

		{"list, not revoked", modes(ClientAuthRequire, l.caPE, revoked), bob, "", ""},
		{"list, revoked", modes(ClientAuthRequire, l.caPE, revoked), mallory, "bad certificate", "revoked by"},
		{"list, revoked, request", modes(ClientAuthRequest, l.caPE, revoked), mallory, "bad certificate", "revoked by"},
		{"list, request, nothing shown", modes(ClientAuthRequest, l.caPE, revoked), nil, "", ""},
		{"list in DER", modes(ClientAuthRequire, l.caPE, crl("der", der(t, l.clients.CRL(t, mallory)))), mallory, "bad certificate", "revoked by"},
		{"two lists of one authority, revoked in the older", modes(ClientAuthRequire, l.caPE, crl("two", l.clients.CRLUntil(t, time.Now().Add(-time.Hour), mallory), l.clients.CRL(t))), mallory, "bad certificate", "revoked by"},
		{"two lists of one authority, one expired", modes(ClientAuthRequire, l.caPE, crl("two2", l.clients.CRLUntil(t, time.Now().Add(-time.Hour)), l.clients.CRL(t))), bob, "", ""},
		{"list expired", modes(ClientAuthRequire, l.caPE, crl("expired", l.clients.CRLUntil(t, time.Now().Add(-time.Hour)))), bob, "bad certificate", "has expired at"},
		{"list not yet in force", modes(ClientAuthRequire, l.caPE, crl("future", l.clients.CRLUntil(t, time.Now().Add(100*time.Hour)))), bob, "bad certificate", "is not in force before"},
		{"list of the intermediate is missing", modes(ClientAuthRequire, both, none), carol, "bad certificate", "no list of its issuer"},
		{"list of the intermediate", modes(ClientAuthRequire, both, crl("below", l.clients.CRL(t), below.CRL(t, dave))), carol, "", ""},
		{"revoked by the intermediate", modes(ClientAuthRequire, both, crl("below2", l.clients.CRL(t), below.CRL(t, dave))), dave, "bad certificate", "revoked by"},
		{"the intermediate is revoked", modes(ClientAuthRequire, both, crl("below3", l.clients.CRL(t, belowRevoked), below.CRL(t))), carol, "bad certificate", "revoked by"},
		{"in ca_file itself, not revoked", modes(ClientAuthRequire, pinned, revoked), bob, "", ""},
		{"in ca_file itself, revoked", modes(ClientAuthRequire, pinned, revoked), mallory, "bad certificate", "revoked by"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			o := l.options()
			o.ClientAuth = tt.auth
			c := l.context(t, o)
			for vname, version := range versions {
				client := l.client()
				client.MaxVersion = version
				if tt.pair != nil {
					// Whatever authorities the server names.
					cert := tt.pair.TLS()
					client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
				}
				want := tt.want
				if want == "certificate required" && version == tls.VersionTLS12 {
					want = "handshake failure" // the alert is one of TLS 1.3
				}
				for range 2 { // the second time, resumed
					got := meet(c.Template(), client)
					if alert := alertOf(got); (want == "") != (alert == "") || !strings.HasSuffix(alert, want) {
						t.Errorf("%s: the client saw %q, the server %v", vname, alert, got.serverErr)
					}
					if tt.log != "" && (got.serverErr == nil || !strings.Contains(got.serverErr.Error(), tt.log)) {
						t.Errorf("%s: the server saw %v", vname, got.serverErr)
					}
					if want == "" {
						id := IdentityOf(got.server)
						if known := tt.pair != nil && tt.auth.Mode != ClientAuthNone; known != (id != nil) || known && id.CommonName != tt.pair.Leaf.Subject.CommonName {
							t.Errorf("%s: identity %+v", vname, id)
						}
					}
				}
			}
		})
	}
}

func der(t *testing.T, data []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatal("no PEM")
	}
	return block.Bytes
}

// What cannot be used is refused when it is read, not when the revoked come.
func TestRevocationFiles(t *testing.T) {
	t.Parallel()
	ca := testcert.NewCA(t, "clients")
	good := ca.CRL(t)
	broken := []byte(strings.Replace(string(good), "\n-----END", "*AAA\n-----END", 1))
	flipped := der(t, good)
	flipped[len(flipped)-1] ^= 1
	custom := func(change func(*x509.RevocationList)) []byte {
		list := &x509.RevocationList{Number: big.NewInt(7), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
		change(list)
		out, err := x509.CreateRevocationList(rand.Reader, list, ca.Cert, ca.Key)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	critical := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}
	for name, tt := range map[string]struct {
		data []byte
		want string // in the error; "": accepted
	}{
		"PEM":                   {good, ""},
		"two":                   {slices.Concat(good, ca.CRL(t)), ""},
		"DER":                   {der(t, good), ""},
		"text around":           {slices.Concat([]byte("# ours\n"), good, []byte("# end\n")), ""},
		"empty":                 {nil, "malformed"},
		"empty PEM file":        {[]byte("-----BEGIN"), "no complete PEM block"},
		"cut":                   {good[:len(good)-20], "no complete PEM block"},
		"the second is cut":     {slices.Concat(good, good[:len(good)/2]), "no complete PEM block"},
		"the first is cut":      {slices.Concat(good[:len(good)/2], []byte("\n"), good), "PEM blocks"},
		"more behind it":        {append(der(t, good), 0, 0, 0), "3 bytes behind its end"},
		"no base64":             {broken, "PEM block"},
		"a certificate":         {ca.PEM(), `"CERTIFICATE"`},
		"bad signature":         {flipped, "not signed by the authority of that name"},
		"stranger of that name": {testcert.NewCA(t, "clients").CRL(t), "not signed by the authority of that name"},
		"unknown authority":     {testcert.NewCA(t, "others").CRL(t), "no such authority in ca_file"},
		"a delta":               {custom(func(l *x509.RevocationList) { l.ExtraExtensions = []pkix.Extension{critical} }), "critical extension 2.5.29.27"},
		"an indirect entry": {custom(func(l *x509.RevocationList) {
			l.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(1), RevocationTime: time.Now(), ExtraExtensions: []pkix.Extension{critical}}}
		}), "of an entry"},
		"an extension that is not critical": {custom(func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: critical.Id, Value: critical.Value}}
		}), ""},
	} {
		_, err := parseRevocations(tt.data, []*x509.Certificate{ca.Cert})
		if (tt.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
	}
}

func TestClientAuthErrors(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for name, tt := range map[string]struct {
		o    ClientAuthOptions
		want string
	}{
		"no authorities":     {ClientAuthOptions{Mode: ClientAuthRequire}, "without ca_file"},
		"ca_file is missing": {ClientAuthOptions{Mode: ClientAuthRequire, CAFile: l.dir + "/nowhere.pem"}, "nowhere.pem: no such file"},
		"ca_file is a key":   {ClientAuthOptions{Mode: ClientAuthRequire, CAFile: l.key}, "no certificate in it"},
		"ca_file is a CRL":   {ClientAuthOptions{Mode: ClientAuthRequire, CAFile: testcert.WriteFile(t, l.dir, "x.pem", l.clients.CRL(t))}, "no certificate in it"},
		"crl_file missing":   {ClientAuthOptions{Mode: ClientAuthRequest, CAFile: l.caPE, CRLFile: l.dir + "/nowhere.crl"}, "crl_file: "},
		"crl_file a folder":  {ClientAuthOptions{Mode: ClientAuthRequest, CAFile: l.caPE, CRLFile: l.dir}, "no regular file"},
		"mode":               {ClientAuthOptions{Mode: 9, CAFile: l.caPE}, "unknown mode"},
	} {
		o := l.options()
		o.ClientAuth = tt.o
		_, err := Prepare(&Env{}, nil, []Options{o})
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), `tls "public": client_auth`) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	ca := testcert.NewCA(t, "clients")
	name := func(value string, oid ...int) pkix.AttributeTypeAndValue {
		return pkix.AttributeTypeAndValue{Type: oid, Value: value}
	}
	raw, err := asn1.Marshal(pkix.RDNSequence{
		{name("DE", 2, 5, 4, 6)},
		{name("Alice, Inc.", 2, 5, 4, 10)},
		{name("Alice", 2, 5, 4, 3), name("u1", 0, 9, 2342, 19200300, 100, 1, 1)},
		{name("Al\x1b[31mice\n", 2, 5, 4, 3)},
	})
	if err != nil {
		t.Fatal(err)
	}
	spiffe := &url.URL{Scheme: "spiffe", Host: "Example.org", Path: "/web"}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(0xBEEF), RawSubject: raw, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"Alice.Example.com."}, EmailAddresses: []string{"Alice@Example.com"}, URIs: []*url.URL{spiffe},
	}
	cert, err := x509.CreateCertificate(rand.Reader, tpl, ca.Cert, ca.Key.Public(), ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	cs := tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}
	if IdentityOf(cs) != nil {
		t.Error("an identity that nobody has verified")
	}
	cs.VerifiedChains = [][]*x509.Certificate{{leaf, ca.Cert}}
	id := IdentityOf(cs)
	if want := `CN=Al\1B[31mice\0A,CN=Alice+0.9.2342.19200300.100.1.1=#`; !strings.HasPrefix(id.Subject, want) || !strings.HasSuffix(id.Subject, `,O=Alice\, Inc.,C=DE`) {
		t.Errorf("subject %q", id.Subject)
	}
	if want := []string{"alice.example.com", "alice@example.com", "spiffe://example.org/web"}; !reflect.DeepEqual(id.Names()[:3], want) {
		t.Errorf("names %q", id.Names())
	}
	if id.Serial != "beef" || len(id.Fingerprint) != 64 || id.URIs[0] != "spiffe://Example.org/web" {
		t.Errorf("%+v", id)
	}
}
