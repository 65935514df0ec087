package tlsterm

import (
	"bytes"
	"crypto/tls"
	"io"
	"time"
)

// NewTicket lets crypto/tls have the NewSessionTicket of a TLS 1.3 server,
// which comes only after the handshake (RFC 8446, section 4.6.1), when the
// record layer has the connection already. It keeps crypto/tls's half of the
// connection alive until then.
type NewTicket struct{ conn *tls.Conn }

// ticketPause is how often a worker keeps a connection to the same server for
// its ticket: one is good for many sessions.
const ticketPause = time.Second

// wantTicket decides whether the session is one to wait for a ticket with.
func (w *worker) wantTicket(h *Handshake) bool {
	if h.Client.ClientSessionCache == nil || h.Resumed || h.InKernel || time.Since(w.tickets[h.Client]) < ticketPause {
		return false
	}
	if len(w.tickets) >= maxConfigs {
		clear(w.tickets)
	}
	w.tickets[h.Client] = time.Now()
	return true
}

// Take gives crypto/tls the first record that has come since the handshake, as
// it came. It does not wait.
func (t *NewTicket) Take(rec []byte) {
	c := t.conn
	c.NetConn().(*stream).fed = bytes.NewReader(bytes.Clone(rec))
	go func() {
		defer func() { recover() }() // as in a handshake
		// The ticket goes to the session cache; then there is nothing to read.
		c.Read(make([]byte, 1))
	}()
}

// fedRead and fedWrite are the socket for a crypto/tls that is given records,
// and may do nothing of its own any more.

func (s *stream) fedRead(b []byte) (int, error) {
	n, err := s.fed.Read(b)
	if err != nil {
		err = io.ErrClosedPipe
	}
	return n, err
}

func (s *stream) fedWrite([]byte) (int, error) { return 0, io.ErrClosedPipe }
