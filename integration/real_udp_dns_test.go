package integration

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// knot starts an authoritative DNS server, on UDP and TCP. Its name is the
// answer to a TXT query for name.example.test.
func (n *namespace) knot(addr, name string) *daemon {
	n.t.Helper()
	knotd := need(n.t, "knotd")
	dir := shortTempDir(n.t)
	var zone strings.Builder
	zone.WriteString("$ORIGIN example.test.\n$TTL 60\n@ SOA ns admin 1 3600 600 86400 60\n@ NS ns\nns A 192.0.2.53\nwww A 192.0.2.80\nwww AAAA 2001:db8::80\n*.w A 192.0.2.81\n")
	fmt.Fprintf(&zone, "name TXT %q\n", name)
	// In one datagram of 4096 bytes, which are three fragments; and in none.
	for label, strs := range map[string]int{"large": 15, "huge": 40} {
		fmt.Fprintf(&zone, "%s TXT", label)
		for i := range strs {
			fmt.Fprintf(&zone, " \"%s\"", strings.Repeat(string(rune('a'+i%26)), 240))
		}
		zone.WriteByte('\n')
	}
	writeFile(n.t, filepath.Join(dir, "example.test.zone"), zone.String())
	conf := writeFile(n.t, filepath.Join(dir, "knot.conf"), fmt.Sprintf(`server:
    rundir: "%[1]s"
    user: root
    listen: %[2]s@53
    udp-max-payload: 4096
    tcp-io-timeout: 0
log:
  - target: stdout
    any: info
database:
    storage: "%[1]s"
template:
  - id: default
    storage: "%[1]s"
    file: "%%s.zone"
zone:
  - domain: example.test
`, dir, addr))
	d := n.daemon(knotd, "-c", conf)
	eventually(n.t, func() bool {
		out, err := n.try("dig", "@"+addr, "+tries=1", "+time=1", "+short", "name.example.test", "TXT")
		return err == nil && strings.Contains(out, name)
	}, func() string { return "knotd answers\n" + d.output() })
	return d
}

// dnsBothWays is a resolver's front: the same servers by UDP and TCP.
func dnsBothWays(upstream string, servers ...string) string {
	body := udpListener("responses = 1\n timeouts { idle = \"3s\" }", upstream, []string{clientEdge4 + ":53"}, servers...)
	return body + fmt.Sprintf("listener \"tcp\" \"edge-tcp\" {\n address = %q\n upstream = upstream.app\n}\n", clientEdge4+":53")
}

// what dig says of the moment and the way, rather than of the answer.
var digNoise = regexp.MustCompile(`(?m)^(;; Query time:|;; SERVER:|;; WHEN:|; <<>> DiG|;; global options|;; MSG SIZE).*\n`)

// Answers through edgeproxy are those of the server, whatever their size: by
// one datagram, by fragments, or, when the server says "truncated", by TCP.
func TestRealDNSAnswers(t *testing.T) {
	t.Parallel()
	need(t, "dig")
	h := newThreeHosts(t)
	h.client.ip("route add 10.2.0.0/24 via " + clientEdge4)
	h.edge.sysctl("ipv4/ip_forward", "1") // for the direct answers
	h.server.ip("route add 10.1.0.0/24 via " + serverEdge4)
	h.server.knot(server4, "knot")
	p := Start(t, dnsBothWays("", server4+":53"), WithStart(h.edge.start))
	for _, q := range []struct{ args, expect string }{
		{"www.example.test A", "192.0.2.80"},
		{"www.example.test AAAA", "2001:db8::80"},
		{"absent.example.test A", "NXDOMAIN"},
		{"www.example.org A", "REFUSED"},
		{"large.example.test TXT +bufsize=4096 +ignore", "\"ccc"},
		{"large.example.test TXT +bufsize=4096 +ignore +dnssec", "\"ccc"},
		{"large.example.test TXT +bufsize=1232 +ignore", "flags: qr aa tc"},
		{"large.example.test TXT +noedns +ignore", "flags: qr aa tc"},
		{"large.example.test TXT +bufsize=1232", "\"ooo"},
		{"huge.example.test TXT +bufsize=4096", "\"zzz"},
		{"www.example.test A +tcp", "192.0.2.80"},
	} {
		answer := func(server string) string {
			out := h.client.run("dig", append([]string{"@" + server, "+qid=4711", "+nocookie", "+tries=1", "+time=5"}, strings.Fields(q.args)...)...)
			return digNoise.ReplaceAllString(out, "")
		}
		direct, through := answer(server4), answer(clientEdge4)
		if !strings.Contains(direct, q.expect) {
			t.Errorf("%s: no %q in the server's own answer:\n%s", q.args, q.expect, direct)
		}
		if through != direct {
			t.Errorf("%s: through edgeproxy\n%s\nand not\n%s", q.args, through, direct)
		}
	}
	p.assertEnds("edge", "responses_done")
	p.assertEnds("edge-tcp", "client_closed", "server_closed")
	if h.server.fragments() == 0 || h.edge.fragments() == 0 {
		t.Error("no answer was fragmented")
	}
}

// dnsperf asks queries of a server, none more than once a run, and returns how
// many were sent and how many lost.
func (n *namespace) dnsperf(server string, queries int, args ...string) (sent, lost int) {
	n.t.Helper()
	out := n.run(need(n.t, "dnsperf"), append([]string{"-s", server, "-d", dnsQueries(n.t, queries)}, args...)...)
	return dnsperfCount(n.t, out)
}

func dnsQueries(t testing.TB, n int) string {
	t.Helper()
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "q%d.w.example.test A\n", i)
	}
	return writeFile(t, filepath.Join(shortTempDir(t), "queries"), b.String())
}

var dnsperfLines = regexp.MustCompile(`(?s)Queries sent: +(\d+).*Queries completed: +(\d+).*Queries lost: +(\d+).*Response codes: +NOERROR (\d+) \(100`)

func dnsperfCount(t testing.TB, out string) (sent, lost int) {
	t.Helper()
	m := dnsperfLines.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("dnsperf says\n%s", out)
	}
	sent, lost = mustAtoi(t.(*testing.T), m[1]), mustAtoi(t.(*testing.T), m[3])
	if completed := mustAtoi(t.(*testing.T), m[2]); completed+lost != sent {
		t.Errorf("%d of %d queries were answered, %d lost", completed, sent, lost)
	}
	return sent, lost
}

func TestRealDNSPerf(t *testing.T) {
	t.Parallel()
	h := newThreeHosts(t)
	h.server.knot(server4, "knot")
	p := Start(t, dnsBothWays("", server4+":53"), WithStart(h.edge.start))
	const queries = 5000
	for _, mode := range []struct{ name, listener string }{{"udp", "edge"}, {"tcp", "edge-tcp"}} {
		sent, lost := h.client.dnsperf(clientEdge4, queries, "-m", mode.name, "-n", "1", "-c", "20", "-T", "1")
		if sent != queries || lost != 0 {
			t.Errorf("%s: %d of %d queries lost", mode.name, lost, sent)
		}
	}
	m := p.Metrics()
	for _, direction := range []string{"in", "out"} {
		if n := m.Sum("edgeproxy_datagrams_total", "listener", "edge", "direction", direction); n != queries {
			t.Errorf("%v datagrams %s, want %d", n, direction, queries)
		}
	}
	p.assertEnds("edge", "responses_done")
	p.assertEnds("edge-tcp", "client_closed", "server_closed")
}

// A query of type A for www.example.test, and how an answer to it begins.
const (
	dnsProbe = "1267" + "0000" + "0001000000000000" + "03777777" + "076578616d706c65" + "0474657374" + "00" + "00010001"
	dnsReply = "12678400"
)

// One of two servers ends, or hangs, while queries come: what is lost is
// what was under way until that was noticed, and after that nothing is.
func TestRealDNSServerGoesAway(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		away  syscall.Signal
		bound int // per cent of the queries
	}{
		{"ends", syscall.SIGKILL, 5},
		{"hangs", syscall.SIGSTOP, 40},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := newThreeHosts(t)
			h.server.ip("addr add 10.2.0.3/24 dev edge")
			h.server.knot(server4, "stays")
			leaves := h.server.knot("10.2.0.3", "leaves")
			check := fmt.Sprintf("health \"udp\" {\n send_hex = %q\n expect_hex = %q\n interval = \"200ms\"\n timeout = \"200ms\"\n fall = 2\n rise = 1\n }", dnsProbe, dnsReply)
			p := Start(t, dnsBothWays(check, server4+":53", "10.2.0.3:53"), WithStart(h.edge.start))
			p.Await(2, "edgeproxy_server_up")
			const seconds, rate = 4, 1000
			load := h.client.daemon(need(t, "dnsperf"), "-s", clientEdge4, "-d", dnsQueries(t, rate*seconds*2), "-m", "udp",
				"-l", fmt.Sprint(seconds), "-Q", fmt.Sprint(rate), "-c", "20", "-T", "1", "-t", "1")
			eventually(t, func() bool {
				m := p.Metrics()
				return m.Sum("edgeproxy_server_sessions_total", "server", "s0") > 50 && m.Sum("edgeproxy_server_sessions_total", "server", "s1") > 50
			}, func() string { return "both servers have sessions\n" + load.output() })
			leaves.cmd.Process.Signal(tt.away)
			t.Cleanup(func() { leaves.cmd.Process.Signal(syscall.SIGCONT) })
			p.Await(1, "edgeproxy_server_up")
			<-load.exited
			sent, lost := dnsperfCount(t, load.output())
			t.Logf("%d of %d queries lost", lost, sent)
			if lost*100 > sent*tt.bound {
				t.Errorf("%d of %d queries lost", lost, sent)
			}
			if sent, lost := h.client.dnsperf(clientEdge4, 2000, "-m", "udp", "-n", "1", "-c", "20", "-T", "1"); lost != 0 {
				t.Errorf("%d of %d queries lost after the server was known to be down", lost, sent)
			}
		})
	}
}
