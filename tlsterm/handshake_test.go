package tlsterm

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
)

// In TLS 1.3 a server writes its tickets, with the keys of the data, either
// behind its Finished or, where it has asked for a certificate, after the
// client's: the sequence number of its first data depends on that. In TLS 1.2
// the key log is silent about resumed sessions. All of that must make no
// difference.
func TestHandshakesLeaveRightKeys(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for _, version := range versions {
		for _, mutual := range []bool{false, true} {
			for _, tickets := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s mutual=%v tickets=%v", tls.VersionName(version), mutual, tickets), func(t *testing.T) {
					t.Parallel()
					f := newFloor(t, 1)
					o := l.options()
					if mutual {
						o = l.mutual()
					}
					o.NoTickets = !tickets
					c := l.context(t, o)
					client := l.client(l.alice)
					client.MaxVersion = version
					for try := range 3 {
						h, peer := f.serve(c, client)
						if resumed := tickets && try > 0; h.Resumed != resumed || peer.ConnectionState().DidResume != resumed {
							t.Errorf("handshake %d: resumed %v", try, h.Resumed)
						}
						if (h.Identity != nil) != mutual || h.Version != version || h.ServerName != "a.example.com" {
							t.Errorf("handshake %d: %+v, version %x, name %q", try, h.Identity, h.Version, h.ServerName)
						}
					}
					// The same the other way round, with us as the client.
					server := c.Template().Clone()
					for try := range 3 {
						if try == 0 {
							client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
						}
						h, _ := f.dial(client, server)
						// The tickets are in the socket, behind the handshake: only
						// those of TLS 1.2 have been seen.
						if want := tickets && version == tls.VersionTLS12 && try > 0; h.Resumed != want {
							t.Errorf("as the client, handshake %d: resumed %v", try, h.Resumed)
						}
					}
				})
			}
		}
	}
}

func TestHandshakesOfAllSuites(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	f := newFloor(t, 2)
	c := l.context(t, l.options())
	for _, suite := range []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256} {
		client := l.client()
		client.MaxVersion, client.CipherSuites = tls.VersionTLS12, []uint16{suite}
		for range 2 { // the second one resumed
			if h, _ := f.serve(c, client); h.Suite != suite {
				t.Errorf("%s was agreed on", tls.CipherSuiteName(h.Suite))
			}
		}
		f.dial(client, c.Template().Clone())
	}
}

// HelloRetryRequest: the server's first message is not the one that counts,
// and there are two ClientHellos.
func TestHandshakeWithRetry(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	f := newFloor(t, 1)
	o := l.options()
	o.Groups = []tls.CurveID{tls.CurveP384}
	client := l.client()
	client.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP384}
	_, peer := f.serve(l.context(t, o), client)
	if !peer.ConnectionState().HelloRetryRequest {
		t.Error("there was no HelloRetryRequest")
	}
}

// A client may choose its random, and so one that another has. The key log
// names connections by nothing else: keys must not be mixed up.
func TestReplayedClientRandom(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := l.context(t, l.options())
	for _, version := range versions {
		f := newFloor(t, 1)
		const n = 8
		var randoms [n]string
		var all sync.WaitGroup // until each has the server's flight
		all.Add(n)
		peers := make([]*tls.Conn, n)
		ends := make([]chan *Handshake, n)
		var wg sync.WaitGroup
		for i := range n {
			far, ended := f.start(&Handshake{Context: c})
			writes := 0
			conn := &writeHook{Conn: far, hook: func(b []byte) {
				if writes++; writes == 1 {
					randoms[i] = string(b[11:43])
				} else if writes == 2 {
					all.Done()
					all.Wait()
				}
			}}
			client := l.client()
			client.ClientSessionCache = nil
			client.MaxVersion = version
			client.Rand = sameRandom{}
			peers[i], ends[i] = tls.Client(conn, client), ended
			wg.Go(func() {
				if err := peers[i].Handshake(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		for i := range n {
			if randoms[i] != randoms[0] {
				t.Fatal("the randoms differ: this tests nothing")
			}
			talk(t, await(t, ends[i]), peers[i])
		}
	}
}

type sameRandom struct{}

func (sameRandom) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 7
	}
	return len(b), nil
}

// writeHook shows each write before it is made.
type writeHook struct {
	net.Conn
	hook func([]byte)
}

func (w *writeHook) Write(b []byte) (int, error) {
	w.hook(b)
	return w.Conn.Write(b)
}

// Servers with TLS 1.2 may send a warning ahead of the ServerHello, such as
// unrecognized_name (RFC 6066, section 3): it is no part of the hello, whose
// random goes into the keys.
func TestWarningBeforeServerHello(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	f := newFloor(t, 1)
	client := l.client()
	client.MaxVersion = tls.VersionTLS12
	server := l.context(t, l.options()).Template().Clone()
	f.agreed(&Handshake{Client: client}, func(far net.Conn) *tls.Conn {
		writes := 0
		return tls.Server(&writeHook{far, func([]byte) {
			if writes++; writes == 1 {
				far.Write([]byte{21, 3, 3, 0, 2, 1, 112})
			}
		}}, server)
	})
}

// Error texts go to the log; parts of them come from the peer.
func TestErrorTextIsBounded(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	f := newFloor(t, 1)
	template := l.context(t, l.mutual()).Template().Clone()
	template.VerifyConnection = func(tls.ConnectionState) error { return errors.New(strings.Repeat("ü", 5000)) }
	far, ended := f.start(&Handshake{Context: &Context{template: template}})
	go tls.Client(far, l.client(l.alice)).Handshake()
	if h := await(t, ended); h.Err == nil || len(h.Err.Error()) > 400 {
		t.Errorf("an error of %d bytes", len(h.Err.Error()))
	}
}

// The line of the key log is wiped: it holds a traffic secret.
func TestKeyLogLineIsCleared(t *testing.T) {
	t.Parallel()
	for _, label := range []string{"CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0", "CLIENT_RANDOM", "CLIENT_HANDSHAKE_TRAFFIC_SECRET", "EXPORTER_SECRET"} {
		w := &worker{current: &Handshake{}}
		line := []byte(label + " " + strings.Repeat("ab", 32) + " " + strings.Repeat("cd", 48) + "\n")
		if n, err := (*keyLog)(w).Write(line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
		if slices.ContainsFunc(line, func(b byte) bool { return b != 0 }) {
			t.Errorf("%s: the line is still there: %q", label, line)
		}
	}
}

// Lines that are not as RFC 9850 has them bring no secret.
func TestKeyLogLines(t *testing.T) {
	t.Parallel()
	random := strings.Repeat("ab", 32)
	for line, want := range map[string]int{
		random + " " + strings.Repeat("cd", 32) + "\n": 32,
		random + " " + strings.Repeat("cd", 48):        48,
		random + " " + strings.Repeat("cd", 49) + "\n": 0,
		random + " \n": 0,
		random + "-" + strings.Repeat("cd", 32) + "\n": 0,
		random + " " + strings.Repeat("xy", 32) + "\n": 0,
		random[2:] + " " + strings.Repeat("cd", 32):    0,
		"": 0,
	} {
		var s [48]byte
		if n := secretOf([]byte(line), &s); n != want {
			t.Errorf("%q: %d bytes, want %d", line, n, want)
		}
	}
}
