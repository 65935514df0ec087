package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"edgeproxy/internal/testcert"
)

// reencrypt is an upstream's tls block for a server that wants a certificate.
func (l *tlsLab) reencrypt(more string) string {
	return fmt.Sprintf("tls {\n server_name = \"app.test\"\n ca_file = %q\n cert_file = %q\n key_file = %q\n %s\n}",
		l.caFile(), l.file("proxy.crt"), l.file("proxy.key"), more)
}

// newServerLab has a client certificate for the proxy, too.
func newServerLab(t testing.TB) *tlsLab {
	t.Helper()
	l := newTLSLab(t)
	l.with("proxy", testcert.Template{CommonName: "proxy", Client: true})
	testcert.WriteFile(t, l.dir, "both.pem", append(append([]byte{}, l.pair.CertPEM...), l.pair.KeyPEM...))
	l.caFile()
	return l
}

// nginx with TLS behind: it sees name and certificate of ours, and its large
// files arrive, over either version.
func TestRealTLSToNginx(t *testing.T) {
	t.Parallel()
	need(t, "curl")
	l := newServerLab(t)
	files := shortTempDir(t)
	os.Chmod(files, 0o755)
	_, content := blob(t, files, "large", large)
	writeFile(t, filepath.Join(files, "small"), "small\n")
	first := FreePorts(t, 2)
	var conf strings.Builder
	for i, version := range []string{"TLSv1.2", "TLSv1.3"} {
		fmt.Fprintf(&conf, `server {
    listen %s ssl;
    ssl_certificate %s;
    ssl_certificate_key %s;
    ssl_protocols %s;
    ssl_client_certificate %s;
    ssl_verify_client on;
    root %s;
    location /who { return 200 "$ssl_server_name $ssl_client_s_dn $ssl_protocol $ssl_session_reused"; }
  }
`, local(first+i), l.file("app.crt"), l.file("app.key"), version, l.caFile(), files)
	}
	w := &web{tlsLab: l}
	startNginx(t, local(first+1), conf.String())
	for i, version := range []string{"TLSv1.2", "TLSv1.3"} {
		p := Start(t, l.edgeWith("", "", l.reencrypt(""), local(first+i)))
		w.port = splitPort(t, p.Addr("edge"))
		// The ticket of TLS 1.3 comes after the handshake, and is taken beside
		// the session: the second one may be too early for it.
		reused := "."
		for n := 0; n < 50 && reused != "r"; n++ {
			got := w.curl(w.url("/who"))
			if n > 0 && strings.HasSuffix(got, " r") {
				reused = "r"
			}
			if want := "app.test CN=proxy " + version + " " + reused; got != want {
				t.Errorf("nginx was told %q, want %q", got, want)
			}
		}
		if reused != "r" {
			t.Errorf("%s: no session with nginx was resumed", version)
		}
		got := filepath.Join(l.dir, "got")
		w.curl("-o", got, w.url("/large"))
		wantFile(t, got, content)
		p.assertEnds("edge", "client_closed", "server_closed")
	}
	// A certificate that is not for the name that was asked for.
	p := Start(t, l.edgeWith("", "", strings.Replace(l.reencrypt(""), "app.test", "else.test", 1), local(first)))
	toolFails(t, need(t, "curl"), "-sS", "--cacert", l.caFile(), "--connect-to", "app.test:443:"+p.Addr("edge"), "https://app.test/who")
	tlsFault(t, p.LastEnd(1, "connect_failed", "connect"), "else.test")
}

// haproxy on both sides: in front it says by PROXY, version 2 with TLVs, whom
// it speaks for; behind, with TLS and a demand for certificates, it is told so.
func TestRealTLSHAProxyOnBothSides(t *testing.T) {
	t.Parallel()
	need(t, "curl")
	l := newServerLab(t)
	dir := shortTempDir(t)
	first := FreePorts(t, 3)
	// 0: behind edgeproxy; 1: edgeproxy, so that haproxy can name it; 2: in front.
	conf := writeFile(t, filepath.Join(dir, "haproxy.cfg"), fmt.Sprintf(`
global
  maxconn 1000
defaults
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend behind
  mode http
  bind 127.0.0.1:%d accept-proxy ssl crt %s ca-file %s verify required
  http-request return status 200 content-type text/plain lf-string "%%[src] %%[fc_pp_authority] %%[fc_pp_unique_id] %%[ssl_fc_sni] %%[ssl_c_s_dn(cn)] %%[ssl_fc_protocol]"
listen front
  mode tcp
  bind 127.0.0.1:%d
  unique-id-format edge-%%pid
  server edge 127.0.0.1:%d source 127.0.0.1 send-proxy-v2 proxy-v2-options crc32c,unique-id
`, first, l.file("both.pem"), l.caFile(), first+2, first+1))
	startReal(t, local(first+2), nil, need(t, "haproxy"), "-db", "-f", conf)
	body := l.edgeWith("", "accept_proxy_protocol { from = [\"127.0.0.1\"] }", "proxy_protocol = \"v2\"\n"+l.reencrypt(""), local(first))
	p := Start(t, strings.Replace(body, `"127.0.0.1:0"`, strconv.Quote(local(first+1)), 1))
	w := &web{tlsLab: l, port: strconv.Itoa(first + 2)}
	for _, version := range []string{"1.2", "1.3"} {
		got := w.curl("--interface", "127.0.0.1", "--tlsv"+version, "--tls-max", version, w.url("/"))
		if !strings.HasPrefix(got, "127.0.0.1 app.test edge-") || !strings.HasSuffix(got, " app.test proxy TLSv1.3") {
			t.Errorf("haproxy was told %q", got)
		}
	}
	p.assertEnds("edge", "client_closed", "server_closed")
}

// openssl s_server behind, with new keys asked for by it, and text in the
// clear in the middle of the session.
func TestRealTLSToOpenSSL(t *testing.T) {
	t.Parallel()
	openssl, stdbuf := need(t, "openssl"), need(t, "stdbuf")
	l := newServerLab(t)
	for _, version := range []string{"1.2", "1.3"} {
		t.Run(version, func(t *testing.T) {
			port := strconv.Itoa(FreePorts(t, 1))
			server := startTalk(t, stdbuf, "-oL", openssl, "s_server", "-accept", port, "-cert", l.file("app.crt"), "-key", l.file("app.key"),
				"-CAfile", l.caFile(), "-Verify", "1", "-verify_return_error", "-tls"+strings.ReplaceAll(version, ".", "_"))
			server.Await("ACCEPT")
			p := Start(t, l.edgeWith("", "", l.reencrypt(""), "127.0.0.1:"+port))
			c := DialTLS(t, p.Addr("edge"), l.client())
			Send(t, c, "from the client\n")
			server.Await("from the client")
			want(t, server.text(), "proxy")
			server.Send("from the server")
			Expect(t, c, "from the server\n")
			if version == "1.3" {
				for i := range 6 {
					server.Send(string("Kk"[i%2]))
					server.Await("SSL_do_handshake -> 1")
					line := fmt.Sprintf("after %d\n", i)
					server.Send(strings.TrimSpace(line))
					Expect(t, c, line)
					Send(t, c, line)
					server.Await(strings.TrimSpace(line))
				}
			}
			server.Send("P") // plain text on the TCP connection
			expectCut(t, c)
			tlsFault(t, p.LastEnd(1, "tls_failed", "relay"), "server")
		})
	}
}
