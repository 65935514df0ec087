package integration

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"edgeproxy/internal/testcert"
)

// These tests are about what only shows on the wire: single records, in the
// order and of the kind that a client likes. Every engine has to pass them.
// EDGEPROXY_KTLS says which one it is: 1 the kernel's, for which the virtual
// machines of .ci/vm have a kernel; 0 a kernel that cannot, though
// EDGEPROXY_KERNEL_TLS=auto asked for it; nothing: it was not asked for.

// startTLS starts a proxy that terminates TLS for a server.
func startTLS(t *testing.T, handle func(Conn)) (p *Proxy, ca *testcert.CA) {
	t.Helper()
	ca = testcert.NewCA(t, "test")
	cert, key := ca.Server(t, "a.example.com").Write(t, t.TempDir(), "a")
	s := Serve(t, handle)
	p = Start(t, fmt.Sprintf(`
tls "t" {
  certificate {
    cert_file = %q
    key_file  = %q
  }
}
listener "tcp" "edge" {
  address  = "127.0.0.1:0"
  tls      = tls.t
  upstream = upstream.app
}
upstream "app" {
  server "s0" { address = %q }
}
`, cert, key, s.Addr()))
	return p, ca
}

// recordClient is a TLS 1.3 client that makes its records itself once the
// handshake is over. It reads through crypto/tls.
type recordClient struct {
	t      *testing.T
	tcp    *net.TCPConn
	tls    *tls.Conn
	hash   func() hash.Hash
	keyLen int
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

func dialRecords(t *testing.T, addr string, ca *testcert.CA) *recordClient {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * patience))
	var log bytes.Buffer
	r := &recordClient{t: t, tcp: c.(*net.TCPConn), hash: sha256.New, keyLen: 16}
	r.tls = tls.Client(c, &tls.Config{ServerName: "a.example.com", RootCAs: ca.Pool(), MinVersion: tls.VersionTLS13, KeyLogWriter: &log})
	if err := r.tls.Handshake(); err != nil {
		t.Fatal(err)
	}
	switch suite := r.tls.ConnectionState().CipherSuite; suite {
	case tls.TLS_AES_128_GCM_SHA256:
	case tls.TLS_AES_256_GCM_SHA384:
		r.hash, r.keyLen = sha512.New384, 32
	default:
		t.Fatalf("%s: these tests know AES-GCM, which crypto/tls prefers where the processor has it", tls.CipherSuiteName(suite))
	}
	for line := range strings.Lines(log.String()) {
		if f := strings.Fields(line); f[0] == "CLIENT_TRAFFIC_SECRET_0" {
			r.secret, _ = hex.DecodeString(f[2])
		}
	}
	r.rekey()
	return r
}

// expand is HKDF-Expand-Label (RFC 8446, section 7.1).
func (r *recordClient) expand(label string, n int) []byte {
	r.t.Helper()
	label = "tls13 " + label
	info := string([]byte{byte(n >> 8), byte(n), byte(len(label))}) + label + "\x00"
	b, err := hkdf.Expand(r.hash, r.secret, info, n)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

func (r *recordClient) rekey() {
	r.t.Helper()
	block, err := aes.NewCipher(r.expand("key", r.keyLen))
	if err == nil {
		r.aead, err = cipher.NewGCM(block)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.iv, r.seq = r.expand("iv", 12), 0
}

// seal makes a record of content type typ (RFC 8446, section 5.2).
func (r *recordClient) seal(typ byte, text string) []byte {
	inner := append([]byte(text), typ)
	record := binary.BigEndian.AppendUint16([]byte{23, 3, 3}, uint16(len(inner)+16))
	nonce := slices.Clone(r.iv)
	for i := range 8 {
		nonce[4+i] ^= byte(r.seq >> (56 - 8*i))
	}
	r.seq++
	return r.aead.Seal(record, nonce, inner, record)
}

// update makes a KeyUpdate, and changes the key (RFC 8446, section 7.2).
func (r *recordClient) update(request bool) []byte {
	msg := "\x18\x00\x00\x01\x00"
	if request {
		msg = "\x18\x00\x00\x01\x01"
	}
	record := r.seal(22, msg)
	r.secret = r.expand("traffic upd", r.hash().Size())
	r.rekey()
	return record
}

func (r *recordClient) send(records ...[]byte) {
	r.t.Helper()
	if _, err := r.tcp.Write(slices.Concat(records...)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *recordClient) expect(text string) {
	r.t.Helper()
	b := make([]byte, len(text))
	if n, err := io.ReadFull(r.tls, b); err != nil || string(b) != text {
		r.t.Fatalf("read %q, %v, not %q", b[:n], err, text)
	}
}

const closeNotify = "\x01\x00"

func TestKernelTLSIsInUse(t *testing.T) {
	t.Parallel()
	p, ca := startTLS(t, echo)
	c := dialRecords(t, p.Addr("edge"), ca)
	c.send(c.seal(23, "hello"))
	c.expect("hello")
	want, log := "records", ""
	switch os.Getenv("EDGEPROXY_KTLS") {
	case "1":
		want, log = "kernel", "kernel TLS is used"
	case "0":
		log = "cannot replace the keys of a TLS socket"
	}
	for _, engine := range []string{"kernel", "records", "goroutine"} {
		n := 0.0
		if engine == want {
			n = 1
		}
		if got := p.Metrics().Sum("edgeproxy_tls_sessions", "engine", engine); got != n {
			t.Errorf("edgeproxy_tls_sessions{engine=%q} is %v, not %v", engine, got, n)
		}
	}
	if !strings.Contains(p.Log(), log) {
		t.Errorf("the log does not say %q:\n%s", log, p.Log())
	}
	c.send(c.seal(21, closeNotify))
	if _, err := c.tls.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after close_notify: %v", err)
	}
	c.tcp.Close()
	p.LastEnd(1, "client_closed", "relay")
	p.Await(0, "edgeproxy_tls_sessions")
}

func TestKernelTLSBulk(t *testing.T) {
	t.Parallel()
	const size = 8 << 20
	p, ca := startTLS(t, echo)
	c, err := tls.Dial("tcp", p.Addr("edge"), &tls.Config{ServerName: "a.example.com", RootCAs: ca.Pool()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sent := make([]byte, size)
	for i := range sent {
		sent[i] = byte(i * 7 >> 3)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		if err == nil {
			err = c.CloseWrite()
		}
		failed <- err
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes, the same: %v, %v", len(got), size, bytes.Equal(got, sent), err)
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}
	c.Close()
	p.LastEnd(1, "client_closed", "relay")
	spliced := p.Metrics().Sum("edgeproxy_spliced_bytes_total")
	t.Logf("%v of %d bytes were spliced", spliced, 2*size)
	if kernel := os.Getenv("EDGEPROXY_KTLS") == "1"; kernel != (spliced > 0) {
		t.Errorf("%v bytes were spliced; kernel TLS: %v", spliced, kernel)
	}
}

func TestKernelTLSKeyUpdate(t *testing.T) {
	t.Parallel()
	p, ca := startTLS(t, echo)
	c := dialRecords(t, p.Addr("edge"), ca)
	for i := range 20 {
		text := fmt.Sprint("round ", i)
		switch i % 4 {
		case 0: // all in one segment
			c.send(c.seal(23, text), c.update(i%8 == 0), c.seal(23, text))
		case 1:
			c.send(c.update(true))
			c.send(c.seal(23, text+text))
		case 2: // twice, then an empty record
			c.send(c.update(false), c.update(true), c.seal(23, ""), c.seal(23, text+text))
		case 3: // the KeyUpdate is the last of its segment: no edge comes after it
			c.send(c.seal(23, text+text), c.update(false))
		}
		c.expect(text + text)
	}
	c.send(c.update(false), c.seal(21, closeNotify))
	if _, err := c.tls.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after close_notify: %v", err)
	}
	c.tcp.Close()
	p.LastEnd(1, "client_closed", "relay")
}

// CVE-2026-23414: records of no length are neither the end nor an error.
func TestKernelTLSEmptyRecords(t *testing.T) {
	t.Parallel()
	p, ca := startTLS(t, echo)
	c := dialRecords(t, p.Addr("edge"), ca)
	empty := func(n int) (b []byte) {
		for range n {
			b = append(b, c.seal(23, "")...)
		}
		return b
	}
	c.send(empty(1))
	c.send(empty(8), c.seal(23, "a"), empty(3))
	c.expect("a")
	// Large records first, so that the relay splices when the empty ones come.
	big := strings.Repeat("x", 16384)
	for range 24 {
		c.send(c.seal(23, big), c.seal(23, big), empty(2))
		c.expect(big + big)
	}
	c.send(empty(1))
	c.send(c.seal(23, "b"))
	c.expect("b")
	c.send(empty(1), c.seal(21, closeNotify))
	if _, err := c.tls.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after close_notify: %v", err)
	}
	c.tcp.Close()
	p.LastEnd(1, "client_closed", "relay")
}

// A close_notify behind data, without a FIN: no further edge tells of it, and
// the server has to hear that the client has finished.
func TestKernelTLSCloseNotifyBehindData(t *testing.T) {
	t.Parallel()
	p, ca := startTLS(t, func(c Conn) {
		b, err := io.ReadAll(c)
		fmt.Fprintf(c, "%d bytes, %v", len(b), err)
	})
	for i, size := range []int{5, 16384, 200_000} {
		c := dialRecords(t, p.Addr("edge"), ca)
		var records [][]byte
		for left := size; left > 0; left -= 16384 {
			records = append(records, c.seal(23, strings.Repeat("x", min(left, 16384))))
		}
		c.send(append(records, c.seal(21, closeNotify))...)
		c.expect(fmt.Sprintf("%d bytes, <nil>", size))
		if _, err := c.tls.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the end is not a close_notify: %v", err)
		}
		c.tcp.Close()
		p.LastEnd(i+1, "client_closed", "relay")
	}
}

// A FIN without close_notify, between records and inside one, must not look to
// the server like the end of the stream.
func TestKernelTLSTruncation(t *testing.T) {
	t.Parallel()
	ends := make(chan error, 1)
	p, ca := startTLS(t, func(c Conn) {
		_, err := io.Copy(io.Discard, c)
		ends <- err
	})
	for i, cut := range []int{0, 3, 12} {
		c := dialRecords(t, p.Addr("edge"), ca)
		c.send(c.seal(23, "hello"), c.seal(23, "world")[:cut])
		c.tcp.CloseWrite()
		if e := p.LastEnd(i+1, "client_reset", "relay"); !strings.Contains(e.Error, "close_notify") {
			t.Errorf("the access log's error is %q", e.Error)
		}
		if err := <-ends; err == nil {
			t.Errorf("cut at %d: the server saw an orderly end", cut)
		}
	}
}

// What is wrong is told to the peer, and ends the session at once.
func TestKernelTLSBadRecords(t *testing.T) {
	t.Parallel()
	p, ca := startTLS(t, echo)
	for i, c := range []struct {
		name  string
		make  func(c *recordClient) []byte
		alert string // as crypto/tls calls it; "": any
	}{
		{"wrong MAC", func(c *recordClient) []byte { b := c.seal(23, "x"); b[10] ^= 1; return b }, "bad record MAC"},
		{"replay", func(c *recordClient) []byte { b := c.seal(23, "x"); return slices.Concat(b, b) }, "bad record MAC"},
		{"no type inside", func(c *recordClient) []byte { return c.seal(0, "\x00\x00") }, ""},
		{"version", func(*recordClient) []byte { return append([]byte{23, 9, 9, 0, 32}, make([]byte, 32)...) }, ""},
		{"length", func(*recordClient) []byte { return []byte{23, 3, 3, 0x48, 0, 0} }, "record overflow"},
		{"unencrypted alert", func(*recordClient) []byte { return []byte{21, 3, 3, 0, 2, 1, 0} }, ""},
		{"unknown type", func(c *recordClient) []byte { return c.seal(99, "x") }, "unexpected message"},
		{"empty alert", func(c *recordClient) []byte { return c.seal(21, "") }, ""},
		{"empty handshake record", func(c *recordClient) []byte { return c.seal(22, "") }, ""},
		{"ClientHello", func(c *recordClient) []byte { return c.seal(22, "\x01\x00\x00\x00") }, "unexpected message"},
	} {
		r := dialRecords(t, p.Addr("edge"), ca)
		r.send(r.seal(23, "hello"))
		r.expect("hello")
		r.send(c.make(r))
		b, err := io.ReadAll(r.tls)
		if err == nil || !strings.Contains(err.Error(), "remote error: tls: "+c.alert) {
			t.Errorf("%s: read %d bytes, %v, not the alert %q", c.name, len(b), err, c.alert)
		}
		r.tcp.Close()
		if e := p.LastEnd(i+1, "tls_failed", "relay"); e.Error == "" {
			t.Errorf("%s: the access log does not say why", c.name)
		}
	}
}
