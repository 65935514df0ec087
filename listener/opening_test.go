package listener

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/sniff"
	"edgeproxy/internal/testcert"
	"edgeproxy/tlsterm"
)

// entrance is a manager whose listener "edge" goes through all there is before
// a server: PROXY header, first bytes, TLS.
type entrance struct {
	t      *testing.T
	m      *Manager
	log    ends
	client *tls.Config
}

// newEntrance terminates sessions for a.example.com, and passes others on.
func newEntrance(t *testing.T, change func(*Options)) *entrance {
	t.Helper()
	m, log := newManager(t)
	pool := tlsterm.NewPool(1, nil)
	t.Cleanup(pool.Close)
	m.env.Handshakes = pool
	ca := testcert.NewCA(t, "servers")
	certFile, keyFile := ca.Server(t, "a.example.com").Write(t, t.TempDir(), "web")
	contexts, err := tlsterm.Prepare(&tlsterm.Env{}, nil, []tlsterm.Options{
		{Name: "public", ALPN: []string{"h2"}, Certificates: []tlsterm.CertificateOptions{{CertFile: certFile, KeyFile: keyFile}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(contexts.Discard)
	o := echoing(t, "edge", "127.0.0.1:0")
	o.Timeouts.Handshake = 20 * time.Second
	o.Routes[0].Match = []Match{{SNI: []string{"a.example.com"}}}
	o.Routes[0].TLS = "public"
	o.Routes = append(o.Routes, RouteOptions{Name: "rest", Splits: o.Routes[0].Splits})
	if change != nil {
		change(&o)
	}
	p, err := m.Prepare([]Options{o}, echo(t), contexts.Context)
	if err != nil {
		t.Fatal(err)
	}
	p.Commit()
	return &entrance{t, m, log, &tls.Config{ServerName: "a.example.com", RootCAs: ca.Pool(), NextProtos: []string{"h2"}}}
}

func withProxy(o *Options) { o.AcceptProxy = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} }

// end returns how a session ended, and asserts that it is gone, once, and all
// it held with it.
func (o *entrance) end() Record {
	o.t.Helper()
	select {
	case r := <-o.log:
		o.gone()
		return r
	case <-time.After(30 * time.Second):
		o.t.Fatal("no session has ended")
		return Record{}
	}
}

// gone asserts that every session is in the free list, and there once.
func (o *entrance) gone() {
	o.t.Helper()
	ln := o.m.listeners[0]
	for end := time.Now().Add(10 * time.Second); ln.handshakes.Load() != 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond) // the pool lets go of the descriptor on its own time
	}
	settle()
	if n := ln.handshakes.Load(); n != 0 {
		o.t.Errorf("%d handshakes are under way", n)
	}
	if st := ln.stats(); ln.active.Load() != 0 || st.Active != 0 {
		o.t.Errorf("%d sessions are active, %d for the limit", st.Active, ln.active.Load())
	}
	for _, w := range o.m.workers {
		w.loop.Do(func() {
			free := map[*session]bool{}
			for s := w.free; s != nil; s = s.next {
				if free[s] {
					o.t.Error("a session is in the free list twice")
					return
				}
				free[s] = true
			}
			if want := len(w.slab) << slabBits; len(free) != want {
				o.t.Errorf("%d sessions are free, of %d", len(free), want)
			}
		})
	}
}

// lowat is SO_RCVLOWAT of the client's socket of the only session.
func (o *entrance) lowat() (n int) {
	for _, w := range o.m.workers {
		w.loop.Do(func() {
			w.each(func(s *session) {
				n, _ = unix.GetsockoptInt(s.relay.ClientFD(), unix.SOL_SOCKET, unix.SO_RCVLOWAT)
			})
		})
	}
	return n
}

func (o *entrance) await(what string, is func() bool) {
	o.t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			o.t.Fatalf("not within 10s: %s", what)
		}
	}
}

// prefixed sends something ahead of the first bytes, in one segment with them
// or byte by byte.
type prefixed struct {
	net.Conn
	prefix string
	single bool
}

func (p *prefixed) Write(b []byte) (int, error) {
	all := append([]byte(p.prefix), b...)
	p.prefix = ""
	size := len(all)
	if p.single {
		size = 1
	}
	for len(all) > 0 {
		if _, err := p.Conn.Write(all[:min(size, len(all))]); err != nil {
			return 0, err
		}
		all = all[min(size, len(all)):]
	}
	return len(b), nil
}

const headerV1 = "PROXY TCP4 192.0.2.7 198.51.100.2 56324 443\r\n"

// headerV2 has so many bytes of TLVs.
func headerV2(tlvs int) string {
	h := []byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11")
	h = binary.BigEndian.AppendUint16(h, uint16(12+tlvs))
	h = append(h, 192, 0, 2, 7, 198, 51, 100, 2, 0xdc, 0x04, 0x01, 0xbb)
	if tlvs > 0 {
		h = append(h, 0x04) // NOOP
		h = binary.BigEndian.AppendUint16(h, uint16(tlvs-3))
		h = append(h, make([]byte, tlvs-3)...)
	}
	return string(h)
}

// A PROXY header and the ClientHello in one segment, or byte by byte: nothing
// of the one is taken for the other, and the names in both are known.
func TestHeaderAndHello(t *testing.T) {
	o := newEntrance(t, withProxy)
	for name, header := range map[string]string{"v1": headerV1, "v2": headerV2(0), "v2 with TLVs": headerV2(500)} {
		for _, single := range []bool{false, true} {
			c := dial(t, o.m, "edge")
			peer := tls.Client(&prefixed{c, header, single}, o.client)
			roundTrip(t, peer)
			if n := o.lowat(); n != 1 {
				t.Errorf("%s: SO_RCVLOWAT is %d while relaying", name, n)
			}
			peer.Close()
			r := o.end()
			if r.End != ClientClosed || r.Source.String() != "192.0.2.7:56324" || r.SNI != "a.example.com" || r.ALPN != "h2" ||
				r.Destination.String() != "198.51.100.2:443" || r.Phase != PhaseRelay || r.BytesIn != 5 {
				t.Errorf("%s, byte by byte %v: %+v", name, single, r)
			}
		}
	}
}

// Long headers and hellos are awaited without a look at each piece; whoever
// follows must be told of single bytes again.
func TestLowWaterMarkIsReset(t *testing.T) {
	o := newEntrance(t, withProxy)
	o.client.NextProtos = nil
	for i := range 40 {
		o.client.NextProtos = append(o.client.NextProtos, fmt.Sprintf("protocol %d %s", i, strings.Repeat("x", 50)))
	}
	o.client.NextProtos = append(o.client.NextProtos, "h2")
	for _, sni := range []string{"a.example.com", "b.example.com"} { // terminated, passed on
		c := dial(t, o.m, "edge")
		header := headerV2(3000)
		io.WriteString(c, header[:100])
		o.await("the loop waits for the rest of the header", func() bool { return o.lowat() == len(header) })
		io.WriteString(c, header[100:])
		o.await("the loop waits for a byte", func() bool { return o.lowat() == 1 })
		client := o.client.Clone()
		client.ServerName = sni
		client.InsecureSkipVerify = true // an echo of the ClientHello is no answer anyway
		peer := tls.Client(&halved{Conn: c, between: func() {
			o.await("the loop waits for the rest of the hello", func() bool { return o.lowat() > 1000 })
		}}, client)
		err := peer.Handshake()
		if n := o.lowat(); n > 1 {
			t.Errorf("%s: SO_RCVLOWAT is %d in the end", sni, n)
		}
		if sni == "a.example.com" {
			if err != nil {
				t.Fatal(err)
			}
			roundTrip(t, peer)
		} else if err == nil {
			t.Error("a handshake with an echo")
		}
		c.Close()
		o.end()
	}
}

// halved writes the first bytes in two pieces.
type halved struct {
	net.Conn
	between func()
}

func (h *halved) Write(b []byte) (int, error) {
	if h.between == nil {
		return h.Conn.Write(b)
	}
	h.Conn.Write(b[:300])
	h.between()
	h.between = nil
	_, err := h.Conn.Write(b[300:])
	return len(b), err
}

// hello is a ClientHello as crypto/tls sends it.
func (o *entrance) hello() []byte {
	o.t.Helper()
	a, b := net.Pipe()
	go tls.Client(a, o.client).Handshake()
	buf := make([]byte, 16<<10)
	n, err := b.Read(buf)
	a.Close()
	b.Close()
	if err != nil {
		o.t.Fatal(err)
	}
	return buf[:n]
}

// A FIN, a reset or silence at every stage. None of them gets by to a server
// as something else, but for those who have said all there is to be known.
func TestEndsAtEveryStage(t *testing.T) {
	const handshake = 300 * time.Millisecond
	o := newEntrance(t, func(opts *Options) {
		withProxy(opts)
		opts.Timeouts.Handshake = handshake
	})
	hello := string(o.hello())
	for _, c := range []struct {
		what, sent string
		phase      Phase
		fin        End
	}{
		{"nothing", "", PhaseProxyHeader, BadProxyHeader},
		{"half a header", headerV1[:20], PhaseProxyHeader, BadProxyHeader},
		{"half a header of TLVs", headerV2(3000)[:1000], PhaseProxyHeader, BadProxyHeader},
		{"half a hello", headerV1 + hello[:len(hello)/2], PhaseSniff, TLSFailed},
		{"a byte of a hello", headerV1 + hello[:6], PhaseSniff, TLSFailed},
		{"a hello", headerV1 + hello, PhaseTLS, TLSFailed},
		{"a hello and garbage", headerV1 + hello + "\x14\x03\x03\x00\x01\x01\x17\x03\x03\x00", PhaseTLS, TLSFailed},
	} {
		for _, how := range []string{"fin", "reset", "silence"} {
			conn := dial(t, o.m, "edge")
			io.WriteString(conn, c.sent)
			began := time.Now()
			want := c.fin
			switch how {
			case "fin":
				conn.(*net.TCPConn).CloseWrite()
			case "reset":
				// Where its bytes are looked at first, and then there is no more,
				// is chance; the reset is not to be seen as a FIN.
				o.await("the bytes are there", func() bool { return len(c.sent) == 0 || o.phase() == c.phase })
				conn.(*net.TCPConn).SetLinger(0)
				conn.Close()
				if want = ClientReset; c.phase == PhaseTLS {
					want = TLSFailed
				}
			case "silence":
				want = HandshakeTimeout
			}
			r := o.end()
			if r.End != want || r.Phase != c.phase || r.Server != "" || r.Err == nil {
				t.Errorf("%s, then %s: ended %v in %v, server %q, %v; want %v in %v", c.what, how, r.End, r.Phase, r.Server, r.Err, want, c.phase)
			}
			if took := time.Since(began); how == "silence" && (r.Duration < handshake-20*time.Millisecond || took > handshake+5*time.Second) {
				t.Errorf("%s, then silence: took %v", c.what, r.Duration)
			}
			conn.Close()
		}
	}
}

// phase is that of the only session.
func (o *entrance) phase() (p Phase) {
	for _, w := range o.m.workers {
		w.loop.Do(func() { w.each(func(s *session) { p = s.phase }) })
	}
	return p
}

// Traefik CVE-2026-25949: one deadline from accept to the first routed byte,
// that no state may clear. A client sends a byte whenever one might look.
func TestOneDeadlineForAllStages(t *testing.T) {
	const handshake = 600 * time.Millisecond
	for name, change := range map[string]func(*Options){
		"plain": nil,
		"sniff": func(o *Options) { o.Timeouts.Sniff = 500 * time.Millisecond },
	} {
		o := newEntrance(t, func(opts *Options) {
			withProxy(opts)
			opts.Timeouts.Handshake = handshake
			if change != nil {
				change(opts)
			}
		})
		hello := string(o.hello())
		for stage, sent := range map[string]string{"header": "", "hello": headerV1, "handshake": headerV1 + hello} {
			conn := dial(t, o.m, "edge")
			io.WriteString(conn, sent)
			stop := make(chan struct{})
			go func() {
				more := map[string]string{"header": headerV2(3000), "hello": string(hello), "handshake": "\x17\x03\x03\x40\x00" + strings.Repeat("x", 10_000)}[stage]
				tick := time.NewTicker(5 * time.Millisecond)
				defer tick.Stop()
				for i := range len(more) - 1 {
					select {
					case <-stop:
						return
					case <-tick.C:
						if _, err := io.WriteString(conn, more[i:i+1]); err != nil {
							return
						}
					}
				}
			}()
			r := o.end()
			close(stop)
			if r.End != HandshakeTimeout || r.Duration < handshake-20*time.Millisecond || r.Duration > handshake+400*time.Millisecond {
				t.Errorf("%s, a slow %s: ended %v in %v after %v", name, stage, r.End, r.Phase, r.Duration)
			}
		}
		// A header that takes most of the time, and then silence.
		conn := dial(t, o.m, "edge")
		time.Sleep(400 * time.Millisecond) // a slow client
		io.WriteString(conn, headerV1+"\x16")
		if r := o.end(); r.End != HandshakeTimeout || r.Duration > handshake+250*time.Millisecond {
			t.Errorf("%s, a late header: ended %v in %v after %v", name, r.End, r.Phase, r.Duration)
		}
	}
}

// timeouts.sniff lets clients through that wait for the server to speak; it
// neither lengthens nor replaces timeouts.handshake, which may be off.
func TestSniffTimeout(t *testing.T) {
	for _, handshake := range []time.Duration{0, -1} {
		o := newEntrance(t, func(o *Options) {
			o.Timeouts.Handshake, o.Timeouts.Sniff = handshake, 500*time.Millisecond
		})
		c := dial(t, o.m, "edge")
		o.await("the session is relayed", func() bool { return o.phase() == PhaseRelay })
		roundTrip(t, c)
		c.Close()
		if r := o.end(); r.End != ClientClosed || r.Route != "rest" || r.Protocol != sniff.Unknown {
			t.Errorf("handshake %v: silent: %+v", handshake, r)
		}
		// Whoever begins to speak is heard to the end.
		c = dial(t, o.m, "edge")
		peer := tls.Client(&halved{Conn: c, between: func() { time.Sleep(700 * time.Millisecond) }}, o.client)
		roundTrip(t, peer)
		peer.Close()
		if r := o.end(); r.End != ClientClosed || r.SNI != "a.example.com" {
			t.Errorf("handshake %v: slow: %+v", handshake, r)
		}
		// A handshake that takes longer than timeouts.sniff.
		c = dial(t, o.m, "edge")
		peer = tls.Client(&slowAnswer{Conn: c}, o.client)
		roundTrip(t, peer)
		peer.Close()
		if r := o.end(); r.End != ClientClosed {
			t.Errorf("handshake %v: a slow handshake: %+v", handshake, r)
		}
	}
}

// slowAnswer waits before it reads for the first time.
type slowAnswer struct {
	net.Conn
	waited bool
}

func (s *slowAnswer) Read(b []byte) (int, error) {
	if !s.waited {
		s.waited = true
		time.Sleep(700 * time.Millisecond)
	}
	return s.Conn.Read(b)
}

// Sessions that end while their handshakes are under way, for any reason, are
// freed once, and their descriptors when the pool has let go.
func TestSessionsEndDuringHandshakes(t *testing.T) {
	o := newEntrance(t, nil)
	hello := o.hello()
	var conns []net.Conn
	for range 50 {
		c := dial(t, o.m, "edge")
		c.Write(hello)
		conns = append(conns, c)
	}
	ln := o.m.listeners[0]
	o.await("all are in their handshakes", func() bool { return ln.handshakes.Load() == 50 })
	for _, c := range conns {
		if _, err := io.ReadFull(c, make([]byte, 100)); err != nil { // the server's flight
			t.Fatal(err)
		}
	}
	for _, w := range o.m.workers {
		w.loop.Do(func() {
			w.each(func(s *session) {
				s.end(Killed, errors.New("by the test"))
			})
		})
	}
	for range conns {
		if r := <-o.log; r.End != Killed || r.Phase != PhaseTLS {
			t.Errorf("%+v", r)
		}
	}
	o.gone()
	for _, c := range conns {
		if b, _ := io.ReadAll(c); bytes.Contains(b, []byte("by the test")) {
			t.Error("told the client")
		}
	}
	// The slab is in order: it serves as many again.
	for range 3 {
		c := dial(t, o.m, "edge")
		peer := tls.Client(c, o.client)
		roundTrip(t, peer)
		peer.Close()
		if r := o.end(); r.End != ClientClosed {
			t.Errorf("afterwards: %+v", r)
		}
	}
}
