package listener

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"edgeproxy/upstream"
)

// answering is a server of datagrams, which sends each back; one that begins
// with "?" stays unanswered. It is upstream "echo".
func answering(t *testing.T) (func(string) *upstream.Group, net.PacketConn) {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := make([]byte, 65536); ; {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if !bytes.HasPrefix(b[:n], []byte("?")) {
				c.WriteTo(b[:n], from)
			}
		}
	}()
	t.Cleanup(func() {
		c.Close()
		<-done
	})
	a, err := upstream.ParseAddress(c.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	set, err := upstream.Prepare(&upstream.Env{Loops: len(theLoops())}, nil, []upstream.Options{
		{Name: "echo", Servers: []upstream.ServerOptions{{Name: "s", Address: a}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return set.Group, c
}

// datagramListener sends what comes to "echo".
func datagramListener(t *testing.T, name string, addresses ...string) Options {
	o := rejecting(t, name, addresses...)
	o.Network = UDP
	o.Routes = []RouteOptions{{Name: "r", Splits: []Split{{"echo", 1}}}}
	return o
}

// newDatagramManager is newManager; sockets that drain are gone in the end, too.
func newDatagramManager(t *testing.T) (*Manager, ends) {
	t.Helper()
	m, log := newManager(t)
	t.Cleanup(func() {
		m.StopAccepting()
		now := make(chan struct{})
		close(now)
		m.Drain(now)
		awaitDrained(t, m)
	})
	return m, log
}

// draining lists the addresses that take no new sessions.
func (m *Manager) drainingAddresses() (out []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, us := range m.draining {
		for _, u := range us {
			out = append(out, u.socket.bound)
		}
	}
	return out
}

func awaitDrained(t *testing.T, m *Manager) {
	t.Helper()
	await(t, "the last session closes the sockets", func() bool { return len(m.drainingAddresses()) == 0 })
	settle()
}

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10s: %s", what)
		}
	}
}

// sender is a client of datagrams.
func sender(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func exchange(t *testing.T, c net.Conn, text string) {
	t.Helper()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 65536)
	n, err := c.Read(b)
	if err != nil || string(b[:n]) != text {
		t.Fatalf("sent %q, received %q, %v", text, b[:n], err)
	}
}

func drops(m *Manager, why Drop) (n uint64) {
	for _, s := range m.Stats() {
		n += s.Dropped[why]
	}
	return n
}

// "Flows re-hashed on reload", as others do: neither a listener's options nor
// its name, nor those of others, touch a socket.
func TestDatagramReloadKeepsSockets(t *testing.T) {
	groups, _ := answering(t)
	m, log := newDatagramManager(t)
	apply(t, m, groups, datagramListener(t, "a", "127.0.0.1:0", "[::1]:0"), datagramListener(t, "b", "127.0.0.2:0"))
	first := m.identities()
	if len(first) != 3 {
		t.Fatal(first)
	}
	var clients []net.Conn
	for a := range first {
		c := sender(t, a)
		exchange(t, c, "before")
		clients = append(clients, c)
	}
	// Another order, other options, another listener, one more.
	a := datagramListener(t, "c", "[::1]:0", "127.0.0.1:0")
	a.UDP.ReceiveBuffer, a.UDP.NoOffload = 1<<16, true
	apply(t, m, groups, datagramListener(t, "d", "127.0.0.3:0"), datagramListener(t, "b", "127.0.0.2:0"), a)
	now := m.identities()
	for a, id := range first {
		if now[a] != id {
			t.Errorf("%s: another socket: %s, %s before", a, now[a], id)
		}
	}
	for _, us := range m.sockets {
		for _, u := range us {
			for _, fd := range u.socket.fds {
				n, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
				if small := n <= 1<<17+1<<12; small != (u.ln.name == "c") {
					t.Errorf("%s of %s: a buffer of %d", u.socket.bound, u.ln.name, n)
				}
			}
		}
	}
	for _, c := range clients {
		exchange(t, c, "after")
	}
	if len(log) != 0 || m.Active() != 3 {
		t.Errorf("%d sessions have ended, %d live", len(log), m.Active())
	}
}

// A removed address takes no new sessions, and is closed on all loops together
// after the last session of any.
func TestDatagramAddressRemoved(t *testing.T) {
	groups, _ := answering(t)
	m, log := newDatagramManager(t)
	o := datagramListener(t, "a", "127.0.0.1:0")
	apply(t, m, groups, o, datagramListener(t, "idle", "127.0.0.2:0"))
	address := m.Addresses()["a"][0]
	client := sender(t, address)
	exchange(t, client, "one")
	before := len(descriptors(t))

	apply(t, m, groups)
	settle()
	// Two sockets of "idle" are closed, which nobody uses.
	if n := len(descriptors(t)); n != before-2 {
		t.Errorf("%d sockets, want %d", n, before-2)
	}
	if got := m.drainingAddresses(); !slices.Equal(got, []string{address}) {
		t.Errorf("draining %v", got)
	}
	exchange(t, client, "two")
	var refused uint64
	for range 8 { // of both loops
		sender(t, address).Write([]byte("nobody"))
	}
	await(t, "new sessions are refused", func() bool {
		refused = 0
		for _, w := range m.workers {
			for _, p := range w.ports {
				refused += p.ln.loops[w.loop.Index].drops[DropNoRoute].Load()
			}
		}
		return refused == 8
	})
	if m.Active() != 1 {
		t.Errorf("%d sessions", m.Active())
	}
	exchange(t, client, "three")
	endAll(m, Drained)
	if r := <-log; r.Listener != "a" || r.DatagramsIn != 3 || r.DatagramsOut != 3 || r.Network != UDP {
		t.Errorf("%+v", r)
	}
	awaitDrained(t, m)
	for _, w := range m.workers {
		if len(w.ports) != 0 {
			t.Errorf("loop %d has %d ports", w.loop.Index, len(w.ports))
		}
	}
	// The last session ended with its own socket and those of two loops; the
	// nine clients' are left, of which one was there before.
	if n := len(descriptors(t)); n != before-2-1-2+8 {
		t.Errorf("%d sockets", n)
	}
	if m.own.Load().has(o.Addresses[0].AddrPort) || len(m.own.Load().exact) != 0 {
		t.Errorf("own addresses: %v", m.own.Load())
	}
}

// endAll ends the sessions of datagrams.
func endAll(m *Manager, e End) {
	m.onLoops(func(w *worker) { w.udp.each(func(s *udpSession) { s.end(e, nil) }) })
}

// A reload takes a draining address back, with its sessions; a plan that is
// discarded, or fails, leaves it draining.
func TestDatagramAddressComesBack(t *testing.T) {
	groups, _ := answering(t)
	m, log := newDatagramManager(t)
	a := datagramListener(t, "a", "127.0.0.1:0")
	apply(t, m, groups, a)
	was, address := m.identities(), m.Addresses()["a"][0]
	client := sender(t, address)
	exchange(t, client, "one")
	apply(t, m, groups)

	for _, end := range []string{"discarded", "fails"} {
		opts := []Options{a, datagramListener(t, "b", "127.0.0.2:0")}
		if end == "fails" {
			opts = append(opts, datagramListener(t, "c", "192.0.2.99:53"))
		}
		before := len(descriptors(t))
		p, err := m.Prepare(opts, groups, nil)
		if end == "fails" {
			if err == nil || !strings.Contains(err.Error(), `listener "c": binding 192.0.2.99:53/udp`) {
				t.Errorf("%v", err)
			}
		} else {
			if err != nil {
				t.Fatal(err)
			}
			if got := m.drainingAddresses(); len(got) != 0 {
				t.Errorf("prepared: draining %v", got)
			}
			p.Discard()
		}
		if got := m.drainingAddresses(); !slices.Equal(got, []string{address}) || len(descriptors(t)) != before {
			t.Errorf("%s: draining %v, %d sockets, %d before", end, got, len(descriptors(t)), before)
		}
		exchange(t, client, end)
		if drops := drops(m, DropNoRoute); drops != 0 {
			t.Errorf("%s: %d dropped", end, drops)
		}
	}

	apply(t, m, groups, a)
	if now := m.identities(); fmt.Sprint(now) != fmt.Sprint(was) || len(m.drainingAddresses()) != 0 {
		t.Errorf("listening on %v, on %v before; draining %v", now, was, m.drainingAddresses())
	}
	exchange(t, client, "two")
	for range 4 {
		exchange(t, sender(t, address), "new")
	}
	if m.Active() != 5 || len(log) != 0 {
		t.Errorf("%d sessions", m.Active())
	}
	// In use again: the end of its sessions does not close it.
	endAll(m, Drained)
	settle()
	exchange(t, sender(t, address), "newer")
}

// The last session ends while a plan has the socket: neither that nor the plan
// may leave it open, or close it twice.
func TestDatagramSessionEndsBetweenPrepareAndDiscard(t *testing.T) {
	groups, _ := answering(t)
	for _, commit := range []bool{false, true} {
		m, _ := newDatagramManager(t)
		a := datagramListener(t, "a", "127.0.0.1:0")
		apply(t, m, groups, a)
		address := m.Addresses()["a"][0]
		exchange(t, sender(t, address), "one")
		apply(t, m, groups)
		p, err := m.Prepare([]Options{a}, groups, nil)
		if err != nil {
			t.Fatal(err)
		}
		endAll(m, Drained)
		settle()
		if commit {
			p.Commit()
			if got := m.Addresses()["a"]; !slices.Equal(got, []string{address}) {
				t.Errorf("%v, %s before", got, address)
			}
			exchange(t, sender(t, address), "two")
			continue
		}
		p.Discard()
		settle()
		if got := m.drainingAddresses(); len(got) != 0 {
			t.Errorf("draining %v", got)
		}
		for _, w := range m.workers {
			if len(w.ports) != 0 {
				t.Errorf("loop %d has %d ports", w.loop.Index, len(w.ports))
			}
		}
	}
}

// All loops' sockets of one address have one port, and two addresses with port
// 0 have two.
func TestDatagramPortZero(t *testing.T) {
	groups, _ := answering(t)
	m, _ := newDatagramManager(t)
	apply(t, m, groups, datagramListener(t, "a", "127.0.0.1:0", "127.0.0.1:0"), datagramListener(t, "b", ":0"))
	all := m.Addresses()
	if len(all["a"]) != 2 || len(all["b"]) != 1 || all["a"][0] == all["a"][1] {
		t.Fatalf("addresses %v", all)
	}
	for _, us := range m.sockets {
		for _, u := range us {
			for _, fd := range u.socket.fds {
				if got := boundTo(fd); got != u.socket.local || got.Port() == 0 {
					t.Errorf("bound to %v, the socket says %v", got, u.socket.local)
				}
			}
		}
	}
	_, port, _ := net.SplitHostPort(all["b"][0])
	for _, a := range []string{all["a"][0], all["a"][1], "127.0.0.1:" + port, "127.0.0.77:" + port, "[::1]:" + port} {
		exchange(t, sender(t, a), a)
	}
	// One less: it drains, as it has a session.
	apply(t, m, groups, datagramListener(t, "a", "127.0.0.1:0"), datagramListener(t, "b", ":0"))
	if len(m.Addresses()["a"]) != 1 || len(m.drainingAddresses()) != 1 {
		t.Errorf("addresses %v, draining %v", m.Addresses(), m.drainingAddresses())
	}
}

// TCP and UDP are two worlds: one port serves both.
func TestDatagramsBesideTCP(t *testing.T) {
	groups, _ := answering(t)
	m, _ := newDatagramManager(t)
	apply(t, m, groups, rejecting(t, "t", "127.0.0.1:0"))
	address := m.Addresses()["t"][0]
	for range 100 { // another process may have the port for UDP
		if p, err := m.Prepare([]Options{rejecting(t, "t", "127.0.0.1:0"), datagramListener(t, "u", address)}, groups, nil); err == nil {
			p.Commit()
			break
		}
		apply(t, m, groups)
		apply(t, m, groups, rejecting(t, "t", "127.0.0.1:0"))
		address = m.Addresses()["t"][0]
	}
	if got := m.Addresses(); got["u"][0] != address || got["t"][0] != address {
		t.Fatal(got)
	}
	exchange(t, sender(t, address), "one")
	if err := rejects("tcp", address); err != nil {
		t.Error(err)
	}
}

func TestDatagramBindErrors(t *testing.T) {
	m, _ := newDatagramManager(t)
	taken, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, tt := range []struct{ address, want, hint string }{
		{taken.LocalAddr().String(), "/udp: bind: address already in use", "ss -lunp"},
		{"192.0.2.99:53", "binding 192.0.2.99:53/udp: bind: cannot assign requested address", "ip addr"},
		{"systemd:nobody", "systemd passed no socket of that name", "FileDescriptorName=nobody"},
	} {
		before := len(descriptors(t))
		p, err := m.Prepare([]Options{datagramListener(t, "a", tt.address)}, noGroups, nil)
		if err == nil {
			p.Discard()
			t.Errorf("%s: no error", tt.address)
			continue
		}
		for _, want := range []string{`listener "a": `, tt.want, tt.hint} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q, which lacks %q", tt.address, err, want)
			}
		}
		if after := len(descriptors(t)); after != before {
			t.Errorf("%s: %d sockets, %d before", tt.address, after, before)
		}
	}
}

// With SO_REUSEPORT alone, two processes of one user would share a port in
// silence, and each get some of the clients.
func TestDatagramPortIsNotShared(t *testing.T) {
	groups, _ := answering(t)
	m, _ := newDatagramManager(t)
	apply(t, m, groups, datagramListener(t, "a", "127.0.0.1:0"))
	other := NewManager(Env{Loops: theLoops(), MaxConnections: 1, Inherited: nothingInherited, Events: noEvents{}})
	defer func() {
		for _, w := range other.workers {
			w.loop.Do(func() { w.loop.StopTimer(&w.tidy) })
		}
	}()
	p, err := other.Prepare([]Options{datagramListener(t, "b", m.Addresses()["a"][0])}, groups, nil)
	if !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("%v", err)
	}
	if err == nil {
		p.Discard()
	}
}

func TestDatagramsInherited(t *testing.T) {
	groups, _ := answering(t)
	m, _ := newDatagramManager(t)
	file := func(c any) *os.File {
		f, err := c.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	packet := func(network, address string) net.PacketConn {
		c, err := net.ListenPacket(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close() })
	one, two := packet("udp", "127.0.0.1:0"), packet("udp", "[::1]:0")
	files := map[string][]*os.File{
		"dns":    {file(one), file(two)},
		"stream": {file(one), file(tcp)},
		"unix":   {file(packet("unixgram", "@edgeproxy-test-"+one.LocalAddr().String()))},
	}
	m.env.Inherited = func(name string) []*os.File { return files[name] }
	before := len(descriptors(t))
	for _, name := range []string{"stream", "unix"} {
		if _, err := m.Prepare([]Options{datagramListener(t, "a", "systemd:"+name)}, groups, nil); err == nil || !strings.Contains(err.Error(), "ListenDatagram=") {
			t.Errorf("%s: %v", name, err)
		}
		if after := len(descriptors(t)); after != before {
			t.Errorf("%s: %d sockets, %d before", name, after, before)
		}
	}
	o := datagramListener(t, "a", "systemd:dns")
	apply(t, m, groups, o)
	if after := len(descriptors(t)); after != before+2 { // each is one loop's
		t.Errorf("%d sockets, %d before", after, before)
	}
	want := []string{one.LocalAddr().String(), two.LocalAddr().String()}
	for range 2 {
		if got := m.Addresses()["a"]; !slices.Equal(got, want) {
			t.Errorf("addresses %v, want %v", got, want)
		}
		for _, a := range want {
			exchange(t, sender(t, a), a)
		}
		apply(t, m, groups, o)
	}
	for i, us := range m.sockets[socketKey(UDP, o.Addresses[0])] {
		for loop, fd := range us.socket.fds {
			if (fd >= 0) != (loop == i) {
				t.Errorf("socket %d: loop %d has %d", i, loop, fd)
			}
		}
	}
}

// Silent sessions end soon when the process stops, the others at its end.
func TestDatagramsStop(t *testing.T) {
	groups, _ := answering(t)
	m, log := newDatagramManager(t)
	apply(t, m, groups, datagramListener(t, "a", "127.0.0.1:0"))
	address := m.Addresses()["a"][0]
	client := sender(t, address)
	exchange(t, client, "one")
	m.StopAccepting()
	exchange(t, client, "two")
	now := make(chan struct{})
	close(now)
	if n := m.Drain(now); n != 1 {
		t.Errorf("%d sessions ended", n)
	}
	if r := <-log; r.End != Drained || r.DatagramsIn != 2 || r.Server != "s" {
		t.Errorf("%+v", r)
	}
	awaitDrained(t, m)
	if n := groups("echo").Stats().Servers[0].Active; n != 0 {
		t.Errorf("%d leases left", n)
	}
}
