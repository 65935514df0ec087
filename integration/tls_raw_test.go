package integration

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"edgeproxy/internal/tlsrecord"
)

// rawTLS is a client that makes its handshake with crypto/tls, and its records
// as it pleases.
type rawTLS struct {
	t    testing.TB
	c    Conn
	r    *tlsrecord.Conn
	have []byte // read, not yet opened
}

// dialRaw connects, makes the handshake and takes over from crypto/tls.
func dialRaw(t testing.TB, addr string, cfg *tls.Config) *rawTLS {
	t.Helper()
	c := Dial(t, addr)
	steps := &oneRecord{Conn: c}
	cfg = cfg.Clone()
	var log bytes.Buffer
	cfg.KeyLogWriter = &log
	s := tls.Client(steps, cfg)
	if err := s.Handshake(); err != nil {
		t.Fatal(err)
	}
	r, err := recordsOf(tlsrecord.Client, s.ConnectionState(), log.String(), steps.first)
	if err != nil {
		t.Fatal(err)
	}
	return &rawTLS{t: t, c: c, r: r}
}

// recordsOf makes a client's record layer of a key log. The first record it
// received tells the server's random.
func recordsOf(role tlsrecord.Role, cs tls.ConnectionState, keyLog string, first []byte) (*tlsrecord.Conn, error) {
	secrets := map[string][]byte{}
	var random []byte
	for line := range strings.Lines(keyLog) {
		f := strings.Fields(line)
		random, _ = hex.DecodeString(f[1])
		secrets[f[0]], _ = hex.DecodeString(f[2])
	}
	if cs.Version == tls.VersionTLS13 {
		return tlsrecord.New13(role, cs.CipherSuite, secrets["SERVER_TRAFFIC_SECRET_0"], secrets["CLIENT_TRAFFIC_SECRET_0"], 0, 0)
	}
	const at = 5 + 4 + 2 // of the random, behind the headers of record and message and the version
	return tlsrecord.New12(role, cs.CipherSuite, secrets["CLIENT_RANDOM"], random, first[at:at+32], 1, 1)
}

// oneRecord gives crypto/tls the bytes of one record at a time, so that it
// takes none that follow the handshake.
type oneRecord struct {
	net.Conn
	left  int
	head  []byte
	first []byte
}

func (o *oneRecord) Read(b []byte) (int, error) {
	if o.left == 0 {
		var h [5]byte
		if _, err := io.ReadFull(o.Conn, h[:]); err != nil {
			return 0, err
		}
		o.head, o.left = h[:], len(h)+int(h[3])<<8+int(h[4])
	}
	n := copy(b, o.head)
	o.head = o.head[n:]
	if n == 0 {
		var err error
		if n, err = o.Conn.Read(b[:min(len(b), o.left)]); err != nil {
			return n, err
		}
	}
	o.left -= n
	if len(o.first) < 64 {
		o.first = append(o.first, b[:n]...)
	}
	return n, nil
}

// seal makes the next record. Type 0 leaves what text ends with in its place:
// the inner type, and padding (RFC 8446, section 5.2).
func (r *rawTLS) seal(typ byte, text string) []byte {
	buf := make([]byte, r.r.Header()+len(text)+r.r.Trailer())
	copy(buf[r.r.Header():], text)
	return r.r.Seal(typ, buf, len(text))
}

func (r *rawTLS) data(text string) []byte { return r.seal(tlsrecord.ApplicationData, text) }

// keyUpdate makes a KeyUpdate in one record, or in several of so many bytes
// each, and changes the key.
func (r *rawTLS) keyUpdate(request byte, split int) (records []byte) {
	msg := string([]byte{24, 0, 0, 1, request})
	for len(msg) > 0 {
		n := min(split, len(msg))
		records = append(records, r.seal(tlsrecord.Handshake, msg[:n])...)
		msg = msg[n:]
	}
	r.r.AppendKeyUpdate(nil)
	return records
}

func (r *rawTLS) closeNotify() []byte { return r.r.AppendAlert(nil, tlsrecord.AlertCloseNotify) }

func (r *rawTLS) send(b []byte) {
	r.t.Helper()
	if _, err := r.c.Write(b); err != nil {
		r.t.Fatal(err)
	}
}

// record reads and opens one record.
func (r *rawTLS) record() (typ byte, text []byte, size int, err error) {
	buf := make([]byte, 32<<10)
	for {
		size, err := r.r.Size(r.have)
		if err != nil {
			return 0, nil, 0, err
		}
		if size > 0 && size <= len(r.have) {
			typ, text, err = r.r.Open(make([]byte, size), r.have[:size])
			r.have = r.have[size:]
			return typ, text, size, err
		}
		n, err := r.c.Read(buf)
		r.have = append(r.have, buf[:n]...)
		if err != nil && n == 0 {
			return 0, nil, 0, err
		}
	}
}

// errNotified is the end by close_notify.
var errNotified = errors.New("close_notify")

// next returns the plain text of the next record with data, and counts the
// KeyUpdates before it.
func (r *rawTLS) next() (text []byte, updates int, err error) {
	for {
		typ, text, _, err := r.record()
		if err != nil {
			return nil, updates, err
		}
		if typ == tlsrecord.ApplicationData {
			return text, updates, nil
		}
		ev, err := r.r.Control(typ, text)
		switch {
		case err != nil:
			return nil, updates, err
		case ev == tlsrecord.Closed:
			return nil, updates, errNotified
		case ev == tlsrecord.Rekeyed:
			updates++
		}
	}
}

// expect reads as much as want has.
func (r *rawTLS) expect(want string) (updates int) {
	r.t.Helper()
	var got []byte
	for len(got) < len(want) {
		b, n, err := r.next()
		updates += n
		if err != nil {
			r.t.Fatalf("after %d bytes: %v", len(got), err)
		}
		got = append(got, b...)
	}
	if string(got) != want {
		r.t.Fatalf("read %.100q, want %.100q", got, want)
	}
	return updates
}

// end reads to the end and returns why that is; an alert is a
// *tlsrecord.AlertError.
func (r *rawTLS) end() error {
	r.t.Helper()
	for {
		if _, _, err := r.next(); err != nil {
			return err
		}
	}
}

// expectAlert asserts that the session ends by this alert.
func (r *rawTLS) expectAlert(alert uint8) {
	r.t.Helper()
	var a *tlsrecord.AlertError
	if err := r.end(); !errors.As(err, &a) || !a.Remote || a.Alert != alert {
		r.t.Errorf("ended by %v, want alert %d", err, alert)
	}
}
