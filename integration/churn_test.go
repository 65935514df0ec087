package integration

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Connections opened and closed as fast as the machine can, from many
// addresses so that ports do not run out, ending in FIN or RST in turn: each
// is accounted for, and the proxy is as before.
func TestChurn(t *testing.T) {
	s := Serve(t, discard)
	p := Start(t, oneUpstream("", "", s.Addr()))
	target := netip.MustParseAddrPort(p.Addr("edge"))
	var opened atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for w := range 8 {
		wg.Go(func() {
			for i := 0; time.Since(begin) < 3*time.Second; i++ {
				source := netip.AddrFrom4([4]byte{127, 1, byte(w), byte(1 + i%200)})
				if err := openAndClose(source, target, i%2 == 0); err != nil {
					t.Error(err)
					return
				}
				opened.Add(1)
			}
		})
	}
	wg.Wait()
	t.Logf("%.0f connections per second", float64(opened.Load())/time.Since(begin).Seconds())
	p.Await(float64(opened.Load()), "edgeproxy_session_ends_total")
	ends := p.Metrics().Ends("edge")
	for end, n := range ends {
		// EADDRNOTAVAIL towards the one server is this test's doing.
		if end != "client_closed" && end != "client_reset" && end != "connect_failed" {
			t.Errorf("%d sessions ended with %s", n, end)
		}
	}
	if n := ends["connect_failed"]; n > int(opened.Load())/100 {
		t.Errorf("%d of %d sessions found no port to the server", n, opened.Load())
	}
	if n := len(p.AccessLog(int(opened.Load()))); n != int(opened.Load()) {
		t.Errorf("%d lines in the access log for %d sessions", n, opened.Load())
	}
}

// openAndClose spends a few system calls on a connection: the client must be
// faster than what it measures.
func openAndClose(source netip.Addr, target netip.AddrPort, rst bool) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: source.As4()}); err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: target.Addr().As4(), Port: int(target.Port())}); err != nil {
		return fmt.Errorf("connect from %v: %w", source, err)
	}
	if rst {
		return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	return nil
}

// A server that is killed and comes back, again and again, under load: no
// session fails because of a server that could be known to be gone, and only
// requests that were on it are lost.
func TestServerKilledAndRestarted(t *testing.T) {
	handler := func(name string) func(Conn) { return lines(name, 0) }
	s := ServeNames(t, 3, handler)
	p := Start(t, oneUpstream("", `balance = "round_robin"`, addrs(s)...))
	addr := p.Addr("edge")
	load := StartLoad(t, 6, request(addr))
	for i := range 12 {
		victim := s[i%3]
		victim.Stop()
		load.AwaitRequests(t, 50)
		victim.Restart()
		load.AwaitRequests(t, 50)
	}
	failures := load.Stop()
	p.Await(0, "edgeproxy_sessions_active")
	ends := p.Metrics().Ends("edge")
	if n := ends["connect_failed"] + ends["no_server"] + ends["connect_timeout"]; n > 0 {
		t.Errorf("ends %v: %d sessions failed though two servers were there", ends, n)
	}
	if most := ends["server_reset"] + ends["server_closed"]; len(failures) > most {
		t.Errorf("%d requests failed, but only %d sessions were ended by servers; the first with: %v", len(failures), most, failures[0])
	}
	if got := p.Metrics().Sum("edgeproxy_server_failures_total", "reason", "refused"); got == 0 {
		t.Error("no connect was refused: the test killed nothing")
	}
	t.Logf("%d requests, %d lost with their servers, ends %v", load.Requests(), len(failures), ends)
	for _, server := range s {
		before := server.Accepted()
		eventually(t, func() bool {
			if _, err := ask(addr, "ping"); err != nil {
				t.Error(err)
			}
			return server.Accepted() > before
		}, func() string { return server.Addr() + " takes sessions again" })
	}
}

// All servers of all kinds of faults at once, and good ones between them: the
// right end for each session, and nothing left.
func TestFaultsMixed(t *testing.T) {
	t.Parallel()
	stuck, _ := ServeNeverReading(t, "tcp", "127.0.0.1:0")
	s := []string{
		Serve(t, resetAtOnce).Addr(), Serve(t, sendAndClose("bye")).Addr(), Refused(t),
		Serve(t, lines("good", 0)).Addr(), stuck.Addr(), Hanging(t),
	}
	p := Start(t, oneUpstream("timeouts {\n idle = \"1s\"\n half_close = \"500ms\"\n }", "balance = \"round_robin\"\n connect_timeout = \"200ms\"\n retries = 1", s...))
	addr := p.Addr("edge")
	const clients, each = 12, 10
	var wg sync.WaitGroup
	for w := range clients {
		wg.Go(func() {
			for i := range each {
				c, err := connect(addr)
				if err != nil {
					t.Error(err)
					return
				}
				c.Write([]byte("ping\n"))
				switch (w + i) % 3 {
				case 0:
					c.CloseWrite()
				case 1:
					reset(c)
					continue
				}
				buf := make([]byte, 100)
				c.Read(buf)
				c.Close()
			}
		})
	}
	wg.Wait()
	allowed := map[string]bool{"client_closed": true, "server_closed": true, "client_reset": true, "server_reset": true,
		"idle_timeout": true, "half_close_timeout": true, "connect_failed": true, "connect_timeout": true}
	for end, n := range countBy(p.AccessLog(clients*each), func(e Entry) string { return e.End }) {
		if !allowed[end] {
			t.Errorf("%d sessions ended with %s", n, end)
		}
	}
}

// Clients that are told to go away cost little and get a definite end.
func TestRefusedClientsSeeTheEnd(t *testing.T) {
	t.Parallel()
	p := Start(t, oneUpstream(`deny = ["127.0.0.0/8"]`, "", Refused(t)))
	addr := p.Addr("edge")
	for range 200 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		c.Write([]byte("hello"))
		if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		c.Close()
	}
	if ends := p.Metrics().Ends("edge"); ends["denied"] != 200 {
		t.Errorf("ends %v", ends)
	}
}
