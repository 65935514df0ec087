package upstream

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// associating is a dialer that makes sockets for datagrams.
type associating struct {
	t  *testing.T
	dl *Dialer
	g  *Group
}

// newAssociating asserts in the end that no lease and no descriptor is left.
// Tests that use it are not parallel, as they count descriptors.
func newAssociating(t *testing.T, o Options) *associating {
	settle()
	before := sockets(t)
	a := &associating{t, &Dialer{Loop: theLoop()}, newTestGroup(o, 1)}
	t.Cleanup(func() {
		settle()
		if n := a.g.active(); n != 0 {
			t.Errorf("%d leases left", n)
		}
		if n := sockets(t); n != before {
			t.Errorf("%d sockets, %d before", n, before)
		}
		if d := &a.dl.datagrams; d.group != nil || d.choices != nil || d.client != (Client{}) || d.Server != nil || d.leased {
			t.Errorf("what sessions pick with holds on to something: %+v", d)
		}
	})
	return a
}

// associate leaves the named servers out.
func (a *associating) associate(but ...string) (as Association, o Outcome, err error) {
	var tried []*Server
	for _, name := range but {
		tried = append(tried, a.g.member(name).Server)
	}
	c := Client{Source: client, Local: local}
	theLoop().Do(func() { as, o, err = a.dl.Associate(a.g, &c, tried) })
	return as, o, err
}

func (a *associating) rejoin(s *Server) (as Association, o Outcome, err error) {
	theLoop().Do(func() { as, o, err = a.dl.Rejoin(a.g, s) })
	return as, o, err
}

// free is what a session does in the end.
func (as *Association) free() {
	unix.Close(as.FD)
	as.Server.Release()
}

func (a *associating) failures(name string) (all uint64) {
	for i := range a.g.member(name).failures {
		all += a.g.member(name).failures[i].Load()
	}
	return all
}

// Nothing is sent, so that any address will do.
const somewhere, elsewhere = "127.0.0.1:9", "[::1]:9"

// 240.0.0.0/4 is reserved (RFC 1112 section 4), and Linux routes to it; port 9
// of the broadcast address needs SO_BROADCAST: connect fails with EACCES.
const impossible = "255.255.255.255:9"

func TestAssociate(t *testing.T) {
	full := at("full", somewhere, 0)
	full.MaxConnections = 1
	named := at("named", "no-such-host.invalid:9", 0)
	drained := at("drained", somewhere, 0)
	drained.Weight = -1
	tests := []struct {
		name    string
		servers []ServerOptions
		source  string
		retries int
		but     []string
		full    bool // the server "full" is
		down    []string
		want    string // server
		outcome Outcome
		err     string
		failed  map[string]uint64
	}{
		{name: "one", servers: []ServerOptions{at("a", somewhere, 0)}, want: "a"},
		{name: "IPv6", servers: []ServerOptions{at("a", elsewhere, 0)}, want: "a"},
		{name: "from a source", servers: []ServerOptions{at("a", somewhere, 0)}, source: "127.0.0.7", want: "a"},
		{name: "no address yet", servers: []ServerOptions{named}, outcome: NoServer, err: `"web" has no usable server`},
		{name: "no address yet, another", servers: []ServerOptions{named, at("a", somewhere, 1)}, want: "a"},
		{name: "weight 0", servers: []ServerOptions{drained}, outcome: NoServer, err: "no usable server"},
		{name: "down", servers: []ServerOptions{at("a", somewhere, 0)}, down: []string{"a"}, outcome: NoServer, err: "no usable server"},
		{name: "down, another", servers: []ServerOptions{at("a", somewhere, 0), at("b", somewhere, 1)}, down: []string{"a"}, want: "b"},
		{name: "full", servers: []ServerOptions{full}, full: true, outcome: NoServer, err: "no usable server"},
		{name: "full, another", servers: []ServerOptions{full, at("a", somewhere, 1)}, full: true, want: "a"},
		{name: "tried", servers: []ServerOptions{at("a", somewhere, 0)}, but: []string{"a"}, outcome: NoServer, err: "no usable server"},
		{name: "tried, another", servers: []ServerOptions{at("a", somewhere, 0), at("b", somewhere, 1), at("c", somewhere, 2)}, but: []string{"a", "b"}, want: "c"},
		{name: "impossible", servers: []ServerOptions{at("a", impossible, 0)}, outcome: ConnectFailed, err: `connecting to server "a"`, failed: map[string]uint64{"a": 1}},
		{
			name: "impossible, a retry", servers: []ServerOptions{at("a", impossible, 0), at("b", somewhere, 1)}, retries: 1,
			want: "b", failed: map[string]uint64{"a": 1},
		},
		{
			name: "impossible, no retries left", servers: []ServerOptions{at("a", impossible, 0), at("b", impossible, 1), at("c", somewhere, 2)}, retries: 1,
			outcome: ConnectFailed, err: `connecting to server "b"`, failed: map[string]uint64{"a": 1, "b": 1},
		},
		{
			name: "impossible, of two families", servers: []ServerOptions{at("a", elsewhere, 0), at("b", somewhere, 1)}, source: "127.0.0.7", retries: 1,
			want: "b", failed: map[string]uint64{"a": 1},
		},
		{
			name: "impossible and tried", servers: []ServerOptions{at("a", impossible, 0), at("b", somewhere, 1)}, retries: 3, but: []string{"b"},
			outcome: ConnectFailed, err: `connecting to server "a"`, failed: map[string]uint64{"a": 1},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := Options{Servers: tt.servers, Retries: tt.retries}
			if tt.retries == 0 {
				o.Retries = -1
			}
			if tt.source != "" {
				o.Source = []netip.Addr{netip.MustParseAddr(tt.source)}
			}
			a := newAssociating(t, o)
			for _, name := range tt.down {
				a.g.setUp(name, false)
			}
			if tt.full {
				s := a.g.member("full").Server
				s.lease(0)
				defer s.Release()
			}
			before := a.g.active()
			as, outcome, err := a.associate(tt.but...)
			if outcome != tt.outcome || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Fatalf("%v, %v; want %v, %q", outcome, err, tt.outcome, tt.err)
			}
			for _, s := range tt.servers {
				if got := a.failures(s.Name); got != tt.failed[s.Name] {
					t.Errorf("%s: %d failures, want %d", s.Name, got, tt.failed[s.Name])
				}
			}
			if tt.want == "" {
				if n := a.g.active(); n != before || as != (Association{}) {
					t.Errorf("%d leases, %d before; %+v", n, before, as)
				}
				return
			}
			if as.Server.Name != tt.want || as.Server.Active() != 1 || a.g.active() != before+1 || as.Server.sessions.Load() != 1 {
				t.Errorf("at %s with %d leases, want one at %s", as.Server.Name, as.Server.Active(), tt.want)
			}
			checkSocket(t, &as, tt.source)
			as.free()
		})
	}
}

// checkSocket asserts that a socket is connected, non-blocking, and hears of
// what routers say.
func checkSocket(t *testing.T, as *Association, source string) {
	t.Helper()
	e := as.Server.endpoint.Load()
	peer, err := unix.Getpeername(as.FD)
	if err != nil {
		t.Fatal(err)
	}
	level, option := unix.IPPROTO_IP, unix.IP_RECVERR
	switch sa := peer.(type) {
	case *unix.SockaddrInet4:
		if as.V6 || netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)) != e.addr {
			t.Errorf("connected to %v", sa)
		}
	case *unix.SockaddrInet6:
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVERR
		if !as.V6 || netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)) != e.addr {
			t.Errorf("connected to %v", sa)
		}
	}
	if on, err := unix.GetsockoptInt(as.FD, level, option); on != 1 || err != nil {
		t.Errorf("RECVERR is %d, %v", on, err)
	}
	flags, _ := unix.FcntlInt(uintptr(as.FD), unix.F_GETFL, 0)
	fdFlags, _ := unix.FcntlInt(uintptr(as.FD), unix.F_GETFD, 0)
	if flags&unix.O_NONBLOCK == 0 || fdFlags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags %#x, %#x", flags, fdFlags)
	}
	if source != "" {
		own, err := unix.Getsockname(as.FD)
		if sa, ok := own.(*unix.SockaddrInet4); !ok || netip.AddrFrom4(sa.Addr).String() != source {
			t.Errorf("from %v, %v", own, err)
		}
	}
}

// More servers are given as tried than a Dial remembers: it must not loop, nor
// write beyond.
func TestAssociateManyTried(t *testing.T) {
	var servers []ServerOptions
	var names []string
	for i := range maxTried + 2 {
		names = append(names, string(rune('a'+i)))
		servers = append(servers, at(names[i], somewhere, i))
	}
	a := newAssociating(t, Options{Servers: servers, Retries: 2 * maxTried})
	for n := range len(names) {
		as, o, err := a.associate(names[:n]...)
		if o != Connected {
			t.Fatalf("%d tried: %v, %v", n, o, err)
		}
		if n <= maxTried && as.Server.Name != names[n] {
			t.Errorf("%d tried: %s, want %s", n, as.Server.Name, names[n])
		}
		as.free()
	}
}

// Each attempt of one call is at another server.
func TestAssociateTriesAll(t *testing.T) {
	for _, policy := range policies {
		a := newAssociating(t, Options{Balance: policy, Retries: 3, Servers: []ServerOptions{
			at("a", impossible, 0), at("b", impossible, 0), at("c", impossible, 0), at("d", somewhere, 0),
		}})
		as, o, err := a.associate()
		if o != Connected || as.Server.Name != "d" {
			t.Errorf("%v: %v, %v", policy, o, err)
			continue
		}
		as.free()
		for _, name := range []string{"a", "b", "c"} {
			if n := a.failures(name); n > 1 {
				t.Errorf("%v: %s was tried %d times", policy, name, n)
			}
		}
	}
}

func TestRejoin(t *testing.T) {
	bounded := at("bounded", somewhere, 0)
	bounded.MaxConnections = 1
	a := newAssociating(t, Options{Servers: []ServerOptions{
		bounded, at("named", "no-such-host.invalid:9", 0), at("impossible", impossible, 0), at("down", somewhere, 0),
	}})
	a.g.setUp("down", false)
	stranger := newTestGroup(Options{Servers: []ServerOptions{at("bounded", somewhere, 0)}}, 1).members[0].Server
	server := func(name string) *Server { return a.g.member(name).Server }

	first, o, err := a.rejoin(server("bounded"))
	if o != Connected || first.Server != server("bounded") || first.Server.Active() != 1 {
		t.Fatalf("%v, %v, %+v", o, err, first)
	}
	checkSocket(t, &first, "")
	for _, tt := range []struct {
		name    string
		server  *Server
		outcome Outcome
		err     string
	}{
		{"full", server("bounded"), NoServer, "max_connections"},
		{"of another group", stranger, NoServer, ""},
		{"no address", server("named"), ConnectFailed, "no address yet"},
		{"impossible", server("impossible"), ConnectFailed, "connecting to server"},
	} {
		before := tt.server.Active()
		as, o, err := a.rejoin(tt.server)
		if o != tt.outcome || err == nil || !strings.Contains(err.Error(), tt.err) || as != (Association{}) {
			t.Errorf("%s: %v, %v, %+v", tt.name, o, err, as)
		}
		if n := tt.server.Active(); n != before {
			t.Errorf("%s: %d leases, %d before", tt.name, n, before)
		}
	}
	// Whether a server that is down is gone back to is the caller's decision.
	down, o, err := a.rejoin(server("down"))
	if o != Connected {
		t.Fatalf("down: %v, %v", o, err)
	}
	down.free()
	first.free()
	if as, o, err := a.rejoin(server("bounded")); o != Connected {
		t.Errorf("after the place was given back: %v, %v", o, err)
	} else {
		as.free()
	}
}

// Without a descriptor it is this machine's fault: no other server is tried,
// and none is blamed.
func TestAssociateWithoutDescriptors(t *testing.T) {
	a := newAssociating(t, Options{Retries: 3, Servers: []ServerOptions{at("a", somewhere, 0), at("b", somewhere, 0)}})
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	as, o, err := a.associate()
	_, again, _ := a.rejoin(a.g.member("a").Server)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if o != Overloaded || again != Overloaded || err == nil || !strings.Contains(err.Error(), "opening a socket") || as != (Association{}) {
		t.Errorf("%v, %v, %v, %+v", o, again, err, as)
	}
	if n := a.failures("a") + a.failures("b"); n != 0 || a.g.active() != 0 {
		t.Errorf("%d failures, %d leases", n, a.g.active())
	}
}

// What the server sends comes through, what others send does not.
func TestAssociationIsConnected(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	other, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	a := newAssociating(t, Options{Servers: []ServerOptions{at("a", server.LocalAddr().String(), 0)}})
	as, o, err := a.associate()
	if o != Connected {
		t.Fatal(o, err)
	}
	defer as.free()
	own, err := unix.Getsockname(as.FD)
	if err != nil {
		t.Fatal(err)
	}
	to := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: own.(*unix.SockaddrInet4).Port}
	other.WriteTo([]byte("forged"), to)
	server.WriteTo([]byte("answer"), to)
	var got []string
	for b := make([]byte, 100); ; {
		n, err := unix.Read(as.FD, b)
		if err != nil {
			break
		}
		got = append(got, string(b[:n]))
	}
	if !slices.Equal(got, []string{"answer"}) {
		t.Errorf("received %q", got)
	}
}

func TestDatagramReason(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		errno unix.Errno
		want  Reason
	}{
		{unix.ECONNREFUSED, Refused}, // port unreachable: RFC 1122 section 4.1.3.3
		{unix.EHOSTUNREACH, Unreachable},
		{unix.ENETUNREACH, Unreachable},
		{unix.EHOSTDOWN, Unreachable},
		{unix.EADDRNOTAVAIL, NoPorts},
		{unix.EAGAIN, NoPorts}, // of TCP, a unix socket's queue is full
		{unix.EACCES, Other},
		{unix.EPROTO, Other},
	} {
		if got := DatagramReason(tt.errno); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.errno, got, tt.want)
		}
		var s Server
		s.Failed(DatagramReason(tt.errno))
		if s.failures[tt.want].Load() != 1 {
			t.Errorf("%v: counted elsewhere", tt.errno)
		}
	}
}

func TestQUICServers(t *testing.T) {
	t.Parallel()
	a, b := at("a", somewhere, 0), at("b", elsewhere, 0)
	a.QUICServerID = "\x0a\x01"
	g := newTestGroup(Options{Servers: []ServerOptions{a, b}}, 1)
	if ids := g.QUICServers(); len(ids) != 1 || ids["\x0a\x01"] != g.member("a").Server || g.Size() != 2 {
		t.Errorf("%v of %d", ids, g.Size())
	}
}
