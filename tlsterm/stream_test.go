package tlsterm

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What follows the handshake must stay in the socket, even if it came in one
// segment with the handshake's last message.
func TestDataBehindFinishedStaysInTheSocket(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := l.context(t, l.options())
	for _, version := range versions {
		f := newFloor(t, 1)
		far, ended := f.start(&Handshake{Context: c})
		held := &holding{Conn: far}
		client := l.client()
		client.MaxVersion = version
		peer := tls.Client(held, client)
		// Each flight waits for the next read, with which it goes out as one.
		if version == tls.VersionTLS13 {
			if err := peer.Handshake(); err != nil {
				t.Fatal(err)
			}
			for _, text := range []string{"first", "second"} {
				io.WriteString(peer, text)
			}
			held.flush()
			h := await(t, ended)
			if h.Err != nil {
				t.Fatal(h.Err)
			}
			if a, b := readData(t, h), readData(t, h); a != "first" || b != "second" {
				t.Errorf("read %q and %q", a, b)
			}
			continue
		}
		// In TLS 1.2 the client has the last word of a resumed handshake.
		first := make(chan error, 1)
		go func() { first <- peer.Handshake() }()
		if h := await(t, ended); h.Err != nil {
			t.Fatal(h.Err)
		}
		if err := <-first; err != nil {
			t.Fatal(err)
		}
		far, ended = f.start(&Handshake{Context: c})
		held = &holding{Conn: far}
		peer = tls.Client(held, client)
		if err := peer.Handshake(); err != nil {
			t.Fatal(err)
		}
		io.WriteString(peer, "first")
		held.flush()
		h := await(t, ended)
		if h.Err != nil || !h.Resumed {
			t.Fatalf("%v, resumed %v", h.Err, h.Resumed)
		}
		if a := readData(t, h); a != "first" {
			t.Errorf("read %q", a)
		}
	}
}

// The same with us as the client, in TLS 1.2, where the server's Finished is
// the last message of a full handshake.
func TestServerDataBehindFinishedStaysInTheSocket(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	f := newFloor(t, 1)
	c := l.context(t, l.options())
	client := l.client()
	client.MaxVersion, client.ClientSessionCache = tls.VersionTLS12, nil
	far, ended := f.start(&Handshake{Client: client})
	held := &holding{Conn: far}
	peer := tls.Server(held, c.Template().Clone())
	if err := peer.Handshake(); err != nil {
		t.Fatal(err)
	}
	io.WriteString(peer, "banner")
	held.flush()
	h := await(t, ended)
	if h.Err != nil {
		t.Fatal(h.Err)
	}
	if got := readData(t, h); got != "banner" {
		t.Errorf("read %q", got)
	}
}

// holding keeps what is written until the next read.
type holding struct {
	net.Conn
	held []byte
}

func (h *holding) Write(b []byte) (int, error) {
	h.held = append(h.held, b...)
	return len(b), nil
}

func (h *holding) flush() {
	h.Conn.Write(h.held)
	h.held = nil
}

func (h *holding) Read(b []byte) (int, error) {
	if len(h.held) > 0 {
		h.flush()
	}
	return h.Conn.Read(b)
}

// "Bound handshake bytes": crypto/tls takes certificates of 256 KiB, and would
// keep that for each of thousands of clients that send all but the last byte.
func TestHandshakeBytesAreBounded(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	f := newFloor(t, 1)
	c := l.context(t, l.mutual())
	for _, version := range versions {
		client := l.client()
		client.MaxVersion = version
		huge := l.alice.TLS()
		for range 500 {
			huge.Certificate = append(huge.Certificate, l.clients.Cert.Raw)
		}
		size := 0
		for _, der := range huge.Certificate {
			size += len(der)
		}
		if size > 256<<10 || size < 130<<10 {
			t.Fatalf("a chain of %d bytes: this tests nothing", size)
		}
		client.Certificates = []tls.Certificate{huge}
		far, ended := f.start(&Handshake{Context: c})
		go tls.Client(far, client).Handshake()
		h := await(t, ended)
		if h.Err == nil || !strings.Contains(h.Err.Error(), "KiB") {
			t.Errorf("%s: a chain of %d bytes: %v", tls.VersionName(version), size, h.Err)
		}
	}
}

// An answer in the clear, such as that to a PostgreSQL SSLRequest, precedes
// the handshake, and what asked for it is taken first.
func TestPrefaceAndSkip(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	f := newFloor(t, 1)
	c := l.context(t, l.options())
	ask := strings.Repeat("q", 100)
	f.agreed(&Handshake{Context: c, Skip: len(ask), Preface: []byte("S")}, func(far net.Conn) *tls.Conn {
		for i := range ask {
			io.WriteString(far, ask[i:i+1])
		}
		b := make([]byte, 1)
		if _, err := io.ReadFull(far, b); err != nil || b[0] != 'S' {
			t.Errorf("answered %q, %v", b, err)
		}
		return tls.Client(far, l.client())
	})
}

// errStuck ends the writes of a client that says no more.
var errStuck = fmt.Errorf("stuck: %w", os.ErrClosed)

// stopping lets through so many bytes of what is written, and no more.
type stopping struct {
	net.Conn
	left int
}

func (s *stopping) Write(b []byte) (int, error) {
	n := min(len(b), s.left)
	s.left -= n
	if n > 0 {
		if _, err := s.Conn.Write(b[:n]); err != nil {
			return 0, err
		}
	}
	if n < len(b) {
		return n, errStuck
	}
	return n, nil
}

// Handshakes that stop at any byte: whether they are cancelled, or the client
// closes, each ends, once, and leaves nothing.
func TestHandshakesThatStop(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := l.context(t, l.mutual())
	for _, version := range versions {
		for _, cancel := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s cancel=%v", tls.VersionName(version), cancel), func(t *testing.T) {
				t.Parallel()
				f := newFloor(t, 1)
				client := l.client(l.alice)
				client.MaxVersion, client.ClientSessionCache = version, nil
				client.CurvePreferences = []tls.CurveID{tls.X25519}
				for at, whole := 0, false; !whole; at += 1 + at/64*3 {
					near, far := f.connect()
					h := &Handshake{Context: c}
					ended := f.startOn(near, h)
					s := &stopping{Conn: far, left: at}
					err := tls.Client(s, client).Handshake()
					switch whole = err == nil; {
					case whole:
					case !errors.Is(err, errStuck):
						t.Fatalf("after %d bytes: %v", at, err)
					case cancel:
						h.Cancel()
					default:
						far.Close()
					}
					h = await(t, ended)
					switch {
					case whole && h.Err != nil,
						!whole && cancel && !errors.Is(h.Err, errCancelled),
						!whole && !cancel && h.Err == nil:
						t.Errorf("after %d bytes: %v", at, h.Err)
					}
					if h.Err != nil && (h.Records != nil || h.Conn != nil) {
						t.Errorf("after %d bytes: it has failed, and left something", at)
					}
					unix.EpollCtl(f.ep, unix.EPOLL_CTL_DEL, near, nil)
				}
				w := f.pool.workers[0]
				f.pool.Close()
				if len(w.active) != 0 || len(w.waiting) != 0 {
					t.Errorf("%d active, %d waiting", len(w.active), len(w.waiting))
				}
			})
		}
	}
}
