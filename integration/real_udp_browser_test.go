package integration

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"

	"edgeproxy/internal/testcert"
)

// Chromium, as it is: HTTP/3 with a hello of two datagrams, which it cuts into
// many CRYPTO frames and sends out of order.
func TestRealQUICChromium(t *testing.T) {
	t.Parallel()
	chromium := need(t, "chromium")
	ca := testcert.NewCA(t, "HTTP/3")
	pair := ca.Server(t, "app.test")
	large := randomBytes(3 << 20)
	var hybrid atomic.Bool
	pages := http.NewServeMux()
	pages.HandleFunc("GET /index.html", func(w http.ResponseWriter, r *http.Request) {
		hybrid.Store(r.TLS.CurveID == tls.X25519MLKEM768)
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, page)
	})
	pages.HandleFunc("GET /script.js", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/javascript")
		io.WriteString(w, pageScript)
	})
	pages.HandleFunc("GET /large", func(w http.ResponseWriter, r *http.Request) { w.Write(large) })
	s := newH3Server(t, loopbackUDP(t), "app", pair, "\x0a", pages)
	other := newH3Server(t, loopbackUDP(t), "other", ca.Server(t, "other.test"), "\x0b", nil)
	p := Start(t, fmt.Sprintf(`
listener "udp" "edge" {
  address = "127.0.0.1:0"
  timeouts { idle = "2s" }
  quic { server_id_length = 1 }
  route "app" {
    match {
      sni  = ["app.test"]
      alpn = ["h3"]
    }
    upstream = upstream.app
  }
  route "rest" { upstream = upstream.other }
}
upstream "app" {
  server "app" { address = %q }
}
upstream "other" {
  server "other" { address = %q }
}
`, s.addr, other.addr))
	spki := sha256.Sum256(pair.Leaf.RawSubjectPublicKeyInfo)
	out, err := toolWith(t, nil, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--user-data-dir="+shortTempDir(t),
		"--enable-quic", "--origin-to-force-quic-on=app.test:443",
		"--ignore-certificate-errors-spki-list="+base64.StdEncoding.EncodeToString(spki[:]),
		"--host-resolver-rules=MAP app.test "+p.Addr("edge"), "--virtual-time-budget=20000", "--dump-dom", "https://app.test/index.html")
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(string(out), 3000))
	}
	if want := fmt.Sprintf("digest %x", sha256.Sum256(large)); !bytes.Contains(out, []byte(want)) {
		t.Errorf("no %q in\n%s", want, tail(string(out), 3000))
	}
	if !hybrid.Load() {
		t.Error("no post-quantum share, which makes a hello of two datagrams")
	}
	named := false
	for _, e := range p.AccessLog(1) {
		// If the path seems bad to it, which is so on a busy machine, it tries
		// another port, with a connection id that only the server id tells of.
		if e.Server != "app" {
			t.Errorf("%+v", e)
		}
		named = named || e.Protocol == "quic" && e.SNI == "app.test" && e.ALPN == "h3"
	}
	if !named {
		t.Errorf("no session of HTTP/3 in %+v", p.AccessLog(1))
	}
}
