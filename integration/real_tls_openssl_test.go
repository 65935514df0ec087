package integration

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"edgeproxy/internal/testcert"
)

// sClient is a running openssl s_client, which tells what it has agreed on.
func (l *tlsLab) sClient(addr string, args ...string) *talk {
	l.t.Helper()
	return startTalk(l.t, need(l.t, "openssl"), append([]string{"s_client", "-connect", addr, "-CAfile", l.caFile()}, args...)...)
}

// appTest are the arguments of most clients here.
func appTest(args ...string) []string {
	return append([]string{"-servername", "app.test", "-verify_hostname", "app.test", "-verify_return_error"}, args...)
}

// echoes sends lines and awaits each back: what the session is good for.
func (k *talk) echoes(lines ...string) {
	k.t.Helper()
	for _, line := range lines {
		k.Send(line)
		k.Await(line)
	}
}

// Both kinds of KeyUpdate, several times, with data in both directions before
// and after each (RFC 8446, section 4.6.3).
func TestRealTLSOpenSSLKeyUpdate(t *testing.T) {
	t.Parallel()
	need(t, "openssl")
	l := newTLSLab(t)
	p := Start(t, l.edge(Serve(t, echo).Addr()))
	for i, suite := range []string{"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"} {
		k := l.sClient(p.Addr("edge"), appTest("-tls1_3", "-ciphersuites", suite)...)
		k.echoes("before")
		for n := range 6 {
			k.Send(string("Kk"[n%2]))
			k.Await("KEYUPDATE")
			k.echoes("once "+strconv.Itoa(n), strings.Repeat("long", 1000))
		}
		k.End("Q")
		p.LastEnd(i+1, "client_closed", "relay")
	}
}

// 'R' asks for a new handshake within the session, which TLS 1.2 allows a
// server to refuse.
func TestRealTLSOpenSSLRenegotiationIsRefused(t *testing.T) {
	t.Parallel()
	need(t, "openssl")
	l := newTLSLab(t)
	p := Start(t, l.edge(Serve(t, echo).Addr()))
	k := l.sClient(p.Addr("edge"), appTest("-tls1_2")...)
	k.echoes("before")
	k.Send("R")
	out := k.AwaitEnd()
	if !strings.Contains(out, "no renegotiation") && !strings.Contains(out, "unexpected message") {
		t.Errorf("no alert in\n%s", out)
	}
	if e := p.AccessLog(1)[0]; e.Phase != "relay" || e.End == "server_closed" {
		t.Errorf("%+v", e)
	}
}

func TestRealTLSOpenSSLResumes(t *testing.T) {
	t.Parallel()
	need(t, "openssl")
	l := newTLSLab(t)
	p := Start(t, l.edge(Serve(t, echo).Addr()))
	for _, version := range []string{"1.2", "1.3"} {
		flag, session := "-tls"+strings.ReplaceAll(version, ".", "_"), l.file("session"+version)
		k := l.sClient(p.Addr("edge"), appTest(flag, "-sess_out", session)...)
		k.echoes("first")
		want(t, k.End("Q"), "New, TLSv"+version)
		for range 2 {
			k = l.sClient(p.Addr("edge"), appTest(flag, "-sess_in", session)...)
			k.echoes("second")
			want(t, k.End("Q"), "Reused, TLSv"+version)
		}
		p.assertHandshakes(version, 1, 2)
	}
	// Nothing may be sent before the handshake is done (CVE-2024-49214).
	early := writeFile(t, l.file("early"), "early")
	k := l.sClient(p.Addr("edge"), appTest("-sess_in", l.file("session1.3"), "-early_data", early)...)
	k.echoes("second")
	out := k.End("Q")
	want(t, out, "Early data was not sent")
	want(t, out, "Reused, TLSv1.3")
}

// Each suite of TLS 1.2 that is on, and some of those that are not.
func TestRealTLSOpenSSLCiphers(t *testing.T) {
	t.Parallel()
	need(t, "openssl")
	l := newTLSLab(t)
	l.with("rsa", testcert.Template{Names: []string{"app.test"}, RSA: true})
	p := Start(t, l.edgeWith(l.certificate("rsa"), "", "", Serve(t, echo).Addr()))
	addr, n := p.Addr("edge"), 0
	for _, suite := range []string{
		"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305",
		"ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-CHACHA20-POLY1305",
	} {
		k := l.sClient(addr, appTest("-tls1_2", "-cipher", suite)...)
		k.echoes("hello", strings.Repeat("0123456789", 5000))
		out := k.End("Q")
		want(t, out, "Cipher is "+suite)
		want(t, out, "Secure Renegotiation IS supported")
		want(t, out, "Compression: NONE")
		want(t, out, "Extended master secret: yes")
		n++
		p.LastEnd(n, "client_closed", "relay")
	}
	for _, suite := range []string{
		"AES128-GCM-SHA256", "AES128-SHA", "DES-CBC3-SHA", "ECDHE-RSA-AES128-SHA", "ECDHE-ECDSA-AES128-SHA256",
		"ECDHE-RSA-AES256-SHA384", "DHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-CCM", "AECDH-AES128-SHA", "ECDHE-RSA-NULL-SHA",
	} {
		out := l.sClient(addr, "-servername", "app.test", "-tls1_2", "-cipher", suite+":@SECLEVEL=0").AwaitEnd()
		if !strings.Contains(out, "no cipher match") && !strings.Contains(out, "handshake failure") {
			t.Errorf("%s:\n%s", suite, out)
		}
		if strings.Contains(out, "handshake failure") {
			n++
			p.LastEnd(n, "tls_failed", "tls")
		}
	}
	if n < 12 {
		t.Errorf("only %d suites were tried", n)
	}
}

func TestRealTLSOpenSSLGroups(t *testing.T) {
	t.Parallel()
	openssl := need(t, "openssl")
	l := newTLSLab(t)
	// A client of TLS 1.2 cannot verify ECDSA with a curve that it does not
	// name (RFC 8422, section 5.1.1), and is shown the other.
	l.with("rsa", testcert.Template{Names: []string{"app.test"}, RSA: true})
	p := Start(t, l.edgeWith(l.certificate("rsa"), "", "", Serve(t, echo).Addr()))
	groups := map[string]string{"X25519": "X25519, ", "P-256": "prime256v1, ", "P-384": "secp384r1, ", "P-521": "secp521r1, "}
	// OpenSSL 3.5.
	if out, _ := exec.Command(openssl, "list", "-kem-algorithms").Output(); bytes.Contains(out, []byte("X25519MLKEM768")) {
		groups["X25519MLKEM768"] = "X25519MLKEM768"
	}
	for group, says := range groups {
		for _, version := range []string{"-tls1_2", "-tls1_3"} {
			if group == "X25519MLKEM768" && version == "-tls1_2" {
				continue
			}
			k := l.sClient(p.Addr("edge"), appTest(version, "-groups", group)...)
			k.echoes("hello")
			out := k.End("Q")
			if !strings.Contains(out, says) {
				t.Errorf("%s %s:\n%s", version, group, out)
			}
		}
	}
	// The share is for a group that the server does not know: one more round
	// trip (RFC 8446, section 4.1.4).
	k := l.sClient(p.Addr("edge"), appTest("-tls1_3", "-groups", "X448:P-384")...)
	k.echoes("hello")
	want(t, k.End("Q"), "secp384r1, ")
	want(t, l.sClient(p.Addr("edge"), appTest("-tls1_3", "-groups", "X448")...).AwaitEnd(), "alert handshake failure")
}

// The name decides about the certificate, and the protocols have to overlap.
func TestRealTLSOpenSSLNamesAndALPN(t *testing.T) {
	t.Parallel()
	need(t, "openssl")
	l := newTLSLab(t)
	l.with("other", testcert.Template{Names: []string{"other.test"}})
	strict := Start(t, l.edgeWith(l.certificate("other")+"strict_sni = true\nalpn = [\"h2\", \"http/1.1\"]", "", "", Serve(t, echo).Addr()))
	lax := Start(t, l.edge(Serve(t, echo).Addr()))
	for name, subject := range map[string]string{"app.test": "subject=CN = app.test", "OTHER.test": "subject=CN = other.test"} {
		k := l.sClient(strict.Addr("edge"), "-servername", name, "-verify_hostname", name, "-verify_return_error", "-alpn", "http/1.1,h2")
		k.echoes("hello")
		out := k.End("Q")
		want(t, strings.ReplaceAll(out, "CN=", "CN = "), subject)
		want(t, out, "ALPN protocol: h2")
	}
	want(t, l.sClient(strict.Addr("edge"), "-servername", "wrong.test").AwaitEnd(), "unrecognized name")
	want(t, l.sClient(strict.Addr("edge"), "-noservername").AwaitEnd(), "unrecognized name")
	want(t, l.sClient(strict.Addr("edge"), appTest("-alpn", "h3,ftp")...).AwaitEnd(), "alert no application protocol")
	k := l.sClient(lax.Addr("edge"), "-servername", "wrong.test", "-alpn", "h2")
	k.echoes("hello")
	out := k.End("Q")
	want(t, strings.ReplaceAll(out, "CN=", "CN = "), "subject=CN = app.test")
	want(t, out, "No ALPN negotiated")
}

// A responder of OpenSSL's behind the address in the certificate; its answer
// comes along in the handshake.
func TestRealTLSOpenSSLStapling(t *testing.T) {
	t.Parallel()
	openssl := need(t, "openssl")
	l := newTLSLab(t)
	port := FreePorts(t, 1)
	pair := l.ca.Issue(t, testcert.Template{Names: []string{"app.test"}, OCSPServer: "http://" + local(port)})
	pair.CertPEM = append(pair.CertPEM, l.ca.PEM()...) // an answer is verified with the issuer's certificate
	pair.Write(t, l.dir, "app")
	key, err := x509.MarshalPKCS8PrivateKey(l.ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	testcert.WriteFile(t, l.dir, "ca.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	index := writeFile(t, l.file("index"), fmt.Sprintf("V\t%s\t\t%X\tunknown\t/CN=app.test\n",
		pair.Leaf.NotAfter.UTC().Format("060102150405Z"), pair.Leaf.SerialNumber))
	// It serves one connection after the other, so none is made to see whether it is up.
	responder := startTalk(t, openssl, "ocsp", "-port", strconv.Itoa(port), "-index", index, "-CA", l.caFile(),
		"-rsigner", l.caFile(), "-rkey", l.file("ca.key"), "-nmin", "60")
	responder.Await("waiting for OCSP client connections")
	p := Start(t, l.edgeWith("ocsp_stapling = true", "", "", Serve(t, echo).Addr()))
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		var out string
		eventually(t, func() bool {
			k := l.sClient(p.Addr("edge"), appTest(version, "-status")...)
			k.echoes("hello")
			out = k.End("Q")
			return strings.Contains(out, "OCSP Response Status: successful") && strings.Contains(out, "Cert Status: good")
		}, func() string { return "a stapled answer in\n" + out })
	}
}

// Certificates of clients: good, none, of a stranger, revoked.
func TestRealTLSOpenSSLClientCertificates(t *testing.T) {
	t.Parallel()
	need(t, "openssl")
	l := newTLSLab(t)
	clients := testcert.NewCA(t, "clients")
	clients.Client(t, "good").Write(t, l.dir, "good")
	revoked := clients.Client(t, "revoked")
	revoked.Write(t, l.dir, "revoked")
	testcert.NewCA(t, "clients").Client(t, "good").Write(t, l.dir, "stranger")
	clients.Server(t, "server").Write(t, l.dir, "server")
	clients.Write(t, l.dir, "clients")
	testcert.WriteFile(t, l.dir, "crl.pem", clients.CRL(t, revoked))
	p := Start(t, l.edgeWith(fmt.Sprintf("client_auth {\n mode = \"require\"\n ca_file = %q\n crl_file = %q\n}",
		l.file("clients.pem"), l.file("crl.pem")), "", "", Serve(t, echo).Addr()))
	n := 0
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		own := func(name string) []string {
			return appTest(version, "-cert", l.file(name+".crt"), "-key", l.file(name+".key"))
		}
		session := l.file("session" + version)
		for _, more := range []string{"-sess_out", "-sess_in"} {
			k := l.sClient(p.Addr("edge"), append(own("good"), more, session)...)
			k.echoes("hello")
			want(t, k.End("Q"), map[string]string{"-sess_out": "New, ", "-sess_in": "Reused, "}[more])
			n++
			if e := p.LastEnd(n, "client_closed", "relay"); e.ClientName != "CN=good" {
				t.Errorf("%+v", e)
			}
		}
		for _, c := range []struct{ name, alert, fault string }{
			{"stranger", "alert unknown ca", "unknown authority"},
			{"revoked", "alert bad certificate", "revoked"},
			{"server", "alert bad certificate", "usage"},
			{"", "alert ", "certificate"}, // handshake failure; in TLS 1.3 certificate required,
		} {
			args := appTest(version)
			if c.name != "" {
				args = own(c.name)
			}
			k := l.sClient(p.Addr("edge"), args...)
			out := k.AwaitEnd()
			want(t, out, c.alert)
			n++
			tlsFault(t, p.LastEnd(n, "tls_failed", "tls"), c.fault)
		}
	}
}

// Uploads in small records, in odd pieces, by a socket that does not block;
// downloads byte by byte.
func TestRealTLSOpenSSLRecordSizes(t *testing.T) {
	t.Parallel()
	openssl := need(t, "openssl")
	l := newTLSLab(t)
	content := randomBytes(3<<20 + 7)
	up := Start(t, l.edge(Serve(t, takesThenTells(len(content))).Addr()))
	down := Start(t, l.edge(Serve(t, func(c Conn) { c.Write(content) }).Addr()))
	n := 0
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		for _, how := range [][]string{
			nil, {"-max_send_frag", "512"}, {"-max_send_frag", "4099"}, {"-split_send_frag", "512", "-max_pipelines", "4"},
			{"-nbio"}, {"-maxfraglen", "512"}, {"-bugs"}, {"-legacy_renegotiation"},
		} {
			args := func(addr string) []string {
				return append(append([]string{"s_client", "-connect", addr, "-CAfile", l.caFile(), "-quiet", "-ign_eof"}, appTest(version)...), how...)
			}
			n++
			out, err := toolWith(t, bytes.NewReader(content), openssl, args(up.Addr("edge"))...)
			if err != nil || !bytes.HasSuffix(out, []byte(tookAll(content))) {
				t.Errorf("%s %v: %v\n%s", version, how, err, tail(string(out), 1000))
			}
			if e := up.LastEnd(n, "server_closed", "relay"); e.BytesIn != int64(len(content)) {
				t.Errorf("%s %v: counted %d bytes of %d", version, how, e.BytesIn, len(content))
			}
			if got, err := outputWith(t, openssl, args(down.Addr("edge"))...); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s %v: %d bytes of %d, %v", version, how, len(got), len(content), err)
			}
		}
	}
}

// outputWith is toolWith without an input and without standard error.
func outputWith(t testing.TB, exe string, args ...string) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), exe, args...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	cmd.Stdin = r
	cmd.WaitDelay = time.Second
	return cmd.Output()
}
