package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"edgeproxy/internal/proxyproto"
)

// serveUDP answers each datagram with what reply returns, datagram by datagram.
func serveUDP(t *testing.T, network, address string, reply func(query []byte) [][]byte) string {
	t.Helper()
	conn, err := net.ListenPacket(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		b := make([]byte, maxDatagram)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			for _, answer := range reply(b[:n]) {
				conn.WriteTo(answer, from)
			}
		}
	}()
	return conn.LocalAddr().String()
}

func datagramsOf(answers ...string) func([]byte) [][]byte {
	return func([]byte) (all [][]byte) {
		for _, a := range answers {
			all = append(all, []byte(a))
		}
		return all
	}
}

func echo(query []byte) [][]byte { return [][]byte{query} }

func TestUDPProbes(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("x", 65507-2) // 65507 is the most over IPv4
	short, long := 90*time.Millisecond, 900*time.Millisecond
	for _, c := range []struct {
		name  string
		reply func([]byte) [][]byte
		opts  Options
		want  string
	}{
		{"send and expect", echo, Options{Send: []byte("PING"), Expect: []byte("IN")}, ""},
		{"binary", echo, Options{Send: []byte{0, 0xff, 0}, Expect: []byte{0xff, 0}}, ""},
		{"the longest answer is read whole", datagramsOf(big + "ok"), Options{Expect: []byte("xok")}, ""},
		{"the longest datagram is sent", echo, Options{Send: []byte(big + "ok"), Expect: []byte("xok")}, ""},
		{"too long a datagram", echo, Options{Send: []byte(big + "too"), Expect: []byte("x")}, "write: message too long while sending"},
		{"expected in a later datagram", datagramsOf("a", "b", "", "ok"), Options{Expect: []byte("ok")}, ""},
		{"not expected over two datagrams", datagramsOf("PO", "NG"), Options{Expect: []byte("PONG"), Timeout: long}, `timed out after 900ms waiting for "PONG"; got "NG"`},
		{"another answer", datagramsOf("LOADING"), Options{Expect: []byte("PONG"), Timeout: long}, `timed out after 900ms waiting for "PONG"; got "LOADING"`},
		{"a long other answer", datagramsOf(big), Options{Expect: []byte("PONG"), Timeout: long}, `timed out after 900ms waiting for "PONG"; got "` + big[:64] + `"…`},
		{"other answers without end", datagramsOf(slices.Repeat([]string{"no"}, 70)...), Options{Expect: []byte("PONG")}, `none of 64 datagrams contains "PONG"; got "no"`},
		{"silence", datagramsOf(), Options{Expect: []byte("PONG"), Timeout: short}, "timed out after 90ms waiting for the response to 3 datagrams"},
		{"any answer", datagramsOf("what?"), Options{Send: []byte("PING")}, ""},
		{"an empty answer", datagramsOf(""), Options{Send: []byte("PING")}, ""},
		{"silence, nothing expected", datagramsOf(), Options{Send: []byte("PING"), Timeout: short}, ""},
		{"silence, nothing sent", datagramsOf(), Options{Timeout: short}, ""},
		{"an empty datagram is sent", func(query []byte) [][]byte { return datagramsOf(fmt.Sprint(len(query)))(nil) }, Options{Expect: []byte("0")}, ""},
		{"PROXY v2", expectLocal, Options{Send: []byte("PING"), Expect: []byte("PONG"), ProxyProtocol: ProxyV2}, ""},
		{"PROXY v2, nothing to send", expectLocal, Options{Expect: []byte("PONG"), ProxyProtocol: ProxyV2}, ""},
		{"PROXY v1", echo, Options{Expect: []byte("x"), ProxyProtocol: ProxyV1}, `version 1 of the PROXY protocol knows TCP only; set proxy_protocol = "v2" in the udp check, or leave it out`},
	} {
		for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
			t.Run(c.name+" "+address, func(t *testing.T) {
				t.Parallel()
				o := c.opts
				o.Kind = UDP
				if o.Timeout == 0 {
					o.Timeout = 20 * time.Second
				}
				if strings.HasPrefix(address, "[") && len(o.Send) > 65507 {
					o.Send = append(o.Send, make([]byte, 20)...) // IPv6 has no header to count in
				}
				err := run(t, o, Target{Network: "tcp", Address: serveUDP(t, "udp", address, c.reply)})
				if got := text(err); got != c.want {
					t.Errorf("got  %s\nwant %s", got, c.want)
				}
			})
		}
	}
}

// expectLocal is a server that wants the command LOCAL and the payload in one
// datagram (PROXY protocol, sections 2 and 2.2).
func expectLocal(query []byte) [][]byte {
	var h proxyproto.Header
	n, err := h.ParseDatagram(query)
	if payload := string(query[n:]); err != nil || !h.Local || payload != "" && payload != "PING" {
		return datagramsOf(fmt.Sprintf("%q: %+v, %v", query, h, err))(nil)
	}
	return datagramsOf("PONG")(nil)
}

// A query for the root's name servers, RFC 1035 section 4.1: id, recursion
// desired, one question, "." NS IN. What counts of the answer is the id, that
// it is one, and no error: the flags QR and RD, RA, RCODE 0.
func TestUDPProbeOfNameServer(t *testing.T) {
	t.Parallel()
	query := []byte("\xed\x9e\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01")
	server := func(rcode byte) string {
		return serveUDP(t, "udp", "127.0.0.1:0", func(q []byte) [][]byte {
			if !bytes.Equal(q, query) {
				t.Errorf("the query is %x", q)
			}
			a := bytes.Clone(q)
			a[2], a[3] = 0x81, 0x80|rcode
			return [][]byte{a}
		})
	}
	o := Options{Kind: UDP, Send: query, Expect: []byte("\xed\x9e\x81\x80"), Timeout: 20 * time.Second}
	if err := run(t, o, Target{Network: "tcp", Address: server(0)}); err != nil {
		t.Error(err)
	}
	o.Timeout = 900 * time.Millisecond
	want := `timed out after 900ms waiting for "\xed\x9e\x81\x80"; got "\xed\x9e\x81\x82\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01"`
	if got := text(run(t, o, Target{Network: "tcp", Address: server(2)})); got != want {
		t.Errorf("SERVFAIL: got  %s\nwant %s", got, want)
	}
}

func TestUDPRefused(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		// Bound, so that nobody else gets the port, but connected to itself,
		// so that what comes from others is refused.
		server, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address)))
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		connectToItself(t, server)
		target := Target{Network: "tcp", Address: server.LocalAddr().String()}
		for _, o := range []Options{{}, {Send: []byte("x")}, {Send: []byte("x"), Expect: []byte("y")}} {
			o.Kind, o.Timeout = UDP, 20*time.Second
			err := run(t, o, target)
			if got, want := text(err), "connection refused: nothing listens on the server's UDP port, or a firewall rejects it (ICMP port unreachable)"; got != want {
				t.Errorf("%s: got %q, want %q", address, got, want)
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s: %v is not ECONNREFUSED", address, err)
			}
		}
	}
}

func connectToItself(t *testing.T, conn *net.UDPConn) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	self := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	var address syscall.Sockaddr = &syscall.SockaddrInet6{Port: int(self.Port()), Addr: self.Addr().As16()}
	if self.Addr().Is4() {
		address = &syscall.SockaddrInet4{Port: int(self.Port()), Addr: self.Addr().As4()}
	}
	raw.Control(func(fd uintptr) { err = syscall.Connect(int(fd), address) })
	if err != nil {
		t.Fatal(err)
	}
}

// What a server has got before it went away is not the end: the next datagram
// finds out.
func TestUDPServerGoesAway(t *testing.T) {
	t.Parallel()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		conn.ReadFrom(make([]byte, 1))
		conn.Close()
	}()
	o := Options{Kind: UDP, Expect: []byte("x"), Timeout: 3 * time.Second}
	if err := run(t, o, Target{Network: "tcp", Address: conn.LocalAddr().String()}); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
}

// A server's port may be given to the probe of it when the server is down, as
// it is one of the ephemeral ones.
func TestUDPProbeDoesNotAnswerItself(t *testing.T) {
	t.Parallel()
	free, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	self := free.LocalAddr().(*net.UDPAddr)
	free.Close()
	conn, err := net.DialUDP("udp", self, self)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	o := Options{Kind: UDP, Send: []byte("x")}.withDefaults()
	x := exchange{opts: &o, conn: conn}
	if err := x.udp(t.Context()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v", err)
	}
}

// The kernel keeps what it is asked for, by families.
func TestUDPErrorsAreAskedFor(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		address       string
		level, option int
	}{{"127.0.0.1:9", syscall.IPPROTO_IP, syscall.IP_RECVERR}, {"[::1]:9", syscall.IPPROTO_IPV6, syscall.IPV6_RECVERR}} {
		conn, err := (&net.Dialer{Control: reportICMP}).DialContext(t.Context(), "udp", c.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		raw, err := conn.(*net.UDPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			if on, err := syscall.GetsockoptInt(int(fd), c.level, c.option); on != 1 || err != nil {
				t.Errorf("%s: %d, %v", c.address, on, err)
			}
		})
	}
}

func TestUDPDestination(t *testing.T) {
	t.Parallel()
	web := Target{Network: "tcp", Address: "192.0.2.1:53"}
	sock := Target{Network: "unix", Address: "/run/app"}
	for _, c := range []struct {
		target         Target
		address        string
		port           int
		probed, wanted string
	}{
		{target: web, probed: "192.0.2.1:53"},
		{target: Target{Network: "tcp", Address: "[fe80::1%eth0]:53"}, probed: "[fe80::1%eth0]:53"},
		{target: web, port: 9000, probed: "192.0.2.1:9000"},
		{target: web, address: "2001:db8::9", probed: "[2001:db8::9]:53"},
		{target: sock, address: "192.0.2.9", port: 53, probed: "192.0.2.9:53"},
		{target: sock, wanted: "the server is a unix socket; a udp check of it needs an address and a port"},
		{target: sock, port: 53, wanted: "the server is a unix socket; a check that goes elsewhere needs both an address and a port"},
	} {
		o := Options{Kind: UDP, Address: c.address, Port: c.port}
		network, probed, err := o.destination(c.target)
		if text(err) != c.wanted || probed != c.probed || err == nil && network != "udp" {
			t.Errorf("%+v: %s %s, %v", c, network, probed, err)
		}
	}
	if err := run(t, Options{Kind: UDP}, sock); err == nil {
		t.Error("a unix socket was probed")
	}
}

// lossy is the way to a server that loses what it is told to, for tests of
// time in a bubble.
type lossy struct {
	net.Conn // from the probe's side
	server   net.Conn
	began    time.Time
	sent     []time.Duration // when each datagram was
	lost     int             // datagrams from the first on
	tooBig   bool            // the first is lost because of the path's MTU
}

func (l *lossy) Read(b []byte) (int, error) {
	if l.tooBig {
		l.tooBig = false
		return 0, &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.EMSGSIZE)}
	}
	return l.Conn.Read(b)
}

// Write never blocks: a datagram goes out or is lost.
func (l *lossy) Write(b []byte) (int, error) {
	l.sent = append(l.sent, time.Since(l.began))
	if len(l.sent) > l.lost {
		go l.server.Write([]byte("answer"))
	}
	return len(b), nil
}

func (l *lossy) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(netip.AddrPort{}) }

// One lost datagram says nothing about the server, nor do two; nor does one
// that was too big for the path, as the kernel makes fragments of the next.
func TestUDPProbeIsRepeated(t *testing.T) {
	t.Parallel()
	second := func(n ...time.Duration) []time.Duration {
		for i := range n {
			n[i] *= time.Second
		}
		return n
	}
	for _, c := range []struct {
		lost   int
		expect string
		sent   []time.Duration
		took   time.Duration
		want   string
	}{
		{0, "answer", second(0), 0, ""},
		{1, "answer", second(0, 2), 2 * time.Second, ""},
		{2, "answer", second(0, 2, 4), 4 * time.Second, ""},
		{2, "", second(0, 2, 4), 4 * time.Second, ""},
		{3, "answer", second(0, 2, 4), 6 * time.Second, "timed out after 6s waiting for the response to 3 datagrams"},
		{3, "", second(0, 2, 4), 6 * time.Second, ""},
		{1, "other", second(0, 2, 4), 6 * time.Second, `timed out after 6s waiting for "other"; got "answer"`},
	} {
		t.Run(fmt.Sprint(c.lost, " lost, expecting ", c.expect), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l, err := probeLossy(t, &lossy{lost: c.lost, tooBig: c.lost == 1}, c.expect, 6*time.Second, context.DeadlineExceeded)
				if got := text(err); got != c.want {
					t.Errorf("got  %s\nwant %s", got, c.want)
				}
				if took := time.Since(l.began); took != c.took || !slices.Equal(l.sent, c.sent) {
					t.Errorf("took %v, sent after %v; want %v, %v", took, l.sent, c.took, c.sent)
				}
			})
		})
	}
}

// A watch that is stopped does not wait for the timeout, whichever wait it is
// that ends, and silence is no success then.
func TestUDPProbeIsStopped(t *testing.T) {
	t.Parallel()
	for after := range 7 {
		synctest.Test(t, func(t *testing.T) {
			l, err := probeLossy(t, &lossy{lost: 3}, "", time.Duration(after)*time.Second, context.Canceled)
			if took := time.Since(l.began); !errors.Is(err, context.Canceled) || took != min(time.Duration(after), 6)*time.Second {
				t.Errorf("stopped after %d s: %v after %v", after, err, took)
			}
		})
	}
}

// probeLossy runs a probe with a timeout of 6 s, and ends it for a reason.
func probeLossy(t *testing.T, l *lossy, expect string, end time.Duration, why error) (*lossy, error) {
	ctx, cancel := context.WithCancel(t.Context())
	if why == context.DeadlineExceeded {
		ctx, cancel = context.WithTimeout(t.Context(), end)
	} else {
		time.AfterFunc(end, cancel)
	}
	defer cancel()
	here, there := net.Pipe()
	l.Conn, l.server, l.began = here, there, time.Now()
	defer there.Close()
	defer here.Close()
	defer context.AfterFunc(ctx, func() { here.SetDeadline(longAgo) })()
	o := Options{Kind: UDP, Expect: []byte(expect), Timeout: 6 * time.Second}.withDefaults()
	x := exchange{opts: &o, conn: l}
	err := x.udp(ctx)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("timed out after %v %s", o.Timeout, x.doing)
	}
	return l, err
}

// A scheduler's watch of a real server, which goes down and up again.
func TestUDPServerGoesDown(t *testing.T) {
	t.Parallel()
	var silent atomic.Bool
	address := serveUDP(t, "udp", "127.0.0.1:0", func(q []byte) [][]byte {
		if silent.Load() {
			return nil
		}
		return [][]byte{q}
	})
	s := NewScheduler()
	defer s.Close()
	reports := make(chan Report, 1024)
	o := Options{Kind: UDP, Send: []byte("x"), Expect: []byte("x"), Interval: 50 * time.Millisecond, Timeout: 45 * time.Millisecond}
	w := s.Add([]Options{o}, func() (Target, bool) { return Target{Network: "tcp", Address: address}, true }, Unknown, func(r Report) { reports <- r })
	defer w.Stop()
	for _, up := range []bool{true, false, true} {
		silent.Store(!up)
		for r := range reports {
			if r.Check != "udp" {
				t.Fatalf("the check is %q", r.Check)
			}
			if r.Up == up && r.Changed || up && r.Up && r.Err == nil {
				break
			}
		}
	}
}
