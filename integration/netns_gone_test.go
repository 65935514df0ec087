package integration

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// soon is when a datagram that has no answer counts as lost.
func soon() time.Time { return time.Now().Add(patience / 3) }

// A server host that is gone is noticed by what the kernel and the routers say
// about it, long before any health check would: the session goes on with the
// other server.
func TestNetnsServerHostGone(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		gone func(edge, router, host *namespace)
	}{
		{"port closed", nil},
		{"no route here", func(edge, _, _ *namespace) { edge.ip("route replace unreachable 10.3.0.2") }},
		{"prohibited here", func(edge, _, _ *namespace) { edge.ip("route replace prohibit 10.3.0.2") }},
		{"no route at the router", func(_, router, _ *namespace) { router.ip("route replace unreachable 10.3.0.2") }},
		{"prohibited at the router", func(_, router, _ *namespace) { router.ip("route replace prohibit 10.3.0.2") }},
		{"host down", func(_, router, host *namespace) {
			host.ip("link set router down")
			router.ip("neigh flush all")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newThreeHosts(t)
			// The first server is behind a router, which is the host of the second.
			host := newNamespace(t)
			h.server.sysctl("ipv4/ip_forward", "1")
			wire(host, "router", "10.3.0.2/24", h.server, "hosts", "10.3.0.1/24")
			h.server.sysctl("ipv4/neigh/hosts/retrans_time_ms", "50")
			host.ip("route add default via 10.3.0.1")
			h.edge.ip("route add 10.3.0.0/24 via " + server4)
			h.server.echo(server4+":7", "second ")
			first := host.echo("10.3.0.2:7", "first ")
			p := Start(t, udpListener(`timeouts { idle = "2s" }`,
				"server \"spare\" {\n address = \""+server4+":7\"\n tier = 1\n }", []string{clientEdge4 + ":7"}, "10.3.0.2:7"), WithStart(h.edge.start))
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
			for range 20 {
				if answer, _, err := sendAndAwait(c, to, []byte("hello"), patience/3); err != nil || string(answer) != "second hello" {
					t.Fatalf("after the move: %q, %v", answer, err)
				}
			}
		})
	}
}
