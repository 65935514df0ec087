package listener

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/reactor"
	"edgeproxy/upstream"
)

// theLoops serve all tests, as a loop keeps a descriptor even after its end.
var theLoops = sync.OnceValue(func() (ls []*reactor.Loop) {
	for i := range 2 {
		l, err := reactor.New(i, -1)
		if err != nil {
			panic(err)
		}
		go l.Run()
		ls = append(ls, l)
	}
	return ls
})

// settle returns when the loops have closed what they were told to close.
func settle() {
	for range 2 {
		for _, l := range theLoops() {
			l.Do(func() {})
		}
	}
}

type noEvents struct{}

func (noEvents) AcceptFailed(string, unix.Errno) {}

// ends hears of the sessions' ends.
type ends chan Record

func (e ends) Log(r *Record) { e <- *r }

// newManager asserts in the end that no descriptor and no session is left.
// Tests that use it are not parallel, as they count descriptors.
func newManager(t *testing.T) (*Manager, ends) {
	t.Helper()
	settle()
	noLeak(t)
	m := NewManager(Env{Loops: theLoops(), MaxConnections: 100, MaxPipes: 10, Inherited: nothingInherited, Events: noEvents{}})
	log := make(ends, 100)
	m.SetAccessLog(log)
	t.Cleanup(func() {
		m.StopAccepting()
		now := make(chan struct{})
		close(now)
		m.Drain(now)
		for _, w := range m.workers {
			w.loop.Do(func() { w.loop.StopTimer(&w.tidy) })
		}
		settle()
		if n := m.Active(); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
	return m, log
}

// rejecting is a listener that closes all connections.
func rejecting(t *testing.T, name string, addresses ...string) Options {
	o := Options{Name: name, Routes: []RouteOptions{{Reject: true}}}
	for _, a := range addresses {
		o.Addresses = append(o.Addresses, one(t, a))
	}
	return o
}

// rejects reports whether a rejecting listener is reached, and returns when
// the session is over.
func rejects(network, address string) error {
	c, err := net.Dial(network, address)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = io.ReadAll(c)
	settle()
	return err
}

func apply(t *testing.T, m *Manager, look func(string) *upstream.Group, opts ...Options) {
	t.Helper()
	p, err := m.Prepare(opts, look, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.Commit()
}

// identities maps the addresses to the sockets' descriptors and inodes.
func (m *Manager) identities() map[string]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]string{}
	for _, us := range m.sockets {
		for _, u := range us {
			out[u.socket.bound] = fmt.Sprint(u.socket.fds)
			for _, fd := range u.socket.fds {
				inode, _ := os.Readlink(fmt.Sprint("/proc/self/fd/", fd))
				out[u.socket.bound] += inode
			}
		}
	}
	return out
}

func TestPrepareGivenUp(t *testing.T) {
	m, _ := newManager(t)
	dir := t.TempDir()
	kept := "unix:" + filepath.Join(dir, "kept")
	apply(t, m, noGroups, rejecting(t, "a", "127.0.0.1:0", kept))
	sockets, before := m.identities(), len(descriptors(t))
	more := []Options{
		rejecting(t, "a", "127.0.0.1:0", kept, "[::1]:0"),
		rejecting(t, "b", "127.0.0.1:0", "unix:"+filepath.Join(dir, "new"), "unix:@edgeproxy-new"),
	}
	unchanged := func(how string) {
		t.Helper()
		if after := descriptors(t); len(after) != before {
			t.Errorf("%s: %d sockets, %d before", how, len(after), before)
		}
		if now := m.identities(); fmt.Sprint(now) != fmt.Sprint(sockets) {
			t.Errorf("%s: listening on %v, on %v before", how, now, sockets)
		}
		if _, err := os.Lstat(filepath.Join(dir, "new")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the new socket's file is left: %v", how, err)
		}
		for a := range sockets {
			if network, to, ok := strings.Cut(a, ":"); ok && network == "unix" {
				if err := rejects("unix", to); err != nil {
					t.Errorf("%s: %v", how, err)
				}
			} else if err := rejects("tcp", a); err != nil {
				t.Errorf("%s: %v", how, err)
			}
		}
	}
	p, err := m.Prepare(more, noGroups, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(descriptors(t)); n != before+8 { // four addresses, two loops
		t.Errorf("%d sockets opened, want 8", n-before)
	}
	p.Discard()
	unchanged("discarded")

	more = append(more, rejecting(t, "c", "192.0.2.99:0", "unix:"+dir+"/missing/s"), rejecting(t, "d", "127.0.0.1:0"))
	_, err = m.Prepare(more, noGroups, nil)
	if err == nil || !strings.Contains(err.Error(), `listener "c": binding 192.0.2.99:0`) || !strings.Contains(err.Error(), "create the folder") {
		t.Errorf("not all that went wrong: %v", err)
	}
	unchanged("failed")
}

func TestCommitKeepsSockets(t *testing.T) {
	m, _ := newManager(t)
	file := filepath.Join(t.TempDir(), "s")
	apply(t, m, noGroups, rejecting(t, "a", "127.0.0.1:0", "127.0.0.2:0", "unix:"+file), rejecting(t, "b", "[::1]:0", "127.0.0.1:0"))
	first, was := m.identities(), m.Addresses()
	if len(was["a"]) != 3 || len(was["b"]) != 2 {
		t.Fatal(was)
	}

	// The same again, with another order and other options.
	b, a := rejecting(t, "b", "127.0.0.1:0", "[::1]:0"), rejecting(t, "a", "unix:"+file, "127.0.0.2:0", "127.0.0.1:0")
	a.TCP.Backlog = 17
	apply(t, m, noGroups, a, b)
	if now := m.identities(); fmt.Sprint(now) != fmt.Sprint(first) {
		t.Errorf("listening on %v, on %v before", now, first)
	}

	// Two move to another listener, and one goes.
	apply(t, m, noGroups, rejecting(t, "c", "127.0.0.2:0", "unix:"+file), rejecting(t, "b", "[::1]:0", "127.0.0.1:0"))
	now := m.identities()
	if len(now) != 4 {
		t.Errorf("listening on %v", now)
	}
	for a, id := range now {
		if first[a] != id {
			t.Errorf("%s: another socket: %s, %s before", a, id, first[a])
		}
	}
	if got := m.Addresses(); !slices.Contains(got["c"], "unix:"+file) || len(got["c"]) != 2 || len(got["b"]) != 2 || len(got) != 2 {
		t.Errorf("addresses %v", got)
	}
	settle()
	for a := range first {
		network, to := "tcp", a
		if strings.HasPrefix(a, "unix:") {
			network, to = "unix", a[len("unix:"):]
		}
		if err := rejects(network, to); (err == nil) != (now[a] != "") {
			t.Errorf("%s: %v", a, err)
		}
	}

	apply(t, m, noGroups)
	if len(m.Addresses()) != 0 || len(m.Stats()) != 0 {
		t.Error("something is left")
	}
	if _, err := os.Lstat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket's file is left: %v", err)
	}
}

func TestPortZeroTwice(t *testing.T) {
	m, _ := newManager(t)
	apply(t, m, noGroups, rejecting(t, "a", "127.0.0.1:0", "127.0.0.1:0"), rejecting(t, "b", "127.0.0.1:0"))
	all := m.Addresses()
	if len(all["a"]) != 2 || len(all["b"]) != 1 {
		t.Fatalf("addresses %v", all)
	}
	bound := append(all["a"], all["b"]...)
	if slices.Sort(bound); len(slices.Compact(bound)) != 3 {
		t.Errorf("addresses %v", all)
	}
	// One less closes one.
	apply(t, m, noGroups, rejecting(t, "a", "127.0.0.1:0"), rejecting(t, "b", "127.0.0.1:0"))
	if got := m.identities(); len(got) != 2 {
		t.Errorf("listening on %v", got)
	}
}

// echo serves one upstream, "echo".
func echo(t *testing.T) func(string) *upstream.Group {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				io.Copy(c, c)
				c.Close()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	a, err := upstream.ParseAddress(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	set, err := upstream.Prepare(&upstream.Env{Loops: len(theLoops())}, nil, []upstream.Options{
		{Name: "echo", Servers: []upstream.ServerOptions{{Name: "s", Address: a}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return set.Group
}

func echoing(t *testing.T, name string, addresses ...string) Options {
	o := rejecting(t, name, addresses...)
	o.Routes = []RouteOptions{{Splits: []Split{{"echo", 1}}}}
	return o
}

// roundTrip sends a line and reads it back: the session is being relayed then.
func roundTrip(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
}

func dial(t *testing.T, m *Manager, listener string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", m.Addresses()[listener][0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// A session that lives while its address moves to another listener counted
// for the old one at its begin, and for the new one at its end.
func TestSessionsOfMovedAddress(t *testing.T) {
	m, log := newManager(t)
	groups := echo(t)
	old := echoing(t, "old", "127.0.0.1:0")
	old.Limits = Limits{Connections: 1, ConnectionsPerSource: 1}
	apply(t, m, groups, old)
	before := m.listeners[0]
	first := dial(t, m, "old")
	roundTrip(t, first)
	apply(t, m, groups, echoing(t, "new", "127.0.0.1:0"))
	second := dial(t, m, "new")
	roundTrip(t, second)
	roundTrip(t, first) // goes on
	for _, c := range []net.Conn{first, second} {
		c.Close()
		r := <-log
		want := map[net.Conn]string{first: "old", second: "new"}[c]
		if r.Listener != want || r.End != ClientClosed || r.Upstream != "echo" || r.BytesIn == 0 {
			t.Errorf("logged %+v, want listener %q", r, want)
		}
	}
	settle()
	for _, l := range []*Listener{before, m.listeners[0]} {
		if s := l.stats(); s.Sessions != 1 || s.Active != 0 || s.Ends[ClientClosed] != 1 || l.active.Load() != 0 {
			t.Errorf("%s: %d sessions, %d active, %d for its limit", s.Name, s.Sessions, s.Active, l.active.Load())
		}
	}
	if n := groups("echo").Stats().Servers[0].Active; n != 0 {
		t.Errorf("%d leases left", n)
	}
}

// Counts survive a reload of the listener, and so do those of its limits.
func TestListenerSurvivesReload(t *testing.T) {
	m, log := newManager(t)
	groups := echo(t)
	o := echoing(t, "a", "127.0.0.1:0")
	o.Limits.ConnectionsPerSource = 1
	apply(t, m, groups, o)
	first := dial(t, m, "a")
	roundTrip(t, first)
	o.Timeouts.Idle = -1
	apply(t, m, groups, o)
	if s := m.Stats()[0]; s.Sessions != 1 || s.Active != 1 || s.Name != "a" || len(s.Addresses) != 1 {
		t.Errorf("%+v", s)
	}
	second := dial(t, m, "a")
	if n, err := second.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("beyond connections_per_source: %d, %v", n, err)
	}
	if r := <-log; r.End != Limited || r.Phase != PhaseAccept || r.Err == nil || !strings.Contains(r.Err.Error(), "connections_per_source") {
		t.Errorf("%+v", r)
	}
	first.Close()
	<-log
	settle()
	third := dial(t, m, "a")
	roundTrip(t, third)
	// What is left when draining takes too long is ended.
	m.StopAccepting()
	now := make(chan struct{})
	close(now)
	if n := m.Drain(now); n != 1 {
		t.Errorf("%d sessions ended", n)
	}
	if r := <-log; r.End != Drained || r.Phase != PhaseRelay || r.Server != "s" {
		t.Errorf("%+v", r)
	}
	if n := groups("echo").Stats().Servers[0].Active; n != 0 {
		t.Errorf("%d leases left", n)
	}
}

func TestMaxConnections(t *testing.T) {
	m, log := newManager(t)
	groups := echo(t)
	apply(t, m, groups, echoing(t, "a", "127.0.0.1:0"))
	m.SetMaxConnections(1)
	first := dial(t, m, "a")
	roundTrip(t, first)
	second := dial(t, m, "a") // waits in the kernel's queue
	first.Close()
	<-log
	roundTrip(t, second)
	if s := m.Stats()[0]; s.Active != 1 || s.Sessions != 2 || m.Active() != 1 {
		t.Errorf("%d sessions, %d active, %d in all", s.Sessions, s.Active, m.Active())
	}
}
