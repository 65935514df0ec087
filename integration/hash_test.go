package integration

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
)

// hashNetwork is what the tests of maglev and ring_hash need of TCP or UDP.
type hashNetwork struct {
	name   string
	serve  func(t *testing.T, n int) []hashServer // named s0 and so on
	health string                                 // of the upstream
	// ask begins a session, with these first bytes, and returns who got it, and
	// the client's address.
	ask func(t *testing.T, source, addr string, first []byte) (server, from string)
}

type hashServer interface {
	Addr() string
	Stop()
	Restart()
}

var hashNetworks = []hashNetwork{
	{
		name:   "tcp",
		health: `health "tcp" {`,
		serve: func(t *testing.T, n int) (out []hashServer) {
			for _, s := range ServeNames(t, n, named) {
				out = append(out, s)
			}
			return out
		},
		ask: func(t *testing.T, source, addr string, first []byte) (server, from string) {
			t.Helper()
			c, err := connectFrom(&net.TCPAddr{IP: net.ParseIP(source)}, addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write(first); err != nil {
				t.Fatal(err)
			}
			return ReadLine(t, c), c.LocalAddr().String()
		},
	},
	{
		name:   "udp",
		health: "health \"udp\" {\n send = \"x\"\n expect = \"x\"",
		serve: func(t *testing.T, n int) (out []hashServer) {
			for _, s := range ServeUDPNames(t, n, namedUDP) {
				out = append(out, s)
			}
			return out
		},
		ask: func(t *testing.T, source, addr string, first []byte) (server, from string) {
			t.Helper()
			c := DialUDPFrom(t, source, addr)
			defer c.Close()
			return c.Ask(string(first)), c.Source()
		},
	},
}

// hashConfig is one listener of all IPv4 addresses and one upstream with
// servers s0 and so on; order changes in what order they stand in the file.
func (n *hashNetwork) hashConfig(upstream string, servers []hashServer, order ...int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "listener %q \"edge\" {\n address = \"0.0.0.0:0\"\n upstream = upstream.app\n timeouts { idle = \"4s\" }\n}\n", n.name)
	fmt.Fprintf(&b, "upstream \"app\" {\n %s\n", upstream)
	for i := range servers {
		if len(order) > 0 {
			i = order[i]
		}
		fmt.Fprintf(&b, " server \"s%d\" { address = %q }\n", i, servers[i].Addr())
	}
	b.WriteString("}\n")
	return b.String()
}

// at is a local address with the port of the listener "edge".
func (p *Proxy) at(ip string) string {
	p.t.Helper()
	_, port, err := net.SplitHostPort(p.Addr("edge"))
	if err != nil {
		p.t.Fatal(err)
	}
	return net.JoinHostPort(ip, port)
}

// eachHash runs a test for both networks and both policies.
func eachHash(t *testing.T, f func(t *testing.T, n *hashNetwork, policy string)) {
	for i := range hashNetworks {
		for _, policy := range []string{"maglev", "ring_hash"} {
			t.Run(hashNetworks[i].name+"/"+policy, func(t *testing.T) {
				t.Parallel()
				f(t, &hashNetworks[i], policy)
			})
		}
	}
}

// sourceAddress is the nth of many clients of this machine.
func sourceAddress(n int) string { return fmt.Sprintf("127.0.%d.%d", 1+n/100, 1+n%100) }

// sources asks once from each of many addresses.
func (n *hashNetwork) sources(t *testing.T, p *Proxy, many int) []string {
	t.Helper()
	names, addr := make([]string, many), p.at("127.0.0.1")
	for i := range names {
		names[i], _ = n.ask(t, sourceAddress(i), addr, []byte("x"))
	}
	return names
}

const hashSources = 200

// A client has one server, whichever node it comes to and from whichever port.
// The order of the servers in a node's file does not matter.
func TestHashNodesAgree(t *testing.T) {
	t.Parallel()
	eachHash(t, func(t *testing.T, n *hashNetwork, policy string) {
		servers := n.serve(t, 4)
		upstream := fmt.Sprintf("balance = %q", policy)
		one := Start(t, n.hashConfig(upstream, servers))
		two := Start(t, n.hashConfig(upstream, servers, 2, 0, 3, 1), WithWorkers(3))
		first, again, other := n.sources(t, one, hashSources), n.sources(t, one, hashSources), n.sources(t, two, hashSources)
		seen := map[string]int{}
		for i := range first {
			seen[first[i]]++
			if again[i] != first[i] || other[i] != first[i] {
				t.Errorf("%s: %s, then %s; on another node %s", sourceAddress(i), first[i], again[i], other[i])
			}
		}
		for name, got := range seen {
			if len(seen) != 4 || got < hashSources/10 {
				t.Errorf("%s has %d of %d clients: %v", name, got, hashSources, seen)
			}
		}
	})
}

// A server that goes down moves its own clients and nobody else's, to all the
// others; when it is back so are they.
func TestHashServerGoesDown(t *testing.T) {
	t.Parallel()
	eachHash(t, func(t *testing.T, n *hashNetwork, policy string) {
		servers := n.serve(t, 4)
		p := Start(t, n.hashConfig(fmt.Sprintf("balance = %q\n %s\n interval = \"100ms\"\n rise = 1\n fall = 1\n }", policy, n.health), servers))
		p.Await(4, "edgeproxy_server_up")
		before := n.sources(t, p, hashSources)
		servers[1].Stop()
		p.Await(3, "edgeproxy_server_up")
		heirs := map[string]int{}
		for i, name := range n.sources(t, p, hashSources) {
			if before[i] == "s1" {
				heirs[name]++
			} else if name != before[i] {
				t.Errorf("%s moved from %s to %s", sourceAddress(i), before[i], name)
			}
		}
		if len(heirs) != 3 || heirs["s1"] > 0 {
			t.Errorf("the clients of s1 went to %v", heirs)
		}
		servers[1].Restart()
		p.Await(4, "edgeproxy_server_up")
		eventually(t, func() bool { // a loop looks again within 20 ms
			now := n.sources(t, p, hashSources)
			for i := range now {
				if now[i] != before[i] {
					return false
				}
			}
			return true
		}, func() string { return "all clients where they were" })
	})
}

// A reload that adds the fifth server gives it a fifth of the clients, and
// moves nearly nobody else.
func TestHashReloadAddsAServer(t *testing.T) {
	t.Parallel()
	eachHash(t, func(t *testing.T, n *hashNetwork, policy string) {
		servers := n.serve(t, 5)
		upstream := fmt.Sprintf("balance = %q", policy)
		p := Start(t, n.hashConfig(upstream, servers[:4]))
		before := n.sources(t, p, hashSources)
		p.Reload(n.hashConfig(upstream, servers))
		moved, needless := 0, 0
		for i, name := range n.sources(t, p, hashSources) {
			if name != before[i] {
				moved++
				if name != "s4" {
					needless++
				}
			}
		}
		if moved < hashSources/10 || moved > hashSources*35/100 || needless > hashSources*2/100 {
			t.Errorf("%d of %d moved, %d of them not to the new one", moved, hashSources, needless)
		}
	})
}

// clientHello is the record that a TLS client begins with.
func clientHello(t *testing.T, name string) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		tls.Client(client, &tls.Config{ServerName: name}).Handshake() // fails when we close
		client.Close()
	}()
	record := make([]byte, 5)
	if _, err := io.ReadFull(server, record); err != nil {
		t.Fatal(err)
	}
	record = append(record, make([]byte, int(record[3])<<8|int(record[4]))...)
	if _, err := io.ReadFull(server, record[5:]); err != nil {
		t.Fatal(err)
	}
	return record
}

// explained is what the tests read of the answer of `edgeproxy explain --json`.
type explained struct {
	End       string
	Route     string
	Upstreams []struct {
		Server, Next string
		Tiers        []struct {
			Table struct{ Fingerprint string }
		}
	}
}

func (p *Proxy) explain(args ...string) (e explained) {
	p.t.Helper()
	code, out, errs := Run(p.t, append([]string{"explain", "-c", p.file, "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &e); err != nil || code != 0 || errs != "" {
		p.t.Fatalf("explain %v: exit code %d, %v\n%s%s", args, code, err, out, errs)
	}
	return e
}

// The server that explain names gets the session, whatever is hashed; and the
// one it names as the next gets it when that server is gone.
func TestHashExplainNamesTheServer(t *testing.T) {
	t.Parallel()
	eachHash(t, func(t *testing.T, n *hashNetwork, policy string) {
		servers := n.serve(t, 4)
		for _, on := range []string{"source", "source_port", "sni", "destination"} {
			if n.name == "udp" && on == "sni" {
				continue // QUIC: see the tests of real connections
			}
			p := Start(t, n.hashConfig(fmt.Sprintf("balance = %q\n hash_on = %q", policy, on), servers))
			seen := map[string]bool{}
			for i := range 6 {
				source, to, first := "127.0.0.9", p.at("127.0.0.1"), []byte("x")
				var args []string
				switch on {
				case "source":
					source = sourceAddress(i)
				case "sni":
					name := fmt.Sprintf("%d.example.com", i)
					first = clientHello(t, name)
					args = []string{"--sni", name}
				case "destination":
					to = p.at(sourceAddress(i))
				}
				server, from := n.ask(t, source, to, first)
				e := p.explain(append(args, "--listener", "edge", "--source", from, "--destination", to)...)
				if len(e.Upstreams) != 1 || e.Upstreams[0].Server != server || e.Upstreams[0].Next == server || e.Upstreams[0].Next == "" {
					t.Errorf("%s: %s to %s got %s: %+v", on, from, to, server, e)
				}
				seen[server] = true
			}
			if len(seen) < 2 {
				t.Errorf("%s: all sessions to %v", on, seen)
			}
		}
	})
}

func TestHashExplainNamesTheNext(t *testing.T) {
	t.Parallel()
	eachHash(t, func(t *testing.T, n *hashNetwork, policy string) {
		servers := n.serve(t, 4)
		p := Start(t, n.hashConfig(fmt.Sprintf("balance = %q\n %s\n interval = \"100ms\"\n rise = 1\n fall = 1\n }", policy, n.health), servers))
		p.Await(4, "edgeproxy_server_up")
		next := map[string]string{}
		for i := range 8 {
			e := p.explain("--source", sourceAddress(i)+":5", "--destination", p.at("127.0.0.1"))
			if e.Upstreams[0].Server == "s2" {
				next[sourceAddress(i)] = e.Upstreams[0].Next
			}
		}
		servers[2].Stop()
		p.Await(3, "edgeproxy_server_up")
		for source, want := range next {
			if server, _ := n.ask(t, source, p.at("127.0.0.1"), []byte("x")); server != want {
				t.Errorf("%s got %s, want %s", source, server, want)
			}
		}
		if len(next) == 0 {
			t.Error("no client of s2")
		}
	})
}
