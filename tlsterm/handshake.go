package tlsterm

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"edgeproxy/internal/ktls"
	"edgeproxy/internal/tlsrecord"
)

// Handshake is one handshake on a connected, non-blocking socket. Fill in the
// first block, give it to [Pool.Start], and read the second once Done has been
// called. The descriptor is the pool's until then: it must not be closed.
type Handshake struct {
	FD      int
	Context *Context    // as the server, with this configuration; nil: as the client
	Client  *tls.Config // as the client, of [ClientContext.Config]
	// Preface are bytes to send before the handshake, such as the answer to a
	// PostgreSQL SSLRequest; and Skip how many to take from the socket first.
	Preface []byte
	Skip    int
	Done    func(*Handshake) // called once, by the pool's worker: it must not block

	Records    *tlsrecord.Conn // nil: the record layer does not know the version or suite, Conn goes on
	InKernel   bool            // the socket has been given the keys of Records
	Conn       *tls.Conn       // only without Records
	Ticket     *NewTicket      // wants the first record of a TLS 1.3 server; nil: nothing does
	Version    uint16
	Suite      uint16
	Resumed    bool
	ServerName string
	ALPN       string
	Identity   *Identity // of the peer, as client; nil: it showed no certificate
	Took       time.Duration
	Err        error

	worker    *worker
	co        *coroutine
	queued    atomic.Bool // in the worker's queue
	cancelled atomic.Bool
	begun     bool
	finished  bool
	stream    stream
	secrets   secrets
}

// errCancelled ends the handshake of a session that has ended.
var errCancelled = errors.New("cancelled")

// Wake tells that the socket may have become ready.
func (h *Handshake) Wake() {
	if !h.queued.Swap(true) {
		h.worker.push(h)
	}
}

// Cancel ends the handshake soon; Done is called as ever.
func (h *Handshake) Cancel() {
	h.cancelled.Store(true)
	h.Wake()
}

// run is the handshake, in its coroutine.
func (h *Handshake) run() {
	began := time.Now()
	h.stream.h = h
	w := h.worker
	defer func() {
		if p := recover(); p != nil {
			// Hostile certificates have made crypto/x509 panic before: that
			// is one connection's end, not the process's.
			h.fail(fmt.Errorf("panic during the handshake, in %s: %v", panicked(debug.Stack()), p))
		}
		h.secrets.wipe()
		h.Took = time.Since(began)
	}()
	if err := h.preface(); err != nil {
		h.fail(err)
		return
	}
	attached := false
	if w.kernel != nil {
		// Before the peer's FIN can be in, after which it would fail.
		attached = ktls.Attach(h.FD) == nil
	}
	var c *tls.Conn
	if h.Context != nil {
		c = tls.Server(&h.stream, w.config(h.Context.Template()))
	} else {
		c = tls.Client(&h.stream, w.config(h.Client))
	}
	if err := c.Handshake(); err != nil {
		h.fail(err)
		return
	}
	cs := c.ConnectionState()
	h.Version, h.Suite, h.Resumed, h.ServerName, h.ALPN = cs.Version, cs.CipherSuite, cs.DidResume, cs.ServerName, cs.NegotiatedProtocol
	if h.Context != nil {
		h.Identity = IdentityOf(cs)
	}
	if !tlsrecord.Supported(h.Version, h.Suite) {
		h.Conn = c
		return
	}
	var err error
	if h.Records, err = h.records(); err != nil {
		h.fail(err)
		return
	}
	if attached && w.kernel.Covers(h.Version, h.Suite) {
		h.toKernel()
	}
	if h.Context == nil && h.Err == nil && h.Version == tls.VersionTLS13 && w.wantTicket(h) {
		h.Ticket = &NewTicket{c}
	}
}

// toKernel gives the socket its keys. Without those for reading the record
// layer goes on; with only those there is no way on or back.
func (h *Handshake) toKernel() {
	if ktls.SetKeys(h.FD, ktls.RX, h.Records.Keys(false)) != nil {
		return
	}
	if err := ktls.SetKeys(h.FD, ktls.TX, h.Records.Keys(true)); err != nil {
		h.fail(err)
		return
	}
	h.InKernel = true
	h.Records.Shed()
}

// panicked names the functions that a panic came from, innermost first.
func panicked(stack []byte) string {
	var names []string
	_, below, _ := bytes.Cut(stack, []byte("panic("))
	for line := range bytes.Lines(below) {
		if end := bytes.LastIndexByte(line, '('); end > 0 && line[0] != '\t' && len(names) < 3 {
			names = append(names, string(line[:end]))
		}
	}
	return strings.Join(names, " < ")
}

// fail notes why there is no session. The text is bounded: parts of it may
// come from the peer.
func (h *Handshake) fail(err error) {
	const most = 300
	switch {
	case err.Error() == "tls: no certificates configured":
		err = errors.New("no certificate for the name that the client asks for, and strict_sni refuses others")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = errors.New("the peer has closed the connection during the handshake")
	}
	if text := err.Error(); len(text) > most && !errors.Is(err, errCancelled) {
		err = errors.New(text[:most] + "…")
	}
	h.Err, h.Records, h.Conn = err, nil, nil
}

// records makes the record layer's state of what crypto/tls has agreed on.
func (h *Handshake) records() (*tlsrecord.Conn, error) {
	s, st := &h.secrets, &h.stream
	role := tlsrecord.Server
	if h.Context == nil {
		role = tlsrecord.Client
	}
	if h.Version != tls.VersionTLS13 {
		master, err := s.masterSecret(h.Resumed)
		if err != nil {
			return nil, err
		}
		client, server := st.in.random(), st.out.random()
		if role == tlsrecord.Client {
			client, server = server, client
		}
		if client == nil || server == nil {
			return nil, errNoSecrets
		}
		return tlsrecord.New12(role, h.Suite, master, client, server, 1, 1) // the Finished messages had number 0
	}
	if s.clientLen == 0 || s.serverLen == 0 {
		return nil, errNoSecrets
	}
	client, server := s.client[:s.clientLen], s.server[:s.serverLen]
	if role == tlsrecord.Client {
		return tlsrecord.New13(role, h.Suite, server, client, 0, 0)
	}
	c, err := tlsrecord.New13(role, h.Suite, client, server, 0, 0)
	if err != nil {
		return nil, err
	}
	// Session tickets, the last that a server writes, are sealed with the
	// keys of the application data.
	for rec := range st.flight.records() {
		c.Wrote(rec)
	}
	return c, nil
}

// preface takes Skip bytes and sends Preface.
func (h *Handshake) preface() error {
	var buf [64]byte
	for h.Skip > 0 {
		n, err := h.stream.recv(buf[:min(h.Skip, len(buf))])
		if err != nil {
			return err
		}
		h.Skip -= n
	}
	if len(h.Preface) > 0 {
		_, err := h.stream.Write(h.Preface)
		return err
	}
	return nil
}

// Discard wipes what a handshake has brought that nobody wants any more.
func (h *Handshake) Discard() {
	if h.Records != nil {
		h.Records.Wipe()
		h.Records = nil
	}
	h.Conn, h.Ticket = nil, nil
}
