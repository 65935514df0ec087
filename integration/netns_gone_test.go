package integration

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// soon is when a datagram that has no answer counts as lost.
func soon() time.Time { return time.Now().Add(patience / 3) }

// Addresses of a host behind that of [threeHosts.server].
const host4, host6 = "10.3.0.2", "fd03::2"

// newFarHost is another host, to which that of the servers is the router.
func (h *threeHosts) newFarHost() *namespace {
	n := newNamespace(h.edge.t)
	wire(n, "router", host4+"/24 "+host6+"/64", h.server, "hosts", "10.3.0.1/24 fd03::1/64")
	h.server.sysctl("ipv4/ip_forward", "1")
	h.server.sysctl("ipv6/conf/all/forwarding", "1")
	h.server.sysctl("ipv4/neigh/hosts/retrans_time_ms", "50")
	h.server.sysctl("ipv6/neigh/hosts/retrans_time_ms", "50")
	n.ip("route add default via 10.3.0.1")
	n.ip("route add default via fd03::1")
	h.edge.ip("route add 10.3.0.0/24 via " + server4)
	h.edge.ip("route add fd03::/64 via " + server6)
	return n
}

func hostDown(_, router, host *namespace) {
	host.ip("link set router down")
	router.ip("neigh flush all")
}

// A server host that is gone is noticed by what the kernel and the routers say
// about it, long before any health check would: the session goes on with the
// other server.
func TestNetnsServerHostGone(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		host string // of the first server
		gone func(edge, router, host *namespace)
	}{
		{"port closed", host4, nil},
		{"port closed, IPv6", host6, nil},
		{"no route here", host4, func(edge, _, _ *namespace) { edge.ip("route replace unreachable " + host4) }},
		{"no route here, IPv6", host6, func(edge, _, _ *namespace) { edge.ip("route replace unreachable " + host6) }},
		{"prohibited here", host4, func(edge, _, _ *namespace) { edge.ip("route replace prohibit " + host4) }},
		{"no route at the router", host4, func(_, router, _ *namespace) { router.ip("route replace unreachable " + host4) }},
		{"no route at the router, IPv6", host6, func(_, router, _ *namespace) { router.ip("route replace unreachable " + host6) }},
		{"prohibited at the router", host4, func(_, router, _ *namespace) { router.ip("route replace prohibit " + host4) }},
		{"host down", host4, hostDown},
		{"host down, IPv6", host6, hostDown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newThreeHosts(t)
			host := h.newFarHost()
			h.server.echo(server4+":7", "second ")
			address := net.JoinHostPort(tt.host, "7")
			first := host.echo(address, "first ")
			p := Start(t, udpListener(`timeouts { idle = "2s" }`,
				"server \"spare\" {\n address = \""+server4+":7\"\n tier = 1\n }", []string{clientEdge4 + ":7"}, address), WithStart(h.edge.start))
			c := h.client.udp(client4)
			to := netip.MustParseAddrPort(clientEdge4 + ":7")
			for range 3 {
				if answer, _, err := sendAndAwait(c, to, []byte("hello"), patience/3); err != nil || string(answer) != "first hello" {
					t.Fatalf("%q, %v", answer, err)
				}
			}
			if tt.gone == nil {
				first.Close()
			} else {
				tt.gone(h.edge, h.server, host)
			}
			lost, answered := 0, ""
			eventually(t, func() bool {
				answer, _, err := sendAndAwait(c, to, []byte("still there?"), 100*time.Millisecond)
				if err != nil {
					lost++
					return false
				}
				answered = string(answer)
				return strings.HasPrefix(answered, "second")
			}, func() string { return fmt.Sprintf("the other server's answer; the last was %q\n%s", answered, p.Log()) })
			t.Logf("%d datagrams were lost", lost)
			if lost > 20 {
				t.Errorf("%d datagrams lost before the session moved", lost)
			}
			late := lost // answers to what was given up that may still come
			for range 20 {
				answer, _, err := sendAndAwait(c, to, []byte("hello"), patience/3)
				if err == nil && string(answer) == "second still there?" && late > 0 {
					late--
					continue
				}
				if err != nil || !strings.HasPrefix(string(answer), "second ") {
					t.Fatalf("after the move: %q, %v", answer, err)
				}
			}
		})
	}
}
