package integration

import (
	"fmt"
	"maps"
	"strings"
	"testing"
)

// balanced is an upstream whose servers have further attributes.
func balanced(policy string, servers []*Server, attrs ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "listener \"tcp\" \"edge\" {\n address = \"127.0.0.1:0\"\n upstream = upstream.app\n}\nupstream \"app\" {\n balance = %q\n", policy)
	for i, s := range servers {
		fmt.Fprintf(&b, "server \"s%d\" {\n address = %q\n", i, s.Addr())
		if i < len(attrs) {
			b.WriteString(attrs[i])
		}
		b.WriteString("\n}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

// hold opens n sessions one after the other, leaves them open, and returns
// them by server.
func hold(t *testing.T, addr string, n int) map[string][]Conn {
	t.Helper()
	out := map[string][]Conn{}
	for range n {
		c := Dial(t, addr)
		name := ReadLine(t, c)
		out[name] = append(out[name], c)
	}
	return out
}

func counts(held map[string][]Conn) map[string]int {
	out := map[string]int{}
	for name, cs := range held {
		out[name] = len(cs)
	}
	return out
}

// round_robin is exact on each event loop: in every window as long as the sum
// of the weights each server has its weight, and the turns are spread.
func TestBalanceRoundRobin(t *testing.T) {
	t.Parallel()
	for name, weights := range map[string][]int{"equal": {1, 1, 1}, "weighted": {5, 1, 1}, "two": {3, 2}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var attrs []string
			sum := 0
			for _, w := range weights {
				attrs = append(attrs, fmt.Sprintf("weight = %d", w))
				sum += w
			}
			servers := ServeNames(t, len(weights), named)
			p := Start(t, balanced("round_robin", servers, attrs...), WithWorkers(1))
			addr := p.Addr("edge")
			var order []string
			for range 6 * sum {
				order = append(order, fetchName(t, addr))
			}
			for from := range len(order) - sum + 1 {
				got := map[string]int{}
				for _, name := range order[from : from+sum] {
					got[name]++
				}
				for i, w := range weights {
					if got[fmt.Sprintf("s%d", i)] != w {
						t.Fatalf("turns %v; the window from %d has %v, want the weights %v", order, from, got, weights)
					}
				}
			}
			if strings.Contains(strings.Join(order, ""), "s0s0s0s0s0") {
				t.Errorf("turns %v are not spread", order)
			}
		})
	}
}

func TestBalanceLeastConn(t *testing.T) {
	t.Parallel()
	servers := ServeNames(t, 3, named)
	// Loads are shared by the loops: exact with any number of them, when
	// sessions come one after the other.
	p := Start(t, balanced("least_conn", servers, "weight = 2", "", ""), WithWorkers(4))
	addr := p.Addr("edge")
	held := hold(t, addr, 40)
	if got := counts(held); !maps.Equal(got, map[string]int{"s0": 20, "s1": 10, "s2": 10}) {
		t.Errorf("held %v, want 20, 10 and 10", got)
	}
	for _, c := range held["s1"] {
		c.Close()
	}
	p.AccessLog(10)
	if got := counts(hold(t, addr, 8)); !maps.Equal(got, map[string]int{"s1": 8}) {
		t.Errorf("after s1 was left: %v, want all 8 there", got)
	}
	m := p.Metrics()
	for name, want := range map[string]float64{"s0": 20, "s1": 8, "s2": 10} {
		if got := m.Sum("edgeproxy_server_sessions_active", "upstream", "app", "server", name); got != want {
			t.Errorf("edgeproxy_server_sessions_active{server=%q} is %v, want %v", name, got, want)
		}
	}
	if got := m.Sum("edgeproxy_sessions_active", "listener", "edge"); got != 38 {
		t.Errorf("edgeproxy_sessions_active is %v, want 38", got)
	}
}

// random draws two and takes the less loaded, so held sessions spread far
// better than by chance.
func TestBalanceRandom(t *testing.T) {
	t.Parallel()
	p := Start(t, balanced("random", ServeNames(t, 4, named)))
	got := counts(hold(t, p.Addr("edge"), 100))
	for i := range 4 {
		if n := got[fmt.Sprintf("s%d", i)]; n < 20 || n > 30 {
			t.Errorf("held %v, want 25 ± 5 each", got)
		}
	}
}

// A server of a higher tier takes sessions only when none of a lower is usable.
func TestBalanceTiers(t *testing.T) {
	t.Parallel()
	servers := ServeNames(t, 3, named)
	p := Start(t, balanced("round_robin", servers, "max_connections = 2", "max_connections = 1", "tier = 1"), WithWorkers(1))
	held := hold(t, p.Addr("edge"), 5)
	if got := counts(held); !maps.Equal(got, map[string]int{"s0": 2, "s1": 1, "s2": 2}) {
		t.Errorf("held %v: want the first tier filled before the second", got)
	}
	held["s1"][0].Close()
	p.AccessLog(1)
	if got := fetchName(t, p.Addr("edge")); got != "s1" {
		t.Errorf("with room in the first tier again: %q, want s1", got)
	}
}

// With every server at max_connections a session ends with no_server; the
// limit holds over all loops together.
func TestBalanceMaxConnections(t *testing.T) {
	t.Parallel()
	servers := ServeNames(t, 2, named)
	p := Start(t, balanced("least_conn", servers, "max_connections = 3", "max_connections = 2"), WithWorkers(4))
	addr := p.Addr("edge")
	held := hold(t, addr, 5)
	if got := counts(held); !maps.Equal(got, map[string]int{"s0": 3, "s1": 2}) {
		t.Errorf("held %v, want 3 and 2", got)
	}
	for i := range 10 {
		ExpectGone(t, Dial(t, addr))
		p.LastEnd(i+1, "no_server", "connect")
	}
	held["s1"][0].Close()
	p.AccessLog(11)
	if got := fetchName(t, addr); got != "s1" {
		t.Errorf("with room again: %q, want s1", got)
	}
}
