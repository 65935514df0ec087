package upstream

import (
	"fmt"
	"net/netip"
	"testing"

	"edgeproxy/balance"
)

// BenchmarkPick is a lease and its release, as each session has one.
func BenchmarkPick(b *testing.B) {
	for p := range balance.Policies {
		for _, n := range []int{4, 1000} {
			b.Run(fmt.Sprintf("%s/%d", balance.Policy(p), n), func(b *testing.B) {
				o := Options{Balance: balance.Policy(p)}
				for i := range n {
					o.Servers = append(o.Servers, server(fmt.Sprint("s", i), ServerOptions{}))
				}
				g := newTestGroup(o, 1)
				d := &Dial{}
				port := uint16(0)
				for b.Loop() {
					port++
					d.client.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(port >> 8), byte(port)}), port)
					g.pick(d, 0, 1).Release()
				}
			})
		}
	}
}
