package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// segments relays to an address and cuts what a client says first into
// segments of that size, as an Ethernet would: on the loopback all of it comes
// at once. It keeps the lengths of the first records.
type segments struct {
	mu     sync.Mutex
	hellos []int
}

func (s *segments) relay(t testing.TB, addr string, size int) *Server {
	return Serve(t, func(c Conn) {
		up, err := connect(addr)
		if err != nil {
			return
		}
		defer up.Close()
		go func() {
			io.Copy(c, up)
			c.CloseWrite()
		}()
		var head [5]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		hello := make([]byte, 5+binary.BigEndian.Uint16(head[3:]))
		copy(hello, head[:])
		if _, err := io.ReadFull(c, hello[5:]); err != nil {
			return
		}
		s.mu.Lock()
		s.hellos = append(s.hellos, len(hello))
		s.mu.Unlock()
		if tcp, ok := up.(*net.TCPConn); ok {
			tcp.SetNoDelay(true)
		}
		for len(hello) > 0 {
			n := min(size, len(hello))
			up.Write(hello[:n])
			if hello = hello[n:]; len(hello) > 0 {
				time.Sleep(moment)
			}
		}
		io.Copy(up, c)
		up.CloseWrite()
	})
}

const page = `<!doctype html><html><head><link rel="icon" href="data:,"></head><body><p id="p">not run</p>
<script src="/script.js"></script></body></html>`

// The script fetches a large file and says what it got.
const pageScript = `fetch("/large").then(r => r.arrayBuffer()).then(b => crypto.subtle.digest("SHA-256", b)).then(d => {
  document.getElementById("p").textContent = "digest " + Array.from(new Uint8Array(d)).map(x => x.toString(16).padStart(2, "0")).join("");
});`

// Chromium, as it is: HTTP/2 over TLS 1.3, with a hello that holds a
// post-quantum share and so comes in two segments.
func TestRealTLSChromium(t *testing.T) {
	t.Parallel()
	chromium := need(t, "chromium")
	w := newWeb(t)
	writeFile(t, filepath.Join(w.files, "index.html"), page)
	writeFile(t, filepath.Join(w.files, "script.js"), pageScript)
	var s segments
	front := s.relay(t, w.p.Addr("edge"), 1400)
	spki := sha256.Sum256(w.pair.Leaf.RawSubjectPublicKeyInfo)
	profile := shortTempDir(t)
	out, err := toolWith(t, nil, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--user-data-dir="+profile,
		"--ignore-certificate-errors-spki-list="+base64.StdEncoding.EncodeToString(spki[:]),
		"--host-resolver-rules=MAP app.test "+front.Addr(), "--virtual-time-budget=20000", "--dump-dom", "https://app.test/index.html")
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(string(out), 3000))
	}
	if want := fmt.Sprintf("digest %x", sha256.Sum256(w.large)); !bytes.Contains(out, []byte(want)) {
		t.Errorf("no %q in\n%s", want, tail(string(out), 3000))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.hellos) == 0 || s.hellos[0] <= 1400 {
		t.Errorf("hellos of %v bytes: no post-quantum share", s.hellos)
	}
	h2 := false
	for _, e := range w.p.AccessLog(1) {
		if e.Protocol == "tls" && (e.TLSVersion != "1.3" || e.SNI != "app.test") && e.End != "client_closed" {
			t.Errorf("%+v", e)
		}
		h2 = h2 || e.ALPN == "h2"
	}
	if !h2 {
		t.Error("no session of HTTP/2")
	}
}
