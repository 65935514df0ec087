package upstream

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/proxyproto"
)

func TestDialConnects(t *testing.T) {
	for _, test := range []struct{ name, network, listen string }{
		{"IPv4", "tcp4", "127.0.0.1:0"},
		{"IPv6", "tcp6", "[::1]:0"},
		{"unix", "unix", filepath.Join(t.TempDir(), "s")},
		{"abstract", "unix", "@edgeproxy-upstream-test"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := newDialing(t, Options{})
			l := listen(t, test.network, test.listen)
			address := l.Addr().String()
			if test.network == "unix" {
				address = "unix:" + address
			}
			d.g = newTestGroup(Options{Servers: []ServerOptions{at("a", address, 0)}}, 1)
			r := d.dial()
			d.expect(r, Connected, 0)
			if r.server.Name != "a" || r.server.Active() != 1 || r.server.stats(ServerOptions{}).Sessions != 1 || r.took <= 0 {
				t.Errorf("%+v", r)
			}
			if n := count(d.g); n != 1 {
				t.Errorf("%d connects observed", n)
			}
			c := accept(t, l)
			if _, err := unix.Write(r.fd, []byte("hello")); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 5)
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
				t.Errorf("%q, %v", got, err)
			}
			if test.network != "unix" {
				if v, err := unix.GetsockoptInt(r.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY); v != 1 {
					t.Errorf("TCP_NODELAY %d, %v", v, err)
				}
			}
		})
	}
}

func count(g *Group) (n uint64) {
	for _, c := range g.Stats().Connect.Counts {
		n += c
	}
	return n
}

func TestDialFails(t *testing.T) {
	missing := "unix:" + filepath.Join(t.TempDir(), "missing")
	for _, test := range []struct {
		name     string
		address  func(t *testing.T) string
		options  Options
		outcome  Outcome
		retries  int
		failures string
		err      error
	}{
		{name: "refused", address: closedPort, options: Options{Retries: -1}, outcome: ConnectFailed, failures: "a:refused=1", err: unix.ECONNREFUSED},
		{name: "the same server again", address: closedPort, options: Options{Retries: 1}, outcome: ConnectFailed, retries: 1, failures: "a:refused=2", err: unix.ECONNREFUSED},
		{name: "no answer", address: fullPort, options: Options{Retries: -1, ConnectTimeout: 20 * time.Millisecond}, outcome: ConnectTimeout, failures: "a:timeout=1", err: unix.ETIMEDOUT},
		{name: "no socket file", address: func(*testing.T) string { return missing }, options: Options{Retries: -1}, outcome: ConnectFailed, failures: "a:refused=1", err: unix.ENOENT},
		{name: "abstract socket of nobody", address: func(*testing.T) string { return "unix:@edgeproxy-nobody" }, options: Options{Retries: -1}, outcome: ConnectFailed, failures: "a:refused=1", err: unix.ECONNREFUSED},
		{name: "source of another family", address: closedPort, options: Options{Retries: -1, Source: []netip.Addr{netip.IPv6Loopback()}}, outcome: ConnectFailed, failures: "a:other=1", err: unix.EAFNOSUPPORT},
		{name: "source of another host", address: closedPort, options: Options{Retries: -1, Source: []netip.Addr{netip.MustParseAddr("192.0.2.77")}}, outcome: ConnectFailed, failures: "a:no_ports=1", err: unix.EADDRNOTAVAIL},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := newDialing(t, Options{})
			test.options.Servers = []ServerOptions{at("a", test.address(t), 0)}
			d.g = newTestGroup(test.options, 1)
			begun := time.Now()
			r := d.dial()
			d.expect(r, test.outcome, test.retries)
			if got := d.failures(); got != test.failures {
				t.Errorf("counted %q, want %q", got, test.failures)
			}
			if !errors.Is(r.err, test.err) || !strings.Contains(r.err.Error(), `"a"`) {
				t.Errorf("error %v", r.err)
			}
			if r.server == nil || r.server.Name != "a" {
				t.Errorf("server %v", r.server)
			}
			if d := time.Since(begun); d < time.Duration(test.retries)*retryPause {
				t.Errorf("the server was tried again after %v", d)
			}
			if n := d.g.Stats().Servers[0].Sessions; n != 0 {
				t.Errorf("%d sessions counted", n)
			}
		})
	}
}

func TestDialNoServer(t *testing.T) {
	d := newDialing(t, Options{Servers: []ServerOptions{at("a", "127.0.0.1:1", 0)}})
	d.g.setUp("a", false)
	r := d.dial()
	d.expect(r, NoServer, 0)
	if r.server != nil || !strings.Contains(r.err.Error(), `"web"`) {
		t.Errorf("server %v, error %v", r.server, r.err)
	}
}

// Tiers fix the order in which servers are tried.
func TestDialRetriesOnOthers(t *testing.T) {
	d := newDialing(t, Options{})
	l := listen(t, "tcp", "127.0.0.1:0")
	closed := closedPort(t)
	servers := []ServerOptions{at("a", closed, 0), at("b", closed, 1), at("c", l.Addr().String(), 2)}
	for _, test := range []struct {
		retries  int
		outcome  Outcome
		took     int
		last     string
		failures string
	}{
		{-1, ConnectFailed, 0, "a", "a:refused=1"},
		{1, ConnectFailed, 1, "b", "a:refused=1 b:refused=1"},
		{0, Connected, 2, "c", "a:refused=1 b:refused=1"},
	} {
		d.g = newTestGroup(Options{Retries: test.retries, Servers: servers}, 1)
		r := d.dial()
		d.expect(r, test.outcome, test.took)
		if r.server.Name != test.last || d.failures() != test.failures {
			t.Errorf("retries %d: last tried %q, counted %q", test.retries, r.server.Name, d.failures())
		}
	}
}

// With nobody else to try, a server that comes back within the pause is found.
func TestDialWaitsForRestart(t *testing.T) {
	d := newDialing(t, Options{})
	path := filepath.Join(t.TempDir(), "s")
	d.g = newTestGroup(Options{Retries: 1, Servers: []ServerOptions{at("a", "unix:"+path, 0)}}, 1)
	r := &result{done: make(chan struct{})}
	theLoop().Do(func() {
		p := d.dl.Dial(d.g, r, Client{Source: client, Local: local})
		if p == nil || !p.waiting || p.leased || d.g.active() != 0 {
			t.Errorf("not waiting: %+v", p)
		}
		listen(t, "unix", path) // the server is back, before the loop turns
	})
	<-r.done
	d.expect(r, Connected, 1)
	t.Cleanup(r.close)
}

// A retry that finds nobody left ends with what failed, not with no_server.
func TestDialServerGoesDownWhileWaiting(t *testing.T) {
	d := newDialing(t, Options{})
	d.g = newTestGroup(Options{Retries: 5, Servers: []ServerOptions{at("a", "unix:@edgeproxy-nobody", 0)}}, 1)
	r := &result{done: make(chan struct{})}
	theLoop().Do(func() {
		d.dl.Dial(d.g, r, Client{Source: client, Local: local})
		d.g.setUp("a", false)
	})
	<-r.done
	d.expect(r, ConnectFailed, 1)
	if !errors.Is(r.err, unix.ECONNREFUSED) || r.server == nil {
		t.Errorf("%v, server %v", r.err, r.server)
	}
}

// A server that resets before the loop saw the connection is one that failed.
func TestDialReset(t *testing.T) {
	d := newDialing(t, Options{})
	l := listen(t, "tcp", "127.0.0.1:0")
	d.g = newTestGroup(Options{Retries: -1, Servers: []ServerOptions{at("a", l.Addr().String(), 0)}}, 1)
	r := &result{done: make(chan struct{})}
	theLoop().Do(func() {
		p := d.dl.Dial(d.g, r, Client{Source: client, Local: local})
		if p == nil {
			t.Error("ended at once")
			return
		}
		c := accept(t, l)
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
		pollFor(t, p.FD, unix.POLLERR)
	})
	<-r.done
	d.expect(r, ConnectFailed, 0)
	if got := d.failures(); got != "a:reset=1" || !errors.Is(r.err, unix.ECONNRESET) {
		t.Errorf("counted %q, %v", got, r.err)
	}
}

func pollFor(t *testing.T, fd int, events int16) {
	t.Helper()
	for {
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, -1); n == 1 {
			return
		} else if err != unix.EINTR {
			t.Error(err)
			return
		}
	}
}

func TestDialFromSources(t *testing.T) {
	d := newDialing(t, Options{})
	l := listen(t, "tcp", "127.0.0.1:0")
	sources := []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.IPv6Loopback(), netip.MustParseAddr("::ffff:127.0.0.3")}
	d.g = newTestGroup(Options{Source: sources, Servers: []ServerOptions{at("a", l.Addr().String(), 0)}}, 1)
	got := map[string]int{}
	for range 6 {
		r := d.dial()
		d.expect(r, Connected, 0)
		host, _, _ := net.SplitHostPort(accept(t, l).RemoteAddr().String())
		got[host]++
		if v, err := unix.GetsockoptInt(r.fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT); v != 1 {
			t.Errorf("IP_BIND_ADDRESS_NO_PORT %d, %v", v, err)
		}
	}
	if got["127.0.0.2"] != 3 || got["127.0.0.3"] != 3 {
		t.Errorf("connected from %v", got)
	}
}

func TestDialSendsProxyHeaderFirst(t *testing.T) {
	for _, v := range []ProxyProtocol{ProxyV1, ProxyV2} {
		for _, network := range []string{"tcp", "unix"} {
			d := newDialing(t, Options{})
			address := "127.0.0.1:0"
			if network == "unix" {
				address = filepath.Join(t.TempDir(), "s")
			}
			l := listen(t, network, address)
			if address = l.Addr().String(); network == "unix" {
				address = "unix:" + address
			}
			d.g = newTestGroup(Options{ProxyProtocol: v, Servers: []ServerOptions{at("a", address, 0)}}, 1)
			want := proxyproto.AppendV1(nil, client, local)
			if v == ProxyV2 {
				want = proxyproto.AppendV2(nil, client, local)
			}
			want = append(want, "payload"...)
			r := d.dial()
			d.expect(r, Connected, 0)
			if _, err := unix.Write(r.fd, []byte("payload")); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(want))
			if _, err := io.ReadFull(accept(t, l), got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("v%d on %s: %q, %v", v, network, got, err)
			}
		}
	}
}

// A server gone before the header could be sent is one that failed, and
// another one gets the header whole.
func TestDialProxyHeaderFails(t *testing.T) {
	d := newDialing(t, Options{})
	l := listen(t, "tcp", "127.0.0.1:0")
	d.g = newTestGroup(Options{ProxyProtocol: ProxyV2, Servers: []ServerOptions{at("a", l.Addr().String(), 0), at("b", l.Addr().String(), 1)}}, 1)
	r := &result{done: make(chan struct{})}
	theLoop().Do(func() {
		p := d.dl.Dial(d.g, r, Client{Source: client, Local: local})
		if p == nil {
			t.Error("ended at once")
			return
		}
		pollFor(t, p.FD, unix.POLLOUT)
		unix.Shutdown(p.FD, unix.SHUT_WR) // sending will fail with EPIPE
	})
	<-r.done
	d.expect(r, Connected, 1)
	t.Cleanup(r.close)
	if r.server.Name != "b" || d.failures() != "a:reset=1" {
		t.Errorf("connected to %s, counted %q", r.server.Name, d.failures())
	}
	first, want := accept(t, l), proxyproto.AppendV2(nil, client, local)
	if got, err := io.ReadAll(first); len(got) > 0 {
		t.Errorf("the first connection got %q, %v", got, err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(accept(t, l), got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the second one got %q, %v", got, err)
	}
}

func TestDialCancel(t *testing.T) {
	for name, test := range map[string]struct {
		address func(t *testing.T) string
		waiting bool
	}{
		"connecting":         {fullPort, false},
		"waiting for a turn": {closedPort, true},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDialing(t, Options{})
			d.g = newTestGroup(Options{Servers: []ServerOptions{at("a", test.address(t), 0)}}, 1)
			r := &result{done: make(chan struct{})}
			var p *Dial
			theLoop().Do(func() { p = d.dl.Dial(d.g, r, Client{Source: client, Local: local}) })
			for waiting := !test.waiting; waiting != test.waiting; { // a refusal comes as an event
				theLoop().Do(func() { waiting = p.waiting })
			}
			theLoop().Do(func() {
				if n := d.g.active(); test.waiting != (n == 0) {
					t.Errorf("%d leases before", n)
				}
				p.Cancel()
				if n := d.g.active(); n != 0 {
					t.Errorf("%d leases after", n)
				}
				if d.dl.free != p {
					t.Error("the Dial is not free")
				}
			})
			if r.told != 0 {
				t.Error("the owner was told")
			}
		})
	}
}

// The timer of a cancelled dial must not end the next one, which is the same
// Dial used again.
func TestDialAfterCancel(t *testing.T) {
	d := newDialing(t, Options{})
	full := []ServerOptions{at("a", fullPort(t), 0)}
	const early, late = 10 * time.Millisecond, 60 * time.Millisecond
	d.g = newTestGroup(Options{Servers: full, ConnectTimeout: early, Retries: -1}, 1)
	theLoop().Do(func() {
		if p := d.dl.Dial(d.g, &result{done: make(chan struct{})}, Client{Source: client, Local: local}); p != nil {
			p.Cancel()
		}
	})
	d.g = newTestGroup(Options{Servers: full, ConnectTimeout: late, Retries: -1}, 1)
	begun := time.Now()
	d.expect(d.dial(), ConnectTimeout, 0)
	if took := time.Since(begun); took < late-early {
		t.Errorf("timed out after %v, not %v", took, late)
	}
}

// A server that had accepted sees a reset, not a client that says nothing.
func TestDialCancelResets(t *testing.T) {
	d := newDialing(t, Options{})
	l := listen(t, "tcp", "127.0.0.1:0")
	d.g = newTestGroup(Options{Servers: []ServerOptions{at("a", l.Addr().String(), 0)}}, 1)
	var c net.Conn
	r := &result{done: make(chan struct{})}
	theLoop().Do(func() {
		p := d.dl.Dial(d.g, r, Client{Source: client, Local: local})
		if p == nil {
			t.Error("ended at once")
			return
		}
		c = accept(t, l) // the kernel has connected; the loop has not looked yet
		p.Cancel()
	})
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the server reads: %v", err)
	}
	if r.told != 0 {
		t.Error("the owner was told")
	}
}

// A lack of descriptors is this process's fault: no server's failure, no retry.
func TestDialWithoutDescriptors(t *testing.T) {
	d := newDialing(t, Options{})
	l := listen(t, "tcp", "127.0.0.1:0")
	d.g = newTestGroup(Options{Servers: []ServerOptions{at("a", l.Addr().String(), 0)}}, 1)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	r := &result{done: make(chan struct{})}
	theLoop().Do(func() {
		// Restored before anybody else needs a descriptor: no parallel test runs now.
		defer unix.Setrlimit(unix.RLIMIT_NOFILE, &was)
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: was.Max}); err != nil {
			t.Error(err)
		}
		if p := d.dl.Dial(d.g, r, Client{Source: client, Local: local}); p != nil {
			t.Errorf("not ended: %+v", p)
			p.Cancel()
		}
	})
	d.expect(r, Overloaded, 0)
	if !errors.Is(r.err, unix.EMFILE) || d.failures() != "" {
		t.Errorf("%v, counted %q", r.err, d.failures())
	}
	d.expect(d.dial(), Connected, 0)
}

// A family that the kernel lacks concerns that server; others are tried.
func TestDialWithoutFamily(t *testing.T) {
	d := newDialing(t, Options{})
	l := listen(t, "tcp", "127.0.0.1:0")
	d.g = newTestGroup(Options{Servers: []ServerOptions{at("a", "127.0.0.1:1", 0), at("b", l.Addr().String(), 1)}}, 1)
	none := newEndpoint(netip.MustParseAddrPort("127.0.0.1:1"), "")
	none.family = unix.AF_MAX + 1
	d.g.members[0].endpoint.Store(none)
	d.expect(d.dial(), Connected, 1)
	if got := d.failures(); got != "a:other=1" {
		t.Errorf("counted %q", got)
	}
}
