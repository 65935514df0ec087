package integration

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"edgeproxy/internal/tlsrecord"
)

// recorder is a connection that tells what a client sends, and can hold parts
// of it back: after hold bytes nothing more goes out.
type recorder struct {
	net.Conn
	sent []byte
	hold int // negative: nothing is held
	held chan struct{}
}

func newRecorder(c net.Conn, hold int) *recorder {
	return &recorder{Conn: c, hold: hold, held: make(chan struct{})}
}

func (r *recorder) Write(b []byte) (int, error) {
	n := len(b)
	if r.hold >= 0 {
		n = min(n, r.hold-len(r.sent))
	}
	if _, err := r.Conn.Write(b[:n]); err != nil {
		return 0, err
	}
	r.sent = append(r.sent, b[:n]...)
	if n < len(b) {
		close(r.held)
		return 0, io.ErrClosedPipe
	}
	return n, nil
}

// clientFlights are the bytes that a client sends in a handshake: its hello,
// and what follows the server's flight.
func clientFlights(t *testing.T, addr string, cfg *tls.Config) (hello, rest int) {
	t.Helper()
	r := newRecorder(Dial(t, addr), -1)
	c := tls.Client(r, cfg)
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	hello = 5 + int(r.sent[3])<<8 + int(r.sent[4])
	all := len(r.sent)
	c.Close()
	return hello, all - hello
}

// A handshake may stop anywhere: it costs its session after timeouts.handshake,
// and leaves nothing behind.
func TestTLSHandshakeStops(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		for _, routed := range []bool{false, true} {
			l := newTLSLab(t)
			body := l.edgeWith("", `timeouts { handshake = "3s" }`, "", Serve(t, echo).Addr())
			if routed {
				body = strings.Replace(body, "upstream = upstream.app\n tls = tls.public",
					"route \"r\" {\n match { sni = [\"app.test\"] }\n upstream = upstream.app\n tls = tls.public\n }", 1)
			}
			p := Start(t, body)
			addr := p.Addr("edge")
			cfg := only(l.client(), version, 0)
			hello, rest := clientFlights(t, addr, cfg)
			p.AccessLog(1)
			var holds []int
			for n := 0; n < hello; n += 1 + n/23 {
				holds = append(holds, n)
			}
			early := len(holds)
			holds = append(holds, hello)
			for n := 1; n < rest; n += 7 {
				holds = append(holds, hello+n)
			}
			for _, hold := range holds {
				c := Dial(t, addr)
				go tls.Client(newRecorder(c, hold), cfg).Handshake()
			}
			ends := countBy(p.AccessLog(1 + len(holds))[1:], func(e Entry) string {
				tlsFault(t, e, "timeouts.handshake")
				return e.End + " in " + e.Phase
			})
			want := map[string]int{"handshake_timeout in sniff": early, "handshake_timeout in tls": len(holds) - early}
			if fmt.Sprint(ends) != fmt.Sprint(want) {
				t.Errorf("ended by %v, want %v", ends, want)
			}
			// Without a whole hello no handshake is begun.
			if n := p.Metrics().Sum("edgeproxy_tls_handshakes_total", "result", "failed"); n != float64(len(holds)-early) {
				t.Errorf("%v handshakes failed, want %d", n, len(holds)-early)
			}
		}
	})
}

// Clients that go in the middle of a handshake.
func TestTLSHandshakeAbandoned(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		l := newTLSLab(t)
		p := Start(t, l.edge(Serve(t, echo).Addr()))
		addr := p.Addr("edge")
		cfg := only(l.client(), version, 0)
		hello, rest := clientFlights(t, addr, cfg)
		p.AccessLog(1)
		n := 0
		for _, hold := range []int{0, 1, 5, hello - 1, hello, hello + 1, hello + rest - 1} {
			for _, leave := range []func(Conn){reset, func(c Conn) { c.Close() }, func(c Conn) { c.CloseWrite() }} {
				c := Dial(t, addr)
				r := newRecorder(c, hold)
				done := make(chan struct{})
				go func() {
					tls.Client(r, cfg).Handshake()
					close(done)
				}()
				<-r.held
				leave(c)
				n++
			}
		}
		for _, e := range p.AccessLog(1 + n)[1:] {
			switch e.End + " in " + e.Phase {
			case "tls_failed in tls", "client_reset in tls", "client_closed in tls":
			case "tls_failed in sniff", "client_reset in sniff", "client_closed in sniff":
			default:
				t.Errorf("%+v", e)
			}
		}
		RoundTrip(t, DialTLS(t, addr, cfg), "well")
	})
}

// Handshakes that wait do not stand in the way of sessions that live, nor of
// other handshakes.
func TestTLSHandshakeManyWaiting(t *testing.T) {
	t.Parallel()
	l := newTLSLab(t)
	p := Start(t, l.edgeWith("", `timeouts { handshake = "30s" }`, "", Serve(t, echo).Addr()))
	addr := p.Addr("edge")
	live := DialTLS(t, addr, l.client())
	before := p.footprint()
	cfg := l.client()
	hello, _ := clientFlights(t, addr, cfg)
	p.AccessLog(1)
	for i := range 300 {
		go tls.Client(newRecorder(Dial(t, addr), []int{hello, hello - 1, 3}[i%3]), cfg).Handshake()
	}
	p.Await(301, "edgeproxy_sessions_active")
	for range 20 {
		RoundTrip(t, live, "alive")
		RoundTrip(t, DialTLS(t, addr, l.client()), "new")
	}
	if f := p.footprint(); f.goroutines > before.goroutines+310 {
		t.Errorf("%d goroutines for 300 handshakes", f.goroutines-before.goroutines)
	}
}

func TestTLSHandshakeLimits(t *testing.T) {
	t.Parallel()
	t.Run("handshakes", func(t *testing.T) {
		t.Parallel()
		l := newTLSLab(t)
		p := Start(t, l.edgeWith("", "limits { handshakes = 3 }\n timeouts { handshake = \"25s\" }", "", Serve(t, echo).Addr()))
		addr := p.Addr("edge")
		hello, _ := clientFlights(t, addr, l.client())
		p.AccessLog(1)
		live := DialTLS(t, addr, l.client())
		var held []Conn
		for range 3 {
			c := Dial(t, addr)
			held = append(held, c)
			r := newRecorder(c, hello)
			go tls.Client(r, l.client()).Handshake()
			<-r.held // the server's flight has come
		}
		for i := range 4 {
			if c, err := tlsConnect(addr, l.client()); err == nil {
				c.Close()
				t.Error("one more than may be under way")
			}
			tlsFault(t, p.LastEnd(2+i, "limited", "tls"), "handshakes")
		}
		RoundTrip(t, live, "sessions are no handshakes")
		held[0].Close()
		p.AccessLog(6)
		RoundTrip(t, DialTLS(t, addr, l.client()), "after one has gone")
	})
	t.Run("handshake_rate", func(t *testing.T) {
		t.Parallel()
		l := newTLSLab(t)
		p := Start(t, l.edgeWith("", "limits { handshake_rate = \"5/s\" }", "", Serve(t, echo).Addr()))
		addr := p.Addr("edge")
		begin, good, n := time.Now(), 0, 0
		for time.Since(begin) < 2*time.Second {
			if c, err := tlsConnect(addr, l.client()); err == nil {
				good++
				c.Close()
			}
			n++
		}
		// The rate, and the burst of a second before it.
		if most := 5 * (int(time.Since(begin)/time.Second) + 2); good < 5 || good > most {
			t.Errorf("%d of %d handshakes in %v, want 5 to %d", good, n, time.Since(begin), most)
		}
		ends := countBy(p.AccessLog(n), func(e Entry) string { return e.End })
		if ends["limited"] != n-good {
			t.Errorf("ends %v of %d, %d of them good", ends, n, good)
		}
	})
}

// fragments sends what a client writes in pieces: each record's text spread
// over records of at most record bytes, in segments of at most segment bytes.
type fragments struct {
	net.Conn
	record, segment int
	done            bool
}

func (f *fragments) Write(b []byte) (int, error) {
	out := b
	if f.record > 0 && !f.done {
		out = nil
		n := 5 + int(b[3])<<8 + int(b[4])
		for text := b[5:n]; len(text) > 0; {
			m := min(f.record, len(text))
			out = append(out, b[0], b[1], b[2], byte(m>>8), byte(m))
			out = append(out, text[:m]...)
			text = text[m:]
		}
		out = append(out, b[n:]...)
	}
	f.done = true
	for len(out) > 0 {
		n := len(out)
		if f.segment > 0 {
			n = min(n, f.segment)
		}
		if _, err := f.Conn.Write(out[:n]); err != nil {
			return 0, err
		}
		out = out[n:]
	}
	return len(b), nil
}

// A hello may be spread over records and segments (RFC 8446, section 5.1). That
// of a post-quantum client always is over segments. (Traefik CVE-2026-32305: a
// ClientHello split over records gave an empty SNI.)
func TestTLSHandshakeFragmented(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		l := newTLSLab(t)
		// With a route by name, and where nobody looks at the hello first.
		p := Start(t, l.policy("strict_sni = true")+fmt.Sprintf(`
listener "tcp" "edge" {
  address = "127.0.0.1:0"
  route "named" {
    match { sni = ["app.test"] }
    tls      = tls.public
    upstream = upstream.app
  }
  route "rest" { reject = true }
}
listener "tcp" "direct" {
  address  = "127.0.0.1:0"
  tls      = tls.public
  upstream = upstream.app
}
upstream "app" {
  server "a" { address = %q }
}`, Serve(t, echo).Addr()))
		for _, listener := range []string{"edge", "direct"} {
			addr := p.Addr(listener)
			for _, f := range []fragments{
				{segment: 1}, {segment: 700}, {segment: 1400},
				{record: 100}, {record: 50, segment: 49}, {record: 5}, {record: 16, segment: 1},
			} {
				under := Dial(t, addr)
				f.Conn = under
				c := tls.Client(&f, only(l.client(), version, 0))
				if err := c.Handshake(); err != nil {
					t.Errorf("%s: records of %d, segments of %d: %v", listener, f.record, f.segment, err)
					continue
				}
				if version == tls.VersionTLS13 && c.ConnectionState().CurveID != tls.X25519MLKEM768 {
					t.Errorf("key exchange %v", c.ConnectionState().CurveID)
				}
				RoundTrip(t, c, "whole")
				c.Close()
			}
		}
	})
}

// corked sends what is written after the hello when it is told to.
type corked struct {
	net.Conn
	cork bool
	held []byte
}

func (c *corked) Write(b []byte) (int, error) {
	if !c.cork || c.held == nil {
		c.held = []byte{}
		return c.Conn.Write(b)
	}
	c.held = append(c.held, b...)
	return len(b), nil
}

// SetWriteDeadline is ignored: crypto/tls sets one in the past when it has
// sent close_notify.
func (c *corked) SetWriteDeadline(time.Time) error { return nil }

// What a client sends together with the end of its handshake belongs to the
// session: not a byte of it may be lost in the hand-over.
func TestTLSHandshakeDataBehindFinished(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		l := newTLSLab(t)
		p := Start(t, l.edge(Serve(t, echo).Addr()))
		addr := p.Addr("edge")
		cfg := only(l.client(), version, 0)
		if version == tls.VersionTLS12 {
			// Only of a resumed one the client's Finished is the last.
			cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			c := DialTLS(t, addr, cfg)
			RoundTrip(t, c, "a ticket, please")
		}
		for i := range 12 {
			under := &corked{Conn: Dial(t, addr), cork: true}
			c := tls.Client(under, cfg)
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			text := randomBytes([]int{0, 1, 1000, 100_000}[i%4])
			c.Write(text)
			if i%2 == 0 {
				c.CloseWrite() // and the end of the data with it
			}
			under.cork = false
			go under.Conn.Write(under.held)
			got := make([]byte, len(text))
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, text) {
				t.Fatalf("session %d, %d bytes: %v", i, len(text), err)
			}
			if i%2 == 0 {
				ExpectEOF(t, c)
			}
			c.Close()
		}
	})
}

// Sessions that are resumed end up where the others do.
func TestTLSHandshakeResumption(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		l := newTLSLab(t)
		p := Start(t, l.edge(Serve(t, echo).Addr()))
		addr := p.Addr("edge")
		suites := []uint16{0}
		if version == tls.VersionTLS12 {
			suites = []uint16{suites12[0], suites12[1], suites12[2]}
		}
		full, resumed := 0.0, 0.0
		for _, suite := range suites {
			cfg := only(l.client(), version, suite)
			cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			for i := range 5 {
				c := DialTLS(t, addr, cfg)
				text := string(randomBytes(50_000))
				RoundTrip(t, c, text) // and the tickets of TLS 1.3
				if c.ConnectionState().DidResume != (i > 0) {
					t.Errorf("session %d: resumed is %v", i, i == 0)
				}
				if n := p.tlsSessions(); n != 1 {
					t.Errorf("%v sessions, want 1", n)
				}
				if i > 0 {
					resumed++
				} else {
					full++
				}
				c.Close()
				p.Await(0, "edgeproxy_tls_sessions")
			}
		}
		v := strings.TrimPrefix(tls.VersionName(version), "TLS ")
		m := p.Metrics()
		if f, r := m.Sum("edgeproxy_tls_handshakes_total", "version", v, "result", "full"), m.Sum("edgeproxy_tls_handshakes_total", "version", v, "result", "resumed"); f != full || r != resumed {
			t.Errorf("%v full and %v resumed handshakes were counted, want %v and %v", f, r, full, resumed)
		}
	})
}

// Data before the handshake is done could be replayed by anyone (RFC 8446,
// section 8): no ticket allows it, and a client that sends it nevertheless gets
// none of it through. (HAProxy CVE-2024-49214)
func TestTLSHandshakeEarlyData(t *testing.T) {
	t.Parallel()
	l := newTLSLab(t)
	got := make(chan string, 1)
	p := Start(t, l.edge(Serve(t, func(c Conn) {
		b, _ := io.ReadAll(c)
		got <- string(b)
	}).Addr()))
	c := Dial(t, p.Addr("edge"))
	r := newRecorder(c, -1)
	s := tls.Client(&earlyData{Conn: r}, l.client())
	// Not a byte of what was sent too soon decrypts. The client may be done
	// with its handshake before it hears of that.
	if err := s.Handshake(); err == nil {
		if _, err := s.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("the client read %v", err)
		}
	}
	c.Close()
	if e := p.LastEnd(1, "tls_failed", "tls"); e.BytesIn != 0 {
		t.Errorf("%+v", e)
	}
	select {
	case b := <-got:
		t.Errorf("the server got %q", b)
	default:
	}
}

// earlyData sends a record of application data right behind the hello.
type earlyData struct {
	net.Conn
	done bool
}

func (e *earlyData) Write(b []byte) (int, error) {
	n, err := e.Conn.Write(b)
	if !e.done {
		e.done = true
		e.Conn.Write(append([]byte{23, 3, 3, 0, 40}, bytes.Repeat([]byte("early"), 8)...))
	}
	return n, err
}

// Renegotiation is refused by an alert (RFC 5746, section 4.5).
func TestTLSHandshakeRenegotiation(t *testing.T) {
	t.Parallel()
	a := newAbused(t, tls.VersionTLS12)
	c := a.dial(t)
	c.send(c.data("x"))
	c.expect("x")
	c.send(c.seal(tlsrecord.Handshake, "\x01\x00\x00\x2d\x03\x03"+strings.Repeat("r", 39)))
	e := a.refused(t, c, tlsrecord.AlertNoRenegotiation)
	if wantEngine(t) != "" {
		tlsFault(t, e, "renegotiation")
	}
}
