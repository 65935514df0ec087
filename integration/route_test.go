package integration

import (
	"fmt"
	"math"
	"testing"
)

func TestAllowAndDeny(t *testing.T) {
	t.Parallel()
	s := Serve(t, named("app"))
	for _, c := range []struct {
		name, lists string
		denied      map[string]bool // by source
	}{
		{"deny", `deny = ["127.0.0.2"]`, map[string]bool{"127.0.0.1": false, "127.0.0.2": true}},
		{"allow", `allow = ["127.0.0.2/31"]`, map[string]bool{"127.0.0.1": true, "127.0.0.2": false, "127.0.0.3": false, "127.0.0.4": true}},
		{"deny wins", `allow = ["127.0.0.0/8"]
			deny = ["127.0.1.0/24"]`, map[string]bool{"127.0.0.1": false, "127.0.1.77": true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := Start(t, oneUpstream(c.lists, "", s.Addr()))
			n := 0
			for source, denied := range c.denied {
				n++
				conn := DialFrom(t, source, p.Addr("edge"))
				if denied {
					ExpectGone(t, conn)
					if e := p.LastEnd(n, "denied", "accept"); e.Server != "" {
						t.Errorf("a denied session has server %q", e.Server)
					}
					continue
				}
				ReadLine(t, conn)
				conn.Close()
				p.LastEnd(n, "client_closed", "relay")
			}
		})
	}
}

// Routes are tried in file order; a match is all conditions of one block, or
// all of another; what nothing matches ends with no_route.
func TestRoutes(t *testing.T) {
	t.Parallel()
	s := ServeNames(t, 4, named)
	first := FreePorts(t, 3)
	p := Start(t, fmt.Sprintf(`
listener "tcp" "edge" {
  address = "127.0.0.1:%[1]d-%[3]d"
  route "both" {
    match {
      source = ["127.0.0.2"]
      port   = [%[1]d]
    }
    match { source = ["127.0.0.9/32"] }
    upstream = upstream.u0
  }
  route "lan" {
    match { source = ["127.0.0.2/31", "10.0.0.0/8"] }
    upstream = upstream.u1
  }
  route "shut" {
    match { source = ["127.0.0.5"] }
    reject = true
  }
  route "port" {
    match { port = [%[2]d] }
    upstream = upstream.u2
  }
}
upstream "u0" {
  server "a" { address = %[4]q }
}
upstream "u1" {
  server "a" { address = %[5]q }
}
upstream "u2" {
  server "a" { address = %[6]q }
}`, first, first+1, first+2, s[0].Addr(), s[1].Addr(), s[2].Addr()))
	for i, c := range []struct {
		source string
		port   int
		route  string
		server string
		end    string
	}{
		{"127.0.0.2", first, "both", "s0", "client_closed"},
		{"127.0.0.2", first + 1, "lan", "s1", "client_closed"},
		{"127.0.0.3", first + 2, "lan", "s1", "client_closed"},
		{"127.0.0.9", first + 2, "both", "s0", "client_closed"},
		{"127.0.0.1", first + 1, "port", "s2", "client_closed"},
		{"127.0.0.5", first + 1, "shut", "", "denied"},
		{"127.0.0.1", first, "", "", "no_route"},
	} {
		conn := DialFrom(t, c.source, fmt.Sprintf("127.0.0.1:%d", c.port))
		if c.server == "" {
			ExpectGone(t, conn)
		} else if got := ReadLine(t, conn); got != c.server {
			t.Errorf("from %s to %d: server %q, want %q", c.source, c.port-first, got, c.server)
		}
		conn.Close()
		if e := p.LastEnd(i+1, c.end, ""); e.Route != c.route {
			t.Errorf("from %s to %d: route %q, want %q", c.source, c.port-first, e.Route, c.route)
		}
	}
}

// A split's shares are met within five standard deviations.
func TestSplitShares(t *testing.T) {
	t.Parallel()
	s := ServeNames(t, 2, named)
	p := Start(t, fmt.Sprintf(`
listener "tcp" "edge" {
  address = "127.0.0.1:0"
  route "canary" {
    split {
      upstream = upstream.old
      weight   = 90
    }
    split {
      upstream = upstream.new
      weight   = 10
    }
    split {
      upstream = upstream.none
      weight   = 0
    }
  }
}
upstream "old" {
  server "a" { address = %q }
}
upstream "new" {
  server "a" { address = %q }
}
upstream "none" {
  server "a" { address = "127.0.0.1:1" }
}`, s[0].Addr(), s[1].Addr()))
	const n = 1500
	addr := p.Addr("edge")
	for range n {
		fetchName(t, addr)
	}
	byUpstream := countBy(p.AccessLog(n), func(e Entry) string { return e.Upstream })
	deviation := math.Sqrt(n * 0.9 * 0.1)
	if got := float64(byUpstream["new"]); math.Abs(got-n*0.1) > 5*deviation || byUpstream["none"] > 0 {
		t.Errorf("%v, want %v ± %.0f for \"new\" and none for \"none\"", byUpstream, n*0.1, 5*deviation)
	}
}
