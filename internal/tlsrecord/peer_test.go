package tlsrecord

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
	_ "unsafe" // for go:linkname
)

// crypto/tls has no setting for the suites of TLS 1.3, but exports these lists
// to the linker.

//go:linkname defaultCipherSuitesTLS13 crypto/tls.defaultCipherSuitesTLS13
var defaultCipherSuitesTLS13 []uint16

//go:linkname defaultCipherSuitesTLS13NoAES crypto/tls.defaultCipherSuitesTLS13NoAES
var defaultCipherSuitesTLS13NoAES []uint16

// handshakes guards the lists: one handshake at a time.
var handshakes sync.Mutex

// wire is one end of an in-memory connection whose writes never block, so that
// both ends can be driven from one goroutine after the handshake. A read that
// finds nothing fails with os.ErrDeadlineExceeded once the wire is quiet.
type wire struct {
	in, out *stream
}

type stream struct {
	mu      sync.Mutex
	wake    sync.Cond
	buf     bytes.Buffer
	all     []byte // everything ever written
	quiet   bool   // reads do not wait
	discard bool   // writes are lost
}

func newWires() (a, b *wire) {
	x, y := new(stream), new(stream)
	x.wake.L, y.wake.L = &x.mu, &y.mu
	return &wire{in: x, out: y}, &wire{in: y, out: x}
}

func (w *wire) Read(b []byte) (int, error) {
	s := w.in
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.buf.Len() == 0 {
		if s.quiet {
			return 0, os.ErrDeadlineExceeded
		}
		s.wake.Wait()
	}
	return s.buf.Read(b)
}

func (w *wire) Write(b []byte) (int, error) {
	s := w.out
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.discard {
		return len(b), nil
	}
	s.buf.Write(b)
	s.all = append(s.all, b...)
	s.wake.Broadcast()
	return len(b), nil
}

// settle makes reads fail instead of waiting.
func (w *wire) settle() {
	for _, s := range []*stream{w.in, w.out} {
		s.mu.Lock()
		s.quiet = true
		s.wake.Broadcast()
		s.mu.Unlock()
	}
}

// take returns and consumes what the other end has written.
func (w *wire) take() []byte {
	w.in.mu.Lock()
	defer w.in.mu.Unlock()
	b := bytes.Clone(w.in.buf.Bytes())
	w.in.buf.Reset()
	return b
}

func (*wire) Close() error                     { return nil }
func (*wire) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (*wire) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (*wire) SetDeadline(time.Time) error      { return nil }
func (*wire) SetReadDeadline(time.Time) error  { return nil }
func (*wire) SetWriteDeadline(time.Time) error { return nil }

var certificates = sync.OnceValue(func() []tls.Certificate {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"test"}}
	cert := func(key any, public any) tls.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
		if err != nil {
			panic(err)
		}
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	return []tls.Certificate{cert(ec, &ec.PublicKey), cert(rs, &rs.PublicKey)}
})

// kind is a version and suite to test.
type kind struct {
	version, suite uint16
}

func (k kind) String() string { return tls.CipherSuiteName(k.suite) }

func kinds() []kind {
	var all []kind
	for _, p := range suites {
		all = append(all, kind{p.version, p.suite})
	}
	return all
}

// few is one kind of each format of records.
func few() []kind {
	return []kind{
		{tls.VersionTLS13, tls.TLS_AES_128_GCM_SHA256},
		{tls.VersionTLS13, tls.TLS_AES_256_GCM_SHA384},
		{tls.VersionTLS13, tls.TLS_CHACHA20_POLY1305_SHA256},
		{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
		{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384},
		{tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256},
	}
}

// session is the outcome of a crypto/tls handshake, seen from outside.
type session struct {
	kind
	client, server         *tls.Conn
	clientWire, serverWire *wire
	secrets                map[string][]byte // by label of the key log
	clientRandom           []byte
	serverRandom           []byte
}

// handshake lets crypto/tls shake hands with itself.
func handshake(tb testing.TB, k kind) *session {
	tb.Helper()
	handshakes.Lock()
	defer handshakes.Unlock()
	s := &session{kind: k, secrets: make(map[string][]byte)}
	s.clientWire, s.serverWire = newWires()
	var log bytes.Buffer
	sc := &tls.Config{Certificates: certificates(), MinVersion: k.version, MaxVersion: k.version, DynamicRecordSizingDisabled: true}
	cc := &tls.Config{InsecureSkipVerify: true, ServerName: "test", MinVersion: k.version, MaxVersion: k.version, KeyLogWriter: &log, DynamicRecordSizingDisabled: true,
		ClientSessionCache: tls.NewLRUClientSessionCache(1)} // without one the server sends no tickets
	if k.version == tls.VersionTLS12 {
		cc.CipherSuites, sc.CipherSuites = []uint16{k.suite}, []uint16{k.suite}
	} else {
		defer func(a, b []uint16) { defaultCipherSuitesTLS13, defaultCipherSuitesTLS13NoAES = a, b }(defaultCipherSuitesTLS13, defaultCipherSuitesTLS13NoAES)
		defaultCipherSuitesTLS13, defaultCipherSuitesTLS13NoAES = []uint16{k.suite}, []uint16{k.suite}
	}
	s.client, s.server = tls.Client(s.clientWire, cc), tls.Server(s.serverWire, sc)
	failed := make(chan error, 1)
	go func() { failed <- s.server.Handshake() }()
	if err := s.client.Handshake(); err != nil {
		tb.Fatalf("%v: client: %v", k, err)
	}
	if err := <-failed; err != nil {
		tb.Fatalf("%v: server: %v", k, err)
	}
	s.clientWire.settle()
	if got := s.client.ConnectionState().CipherSuite; got != k.suite {
		tb.Fatalf("negotiated %s, want %v", tls.CipherSuiteName(got), k)
	}
	for sc := bufio.NewScanner(&log); sc.Scan(); {
		var label, random, secret string
		fmt.Sscan(sc.Text(), &label, &random, &secret)
		s.secrets[label], _ = hex.DecodeString(secret)
		s.clientRandom, _ = hex.DecodeString(random)
	}
	hello := s.clientWire.in.all // the server's first record: ServerHello
	s.serverRandom = bytes.Clone(hello[HeaderLen+4+2:][:32])
	return s
}

// conn is our record layer in a role of the session.
func (s *session) conn(tb testing.TB, role Role, inSeq, outSeq uint64) *Conn {
	tb.Helper()
	if s.version == tls.VersionTLS12 {
		c, err := New12(role, s.suite, s.secrets["CLIENT_RANDOM"], s.clientRandom, s.serverRandom, 1+inSeq, 1+outSeq)
		if err != nil {
			tb.Fatal(err)
		}
		return c
	}
	in, out := s.secrets["CLIENT_TRAFFIC_SECRET_0"], s.secrets["SERVER_TRAFFIC_SECRET_0"]
	if role == Client {
		in, out = out, in
	}
	c, err := New13(role, s.suite, in, out, inSeq, outSeq)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// tickets are the records under its application keys that a TLS 1.3 server has
// sent during the handshake: crypto/tls has them in its first flight.
func (s *session) tickets(tb testing.TB) (all [][]byte) {
	if s.version == tls.VersionTLS12 {
		return nil
	}
	c := s.conn(tb, Server, 0, 0)
	for _, rec := range records(s.serverWire.out.all) {
		if c.Wrote(rec) {
			all = append(all, rec)
		}
	}
	if len(all) == 0 {
		tb.Fatal("no tickets")
	}
	return all
}

// records cuts what was sent at its headers.
func records(b []byte) (all [][]byte) {
	for len(b) > 0 {
		n := HeaderLen + int(b[3])<<8 + int(b[4])
		all, b = append(all, bytes.Clone(b[:n])), b[n:]
	}
	return all
}

// peer is a session in which our Conn has taken one end's place.
func peer(tb testing.TB, k kind, role Role) (ours *Conn, w *wire, theirs *tls.Conn) {
	tb.Helper()
	s := handshake(tb, k)
	tickets := s.tickets(tb)
	if role == Server {
		return s.conn(tb, Server, 0, uint64(len(tickets))), s.serverWire, s.client
	}
	ours = s.conn(tb, Client, 0, 0)
	s.clientWire.take()
	for _, r := range openAll(tb, ours, slices.Concat(tickets...)) {
		if r.typ != Handshake {
			tb.Fatalf("type %d after the handshake", r.typ)
		}
	}
	return ours, s.clientWire, s.server
}

// pair is both ends of a made-up session.
func pair(tb testing.TB, k kind) (client, server *Conn) {
	tb.Helper()
	secret := func(b byte, n int) []byte {
		s := make([]byte, n)
		for i := range s {
			s[i] = b + byte(i)
		}
		return s
	}
	end := func(role Role) *Conn {
		var c *Conn
		var err error
		if p := find(k.version, k.suite); p.tls13 {
			in, out := secret('s', p.hashLen()), secret('c', p.hashLen())
			if role == Server {
				in, out = out, in
			}
			c, err = New13(role, k.suite, in, out, 0, 0)
		} else {
			c, err = New12(role, k.suite, secret('m', 48), secret('c', 32), secret('s', 32), 1, 1)
		}
		if err != nil {
			tb.Fatal(err)
		}
		return c
	}
	return end(Client), end(Server)
}

type record struct {
	typ   byte
	plain []byte
	event Event
}

// openAll opens every record in b, and has Control judge what is not
// application data.
func openAll(tb testing.TB, c *Conn, b []byte) (all []record) {
	tb.Helper()
	for len(b) > 0 {
		n, err := c.Size(b)
		if err != nil {
			tb.Fatal(err)
		}
		if n == 0 || n > len(b) {
			tb.Fatalf("%d bytes are no whole record", len(b))
		}
		typ, plain, err := c.Open(nil, b[:n:n])
		if err != nil {
			tb.Fatal(err)
		}
		r := record{typ: typ, plain: plain}
		if typ != ApplicationData {
			if r.event, err = c.Control(typ, plain); err != nil {
				tb.Fatal(err)
			}
		}
		all, b = append(all, r), b[n:]
	}
	return all
}

// seal makes one record in a buffer of its own.
func seal(c *Conn, typ byte, plain []byte) []byte {
	buf := make([]byte, c.Header()+len(plain)+c.Trailer())
	copy(buf[c.Header():], plain)
	return c.Seal(typ, buf, len(plain))
}

// forge seals what Seal would not: any outer type, and any inner plaintext,
// which in TLS 1.3 has the type and the padding in it.
func forge(c *Conn, outer byte, inner []byte) []byte {
	h, p := &c.out, c.p
	n := len(inner) + tagLen
	rec := []byte{outer, 3, 3, 0, 0}
	ad := rec
	if !p.tls13 {
		ad = c.ad12(h.seq, outer, len(inner))
	}
	if p.explicit {
		n += explicitLen
		rec = binary.BigEndian.AppendUint64(rec, h.seq)
		binary.BigEndian.PutUint64(h.iv[4:], h.seq)
	} else {
		h.maskIV()
	}
	rec[3], rec[4] = byte(n>>8), byte(n)
	if p.tls13 {
		ad = bytes.Clone(rec)
	}
	if h.aead == nil {
		h.aead = p.mustAEAD(&h.key)
	}
	rec = h.aead.Seal(rec, h.iv[:], inner, ad)
	if !p.explicit {
		h.maskIV()
	}
	h.seq++
	return rec
}

// typed seals a plaintext as a record of any type: the inner one in TLS 1.3.
func typed(c *Conn, typ byte, plain []byte) []byte {
	if c.p.tls13 {
		return forge(c, ApplicationData, append(bytes.Clone(plain), typ))
	}
	return forge(c, typ, plain)
}

// take1 lets c have one record, and Control too if it is none of data.
func take1(c *Conn, rec []byte) (typ byte, plain []byte, event Event, err error) {
	if typ, plain, err = c.Open(nil, bytes.Clone(rec)); err == nil && typ != ApplicationData {
		event, err = c.Control(typ, plain)
	}
	return typ, plain, event, err
}

// wantAlert checks that err is to be answered with an alert.
func wantAlert(tb testing.TB, err error, alert uint8) {
	tb.Helper()
	var e *AlertError
	if !errors.As(err, &e) || e.Alert != alert || e.Remote {
		tb.Errorf("error %v, want alert %s (%d)", err, AlertName(alert), alert)
	}
}

// readSome reads n bytes that have arrived for a crypto/tls end.
func readSome(conn *tls.Conn, n int) ([]byte, error) {
	b := make([]byte, n)
	m, err := io.ReadFull(conn, b)
	return b[:m], err
}
