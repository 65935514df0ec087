package integration

import (
	"fmt"
	"path/filepath"
	"testing"
)

// A server that cannot be reached costs the client nothing while another can.
func TestRetriesOnOtherServers(t *testing.T) {
	t.Parallel()
	good := Serve(t, named("good"))
	for name, bad := range map[string]string{
		"refused":        Refused(t),
		"hanging":        Hanging(t),
		"no unix socket": "unix:" + filepath.Join(shortTempDir(t), "none.sock"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := Start(t, oneUpstream("", "balance = \"round_robin\"\n connect_timeout = \"200ms\"", bad, good.Addr(), bad), WithWorkers(1))
			const n = 12
			for range n {
				if got := fetchName(t, p.Addr("edge")); got != "good" {
					t.Errorf("answer %q", got)
				}
			}
			retried := 0
			for _, e := range p.AccessLog(n) {
				if e.End != "client_closed" || e.Server != "s1" || e.ServerAddress != good.Addr() {
					t.Errorf("%+v", e)
				}
				if e.Retries > 0 {
					retried++
				}
			}
			if retried == 0 {
				t.Error("no session was retried, though round_robin starts at each server in turn")
			}
			m := p.Metrics()
			if m.Sum("edgeproxy_server_failures_total", "server", "s0") == 0 || m.Sum("edgeproxy_server_failures_total", "server", "s1") > 0 {
				t.Errorf("edgeproxy_server_failures_total: s0 %v, s1 %v", m.Sum("edgeproxy_server_failures_total", "server", "s0"),
					m.Sum("edgeproxy_server_failures_total", "server", "s1"))
			}
		})
	}
}

// What makes a connect fail is told by end, phase, error and the metric.
func TestConnectFailures(t *testing.T) {
	t.Parallel()
	dir := shortTempDir(t)
	for name, c := range map[string]struct {
		server string
		attrs  string
		end    string
		reason string
		tries  float64
	}{
		"refused":           {Refused(t), "", "connect_failed", "refused", 3},
		"refused, no retry": {Refused(t), "retries = -1", "connect_failed", "refused", 1},
		"refused, 4 times":  {Refused(t), "retries = 3", "connect_failed", "refused", 4},
		"no unix socket":    {"unix:" + filepath.Join(dir, "none.sock"), "", "connect_failed", "", 3},
		"hanging":           {Hanging(t), "connect_timeout = \"150ms\"", "connect_timeout", "timeout", 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := Start(t, oneUpstream("", c.attrs, c.server))
			ExpectGone(t, Dial(t, p.Addr("edge")))
			e := p.LastEnd(1, c.end, "connect")
			if e.Error == "" || e.Upstream != "app" || e.Server != "s0" || e.ServerAddress != c.server || float64(e.Retries) != c.tries-1 {
				t.Errorf("%+v; want %v tries", e, c.tries)
			}
			labels := []string{"upstream", "app", "server", "s0"}
			if c.reason != "" {
				labels = append(labels, "reason", c.reason)
			}
			if got := p.Metrics().Sum("edgeproxy_server_failures_total", labels...); got != c.tries {
				t.Errorf("edgeproxy_server_failures_total%v is %v, want %v", labels, got, c.tries)
			}
		})
	}
}

// An upstream whose only server takes nothing new has no server.
func TestConnectNoServer(t *testing.T) {
	t.Parallel()
	s := Serve(t, named("app"))
	p := Start(t, balanced("random", []*Server{s}, "weight = 0"))
	ExpectGone(t, Dial(t, p.Addr("edge")))
	p.LastEnd(1, "no_server", "connect")
	if s.Accepted() != 0 {
		t.Error("a server of weight 0 took a session")
	}
}

// Bytes that the client sent while the proxy was still connecting arrive.
func TestConnectKeepsEarlyBytes(t *testing.T) {
	t.Parallel()
	s := Serve(t, echo)
	p := Start(t, oneUpstream("", "balance = \"round_robin\"\n connect_timeout = \"200ms\"", Hanging(t), s.Addr()), WithWorkers(1))
	for i := range 4 {
		c := Dial(t, p.Addr("edge"))
		Send(t, c, "early")
		c.CloseWrite()
		Expect(t, c, "early")
		ExpectEOF(t, c)
		p.LastEnd(i+1, "client_closed", "relay")
	}
}

// Host names are looked up, at the start and again; both families of
// localhost serve.
func TestServerByHostName(t *testing.T) {
	t.Parallel()
	port := FreePorts(t, 1)
	for _, host := range []string{"127.0.0.1", "[::1]"} {
		ServeOn(t, "tcp", fmt.Sprintf("%s:%d", host, port), named("local"))
	}
	p := Start(t, oneUpstream("", "", fmt.Sprintf("localhost:%d", port)))
	if got := fetchName(t, p.Addr("edge")); got != "local" {
		t.Errorf("%q", got)
	}
	e := p.LastEnd(1, "client_closed", "relay")
	if e.ServerAddress != fmt.Sprintf("127.0.0.1:%d", port) && e.ServerAddress != fmt.Sprintf("[::1]:%d", port) {
		t.Errorf("server_address %q, want the one that was connected to", e.ServerAddress)
	}
}

// A name that cannot be looked up does not keep the others from serving, nor
// the proxy from starting.
func TestServerByUnknownHostName(t *testing.T) {
	t.Parallel()
	good := Serve(t, named("good"))
	p := Start(t, oneUpstream("", "", "no-such-host.invalid:80", good.Addr()))
	p.Expect("no-such-host.invalid")
	for range 8 {
		if got := fetchName(t, p.Addr("edge")); got != "good" {
			t.Errorf("%q", got)
		}
	}
}

// Connections leave from the addresses of source, in turn.
func TestSourceAddresses(t *testing.T) {
	t.Parallel()
	s := Serve(t, func(c Conn) { fmt.Fprintln(c, c.RemoteAddr()); echo(c) })
	p := Start(t, oneUpstream("", `source = ["127.0.0.2", "127.0.0.3"]`, s.Addr()), WithWorkers(1))
	got := map[string]int{}
	for range 20 {
		peer := fetchName(t, p.Addr("edge"))
		got[peer[:len("127.0.0.2")]]++
	}
	if got["127.0.0.2"] != 10 || got["127.0.0.3"] != 10 {
		t.Errorf("sources %v, want 10 of each", got)
	}
}
