package integration

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestUDPEchoAndItsLogLine(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			t.Parallel()
			s := ServeUDPOn(t, net.JoinHostPort(host, "0"), timesUDP(2))
			p := Start(t, udpAt(net.JoinHostPort(host, "0"), "", "", s.Addr()))
			edge := p.Addr("edge")
			c := DialUDP(t, edge)
			for i := range 10 {
				text := strings.Repeat("x", i)
				c.Send(text)
				c.Expect("0 " + text)
				c.Expect("1 " + text)
			}
			p.Await(1, "edgeproxy_sessions_active", "listener", "edge", "protocol", "udp")

			e := p.Session(c)
			if e.Listener != "edge" || e.Route != "" || e.Upstream != "app" || e.Server != "s0" {
				t.Errorf("names in %+v", e)
			}
			if e.Source != c.Source() || e.Destination != edge || e.ServerAddress != s.Addr() {
				t.Errorf("addresses in %+v; want source %v, destination %v, server %v", e, c.Source(), edge, s.Addr())
			}
			if e.BytesIn != 45 || e.BytesOut != 2*45+20*2 || e.DatagramsIn != 10 || e.DatagramsOut != 20 || e.Retries != 0 || e.Error != "" {
				t.Errorf("counts in %+v", e)
			}
			if e.Protocol != "udp" || e.End != "idle_timeout" || e.Phase != "relay" {
				t.Errorf("%s ended with %s in %s", e.Protocol, e.End, e.Phase)
			}
			if at, err := time.Parse(time.RFC3339Nano, e.Time); err != nil || time.Since(at) > time.Minute || time.Since(at) < 0 {
				t.Errorf("time %q: %v", e.Time, err)
			}
			if len(s.Sources()) != 1 {
				t.Errorf("the server saw %v, want one source", s.Sources())
			}
			m := p.Metrics()
			for name, want := range map[string]float64{
				"edgeproxy_sessions_total": 1, "edgeproxy_sessions_active": 0, "edgeproxy_session_ends_total": 1,
				"edgeproxy_session_seconds_count": 1, "edgeproxy_server_sessions_total": 1, "edgeproxy_server_up": 1,
				"edgeproxy_datagrams_dropped_total": 0,
			} {
				if got := m.Sum(name); got != want {
					t.Errorf("%s is %v, want %v", name, got, want)
				}
			}
			for direction, want := range map[string][2]float64{"in": {10, 45}, "out": {20, 130}} {
				datagrams := m.Sum("edgeproxy_datagrams_total", "listener", "edge", "direction", direction)
				bytes := m.Sum("edgeproxy_bytes_total", "listener", "edge", "direction", direction)
				if got := [2]float64{datagrams, bytes}; got != want {
					t.Errorf("%s: %v datagrams and bytes, want %v", direction, got, want)
				}
			}
			for _, reason := range []string{"no_route", "limited", "no_server", "too_big", "socket_full", "malformed", "denied"} {
				if !m.Has("edgeproxy_datagrams_dropped_total", "listener", "edge", "reason", reason) {
					t.Errorf("no series of datagrams dropped for %s before there is one", reason)
				}
			}
		})
	}
}

// A datagram of any size is relayed whole, both ways: nothing is truncated.
func TestUDPSizes(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"127.0.0.1", "::1"} {
		for _, offload := range []bool{true, false} {
			t.Run(fmt.Sprint(host, " offload ", offload), func(t *testing.T) {
				t.Parallel()
				s := ServeUDPOn(t, net.JoinHostPort(host, "0"), echoUDP)
				p := Start(t, udpAt(net.JoinHostPort(host, "0"), fmt.Sprintf("udp { offload = %v }", offload), "", s.Addr()))
				c := DialUDP(t, p.Addr("edge"))
				for _, size := range []int{0, 1, 2, 512, 1472, 1473, 9000, 16384, 65000, largestDatagram - 1, largestDatagram, 0, 1} {
					c.RoundTrip(randomText(size))
				}
				got := s.Got()
				if len(got) != 13 || len(got[0].Payload) != 0 || len(got[10].Payload) != largestDatagram {
					t.Errorf("the server got %d datagrams", len(got))
				}
				if drops := p.Metrics().Drops("edge"); len(drops) > 0 {
					t.Errorf("dropped %v", drops)
				}
			})
		}
	}
}

func randomText(size int) string {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return string(b)
}

// The reply comes from the very address that the client sent to, of all that a
// wildcard listens on. A connected socket takes no other.
func TestUDPReplyComesFromWhereTheClientSentTo(t *testing.T) {
	t.Parallel()
	for address, hosts := range map[string][]string{
		"0.0.0.0:0": {"127.0.0.1", "127.0.0.2", "127.99.0.1"},
		"[::]:0":    {"::1"},
		":0":        {"127.0.0.1", "127.0.0.2", "::1"}, // both families on one socket
	} {
		t.Run(address, func(t *testing.T) {
			t.Parallel()
			s := ServeUDP(t, echoUDP)
			p := Start(t, udpAt(address, "", "", s.Addr()))
			var clients []*UDPClient
			for _, host := range hosts {
				c := DialUDP(t, net.JoinHostPort(host, p.UDPPort()))
				c.RoundTrip("to " + host)
				clients = append(clients, c)
			}
			for _, c := range clients { // each session keeps its own
				c.RoundTrip("again")
			}
			for i, c := range clients {
				e := p.Session(c)
				if want := net.JoinHostPort(hosts[i], p.UDPPort()); e.Destination != want {
					t.Errorf("destination %s in the log, want %s", e.Destination, want)
				}
			}
		})
	}
}

// One client socket that sends to two addresses of a wildcard has two
// sessions: they are keyed by both ends.
func TestUDPSessionsAreKeyedByBothAddresses(t *testing.T) {
	t.Parallel()
	s := ServeUDP(t, echoUDP)
	p := Start(t, udpAt("0.0.0.0:0", "", "", s.Addr()))
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.1"} {
		to := netip.MustParseAddrPort(net.JoinHostPort(host, p.UDPPort()))
		if _, err := c.WriteToUDPAddrPort([]byte(host), to); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		c.SetReadDeadline(time.Now().Add(patience))
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil || string(b[:n]) != host || from != to {
			t.Errorf("sent %q to %v, received %q from %v, %v", host, to, b[:n], from, err)
		}
	}
	if len(s.Sources()) != 2 {
		t.Errorf("the server saw %v, want two sources", s.Sources())
	}
	p.Await(2, "edgeproxy_sessions_total")
}

// Clients do not get each other's datagrams, and each gets all of its own, in
// order.
func TestUDPManyClients(t *testing.T) {
	t.Parallel()
	const clients, rounds = 200, 20
	s := ServeUDPNames(t, 3, namedUDP)
	p := Start(t, oneUDP("", "", udpAddrs(s)...))
	addr := p.Addr("edge")
	var wg sync.WaitGroup
	for i := range clients {
		c := DialUDPFrom(t, fmt.Sprintf("127.0.%d.%d", 1+i/100, 1+i%100), addr)
		wg.Go(func() {
			name := ""
			for round := range rounds {
				text := fmt.Sprint("client ", i, " round ", round, " ", randomText(100+10*round))
				if _, err := c.Write([]byte(text)); err != nil {
					t.Error(err)
					return
				}
				got, err := c.Receive()
				if name == "" {
					name, _, _ = strings.Cut(got, " ")
				}
				if err != nil || got != name+" "+text {
					t.Errorf("client %d in round %d: %s, %v; want %s from %s", i, round, abridged(got), err, abridged(text), name)
					return
				}
			}
			c.SetReadDeadline(time.Now())
			if n, err := c.Read(make([]byte, 1<<16)); err == nil {
				t.Errorf("client %d: %d bytes more than it asked for", i, n)
			}
		})
	}
	wg.Wait()
	var m Metrics
	out := func() float64 { return m.Sum("edgeproxy_datagrams_total", "direction", "out") }
	eventually(t, func() bool { // what has just arrived is counted a moment later
		m = p.Metrics()
		return out() == clients*rounds
	}, func() string { return fmt.Sprintf("%v datagrams out, want %d", out(), clients*rounds) })
	if got := m.Sum("edgeproxy_sessions_total"); got != clients {
		t.Errorf("%v sessions, want %d", got, clients)
	}
	if drops := m.Drops("edge"); len(drops) > 0 {
		t.Errorf("dropped %v", drops)
	}
}

// A burst that comes in one piece leaves as the same datagrams in the same
// order, both ways, whatever sizes are side by side in it.
func TestUDPBursts(t *testing.T) {
	t.Parallel()
	const burst = 64
	s := ServeUDP(t, echoUDP)
	p := Start(t, oneUDP("", "", s.Addr()))
	c := DialUDP(t, p.Addr("edge"))
	if err := c.SetReadBuffer(4 << 20); err != nil {
		t.Fatal(err)
	}
	c.RoundTrip("hello")
	for name, size := range map[string]func(i int) int{
		"equal":              func(int) int { return 1200 },
		"last one is short":  func(i int) int { return 1200 - 700*(i/(burst-1)) },
		"mixed":              func(i int) int { return 1 + (i*i*37)%1400 },
		"empty ones between": func(i int) int { return (i % 3) * 600 },
	} {
		var sent []string
		for i := range burst {
			text := randomText(size(i))
			sent = append(sent, text)
			c.Send(text)
		}
		for i, text := range sent {
			if got, err := c.Receive(); err != nil || got != text {
				t.Fatalf("%s: datagram %d: %s, %v; want %s", name, i, abridged(got), err, abridged(text))
			}
		}
	}
}

// The traffic class of IP, DSCP and ECN (RFC 2474, RFC 3168), is carried over
// both ways.
func TestUDPTrafficClass(t *testing.T) {
	t.Parallel()
	const efECT0, af31CE = 0xb8 | 2, 0x68 | 3
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			t.Parallel()
			s := ServeUDPOn(t, net.JoinHostPort(host, "0"), echoUDP)
			p := Start(t, udpAt(net.JoinHostPort(host, "0"), "", "", s.Addr()))
			c := DialUDP(t, p.Addr("edge"))
			// Both sides begin without, and the session has proven itself.
			for range 3 {
				c.RoundTrip("plain")
			}
			setTOS(t, c, efECT0)
			s.SetTOS(af31CE)
			for range 3 {
				c.RoundTrip("marked")
				if c.tos != af31CE {
					t.Errorf("the client received traffic class %#x, want %#x", c.tos, af31CE)
				}
			}
			setTOS(t, c, 0)
			c.RoundTrip("plain again")
			for _, d := range s.Got() {
				want := 0
				if d.Payload == "marked" {
					want = efECT0
				}
				if d.TOS != want {
					t.Errorf("the server received %q with traffic class %#x, want %#x", d.Payload, d.TOS, want)
				}
			}
		})
	}
}

// A server that speaks without having been asked, to a client it knows.
func TestUDPServerPushes(t *testing.T) {
	t.Parallel()
	s := ServeUDP(t, silentUDP)
	p := Start(t, oneUDP("", "", s.Addr()))
	c := DialUDP(t, p.Addr("edge"))
	c.Send("subscribe")
	session := s.AwaitGot(1)[0].From
	for i := range 20 {
		text := fmt.Sprint("tick ", i)
		s.Push(session, text)
		c.Expect(text)
	}
	// Somebody else who sends to the session's socket is not heard: it is
	// connected to the server.
	stranger := ServeUDP(t, silentUDP)
	stranger.Push(session, "forged")
	s.Push(session, "genuine")
	c.Expect("genuine")
	if e := p.Session(c); e.DatagramsIn != 1 || e.DatagramsOut != 21 {
		t.Errorf("%+v", e)
	}
}
