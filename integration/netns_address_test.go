package integration

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// A reply leaves from the address that the client sent to, whichever of the
// host's it is.
func TestNetnsReplyComesFromTheAddressAsked(t *testing.T) {
	t.Parallel()
	h := newThreeHosts(t)
	for _, addr := range []string{"10.1.0.3/24", "10.1.0.4/32", "fd01::3/64", "fd01::4/128"} {
		h.edge.ip("addr add " + addr + " dev clients")
	}
	h.edge.ip("addr add 10.9.0.1/32 dev lo")
	h.edge.ip("addr add fd09::1/128 dev lo")
	for _, route := range []string{"10.0.0.0/8 via " + clientEdge4, "fd00::/8 via " + clientEdge6} {
		h.client.ip("route add " + route)
	}
	h.server.echo(server4+":7", "")
	p := Start(t, udpListener(`timeouts { idle = "2s" }`, "", []string{"0.0.0.0:7", "[::]:8", clientEdge4 + ":9", "[" + clientEdge6 + "]:9"}, server4+":7"), WithStart(h.edge.start))
	targets := map[string][2]string{client4: {"7", "9"}, client6: {"8", "9"}}
	n := 0
	for from, ports := range targets {
		all := []string{clientEdge4, "10.1.0.3", "10.1.0.4", "10.9.0.1", serverEdge4}
		if from == client6 {
			all = []string{clientEdge6, "fd01::3", "fd01::4", "fd09::1", serverEdge6}
		}
		for i, port := range ports {
			for _, addr := range all {
				if i == 1 && addr != clientEdge4 && addr != clientEdge6 {
					continue // bound to one address
				}
				n++
				to := netip.MustParseAddrPort(net.JoinHostPort(addr, port))
				c := h.client.udp(from)
				for range 3 {
					answer, came, err := sendAndAwait(c, to, []byte(addr), patience/3)
					if err != nil || string(answer) != addr || came != to {
						t.Fatalf("%v: %q from %v, %v", to, answer, came, err)
					}
				}
			}
		}
	}
	destinations := countBy(p.AccessLog(n), func(e Entry) string { return e.Destination })
	for _, addr := range []string{"10.9.0.1:7", "[fd09::1]:8", "10.1.0.1:9"} {
		if destinations[addr] != 1 {
			t.Errorf("%d sessions of %s in the log: %v", destinations[addr], addr, destinations)
		}
	}
}

// One client socket that asks several addresses of a wildcard listener has a
// session for each, and gets each answer from the address it asked.
func TestNetnsOneClientAsksSeveralAddresses(t *testing.T) {
	t.Parallel()
	h := newThreeHosts(t)
	addrs := []string{clientEdge4, "10.1.0.3", "10.1.0.4"}
	for _, addr := range addrs[1:] {
		h.edge.ip("addr add " + addr + "/24 dev clients")
	}
	h.server.echo(server4+":7", "")
	p := Start(t, udpListener(`timeouts { idle = "2s" }`, "", []string{":7"}, server4+":7"), WithStart(h.edge.start))
	c := h.client.udp(client4)
	for range 3 {
		for _, addr := range addrs {
			to := netip.MustParseAddrPort(addr + ":7")
			answer, came, err := sendAndAwait(c, to, []byte(addr), patience/3)
			if err != nil || string(answer) != addr || came != to {
				t.Fatalf("%v: %q from %v, %v", to, answer, came, err)
			}
		}
	}
	if got := p.AccessLog(len(addrs)); len(got) != len(addrs) {
		t.Errorf("%d sessions, want %d", len(got), len(addrs))
	}
}

// What is sent to all hosts, or to a group of them, is dropped: the kernel gives
// it to the socket of each loop, and a service that answers it multiplies.
func TestNetnsBroadcastAndMulticast(t *testing.T) {
	t.Parallel()
	h := newThreeHosts(t)
	h.client.ip("route add 224.0.0.0/4 dev edge")
	h.server.echo(server4+":7", "")
	p := Start(t, udpListener(`timeouts { idle = "2s" }`, "", []string{"0.0.0.0:7", "[::]:8"}, server4+":7"), WithStart(h.edge.start))
	c4, c6 := h.client.udp(client4), h.client.udp(client6)
	// Package net remembers the numbers of zones, of whichever namespace.
	zone, _, _ := strings.Cut(h.client.ip("-o link show dev edge"), ":")
	for _, tt := range []struct {
		c    *net.UDPConn
		to   string
		host string // at which edgeproxy answers
	}{
		{c4, "10.1.0.255:7", clientEdge4 + ":7"},
		{c4, "255.255.255.255:7", clientEdge4 + ":7"},
		{c4, "224.0.0.1:7", clientEdge4 + ":7"},
		{c6, "[ff02::1%" + zone + "]:8", "[" + clientEdge6 + "]:8"},
	} {
		before := p.Metrics().Drops("edge")["denied"]
		send := func() error {
			to, err := net.ResolveUDPAddr("udp", tt.to)
			if err == nil {
				_, err = tt.c.WriteToUDP([]byte("anyone?"), to)
			}
			return err
		}
		// Nobody answers for a multicast datagram that is lost on a fresh link.
		eventually(t, func() bool {
			if err := h.client.do(send); err != nil {
				t.Fatalf("%s: %v", tt.to, err)
			}
			return p.Metrics().Drops("edge")["denied"] > before
		},
			func() string { return fmt.Sprintf("%s: dropped %v", tt.to, p.Metrics().Drops("edge")) })
		// Had it been answered, that answer would come first.
		to := netip.MustParseAddrPort(tt.host)
		if answer, from, err := sendAndAwait(tt.c, to, []byte("you"), patience/3); err != nil || string(answer) != "you" || from != to {
			t.Errorf("%s after %s: %q from %v, %v", tt.host, tt.to, answer, from, err)
		}
	}
	if got := p.AccessLog(2); len(got) != 2 {
		t.Errorf("%d sessions, want one of each client: %+v", len(got), got)
	}
}

// Servers may have link-local addresses, too.
func TestNetnsLinkLocalServer(t *testing.T) {
	t.Parallel()
	h := newThreeHosts(t)
	h.server.ip("addr add fe80::77/64 dev edge nodad")
	h.server.echo("[fe80::77%edge]:7", "")
	p := Start(t, udpListener(`timeouts { idle = "2s" }`, "", []string{clientEdge4 + ":7"}, "[fe80::77%servers]:7"), WithStart(h.edge.start))
	c := h.client.udp(client4)
	for range 3 {
		if answer, _, err := sendAndAwait(c, netip.MustParseAddrPort(clientEdge4+":7"), []byte("hello"), patience/3); err != nil || string(answer) != "hello" {
			t.Fatalf("%q, %v", answer, err)
		}
	}
	p.LastEnd(1, "idle_timeout", "relay")
}

// Two clients with the same link-local address and port, on different
// interfaces, are two clients: each gets its answers by its interface, from
// the link-local address it asked; for a listener at the wildcard address and
// for one that is bound to a link-local address and its zone.
func TestNetnsLinkLocal(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		addresses []string
	}{
		{"wildcard", []string{"[::]:7"}},
		{"bound", []string{"[fe80::1%c0]:7", "[fe80::1%c1]:7"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			edge, server := newNamespace(t), newNamespace(t)
			wire(server, "edge", server4+"/24", edge, "servers", serverEdge4+"/24")
			server.echo(server4+":7", "")
			var clients []*namespace
			for i := range 2 {
				n := newNamespace(t)
				for _, ns := range []*namespace{n, edge} {
					ns.sysctl("ipv6/conf/default/addr_gen_mode", "1") // no link-local address but ours
				}
				wire(n, "edge", "fe80::2/64", edge, fmt.Sprintf("c%d", i), "fe80::1/64")
				clients = append(clients, n)
			}
			p := Start(t, udpListener(`timeouts { idle = "2s" }`, "", tt.addresses, server4+":7"), WithStart(edge.start))
			for round := range 3 {
				for i, n := range clients {
					text := fmt.Sprintf("client %d, round %d", i, round)
					if err := n.askLinkLocal("[fe80::2%edge]:5000", "[fe80::1%edge]:7", text); err != nil {
						t.Fatalf("%s: %v", text, err)
					}
				}
			}
			got := p.AccessLog(2)
			if len(got) != 2 || got[0].Source == got[1].Source {
				t.Errorf("want two sessions of different sources: %+v", got)
			}
			for _, e := range got {
				if !strings.HasPrefix(e.Source, "[fe80::2%") || !strings.HasPrefix(e.Destination, "[fe80::1") {
					t.Errorf("the log has a session from %s to %s", e.Source, e.Destination)
				}
			}
		})
	}
}

// askLinkLocal sends a text from a connected socket and expects it back. The
// socket is closed again, so that the next one has its port.
func (n *namespace) askLinkLocal(from, to, text string) error {
	return n.do(func() error {
		source, err := net.ResolveUDPAddr("udp", from)
		if err != nil {
			return err
		}
		d := net.Dialer{LocalAddr: source}
		c, err := d.Dial("udp", to)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte(text)); err != nil {
			return err
		}
		c.SetReadDeadline(soon())
		buf := make([]byte, 100)
		size, err := c.Read(buf)
		if err != nil {
			return err
		}
		if string(buf[:size]) != text {
			return fmt.Errorf("answer %q", buf[:size])
		}
		return nil
	})
}
