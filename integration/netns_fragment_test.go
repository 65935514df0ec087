package integration

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// numbered is a datagram that differs in each part from all others.
func numbered(number, size int) []byte {
	b := make([]byte, size)
	for i := 0; i+8 <= size; i += 8 {
		binary.BigEndian.PutUint32(b[i:], uint32(number))
		binary.BigEndian.PutUint32(b[i+4:], uint32(i))
	}
	return b
}

// fragments is how many fragments of IPv4 and IPv6 packets the network made.
func (n *namespace) fragments() (made int) {
	n.t.Helper()
	var v4, v6 []byte
	err := n.do(func() (err error) {
		if v4, err = os.ReadFile("/proc/thread-self/net/snmp"); err == nil {
			v6, err = os.ReadFile("/proc/thread-self/net/snmp6")
		}
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(v4)) {
		if f := strings.Fields(line); f[0] == "Ip:" && names == nil {
			names = f
		} else if f[0] == "Ip:" {
			for i, name := range names {
				if name == "FragCreates" {
					made += mustAtoi(n.t.(*testing.T), f[i])
				}
			}
		}
	}
	for line := range strings.Lines(string(v6)) {
		if f := strings.Fields(line); f[0] == "Ip6FragCreates" {
			made += mustAtoi(n.t.(*testing.T), f[1])
		}
	}
	return made
}

// sendTrain sends datagrams of equal size, the last one perhaps shorter, with
// one system call (UDP_SEGMENT).
func sendTrain(c *net.UDPConn, to netip.AddrPort, size int, datagrams ...[]byte) error {
	oob := make([]byte, unix.CmsgSpace(2))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(oob[unix.CmsgLen(0):], uint16(size))
	_, _, err := c.WriteMsgUDPAddrPort(bytes.Join(datagrams, nil), oob, to)
	return err
}

// Datagrams longer than the MTU of a side are fragmented there, and put
// together again, without loss or change.
func TestNetnsFragments(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name             string
		clients, servers int // MTU
		server           string
	}{
		{"1500 and 1500", 1500, 1500, server4},
		{"1280 to clients", 1280, 1500, server6},
		{"1280 to servers", 1500, 1280, server4},
		{"1280 to servers over IPv6", 1500, 1280, server6},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newThreeHosts(t)
			h.mtu("clients", tt.clients)
			h.mtu("servers", tt.servers)
			server := net.JoinHostPort(tt.server, "7")
			h.server.echo(server, "")
			p := Start(t, udpListener(`timeouts { idle = "2s" }`, "", []string{"0.0.0.0:7", "[" + clientEdge6 + "]:7"}, server), WithStart(h.edge.start))
			for _, v := range []struct{ from, to string }{{client4, clientEdge4 + ":7"}, {client6, "[" + clientEdge6 + "]:7"}} {
				c := h.client.udp(v.from)
				for i, size := range []int{0, 1, 1220, 1252, 1253, 1452, 1472, 1473, 2000, 4096, 9000, 30000, 60000, 65507} {
					want := numbered(i, size)
					got, from, err := sendAndAwait(c, netip.MustParseAddrPort(v.to), want, patience/3)
					if err != nil {
						t.Fatalf("%s, %d bytes: %v", v.to, size, err)
					}
					if !bytes.Equal(got, want) || from.String() != v.to {
						t.Errorf("%s, %d bytes: %d bytes from %v, or others", v.to, size, len(got), from)
					}
				}
			}
			if h.edge.fragments() == 0 {
				t.Error("nothing was fragmented")
			}
			if n := p.Metrics().Sum("edgeproxy_datagrams_dropped_total"); n != 0 {
				t.Errorf("%v datagrams dropped", n)
			}
		})
	}
}

// mtu sets that of both ends of a wire of the proxy's.
func (h *threeHosts) mtu(side string, mtu int) {
	far := h.client
	if side == "servers" {
		far = h.server
	}
	far.ip(fmt.Sprintf("link set edge mtu %d", mtu))
	h.edge.ip(fmt.Sprintf("link set %s mtu %d", side, mtu))
}

// offloads switches features of all interfaces on or off, "gro on gso off".
func (h *threeHosts) offloads(features string) {
	need(h.edge.t, "ethtool")
	for _, end := range []struct {
		n    *namespace
		name string
	}{{h.client, "edge"}, {h.server, "edge"}, {h.edge, "clients"}, {h.edge, "servers"}} {
		end.n.run("ethtool", append([]string{"-K", end.name}, strings.Fields(features)...)...)
	}
}

// Trains of datagrams that leave with one system call arrive one by one, in
// their order, whatever the interfaces do to them on the way; also those that
// fit the interface they came by and not the one they leave by.
func TestNetnsTrains(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, features string
		servers        int // MTU
		listener       string
	}{
		{"GRO on", "gro on rx-udp-gro-forwarding on", 1500, ""},
		{"GRO off", "gro off gso off tso off", 1500, ""},
		{"no checksum offload", "tx off", 1500, ""},
		{"a smaller MTU behind", "gro on", 1280, ""},
		{"GRO off, a smaller MTU behind", "gro off gso off", 1280, ""},
		{"offload = false", "gro on rx-udp-gro-forwarding on", 1500, "udp { offload = false }\n"},
		{"offload = false, a smaller MTU behind", "gro on", 1280, "udp { offload = false }\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newThreeHosts(t)
			h.offloads(tt.features)
			h.mtu("servers", tt.servers)
			h.server.echo(server4+":7", "")
			h.server.echo("["+server6+"]:7", "")
			p := Start(t, udpListener(tt.listener+` timeouts { idle = "2s" }`, "", []string{clientEdge4 + ":7", "[" + clientEdge6 + "]:7"}, server4+":7"),
				WithStart(h.edge.start))
			for _, v := range []struct{ from, to string }{{client4, clientEdge4 + ":7"}, {client6, "[" + clientEdge6 + "]:7"}} {
				c := h.client.udp(v.from)
				to := netip.MustParseAddrPort(v.to)
				for _, size := range []int{100, 1200, 1400} {
					if err := train(c, to, size, 40, size/2); err != nil {
						t.Errorf("%s, %d bytes: %v", v.to, size, err)
					}
				}
			}
			if n := p.Metrics().Sum("edgeproxy_datagrams_dropped_total"); n != 0 {
				t.Errorf("%v datagrams dropped", n)
			}
		})
	}
}

// The path to the servers narrows and widens while trains go along it.
func TestNetnsTrainsWhileThePathChanges(t *testing.T) {
	t.Parallel()
	h := newThreeHosts(t)
	h.offloads("gro on rx-udp-gro-forwarding on")
	h.server.echo(server4+":7", "")
	p := Start(t, udpListener(`timeouts { idle = "2s" }`, "", []string{clientEdge4 + ":7"}, server4+":7"), WithStart(h.edge.start))
	c := h.client.udp(client4)
	for _, mtu := range []int{1500, 1280, 1500, 600, 1500} {
		h.mtu("servers", mtu)
		if err := train(c, netip.MustParseAddrPort(clientEdge4+":7"), 1400, 40, 700); err != nil {
			t.Fatalf("with an MTU of %d: %v", mtu, err)
		}
	}
	if got := p.AccessLog(1); len(got) != 1 {
		t.Errorf("%d sessions, want one", len(got))
	}
	if drops := p.Metrics().Drops("edge"); len(drops) > 0 {
		t.Errorf("dropped: %v", drops)
	}
}

// train sends n datagrams of a size and a last one of another, five times, and
// expects them back.
func train(c *net.UDPConn, to netip.AddrPort, size, n, last int) error {
	buf := make([]byte, 1<<16)
	for round := range 5 {
		var all [][]byte
		for i := range n {
			all = append(all, numbered(round*1000+i, size))
		}
		all = append(all, numbered(round*1000+n, last))
		if err := sendTrain(c, to, size, all...); err != nil {
			return err
		}
		for i, want := range all {
			c.SetReadDeadline(time.Now().Add(patience / 3))
			size, err := c.Read(buf)
			if err != nil {
				return fmt.Errorf("round %d, after %d of %d: %w", round, i, len(all), err)
			}
			if !bytes.Equal(buf[:size], want) {
				return fmt.Errorf("round %d: datagram %d is %d bytes, %x…, not %d bytes, %x…", round, i, size, buf[:min(8, size)], len(want), want[:8])
			}
		}
	}
	return nil
}

// A header of PROXY v2 stands before each datagram, within the same one: full
// size datagrams are fragmented, and those that cannot take a header are
// counted.
func TestNetnsProxyV2OfFullSize(t *testing.T) {
	t.Parallel()
	h := newThreeHosts(t)
	server := h.server.udp(server4 + ":7")
	p := Start(t, udpListener(`timeouts { idle = "2s" }`, `proxy_protocol = "v2"`, []string{clientEdge4 + ":7"}, server4+":7"), WithStart(h.edge.start))
	c := h.client.udp(client4)
	to := netip.MustParseAddrPort(clientEdge4 + ":7")
	buf := make([]byte, 1<<16)
	const most = 65507 - 28
	for i, size := range []int{0, 1, 1444, 1445, 1472, 1473, 9000, most} {
		want := numbered(i, size)
		if _, err := c.WriteToUDPAddrPort(want, to); err != nil {
			t.Fatal(err)
		}
		server.SetReadDeadline(time.Now().Add(patience))
		n, from, err := server.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		payload, err := proxyV2(buf[:n], netip.MustParseAddrPort(c.LocalAddr().String()), to)
		if err != nil {
			t.Fatalf("%d bytes: %v in %x", size, err, buf[:min(n, 64)])
		}
		if !bytes.Equal(payload, want) {
			t.Errorf("%d bytes: %d came, or others", size, len(payload))
		}
		// What comes back bears no header.
		if _, err := server.WriteToUDPAddrPort(want, from); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(patience))
		if n, err := c.Read(buf); err != nil || !bytes.Equal(buf[:n], want) {
			t.Errorf("%d bytes: %d came back, %v", size, n, err)
		}
	}
	if _, err := c.WriteToUDPAddrPort(numbered(0, most+1), to); err != nil {
		t.Fatal(err)
	}
	p.Await(1, "edgeproxy_datagrams_dropped_total", "listener", "edge", "reason", "too_big")
}

// proxyV2 takes the header of a datagram over IPv4 apart (the specification's
// section 2.2), and returns what follows.
func proxyV2(b []byte, source, destination netip.AddrPort) ([]byte, error) {
	const signature = "\r\n\r\n\x00\r\nQUIT\n"
	if len(b) < 28 || string(b[:12]) != signature || b[12] != 0x21 || b[13] != 0x12 {
		return nil, fmt.Errorf("no header of UDP over IPv4")
	}
	end := 16 + int(binary.BigEndian.Uint16(b[14:]))
	if end < 28 || end > len(b) {
		return nil, fmt.Errorf("a length of %d", end-16)
	}
	at := func(addr, port int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[addr:])), binary.BigEndian.Uint16(b[port:]))
	}
	if s, d := at(16, 24), at(20, 26); s != source || d != destination {
		return nil, fmt.Errorf("from %v to %v, want %v and %v", s, d, source, destination)
	}
	return b[end:], nil
}
