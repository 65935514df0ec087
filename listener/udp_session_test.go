package listener

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestChunks(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		data    string
		segment int
		want    []string
	}{
		{"", 0, []string{""}}, // RFC 768: a datagram may be empty
		{"abc", 0, []string{"abc"}},
		{"abc", 3, []string{"abc"}},
		{"abc", 9, []string{"abc"}},
		{"abcdef", 3, []string{"abc", "def"}},
		{"abcdefg", 3, []string{"abc", "def", "g"}},
		{"abc", 1, []string{"a", "b", "c"}},
	} {
		var got []string
		for d := range chunks([]byte(tt.data), tt.segment) {
			got = append(got, string(d))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%q by %d: %q, want %q", tt.data, tt.segment, got, tt.want)
		}
		if n := count([]byte(tt.data), tt.segment); n != uint64(len(tt.want)) {
			t.Errorf("%q by %d: count is %d, want %d", tt.data, tt.segment, n, len(tt.want))
		}
		for range chunks([]byte(tt.data), tt.segment) {
			break // must not go on, which would panic
		}
	}
}

// A naive list beside the clever one.
func TestUDPList(t *testing.T) {
	t.Parallel()
	ss := make([]udpSession, 5)
	for _, order := range [][]int{{0, 1, 2, 3, 4}, {4, 3, 2, 1, 0}, {2, 0, 4, 1, 3}, {1, 3, 0, 2, 4}} {
		var l udpList
		var want []*udpSession
		same := func() {
			t.Helper()
			var forth, back []*udpSession
			for s := l.head; s != nil; s = s.newer {
				forth = append(forth, s)
			}
			for s := l.tail; s != nil; s = s.older {
				back = append(back, s)
			}
			slices.Reverse(back)
			if !slices.Equal(forth, want) || !slices.Equal(back, want) {
				t.Fatalf("%v: the list is not as it should be", order)
			}
		}
		for i := range ss {
			l.push(&ss[i])
			want = append(want, &ss[i])
			same()
		}
		for _, i := range order {
			l.remove(&ss[i])
			want = slices.DeleteFunc(want, func(s *udpSession) bool { return s == &ss[i] })
			if ss[i].older != nil || ss[i].newer != nil {
				t.Error("a removed session holds on to others")
			}
			same()
		}
	}
}

// ITU-T I.371: in the long run the rate passes, and never more than the burst
// ahead of it.
func TestMeter(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		rate int64 // bytes per second
		size int
		gap  time.Duration // between datagrams offered
		want int64         // bytes in ten seconds
	}{
		{100_000, 1000, time.Millisecond, 1_000_000},
		{100_000, 1000, 10 * time.Millisecond, 1_000_000}, // as much as is allowed
		{100_000, 1000, 20 * time.Millisecond, 500_000},   // less
		{1_000_000, 65_000, time.Millisecond, 10_000_000},
		{1 << 40, 65_000, time.Millisecond, 650_000_000},
		{1000, 65_000, time.Millisecond, 65_000}, // one, and no more for a minute
	} {
		var m meter
		passed, start := int64(0), int64(time.Hour)
		for at := time.Duration(0); at < 10*time.Second; at += tt.gap {
			if m.pass(tt.size, tt.rate, start+int64(at)) {
				passed += int64(tt.size)
			}
		}
		if slack := tt.rate/8 + int64(tt.size); passed > tt.want+slack || passed < tt.want-int64(tt.size) {
			t.Errorf("%d B/s of %d each %v: %d bytes, want %d", tt.rate, tt.size, tt.gap, passed, tt.want)
		}
	}
	// Silence saves nothing up.
	var m meter
	m.pass(1000, 1000, 0)
	n := 0
	for m.pass(100, 1000, int64(time.Hour)) {
		n++
	}
	if n != 2 { // 125 ms are 125 bytes: the second begins within them
		t.Errorf("%d datagrams after an hour", n)
	}
}

func TestOwnAddresses(t *testing.T) {
	t.Parallel()
	var none *ownAddresses
	o := &ownAddresses{
		exact: map[netip.AddrPort]bool{netip.MustParseAddrPort("192.0.2.1:53"): true, netip.MustParseAddrPort("[fe80::1]:53"): true},
		ports: map[uint16]bool{443: true},
	}
	for a, want := range map[string]bool{
		"192.0.2.1:53":      true,
		"192.0.2.1:54":      false,
		"192.0.2.2:53":      false,
		"[fe80::1%7]:53":    true,
		"127.0.0.1:443":     true,
		"127.9.9.9:443":     true, // 127.0.0.0/8 is all of this machine
		"[::1]:443":         true,
		"127.0.0.1:444":     false,
		"192.0.2.1:443":     false, // of another machine
		"[2001:db8::1]:443": false,
	} {
		if got := o.has(netip.MustParseAddrPort(a)); got != want {
			t.Errorf("%s: %v", a, got)
		}
		if none.has(netip.MustParseAddrPort(a)) {
			t.Errorf("%s: ours before anything listens", a)
		}
	}
}

// From our own addresses no session begins (CVE-2024-2169).
func TestOwnAddressesOfManager(t *testing.T) {
	groups, _ := answering(t)
	m, _ := newDatagramManager(t)
	apply(t, m, groups, datagramListener(t, "a", "127.0.0.1:0"), datagramListener(t, "b", ":0"))
	all := m.Addresses()
	_, wildcard, _ := net.SplitHostPort(all["b"][0])
	own := m.own.Load()
	for _, a := range []string{all["a"][0], "127.0.0.1:" + wildcard, "[::1]:" + wildcard} {
		if !own.has(netip.MustParseAddrPort(a)) {
			t.Errorf("%s is not ours", a)
		}
	}
	apply(t, m, groups)
	if own := m.own.Load(); len(own.exact)+len(own.ports) != 0 {
		t.Errorf("nothing listens: %+v", own)
	}
}

func TestSpentAndDone(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		requests, responses int
		asked, answers      uint64
		spent, done         bool
	}{
		{0, 0, 100, 100, false, false},
		{2, 0, 1, 5, false, false},
		{2, 0, 2, 0, true, false},
		{2, 0, 3, 0, true, false}, // a train
		{0, 1, 1, 0, false, false},
		{0, 1, 1, 1, false, true},
		{0, 1, 2, 1, false, false},
		{0, 2, 2, 3, false, false},
		{0, 2, 2, 4, false, true},
		{0, 2, 2, 9, false, true},
		{1, 1, 1, 1, true, true},
	} {
		s := &udpSession{asked: tt.asked, answers: tt.answers}
		s.table = &table{opts: &Options{UDP: UDPOptions{Requests: tt.requests, Responses: tt.responses}}}
		if s.spent() != tt.spent || s.done() != tt.done {
			t.Errorf("%+v: %v, %v", tt, s.spent(), s.done())
		}
	}
}

// What is kept for another server is bounded: a session has a few KiB at most.
func TestKeep(t *testing.T) {
	t.Parallel()
	s := &udpSession{}
	for _, d := range []string{"one", "", strings.Repeat("x", keepUnanswered), "two", strings.Repeat("y", keepUnanswered-13), "z", ""} {
		s.keep([]byte(d))
	}
	want := "\x00\x03one" + "\x00\x00" + "\x00\x03two"
	rest := keepUnanswered - len(want) - 2
	if got := s.more.kept; !bytes.HasPrefix(got, []byte(want)) || len(got) > keepUnanswered {
		t.Errorf("%d bytes: %q", len(got), got[:min(len(got), 40)])
	}
	s.more.kept = s.more.kept[:len(want)]
	s.keep(make([]byte, rest+1))
	if len(s.more.kept) != len(want) {
		t.Error("more is kept than may be")
	}
	s.keep(make([]byte, rest))
	if len(s.more.kept) != keepUnanswered {
		t.Errorf("%d bytes, want all of %d", len(s.more.kept), keepUnanswered)
	}
	s.keep(nil)
	if len(s.more.kept) != keepUnanswered {
		t.Error("more is kept than may be")
	}
}

// oneLoop is a manager of a single loop, which has all clients.
func oneLoop(t *testing.T) (*Manager, ends) {
	t.Helper()
	settle()
	noLeak(t)
	log := make(ends, 100)
	m := NewManager(Env{Loops: theLoops()[:1], MaxConnections: 100, MaxPipes: 10, Inherited: nothingInherited, Events: noEvents{}})
	m.SetAccessLog(log)
	t.Cleanup(func() {
		m.StopAccepting()
		now := make(chan struct{})
		close(now)
		m.Drain(now)
		awaitDrained(t, m)
		m.workers[0].loop.Do(func() { m.workers[0].loop.StopTimer(&m.workers[0].tidy) })
		if n := m.Active(); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
	return m, log
}

// age makes all sessions older.
func age(m *Manager, d time.Duration) {
	m.onLoops(func(w *worker) { w.udp.each(func(s *udpSession) { s.begun -= int64(d) }) })
}

// ask begins a session that is not answered.
func ask(t *testing.T, m *Manager, c net.Conn) {
	t.Helper()
	sum := func() (n uint64) {
		for _, s := range m.Stats() {
			n += s.DatagramsIn + s.Dropped[DropLimited]
		}
		return n
	}
	before := sum()
	if _, err := c.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	await(t, "the datagram is forwarded or dropped", func() bool { return sum() > before })
}

// At a bound the oldest session that is not proven makes room, if it is a
// second old.
func TestEviction(t *testing.T) {
	for _, bound := range []string{"connections", "max_connections"} {
		groups, _ := answering(t)
		m, log := oneLoop(t)
		o := datagramListener(t, "a", "127.0.0.1:0")
		if bound == "connections" {
			o.Limits.Connections = 3
		} else {
			m.SetMaxConnections(3)
		}
		apply(t, m, groups, o)
		var cs []net.Conn
		for range 7 {
			cs = append(cs, sender(t, m.Addresses()["a"][0]))
		}
		ask(t, m, cs[0])
		exchange(t, cs[1], "answered")
		exchange(t, cs[2], "answered")
		exchange(t, cs[2], "proven")
		ask(t, m, cs[3])
		if n := drops(m, DropLimited); n != 1 || len(log) != 0 {
			t.Fatalf("%s: too young to make room: %d dropped, %d ended", bound, n, len(log))
		}
		age(m, evictAfter)
		for i, gone := range []net.Conn{cs[0], cs[1]} {
			ask(t, m, cs[4+i])
			r := <-log
			if r.End != Limited || r.Source.String() != gone.LocalAddr().String() || r.Err == nil {
				t.Errorf("%s: %s ended with %v, want %s", bound, r.Source, r.End, gone.LocalAddr())
			}
		}
		ask(t, m, cs[6]) // the oldest that are left are proven, or new
		age(m, time.Hour)
		exchange(t, cs[2], "is there")
		if n := drops(m, DropLimited); n != 2 || len(log) != 0 || m.Active() != 3 {
			t.Errorf("%s: %d dropped, %d ended, %d live", bound, n, len(log), m.Active())
		}
	}
}

// For one of a listener no more than so many are looked at.
func TestEvictionLooksAtFew(t *testing.T) {
	groups, _ := answering(t)
	m, log := oneLoop(t)
	b := datagramListener(t, "b", "127.0.0.2:0")
	b.Limits.Connections = 1
	apply(t, m, groups, datagramListener(t, "a", "127.0.0.1:0"), b)
	others := evictLook - 1
	for range others {
		ask(t, m, sender(t, m.Addresses()["a"][0]))
	}
	ask(t, m, sender(t, m.Addresses()["b"][0]))
	age(m, evictAfter)
	ask(t, m, sender(t, m.Addresses()["b"][0])) // the sixteenth makes room
	if r := <-log; r.Listener != "b" || r.End != Limited {
		t.Errorf("%+v", r)
	}
	ask(t, m, sender(t, m.Addresses()["a"][0]))
	age(m, evictAfter)
	// Sixteen of "a" are older now than that of "b".
	m.onLoops(func(w *worker) {
		l := &w.udp.unproven
		for s := l.head; s != nil; s = s.newer {
			if s.ln.name == "b" {
				l.remove(s)
				l.push(s)
				return
			}
		}
	})
	ask(t, m, sender(t, m.Addresses()["b"][0]))
	if n := drops(m, DropLimited); n != 1 || len(log) != 0 {
		t.Errorf("%d dropped, %d ended", n, len(log))
	}
}
