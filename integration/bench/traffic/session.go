package traffic

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/netip"
	"syscall"
	"time"

	"edgeproxy/internal/tlsrecord"
)

// Speech is what a client says on its connections.
type Speech string

const (
	Plain   Speech = "plain"
	Hello   Speech = "hello"   // the first request of a connection is a ClientHello, the rest is plain
	TLS     Speech = "tls"     // each connection begins with a full handshake
	Resumed Speech = "resumed" // … with one that resumes a session

	Datagrams Speech = "datagrams" // over UDP; a connection is an address to send from
	QUIC      Speech = "quic"      // each request is a stream
)

func (s Speech) encrypted() bool { return s == TLS || s == Resumed }

// ClientConfig is TLS as the benchmark pins it. The certificate is not verified:
// that would cost the client more than all the rest.
func ClientConfig() *tls.Config {
	return &tls.Config{
		ServerName:         ServerName,
		InsecureSkipVerify: true,
		MinVersion:         tls.VersionTLS13,
		CurvePreferences:   []tls.CurveID{tls.X25519},
		VerifyConnection: func(cs tls.ConnectionState) error {
			// Other algorithms would make another benchmark.
			if cs.CipherSuite != tls.TLS_AES_128_GCM_SHA256 || cs.CurveID != tls.X25519 || cs.HelloRetryRequest {
				return fmt.Errorf("not the pinned algorithms: %s, %v, asked again: %v", tls.CipherSuiteName(cs.CipherSuite), cs.CurveID, cs.HelloRetryRequest)
			}
			return nil
		},
	}
}

// session is the TLS of one connection of a client.
type session struct {
	fd        int32
	park      func(struct{}) bool // in the coroutine
	resume    func() (struct{}, bool)
	stop      func()
	wantWrite bool  // the handshake waits for room to send
	polled    bool  // the poller tells when there is
	left      int   // of the record that crypto/tls is reading
	err       error // of the handshake
	resumed   bool

	secrets [2][]byte // client's and server's, until the handshake is done
	records *tlsrecord.Conn
	pending []byte // received and not yet looked at
	closed  bool   // close_notify has come
}

// startSession begins a handshake, in a coroutine: a goroutine of its own would
// be scheduled by turns with all others, and cost more than it does.
func (c *client) startSession(fd int32) *session {
	s := &session{fd: fd, polled: true} // to hear when the socket is connected
	s.resume, s.stop = iter.Pull(func(yield func(struct{}) bool) {
		s.park = yield
		s.handshake(c.tls)
	})
	return s
}

// advance lets a handshake go on. It reports whether that is over.
func (c *client) advance(s *session) (done bool) {
	s.wantWrite = false
	c.current = s
	_, parked := s.resume()
	c.current = nil
	return !parked
}

var errStopped = errors.New("stopped")

func (s *session) handshake(config *tls.Config) {
	t := tls.Client(s, config)
	if s.err = t.Handshake(); s.err != nil {
		return
	}
	s.resumed = t.ConnectionState().DidResume
	s.records, s.err = tlsrecord.New13(tlsrecord.Client, tls.TLS_AES_128_GCM_SHA256, s.secrets[1], s.secrets[0], 0, 0)
}

// Read is for crypto/tls. It ends at the end of a record, so that what follows
// the handshake stays here.
func (s *session) Read(b []byte) (int, error) {
	for {
		if s.left == 0 && len(s.pending) >= tlsrecord.HeaderLen {
			s.left = tlsrecord.HeaderLen + int(binary.BigEndian.Uint16(s.pending[3:]))
		}
		if n := copy(b, s.pending[:min(s.left, len(s.pending))]); n > 0 {
			s.left -= n
			s.pending = s.pending[n:]
			return n, nil
		}
		// A server's first flight fits into this.
		var buf [4096]byte
		switch n, e := read(s.fd, buf[:]); {
		case e == syscall.EAGAIN:
			if !s.park(struct{}{}) {
				return 0, errStopped
			}
		case e != 0:
			return 0, e
		case n == 0:
			return 0, io.EOF
		default:
			s.pending = append(s.pending, buf[:n]...)
		}
	}
}

func (s *session) Write(b []byte) (int, error) {
	for sent := 0; ; {
		n, e := write(s.fd, b[sent:])
		switch {
		case e == syscall.EAGAIN:
			s.wantWrite = true
			if !s.park(struct{}{}) {
				return sent, errStopped
			}
			continue
		case e != 0:
			return sent, e
		}
		if sent += n; sent == len(b) {
			return sent, nil
		}
	}
}

// The rest of net.Conn. The client closes its connections itself.

func (s *session) Close() error                       { return nil }
func (s *session) LocalAddr() net.Addr                { return nil }
func (s *session) RemoteAddr() net.Addr               { return nil }
func (s *session) SetDeadline(t time.Time) error      { return nil }
func (s *session) SetReadDeadline(t time.Time) error  { return nil }
func (s *session) SetWriteDeadline(t time.Time) error { return nil }

// keyLog takes the traffic secrets of the handshake that runs (RFC 9850).
type keyLog client

func (k *keyLog) Write(line []byte) (int, error) {
	if k.current == nil {
		return len(line), nil // of seed
	}
	for i, label := range []string{"CLIENT_TRAFFIC_SECRET_0 ", "SERVER_TRAFFIC_SECRET_0 "} {
		const random = 2*32 + 1
		rest, ok := bytes.CutPrefix(line, []byte(label))
		if !ok || len(rest) < random {
			continue
		}
		secret, err := hex.DecodeString(string(bytes.TrimSpace(rest[random:])))
		if err != nil {
			return 0, err
		}
		k.current.secrets[i] = secret
	}
	return len(line), nil
}

// oneTicket resumes every session from the first ticket it was given. Servers
// that keep no state cannot tell, and do the same work as for a new one.
type oneTicket struct{ state *tls.ClientSessionState }

func (t *oneTicket) Get(string) (*tls.ClientSessionState, bool) { return t.state, t.state != nil }

func (t *oneTicket) Put(_ string, state *tls.ClientSessionState) {
	if t.state == nil {
		t.state = state
	}
}

// prepareTLS makes the configuration of this client's handshakes and, where
// they resume, gets the ticket for it.
func (c *client) prepareTLS(target netip.AddrPort) error {
	c.tls = ClientConfig()
	c.tls.KeyLogWriter = (*keyLog)(c)
	c.sealed = make([]byte, tlsrecord.MaxHeader+maxRequest+tlsrecord.MaxTrailer)
	c.raw = make([]byte, chunk)
	if c.speech != Resumed {
		return nil
	}
	ticket := new(oneTicket)
	c.tls.ClientSessionCache = ticket
	conn, err := net.DialTimeout("tcp", target.String(), time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	// The ticket comes before the answer.
	if err := Ask(tls.Client(conn, c.tls)); err != nil {
		return fmt.Errorf("getting a session ticket: %w", err)
	}
	if ticket.state == nil {
		return errors.New("the server gave no session ticket")
	}
	return nil
}

// seal makes records of b, and of what else is due. The result is good until
// the next call.
func (c *client) seal(s *session, b []byte) []byte {
	out := c.sealed[:0]
	if s.records.Due() {
		out = s.records.AppendDue(out)
	}
	room := c.sealed[len(out):cap(c.sealed)]
	n := copy(room[s.records.Header():], b)
	return append(out, s.records.Seal(tlsrecord.ApplicationData, room, n)...)
}

// receive reads and opens records into c.buf. No bytes and EAGAIN: there was
// nothing for the application.
func (c *client) receive(s *session) (int, syscall.Errno, error) {
	if s.closed {
		return 0, 0, nil
	}
	old := copy(c.raw, s.pending)
	n, e := read(s.fd, c.raw[old:])
	ended := e == 0 && n == 0
	if e != 0 {
		if e != syscall.EAGAIN || old == 0 {
			return 0, e, nil
		}
		n = 0
	}
	raw, plain := c.raw[:old+n], 0
	for {
		size, err := s.records.Size(raw)
		if err != nil {
			return plain, 0, err
		}
		if size == 0 || size > len(raw) {
			break
		}
		typ, b, err := s.records.Open(c.buf[plain:plain:cap(c.buf)], raw[:size])
		if err != nil {
			return plain, 0, err
		}
		raw = raw[size:]
		if typ == tlsrecord.ApplicationData {
			plain += len(b)
			continue
		}
		event, err := s.records.Control(typ, b)
		if err != nil {
			return plain, 0, err
		}
		if event == tlsrecord.Closed {
			s.closed = true
			break
		}
	}
	s.pending = append(s.pending[:0], raw...)
	if len(s.pending) == 0 {
		s.pending = nil // an idle session is to cost little here as well
	}
	if plain == 0 && !ended && !s.closed {
		return 0, syscall.EAGAIN, nil
	}
	return plain, 0, nil
}

// farewell answers close_notify with close_notify, as clients do.
func (c *client) farewell(s *session) {
	if s.records != nil {
		write(s.fd, s.records.AppendAlert(c.sealed[:0], tlsrecord.AlertCloseNotify))
	}
}
