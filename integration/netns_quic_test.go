package integration

import (
	"fmt"
	"testing"

	"github.com/quic-go/quic-go"

	"edgeproxy/internal/testcert"
)

// A listener that reads QUIC fragments nothing (RFC 9000, section 14): what is
// longer than the path ahead takes is dropped and counted, and so the ends find
// out what it takes (RFC 8899).
func TestNetnsQUICPathMTU(t *testing.T) {
	t.Parallel()
	const small = 1340 // quic-go begins with datagrams of 1280 bytes and tries up to 1452
	for _, tt := range []struct {
		name   string
		narrow func(h *threeHosts)
		counts bool // edgeproxy itself cannot send
	}{
		{"narrow to servers", func(h *threeHosts) { h.mtu("servers", small) }, true},
		{"narrow to clients", func(h *threeHosts) {
			// The client's own interface takes more than comes to it.
			h.edge.ip(fmt.Sprintf("link set clients mtu %d", small))
		}, true},
		{"narrow behind a router", func(h *threeHosts) { h.server.ip(fmt.Sprintf("link set hosts mtu %d", small)) }, false},
		{"wide", func(*threeHosts) {}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newThreeHosts(t)
			host := h.newFarHost()
			tt.narrow(h)
			ca := testcert.NewCA(t, "HTTP/3")
			server := newH3Server(t, host.udp(host4+":443"), "far", ca.Server(t, "far.test"), "", nil)
			p := Start(t, fmt.Sprintf(`
listener "udp" "edge" {
  address = "%s:443"
  timeouts { idle = "2s" }
  route "far" {
    match { sni = ["far.test"] }
    upstream = upstream.far
  }
}
upstream "far" {
  server "far" { address = %q }
}
`, clientEdge4, server.addr), WithStart(h.edge.start))
			for _, version := range []quic.Version{quic.Version1, quic.Version2} {
				c := newH3Client(t, ca, h.client.udp(client4), clientEdge4+":443", "far.test", version)
				if err := c.download(6*streamBlock, nil); err != nil {
					t.Error(err)
				}
				if err := c.upload(6*streamBlock, nil); err != nil {
					t.Error(err)
				}
				c.close()
			}
			if n := h.edge.fragments() + h.server.fragments(); n != 0 {
				t.Errorf("%d fragments were made", n)
			}
			if n := p.Metrics().Drops("edge")["too_big"]; (n > 0) != tt.counts {
				t.Errorf("%d datagrams counted as too big", n)
			}
		})
	}
}
