package traffic

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"edgeproxy/integration/bench/peer"
)

// startTLS terminates TLS with crypto/tls in front of a backend, and sends in
// pieces of so many bytes, whatever the records.
func startTLS(t *testing.T, piece int, change func(*tls.Config)) netip.AddrPort {
	t.Helper()
	backend := startBackend(t)
	certificate, err := peer.NewCertificate(t.TempDir(), ServerName)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(certificate.CertFile, certificate.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}}
	if change != nil {
		change(config)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				client := tls.Server(inPieces{c, piece}, config)
				defer client.Close()
				if client.Handshake() != nil {
					return
				}
				server, err := net.Dial("tcp", backend.String())
				if err != nil {
					t.Error(err)
					return
				}
				defer server.Close()
				go func() {
					io.Copy(server, client)
					server.Close()
				}()
				io.Copy(client, server)
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

type inPieces struct {
	net.Conn
	size int
}

func (c inPieces) Write(b []byte) (int, error) {
	sent := 0
	for len(b) > 0 {
		n, err := c.Conn.Write(b[:min(c.size, len(b))])
		sent += n
		if err != nil {
			return sent, err
		}
		b = b[n:]
	}
	return sent, nil
}

func obeyAs(t *testing.T, speech Speech, target netip.AddrPort, commands ...Command) []Reply {
	t.Helper()
	return decode(t, commands, func(in io.Reader, out io.Writer) error {
		return Obey([]netip.AddrPort{target}, speech, 1, in, out)
	})
}

func TestTLSClient(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		speech Speech
		piece  int
		open   int
		run    Run
		least  uint64
	}{
		{"one request each", TLS, 1 << 20, 20, Run{Answer: 1024}, 20},
		{"records in pieces", TLS, 100, 5, Run{Answer: 1024}, 5},
		{"byte by byte", TLS, 1, 2, Run{Answer: 1024}, 2},
		{"long answers", TLS, 5000, 3, Run{Answer: 3 << 20}, 3},
		{"closed loop", TLS, 1 << 20, 4, Run{Duration: 50 * time.Millisecond, Answer: 1024}, 4},
		{"full handshakes", TLS, 1 << 20, 0, Run{Connect: true, Connections: 4, Answer: 1024}, 4},
		{"resumed", Resumed, 1 << 20, 0, Run{Duration: 50 * time.Millisecond, Connect: true, Connections: 4, Answer: 1024}, 4},
		{"resumed, kept", Resumed, 50, 4, Run{Answer: 1024}, 4},
		{"handshakes alone", TLS, 1 << 20, 0, Run{Connect: true, Handshake: true, Connections: 4, Answer: 1024}, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			target := startTLS(t, tt.piece, nil)
			var commands []Command
			if tt.open > 0 {
				commands = append(commands, Command{Open: &Open{Connections: tt.open, Request: 100, Answer: 1024}})
			}
			tt.run.Request = 100
			commands = append(commands, Command{Run: &tt.run})
			replies := obeyAs(t, tt.speech, target, commands...)
			last := replies[len(replies)-1]
			r := last.Result
			if last.Error != "" || r == nil || r.Errors > 0 || r.Requests < tt.least {
				t.Fatalf("%+v", last)
			}
			handshakes, resumed := uint64(0), uint64(0)
			if tt.run.Connect {
				handshakes = r.Requests
			}
			if tt.speech == Resumed {
				resumed = handshakes
			}
			if r.Handshakes != handshakes || r.Resumed != resumed {
				t.Errorf("%d handshakes, %d resumed, for %d requests", r.Handshakes, r.Resumed, r.Requests)
			}
		})
	}
}

// A server that does something else would make another benchmark.
func TestTLSClientRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		speech Speech
		change func(*tls.Config)
		want   string
	}{
		{"other groups", TLS, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP256} }, "TLS handshake"},
		{"old versions", TLS, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, "TLS handshake"},
		{"no tickets", Resumed, func(c *tls.Config) { c.SessionTicketsDisabled = true }, "no session ticket"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			target := startTLS(t, 1<<20, tt.change)
			var out strings.Builder
			in := strings.NewReader(`{"open":{"connections":1,"request":100,"answer":10}}`)
			err := Obey([]netip.AddrPort{target}, tt.speech, 1, in, &out)
			if got := errors.Join(err, errors.New(out.String())).Error(); !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want an error with %q", got, tt.want)
			}
		})
	}
}

func TestHelloIsOne(t *testing.T) {
	t.Parallel()
	want := header{size: headerSize, close: true, offset: 9, answer: 1024}
	whole := appendHello([]byte("before"), want)[len("before"):]
	for n := range whole {
		if _, ok, err := parseRequest(whole[:n]); ok || err != nil {
			t.Fatalf("the first %d bytes: whole=%v, %v", n, ok, err)
		}
		changed := bytes.Clone(whole)
		changed[n]++
		if got, ok, err := parseRequest(changed); ok && err == nil && got == want {
			t.Errorf("byte %d changed, and nobody noticed", n)
		}
	}
	if got, ok, err := parseRequest(whole); got != want || !ok || err != nil {
		t.Errorf("got %+v, %v, %v", got, ok, err)
	}

	// A server takes it for a ClientHello with the name and what is pinned.
	near, far := net.Pipe()
	defer near.Close()
	go near.Write(whole)
	stop := errors.New("stop")
	err := tls.Server(far, &tls.Config{GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
		if i.ServerName != ServerName || len(i.CipherSuites) != 1 || i.CipherSuites[0] != tls.TLS_AES_128_GCM_SHA256 ||
			len(i.SupportedCurves) != 1 || i.SupportedCurves[0] != tls.X25519 {
			t.Errorf("%+v", i)
		}
		far.Close() // the alert has no reader
		return nil, stop
	}}).Handshake()
	if !errors.Is(err, stop) {
		t.Error(err)
	}
}

// A server answers a stalled client's hello, and hears no more.
func TestStalledClientGetsItsFlight(t *testing.T) {
	t.Parallel()
	target := startTLS(t, 1<<20, nil)
	c, err := net.Dial("tcp", target.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(hello); err != nil {
		t.Fatal(err)
	}
	var first [6]byte
	if _, err := io.ReadFull(c, first[:]); err != nil || first[0] != helloFirst || first[5] != 2 {
		t.Errorf("%x, %v; want a ServerHello", first, err)
	}
	replies := obeyAs(t, TLS, target, Command{Stall: &Stall{Connections: 3}})
	if replies[0].Error != "" {
		t.Error(replies[0].Error)
	}
}

func TestHelloThenRequests(t *testing.T) {
	t.Parallel()
	backend := startBackend(t)
	replies := obeyAs(t, Hello, backend,
		Command{Open: &Open{Connections: 3, Request: 100, Answer: 1024}},
		Command{Run: &Run{Request: 100, Answer: 1024}},
		Command{Run: &Run{Connect: true, Connections: 3, Request: 100, Answer: 1024}})
	for i, r := range replies {
		if r.Error != "" || i > 0 && (r.Result.Errors > 0 || r.Result.Requests != 3) {
			t.Errorf("%d: %+v %+v", i, r, r.Result)
		}
	}
}
