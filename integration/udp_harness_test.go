package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// largestDatagram is what fits behind the headers of IPv4 (RFC 768, RFC 791).
const largestDatagram = 65535 - 20 - 8

// Datagram is one that a [UDPServer] got.
type Datagram struct {
	From    netip.AddrPort // the proxy's side of a session
	Payload string
	TOS     int // traffic class: DSCP and ECN
}

// UDPServer is an instrumented server in the test process.
type UDPServer struct {
	t       testing.TB
	network string // udp4 or udp6: a dual-stack socket would have two kinds of TOS
	addr    netip.AddrPort
	answer  func(Datagram) []string
	holder  *net.UDPConn // keeps the port while the server is stopped

	mu   sync.Mutex
	conn *net.UDPConn
	got  []Datagram
	wg   sync.WaitGroup
}

// ServeUDP runs a server on a free port of 127.0.0.1 until the test ends.
// Answer returns what is sent back to each datagram.
func ServeUDP(t testing.TB, answer func(Datagram) []string) *UDPServer {
	t.Helper()
	return ServeUDPOn(t, "127.0.0.1:0", answer)
}

// ServeUDPOn runs a server on an address.
func ServeUDPOn(t testing.TB, address string, answer func(Datagram) []string) *UDPServer {
	t.Helper()
	s := &UDPServer{t: t, addr: netip.MustParseAddrPort(address), answer: answer, network: "udp4"}
	if s.addr.Addr().Is6() {
		s.network = "udp6"
	}
	s.holder = holdPort(t, s.network, s.addr)
	s.addr = s.holder.LocalAddr().(*net.UDPAddr).AddrPort()
	s.Restart()
	t.Cleanup(s.Stop)
	return s
}

// holdPort keeps a port from everybody but sockets with SO_REUSEADDR. Being
// connected to something else it takes nothing itself: while nobody else is
// there, "port unreachable" comes back from it.
func holdPort(t testing.TB, network string, addr netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP(network, net.UDPAddrFromAddrPort(addr), net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr.Addr(), 9)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	// Only now: the kernel gives out a free port, but not one that others
	// would share.
	if err := control(c, reuseAddress); err != nil {
		t.Fatal(err)
	}
	return c
}

func reuseAddress(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }

// refusedUDP returns an address on which nobody listens and nobody else will.
func refusedUDP(t testing.TB) string {
	t.Helper()
	return holdPort(t, "udp4", netip.MustParseAddrPort("127.0.0.1:0")).LocalAddr().String()
}

// ServeUDPNames runs n servers with an answer that is made from each one's
// name, "s0" and so on.
func ServeUDPNames(t testing.TB, n int, answer func(name string) func(Datagram) []string) []*UDPServer {
	t.Helper()
	out := make([]*UDPServer, n)
	for i := range out {
		out[i] = ServeUDP(t, answer("s"+strconv.Itoa(i)))
	}
	return out
}

// The answers of servers.

func echoUDP(d Datagram) []string { return []string{d.Payload} }

func silentUDP(Datagram) []string { return nil }

// namedUDP answers with its name and what it got.
func namedUDP(name string) func(Datagram) []string {
	return func(d Datagram) []string { return []string{name + " " + d.Payload} }
}

// timesUDP answers n times, with a number in front.
func timesUDP(n int) func(Datagram) []string {
	return func(d Datagram) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprint(i, " ", d.Payload))
		}
		return out
	}
}

// udpAddrs are the addresses of servers.
func udpAddrs(servers []*UDPServer) (out []string) {
	for _, s := range servers {
		out = append(out, s.Addr())
	}
	return out
}

// Addr is the address in the form of the configuration.
func (s *UDPServer) Addr() string { return s.addr.String() }

// Stop closes the socket, as the end of a process does: the kernel answers
// what comes with "port unreachable".
func (s *UDPServer) Stop() {
	s.mu.Lock()
	s.conn.Close()
	s.mu.Unlock()
	s.wg.Wait()
}

// Restart opens a stopped server again at its address.
func (s *UDPServer) Restart() {
	s.t.Helper()
	var lc net.ListenConfig
	lc.Control = func(_, _ string, c syscall.RawConn) error { return onDescriptor(c, reuseAddress) }
	pc, err := lc.ListenPacket(context.Background(), s.network, s.addr.String())
	if err != nil {
		s.t.Fatal(err)
	}
	conn := pc.(*net.UDPConn)
	if err := errors.Join(conn.SetReadBuffer(4<<20), control(conn, receiveTOS)); err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	s.conn = conn
	s.mu.Unlock()
	s.wg.Go(func() { s.run(conn) })
}

func (s *UDPServer) run(conn *net.UDPConn) {
	buf, oob := make([]byte, 1<<16), make([]byte, 256)
	for {
		n, m, _, from, err := conn.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.t.Errorf("server %s: %v", s.addr, err)
			return
		}
		d := Datagram{From: from, Payload: string(buf[:n]), TOS: tosOf(oob[:m])}
		s.mu.Lock()
		s.got = append(s.got, d)
		s.mu.Unlock()
		for _, a := range s.answer(d) {
			conn.WriteToUDPAddrPort([]byte(a), from) // who has gone meanwhile gets nothing
		}
	}
}

// Push sends something that nobody asked for.
func (s *UDPServer) Push(to netip.AddrPort, text string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.conn.WriteToUDPAddrPort([]byte(text), to); err != nil {
		s.t.Error(err)
	}
}

// SetTOS sets the traffic class of all that the server sends from now on.
func (s *UDPServer) SetTOS(tos int) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	setTOS(s.t, s.conn, tos)
}

// Got returns what the server has received so far.
func (s *UDPServer) Got() []Datagram {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got[:len(s.got):len(s.got)]
}

// AwaitGot waits until the server has received at least n datagrams.
func (s *UDPServer) AwaitGot(n int) []Datagram {
	s.t.Helper()
	eventually(s.t, func() bool { return len(s.Got()) >= n },
		func() string { return fmt.Sprintf("server %s got %d datagrams, want %d", s.addr, len(s.Got()), n) })
	return s.Got()
}

// Sources counts what the server has received by the address it came from:
// one for each session of the proxy.
func (s *UDPServer) Sources() map[netip.AddrPort]int {
	out := map[netip.AddrPort]int{}
	for _, d := range s.Got() {
		out[d.From]++
	}
	return out
}

// UDPClient has a connected socket: it takes only what comes from the very
// address and port that it sends to.
type UDPClient struct {
	*net.UDPConn
	t     testing.TB
	buf   []byte
	tos   int // of what was received last
	drops int // of the machine when the client was made
}

// DialUDP makes a client, which is closed when the test ends.
func DialUDP(t testing.TB, addr string) *UDPClient {
	t.Helper()
	return dialUDP(t, nil, addr)
}

// DialUDPFrom makes a client with a local address.
func DialUDPFrom(t testing.TB, source, addr string) *UDPClient {
	t.Helper()
	return dialUDP(t, &net.UDPAddr{IP: net.ParseIP(source)}, addr)
}

func dialUDP(t testing.TB, source *net.UDPAddr, addr string) *UDPClient {
	t.Helper()
	conn, err := net.DialUDP("udp", source, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := control(conn, receiveTOS); err != nil {
		t.Fatal(err)
	}
	return &UDPClient{UDPConn: conn, t: t, drops: machineDrops()}
}

// Source is the client's address.
func (c *UDPClient) Source() string { return c.LocalAddr().String() }

// Send sends a datagram.
func (c *UDPClient) Send(text string) {
	c.t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		c.t.Fatal(err)
	}
}

// SendTrain sends a text as datagrams of one size, the last of which may be
// shorter, in one system call (udp(7), UDP_SEGMENT).
func (c *UDPClient) SendTrain(size int, text string) {
	c.t.Helper()
	set := func(size int) error {
		return control(c, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT, size) })
	}
	if err := set(size); err != nil {
		c.t.Fatal(err)
	}
	c.Send(text)
	if err := set(0); err != nil {
		c.t.Fatal(err)
	}
}

// Receive waits for a datagram.
func (c *UDPClient) Receive() (string, error) {
	if c.buf == nil {
		c.buf = make([]byte, 1<<16)
	}
	c.SetReadDeadline(time.Now().Add(patience))
	oob := make([]byte, 128)
	n, m, _, _, err := c.ReadMsgUDPAddrPort(c.buf, oob)
	c.tos = tosOf(oob[:m])
	if d := machineDrops() - c.drops; err != nil && d > 0 {
		err = fmt.Errorf("%w (the machine has dropped %d packets meanwhile, of anybody: see net.core.netdev_max_backlog)", err, d)
	}
	return string(c.buf[:max(n, 0)]), err
}

// Expect waits for a datagram and compares.
func (c *UDPClient) Expect(text string) {
	c.t.Helper()
	if got, err := c.Receive(); err != nil || got != text {
		c.t.Fatalf("client %s: received %s, %v; want %s", c.Source(), abridged(got), err, abridged(text))
	}
}

// RoundTrip sends a text and expects it back.
func (c *UDPClient) RoundTrip(text string) {
	c.t.Helper()
	c.Send(text)
	c.Expect(text)
}

// Ask sends a text and returns the name of the [namedUDP] server that answers.
func (c *UDPClient) Ask(text string) string {
	c.t.Helper()
	c.Send(text)
	got, err := c.Receive()
	name, rest, _ := strings.Cut(got, " ")
	if err != nil || rest != text {
		c.t.Fatalf("client %s: received %s, %v; want a name and %s", c.Source(), abridged(got), err, abridged(text))
	}
	return name
}

// ExpectNothing asserts that nothing has come. When that is certain, only
// something else can tell: a counter, or what another client got.
func (c *UDPClient) ExpectNothing() {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	n, err := c.Read(make([]byte, 1<<16))
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Errorf("client %s: received %d bytes, %v; want nothing", c.Source(), n, err)
	}
}

// machineDrops counts the packets that this machine has dropped before they
// got to any socket, for want of room in a CPU's queue. Loopback has none of its
// own: a flood anywhere on the machine takes other tests' datagrams with it.
func machineDrops() (n int) {
	b, err := os.ReadFile("/proc/net/softnet_stat")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 {
			dropped, _ := strconv.ParseInt(f[1], 16, 64)
			n += int(dropped)
		}
	}
	return n
}

func abridged(s string) string {
	if len(s) > 64 {
		return fmt.Sprintf("%q… (%d bytes)", s[:64], len(s))
	}
	return strconv.Quote(s)
}

func control(c syscall.Conn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return onDescriptor(raw, f)
}

func onDescriptor(c syscall.RawConn, f func(fd int) error) (err error) {
	if gone := c.Control(func(fd uintptr) { err = f(int(fd)) }); gone != nil {
		return gone
	}
	return err
}

// isV6 tells the two families apart: their options have other numbers.
func isV6(fd int) bool {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	return err == nil && domain == unix.AF_INET6
}

func receiveTOS(fd int) error {
	if isV6(fd) {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
}

func setTOS(t testing.TB, c syscall.Conn, tos int) {
	t.Helper()
	if err := control(c, func(fd int) error {
		if isV6(fd) {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, tos)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, tos)
	}); err != nil {
		t.Fatal(err)
	}
}

// tosOf reads the traffic class from control messages, -1 if there is none.
func tosOf(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1
	}
	for _, m := range messages {
		v4 := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TOS
		v6 := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_TCLASS
		if v4 || v6 {
			return int(m.Data[0]) // an int of the v6 one is little-endian on the machines we have
		}
	}
	return -1
}

// oneUDP is a configuration of one UDP listener, "edge", and one upstream with
// servers s0 and so on. Sessions end by idle_timeout soon after the test has
// left them, unless it has timeouts of its own.
func oneUDP(listener, upstream string, servers ...string) string {
	return udpAt("127.0.0.1:0", listener, upstream, servers...)
}

func udpAt(address, listener, upstream string, servers ...string) string {
	if !strings.Contains(listener, "timeouts") {
		listener += "\n timeouts { idle = \"4s\" }"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "listener \"udp\" \"edge\" {\n address = %q\n upstream = upstream.app\n %s\n}\n", address, listener)
	b.WriteString(udpUpstream(upstream, servers...))
	return b.String()
}

func udpUpstream(upstream string, servers ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "upstream \"app\" {\n %s\n", upstream)
	for i, s := range servers {
		fmt.Fprintf(&b, " server \"s%d\" { address = %q }\n", i, s)
	}
	b.WriteString("}\n")
	return b.String()
}

// Drops are the datagrams that a listener has dropped, by reason.
func (m Metrics) Drops(listener string) map[string]int {
	out := map[string]int{}
	for _, s := range m {
		if s.Name == "edgeproxy_datagrams_dropped_total" && s.Labels["listener"] == listener && s.Value > 0 {
			out[s.Labels["reason"]] += int(s.Value)
		}
	}
	return out
}

// AwaitDrops waits until the listener "edge" has dropped n datagrams for a reason.
func (p *Proxy) AwaitDrops(n int, reason string) {
	p.t.Helper()
	p.Await(float64(n), "edgeproxy_datagrams_dropped_total", "listener", "edge", "reason", reason)
}

// UDPPort is the port of the first address of the listener "edge".
func (p *Proxy) UDPPort() string {
	p.t.Helper()
	_, port, err := net.SplitHostPort(p.Addr("edge"))
	if err != nil {
		p.t.Fatal(err)
	}
	return port
}

// Session returns the one line of the access log about a client, once it has
// ended.
func (p *Proxy) Session(c *UDPClient) Entry {
	p.t.Helper()
	var found []Entry
	eventually(p.t, func() bool {
		all, err := parseAccessLog(p.path("access.log"))
		found = found[:0]
		for _, e := range all {
			if e.Source == c.Source() {
				found = append(found, e)
			}
		}
		return err == nil && len(found) > 0
	}, func() string { return "a line about " + c.Source() + " in the access log" })
	if len(found) > 1 {
		p.t.Errorf("%d sessions of %s, want one: %+v", len(found), c.Source(), found)
	}
	return found[0]
}

// sendSpoofed sends a datagram with a forged source over IPv4. It reports
// false where that is not allowed: without CAP_NET_RAW.
func sendSpoofed(t testing.TB, from, to netip.AddrPort, payload string) bool {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if errors.Is(err, unix.EPERM) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// RFC 791; the kernel fills in length, identification and checksum
	// (raw(7)). RFC 768: a checksum of 0 is none.
	size := 8 + len(payload)
	b := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	b = append(append(b, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	for _, v := range []int{int(from.Port()), int(to.Port()), size, 0} {
		b = append(b, byte(v>>8), byte(v))
	}
	b = append(b, payload...)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: to.Addr().As4()}); err != nil {
		t.Fatal(err)
	}
	return true
}

func TestUDPServersAndClientsDoWhatTheirNamesSay(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		s := ServeUDPOn(t, address, namedUDP("app"))
		c := DialUDP(t, s.Addr())
		setTOS(t, c, 0xb8)
		s.SetTOS(0x68)
		if got := c.Ask("one"); got != "app" || c.tos != 0x68 {
			t.Errorf("%q with traffic class %#x", got, c.tos)
		}
		if got := s.Got(); len(got) != 1 || got[0].Payload != "one" || got[0].TOS != 0xb8 || got[0].From.String() != c.Source() {
			t.Errorf("got %+v", got)
		}
		s.Push(s.Got()[0].From, "tick")
		c.Expect("tick")
		c.ExpectNothing()
		s.Stop()
		c.Send("two")
		if got, err := c.Receive(); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("stopped: %q, %v", got, err)
		}
		s.Restart()
		c.Ask("three")
		if n := s.Sources()[netip.MustParseAddrPort(c.Source())]; n != 2 {
			t.Errorf("%d datagrams of the client, want 2", n)
		}
	}
	s := ServeUDP(t, timesUDP(2))
	c := DialUDPFrom(t, "127.0.0.9", s.Addr())
	c.SendTrain(2, "xyz")
	for _, want := range []string{"0 xy", "1 xy", "0 z", "1 z"} {
		c.Expect(want)
	}
	if c := DialUDP(t, ServeUDP(t, silentUDP).Addr()); c != nil {
		c.Send("x")
		c.ExpectNothing()
	}
	big := strings.Repeat("x", largestDatagram)
	DialUDP(t, ServeUDP(t, echoUDP).Addr()).RoundTrip(big)
	from := netip.MustParseAddrPort("127.0.0.77:7")
	if sendSpoofed(t, from, s.addr, "forged") {
		if got := s.AwaitGot(3)[2]; got.From != from || got.Payload != "forged" {
			t.Errorf("forged: %+v", got)
		}
	}
}
