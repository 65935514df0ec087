package tlsterm

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
)

// secrets are what one handshake has agreed on.
type secrets struct {
	client, server [48]byte // application traffic secrets of TLS 1.3
	master         [48]byte // TLS 1.2 and below, of a full handshake
	resumed        [48]byte // … of the session that a ticket has brought back
	clientLen      int      // 0: not seen
	serverLen      int
	masterLen      int
	resumedLen     int
	session        *tls.SessionState // that the client's last ticket has brought back, as a server
}

var (
	labelClient = []byte("CLIENT_TRAFFIC_SECRET_0 ")
	labelServer = []byte("SERVER_TRAFFIC_SECRET_0 ")
	labelMaster = []byte("CLIENT_RANDOM ")
)

// keyLog takes what crypto/tls writes to a key log (RFC 9850, section 2) about
// the handshake that its worker runs at the moment. It is the official way to
// a connection's traffic secrets.
type keyLog worker

// Write takes one line, and wipes it. The contract of io.Writer forbids that;
// but crypto/tls makes the line for this call alone, and no copy of a secret
// is to wait for the garbage collector.
func (k *keyLog) Write(line []byte) (int, error) {
	defer clear(line)
	s := &k.current.secrets
	switch {
	case bytes.HasPrefix(line, labelClient):
		s.clientLen = secretOf(line[len(labelClient):], &s.client)
	case bytes.HasPrefix(line, labelServer):
		s.serverLen = secretOf(line[len(labelServer):], &s.server)
	case bytes.HasPrefix(line, labelMaster):
		s.masterLen = secretOf(line[len(labelMaster):], &s.master)
	}
	return len(line), nil
}

// secretOf reads "<client random> <secret>\n", both in hexadecimal, and
// returns the length of the secret; 0 if the line is not of that form.
func secretOf(b []byte, secret *[48]byte) int {
	const randomLen = 2 * 32
	b = bytes.TrimSuffix(b, []byte{'\n'})
	if len(b) <= randomLen+1 || b[randomLen] != ' ' || len(b)-randomLen-1 > 2*len(secret) {
		return 0
	}
	n, err := hex.Decode(secret[:], b[randomLen+1:])
	if err != nil {
		return 0
	}
	return n
}

// resume notes the master secret of a session that is being resumed: in TLS
// 1.2 the key log is silent about those. It comes from the serialised session,
// whose form tls.SessionState documents to be extended at its end only.
func (s *secrets) resume(ss *tls.SessionState) {
	s.resumedLen = 0
	b, err := ss.Bytes()
	if err != nil {
		return
	}
	defer clear(b)
	const at = 2 + 1 + 2 + 8 // version, type, cipher suite, created_at
	if len(b) <= at || binary.BigEndian.Uint16(b) == tls.VersionTLS13 {
		return
	}
	if n := int(b[at]); n <= len(s.resumed) && len(b) > at+n {
		s.resumedLen = copy(s.resumed[:], b[at+1:at+1+n])
	}
}

// errNoSecrets should never be seen.
var errNoSecrets = errors.New("crypto/tls has not told the traffic secrets")

// masterSecret is that of TLS 1.2.
func (s *secrets) masterSecret(resumed bool) ([]byte, error) {
	switch {
	case resumed && s.resumedLen > 0:
		return s.resumed[:s.resumedLen], nil
	case !resumed && s.masterLen > 0:
		return s.master[:s.masterLen], nil
	}
	return nil, errNoSecrets
}

func (s *secrets) wipe() { *s = secrets{} }

// sessionCache notes what session a client resumes.
type sessionCache struct {
	tls.ClientSessionCache
	w *worker
}

func (c sessionCache) Get(key string) (*tls.ClientSessionState, bool) {
	cs, ok := c.ClientSessionCache.Get(key)
	if ok && cs != nil {
		if _, ss, err := cs.ResumptionState(); err == nil && ss != nil {
			c.w.current.secrets.resume(ss)
		}
	}
	return cs, ok
}
