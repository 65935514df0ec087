package quic

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	quicgo "github.com/quic-go/quic-go"

	"edgeproxy/internal/testcert"
)

// silence is a socket to a peer that never answers. What is sent is kept.
type silence struct {
	sent   chan []byte
	closed chan struct{}
	close  func()
}

func newSilence() silence {
	closed := make(chan struct{})
	return silence{make(chan []byte, 64), closed, sync.OnceFunc(func() { close(closed) })}
}

func (s silence) WriteTo(b []byte, _ net.Addr) (int, error) {
	select {
	case s.sent <- slices.Clone(b):
	default: // sent again, for nobody any more
	}
	return len(b), nil
}

func (s silence) ReadFrom([]byte) (int, net.Addr, error) {
	<-s.closed
	return 0, nil, net.ErrClosed
}

func (s silence) SetReadDeadline(d time.Time) error {
	if !d.IsZero() { // how quic-go stops reading
		s.close()
	}
	return nil
}

func (silence) Close() error                     { return nil }
func (silence) LocalAddr() net.Addr              { return &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1} }
func (silence) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (silence) SetWriteDeadline(time.Time) error { return nil }

// dial has quic-go begin a connection, and shows each datagram to see, until
// that has seen enough.
func dial(t *testing.T, tlsConfig *tls.Config, config *quicgo.Config, early bool, see func(b []byte) (enough bool)) {
	t.Helper()
	conn := newSilence()
	transport := quicgo.Transport{Conn: conn}
	defer transport.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		server := &net.UDPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 443}
		if early {
			c, err := transport.DialEarly(ctx, server, tlsConfig, config)
			if err != nil {
				return
			}
			if s, err := c.OpenStream(); err == nil {
				s.Write(make([]byte, 3000)) // 0-RTT
			}
			<-ctx.Done()
			c.CloseWithError(0, "")
			return
		}
		transport.Dial(ctx, server, tlsConfig, config)
	}()
	defer func() { cancel(); <-done }()
	for {
		select {
		case b := <-conn.sent:
			if see(b) {
				return
			}
		case <-time.After(20 * time.Second):
			t.Error("quic-go sends no more")
			return
		}
	}
}

// What quic-go sends, with a hello in one datagram and in two, and cut up so
// that whoever looks for a name in a packet finds none.
func TestQUICGo(t *testing.T) {
	t.Parallel()
	long := strings.Repeat(strings.Repeat("a", 49)+".", 5) + "com"
	for _, version := range []quicgo.Version{quicgo.Version1, quicgo.Version2} {
		for _, test := range []struct {
			name, want string
			alpn       []string
			curves     []tls.CurveID
			datagrams  int
		}{
			{"example.com", "example.com", []string{"h3"}, []tls.CurveID{tls.X25519}, 1},
			{"example.com", "example.com", []string{"h3"}, []tls.CurveID{tls.X25519MLKEM768}, 2},
			{"WWW.Example.COM", "www.example.com", []string{"h3", "hq-interop"}, nil, 2}, // CVE-2026-48491
			{"192.0.2.1", "", []string{"doq"}, nil, 2},
			{long, long, []string{"h3"}, nil, 2},
			{"many.example.com", "many.example.com", slices.Repeat([]string{strings.Repeat("x", 250)}, 20), nil, 6},
		} {
			h := new(Hello)
			n := 0
			dial(t, &tls.Config{ServerName: test.name, NextProtos: test.alpn, CurvePreferences: test.curves},
				&quicgo.Config{Versions: []quicgo.Version{version}}, false, func(b []byte) bool {
					n++
					if !Begins(b) {
						t.Errorf("version %#x, %.30s: datagram %d begins nothing", version, test.name, n)
					}
					got := show(t, h, b)
					if n < test.datagrams && got == waiting {
						return false
					}
					if n != test.datagrams || got != quicFor(test.want, strings.Join(test.alpn, " ")) {
						t.Errorf("version %#x, %.30s, datagram %d: %+v", version, test.name, n, got)
					}
					return true
				})
		}
	}
}

// A connection that is resumed: the Initial has a token, and 0-RTT comes with
// it, behind it or, where it overtakes, in front.
func TestQUICGoResumed(t *testing.T) {
	t.Parallel()
	ca := testcert.NewCA(t, "test")
	server, err := quicgo.ListenAddrEarly("127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{ca.Server(t, "a.example.com").TLS()}, NextProtos: []string{"h3"},
	}, &quicgo.Config{Allow0RTT: true})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	tickets := make(chan struct{}, 16)
	tlsConfig := &tls.Config{ServerName: "a.example.com", NextProtos: []string{"h3"}, RootCAs: ca.Pool(), ClientSessionCache: ticketCache{tls.NewLRUClientSessionCache(4), tickets}}
	tokens := tokenStore{quicgo.NewLRUTokenStore(4, 4), make(chan struct{}, 16)}
	config := &quicgo.Config{TokenStore: tokens}
	c, err := quicgo.DialAddr(t.Context(), server.Addr().String(), tlsConfig, config)
	if err != nil {
		t.Fatal(err)
	}
	<-tickets
	<-tokens.put
	c.CloseWithError(0, "")

	var initials, early [][]byte
	dial(t, tlsConfig, config, true, func(b []byte) bool {
		if h, _, ok := ParseLong(b); !ok {
			t.Errorf("%x is no long header", b[:20])
		} else if h.Type == ZeroRTT {
			early = append(early, slices.Clone(b))
		} else {
			if len(h.Token) == 0 {
				t.Error("no token")
			}
			initials = append(initials, slices.Clone(b))
		}
		return len(early) >= 2 && len(initials) >= 1 && fresh(t, initials...).done
	})
	want := quicFor("a.example.com", "h3")
	if got := fresh(t, initials...); got != want {
		t.Errorf("%+v", got)
	}
	h := new(Hello)
	if got := show(t, h, early...); got != waiting {
		t.Errorf("0-RTT first: %+v", got)
	}
	if got := show(t, h, initials...); got != want {
		t.Errorf("behind 0-RTT: %+v", got)
	}
	if got := fresh(t, slices.Concat(early[0], initials[0])); got != want && got != waiting {
		t.Errorf("0-RTT and an Initial in one datagram: %+v", got)
	}
}

// ticketCache and tokenStore tell when something was put into them.
type ticketCache struct {
	tls.ClientSessionCache
	put chan struct{}
}

func (c ticketCache) Put(key string, state *tls.ClientSessionState) {
	c.ClientSessionCache.Put(key, state)
	select {
	case c.put <- struct{}{}:
	default:
	}
}

type tokenStore struct {
	quicgo.TokenStore
	put chan struct{}
}

func (s tokenStore) Put(key string, token *quicgo.ClientToken) {
	s.TokenStore.Put(key, token)
	select {
	case s.put <- struct{}{}:
	default:
	}
}
