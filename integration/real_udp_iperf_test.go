package integration

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// iperf3 keeps a TCP connection for control beside its streams of datagrams,
// to the same port: one number, two listeners.
func TestRealIperf(t *testing.T) {
	t.Parallel()
	iperf := need(t, "iperf3")
	server, edge := FreePorts(t, 1), freeUDPPort(t)
	startReal(t, local(server), nil, iperf, "-s", "-p", strconv.Itoa(server), "--forceflush")
	p := Start(t, fmt.Sprintf(`
listener "tcp" "control" {
  address  = %[1]q
  upstream = upstream.iperf
}
listener "udp" "edge" {
  address  = %[1]q
  upstream = upstream.iperf
  timeouts { idle = "2s" }
}
upstream "iperf" {
  server "iperf" { address = %[2]q }
}
`, local(edge), local(server)))
	const streams, size = 4, 1200
	for _, way := range []struct {
		name string
		args string
	}{{"up", ""}, {"down", "-R"}, {"both", "--bidir"}} {
		t.Run(way.name, func(t *testing.T) {
			before := p.Metrics().Sum("edgeproxy_sessions_total", "listener", "edge")
			out := tool(t, iperf, append(strings.Fields(fmt.Sprintf("-c 127.0.0.1 -p %d -u -b 4M -l %d -P %d -t 2 -J", edge, size, streams)), strings.Fields(way.args)...)...)
			var result struct {
				End struct {
					Streams []struct {
						UDP struct {
							Packets     int
							LostPackets int `json:"lost_packets"`
							OutOfOrder  int `json:"out_of_order"`
						}
					}
				}
			}
			if err := json.Unmarshal([]byte(out), &result); err != nil {
				t.Fatalf("%v in %s", err, out)
			}
			if len(result.End.Streams) < streams {
				t.Errorf("%d streams, want %d or more", len(result.End.Streams), streams)
			}
			const least = 4e6 / 8 / size * 2 * 3 / 4 // three quarters of what was asked for
			for i, s := range result.End.Streams {
				if s.UDP.LostPackets != 0 || s.UDP.OutOfOrder != 0 || s.UDP.Packets < least {
					t.Errorf("stream %d: %d datagrams, %d lost, %d out of order", i, s.UDP.Packets, s.UDP.LostPackets, s.UDP.OutOfOrder)
				}
			}
			if n := p.Metrics().Sum("edgeproxy_sessions_total", "listener", "edge") - before; int(n) != len(result.End.Streams) {
				t.Errorf("%v sessions for %d streams", n, len(result.End.Streams))
			}
		})
	}
	p.assertEnds("edge", "idle_timeout")
	if drops := p.Metrics().Drops("edge"); len(drops) > 0 {
		t.Errorf("dropped: %v", drops)
	}
}
