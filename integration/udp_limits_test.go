package integration

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// What may not begin a session leaves no session, no line in the log, nothing
// at the server: only a count.
func TestUDPDatagramsThatBeginNothing(t *testing.T) {
	t.Parallel()
	const upstream = "\n upstream = upstream.app"
	for name, c := range map[string]struct {
		listener, reason string
	}{
		"denied":      {`deny = ["127.0.0.2"]` + upstream, "denied"},
		"not allowed": {`allow = ["127.0.0.1", "127.0.0.3/32"]` + upstream, "denied"},
		"rejected": {`route "no" {
  match { source = ["127.0.0.2/31"] }
  reject = true
 }
 route "rest" { upstream = upstream.app }`, "denied"},
		"no route": {`route "one" {
  match { source = ["127.0.0.1"] }
  upstream = upstream.app
 }`, "no_route"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := ServeUDP(t, echoUDP)
			body := strings.Replace(oneUDP("", "", s.Addr()), "upstream = upstream.app", c.listener, 1)
			p := Start(t, body)
			good, bad := DialUDPFrom(t, "127.0.0.1", p.Addr("edge")), DialUDPFrom(t, "127.0.0.2", p.Addr("edge"))
			for i := range 10 {
				bad.Send("let me in")
				p.AwaitDrops(i+1, c.reason)
			}
			good.RoundTrip("hello")
			bad.ExpectNothing()
			if got := s.Got(); len(got) != 1 {
				t.Errorf("the server got %d datagrams, want 1", len(got))
			}
			p.Session(good)
			if m := p.Metrics(); len(m.Drops("edge")) != 1 || m.Sum("edgeproxy_sessions_total") != 1 {
				t.Errorf("%v sessions, dropped %v", m.Sum("edgeproxy_sessions_total"), m.Drops("edge"))
			}
			if n := len(p.AccessLog(1)); n != 1 {
				t.Errorf("%d lines in the access log, want 1", n)
			}
			var list []struct{ Dropped map[string]int }
			p.API("/v1/listeners", &list)
			if len(list) != 1 || list[0].Dropped[c.reason] != 10 || len(list[0].Dropped) != 1 {
				t.Errorf("/v1/listeners has %+v", list)
			}
		})
	}
}

// CVE-2024-2169: a datagram whose forged source is our own address would be
// answered to ourselves, for ever.
func TestUDPOwnAddressIsNoClient(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0", ":0"} {
		t.Run(address, func(t *testing.T) {
			t.Parallel()
			s := ServeUDP(t, echoUDP)
			p := Start(t, udpAt(address, "", "", s.Addr())+
				"listener \"udp\" \"other\" {\n address = \"127.0.0.1:0\"\n upstream = upstream.app\n}\n")
			own := netip.MustParseAddrPort("127.0.0.1:" + p.UDPPort())
			if !sendSpoofed(t, own, own, "loop") {
				missing(t, "CAP_NET_RAW, which forging a source takes,")
			}
			p.AwaitDrops(1, "denied")
			sendSpoofed(t, netip.MustParseAddrPort(p.Addr("other")), own, "loop through two")
			p.AwaitDrops(2, "denied")
			if address != "127.0.0.1:0" { // every address of this machine is its own
				sendSpoofed(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.5"), own.Port()), own, "loop")
				p.AwaitDrops(3, "denied")
			}
			c := DialUDP(t, own.String())
			c.RoundTrip("hello")
			if got := s.Got(); len(got) != 1 || got[0].Payload != "hello" {
				t.Errorf("the server got %+v", got)
			}
		})
	}
}

// At a limit of sessions, those whose clients have proven to be there (they
// sent again after an answer) stay; newcomers are dropped.
func TestUDPLimitOfSessions(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ limits, process string }{
		"of the listener": {"limits { connections = 3 }", ""},
		"of the process":  {"", "max_connections = 3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := ServeUDP(t, echoUDP)
			p := Start(t, oneUDP(c.limits, "", s.Addr()), WithProcess(c.process))
			addr := p.Addr("edge")
			var held []*UDPClient
			for range 3 {
				held = append(held, DialUDP(t, addr))
			}
			talk := func() {
				for _, c := range held {
					c.RoundTrip("question")
					c.RoundTrip("another one")
				}
			}
			talk()
			late := DialUDP(t, addr)
			until := time.Now().Add(1500 * time.Millisecond) // longer than the age at which sessions may be ended for others
			for i := 0; i < 5 || time.Now().Before(until); i++ {
				late.Send("let me in")
				p.AwaitDrops(i+1, "limited")
				talk()
			}
			late.ExpectNothing()
			if n := len(s.Sources()); n != 3 {
				t.Errorf("%d sessions, want 3", n)
			}
			p.Await(0, "edgeproxy_sessions_active")
			late.RoundTrip("now there is room")
			if ends := p.Metrics().Ends("edge"); ends["idle_timeout"] != 3 || len(ends) != 1 {
				t.Errorf("ends %v", ends)
			}
		})
	}
}

// At a limit, the oldest session whose client has not proven to be there makes
// room for a new one, and says so. One loop: each has its own idea of age.
func TestUDPSessionsMakeRoom(t *testing.T) {
	t.Parallel()
	s := ServeUDP(t, echoUDP)
	p := Start(t, oneUDP("limits { connections = 3 }\n timeouts { idle = \"10s\" }", "", s.Addr()), WithWorkers(1),
		WithProcess(`shutdown_timeout = "1s"`))
	addr := p.Addr("edge")
	proven, first, second := DialUDP(t, addr), DialUDP(t, addr), DialUDP(t, addr)
	proven.RoundTrip("a question")
	proven.RoundTrip("and another")
	first.RoundTrip("only one")
	second.RoundTrip("only one")
	late := DialUDP(t, addr)
	eventually(t, func() bool {
		late.Send("let me in")
		return len(s.Sources()) == 4
	}, func() string { return "a session makes room for another" })
	if e := p.Session(first); e.End != "limited" || e.Phase != "relay" || e.Error == "" || e.DurationMS < 1000 {
		t.Errorf("%+v, want limited after at least a second", e)
	}
	proven.RoundTrip("still here")
	if n := len(p.AccessLog(1)); n != 1 {
		t.Errorf("%d sessions have ended, want the oldest alone", n)
	}
	p.Term()
}

func TestUDPLimitPerSource(t *testing.T) {
	t.Parallel()
	s := ServeUDP(t, echoUDP)
	p := Start(t, oneUDP("limits { connections_per_source = 2 }", "", s.Addr()))
	addr := p.Addr("edge")
	for _, source := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.2"} {
		DialUDPFrom(t, source, addr).RoundTrip("hello")
	}
	third := DialUDPFrom(t, "127.0.0.1", addr)
	third.Send("let me in")
	p.AwaitDrops(1, "limited")
	DialUDPFrom(t, "127.0.0.3", addr).RoundTrip("hello")
	third.ExpectNothing()
	p.Await(0, "edgeproxy_sessions_active")
	third.RoundTrip("now there is room")
}

// Of sessions as fast as they can be begun, the rate and one second's burst
// pass at most, and the rest counts.
func TestUDPLimitRate(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]string{"listener": `rate = "20/s"`, "per source": `rate_per_source = "20/s"`} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const clients = 200
			s := ServeUDP(t, silentUDP)
			p := Start(t, oneUDP("limits { "+limit+" }", "", s.Addr()))
			addr := p.Addr("edge")
			begin := time.Now()
			for range clients {
				DialUDP(t, addr).Send("x")
			}
			var passed, dropped float64
			eventually(t, func() bool {
				m := p.Metrics()
				passed, dropped = m.Sum("edgeproxy_sessions_total"), float64(m.Drops("edge")["limited"])
				return passed+dropped == clients
			}, func() string { return fmt.Sprintf("%v sessions, %v dropped, of %d", passed, dropped, clients) })
			seconds := time.Since(begin).Seconds()
			if most := 20*(seconds+1) + 1; passed < 1 || passed > most {
				t.Errorf("%v passed in %.2f s, want 1 to %.0f", passed, seconds, most)
			}
			late := DialUDP(t, addr)
			eventually(t, func() bool {
				late.Send("y")
				got := s.Got()
				return got[len(got)-1].Payload == "y"
			}, func() string { return "a session passes again" })
		})
	}
}

// What is beyond the bandwidth of a session is dropped and counted; the other
// direction is free.
func TestUDPBandwidth(t *testing.T) {
	t.Parallel()
	const datagrams, size, rate = 80, 1024, 64 << 10 // no more than a socket takes that has all the kernel's defaults
	check := func(t *testing.T, passed float64, since time.Time) {
		t.Helper()
		seconds := time.Since(since).Seconds()
		if most := (seconds + 0.25) * rate / size; passed < 5 || passed > most {
			t.Errorf("%v of %d datagrams passed in %.2f s, want 5 to %.0f", passed, datagrams, seconds, most)
		}
	}
	t.Run("in", func(t *testing.T) {
		t.Parallel()
		s := ServeUDP(t, silentUDP)
		p := Start(t, oneUDP(`limits { bandwidth_in = "64KiB/s" }`, "", s.Addr()))
		c := DialUDP(t, p.Addr("edge"))
		begin := time.Now()
		for range datagrams {
			c.Send(strings.Repeat("x", size))
		}
		var passed, dropped float64
		eventually(t, func() bool {
			m := p.Metrics()
			passed, dropped = m.Sum("edgeproxy_datagrams_total", "direction", "in"), float64(m.Drops("edge")["limited"])
			return passed+dropped == datagrams
		}, func() string { return fmt.Sprintf("%v passed, %v dropped, of %d", passed, dropped, datagrams) })
		check(t, passed, begin)
		s.AwaitGot(int(passed))
	})
	t.Run("out", func(t *testing.T) {
		t.Parallel()
		text := strings.Repeat("x", size)
		s := ServeUDP(t, func(Datagram) (out []string) {
			for range datagrams {
				out = append(out, text)
			}
			return out
		})
		p := Start(t, oneUDP(`limits { bandwidth_out = "64KiB/s" }`, "", s.Addr()))
		c := DialUDP(t, p.Addr("edge"))
		begin := time.Now()
		c.Send(strings.Repeat("x", 60_000)) // which is no matter of bandwidth_out
		var passed float64
		var drops map[string]int
		eventually(t, func() bool {
			m := p.Metrics()
			passed, drops = m.Sum("edgeproxy_datagrams_total", "direction", "out"), m.Drops("edge")
			return int(passed)+drops["limited"] == datagrams
		}, func() string { return fmt.Sprintf("%v passed, dropped %v, of %d", passed, drops, datagrams) })
		check(t, passed, begin)
	})
}
