package listener

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"edgeproxy/upstream"
)

// quicIDOf is the connection id number n, of a length.
func quicIDOf(n, length int) quicID {
	cid := binary.LittleEndian.AppendUint32(nil, uint32(n))
	for len(cid) < length {
		cid = append(cid, 0xee)
	}
	id, ok := newQUICID(cid[:length], true)
	if !ok {
		panic("no id")
	}
	return id
}

func (id quicID) bytes() []byte { return id.b[:id.n] }

// short is a datagram with a short header, RFC 8999 section 5.2.
func short(cid []byte) []byte {
	return append(append([]byte{0x40}, cid...), strings.Repeat("x", 30)...)
}

// long is a datagram with a long header of a type of QUIC version 1, RFC 9000
// section 17.2.
func long(kind byte, cid []byte) []byte {
	b := []byte{0xc0 | kind<<4, 0, 0, 0, 1, byte(len(cid))}
	b = append(append(b, cid...), 0) // no source connection id
	if kind == 0 {
		b = append(b, 0) // no token
	}
	return append(append(b, 30), strings.Repeat("x", 30)...)
}

const (
	typeInitial   = 0
	type0RTT      = 1
	typeHandshake = 2
)

func TestNewQUICID(t *testing.T) {
	t.Parallel()
	for n := range 22 {
		id, ok := newQUICID(make([]byte, n), true)
		if want := n >= 4 && n <= 20; ok != want { // RFC 9000 section 17.2: 20 at most
			t.Errorf("%d bytes: %v", n, ok)
		} else if ok && (int(id.n) != n || !id.is(make([]byte, n)) || id.is(make([]byte, n+1)) || id.is(nil)) {
			t.Errorf("%d bytes: %+v", n, id)
		}
	}
	if _, ok := newQUICID(make([]byte, 8), false); ok {
		t.Error("what was not there is an id")
	}
	if (&quicID{}).is(nil) {
		t.Error("no id is the empty one")
	}
	// A server id is no connection id.
	id, _ := newQUICID([]byte("abcd"), true)
	if newServerID([]byte("abcd")) == id {
		t.Error("one key for a server id and a connection id")
	}
}

func TestQUICIDsFind(t *testing.T) {
	t.Parallel()
	var q quicIDs
	if _, ok := q.find(short(quicIDOf(1, 8).bytes())); ok {
		t.Error("found in nothing")
	}
	servers := map[int]*upstream.Server{}
	for _, n := range []int{4, 8, 17, 20} {
		servers[n] = &upstream.Server{}
		e := quicEntry{server: servers[n], sni: "a.example.com", route: int32(n)}
		if !q.add(quicIDOf(n, n), &e, 0, true, 1) {
			t.Fatalf("%d bytes: not added", n)
		}
	}
	for n, sv := range servers {
		cid := quicIDOf(n, n).bytes()
		for name, data := range map[string][]byte{
			"short":            short(cid),
			"short, no more":   short(cid)[:1+n],
			"Initial":          long(typeInitial, cid), // after a Retry, RFC 9000 section 17.2.5
			"0-RTT":            long(type0RTT, cid),
			"Handshake":        long(typeHandshake, cid),
			"fixed bit is off": append([]byte{0}, cid...), // RFC 9287
		} {
			if e, ok := q.find(data); !ok || e.server != sv || e.sni != "a.example.com" || e.route != int32(n) {
				t.Errorf("%d bytes, %s: %+v, %v", n, name, e, ok)
			}
		}
	}
	for name, data := range map[string][]byte{
		"nothing":                 {},
		"one byte":                {0x40},
		"too short":               short(quicIDOf(20, 20).bytes())[:20],
		"another id":              short(quicIDOf(99, 20).bytes()),
		"long header, longer id":  long(typeHandshake, append(quicIDOf(8, 8).bytes(), 0)),
		"long header, shorter id": long(typeHandshake, quicIDOf(8, 8).bytes()[:7]),
		"a long header cut":       long(typeHandshake, quicIDOf(8, 8).bytes())[:6],
	} {
		if e, ok := q.find(data); ok {
			t.Errorf("%s: found %+v", name, e)
		}
	}
}

// A short header does not tell the length of its id: if a longer one fits, too,
// that is meant.
func TestQUICIDsLongestFirst(t *testing.T) {
	t.Parallel()
	var q quicIDs
	longer, shorter := &upstream.Server{}, &upstream.Server{}
	q.add(quicIDOf(1, 12), &quicEntry{server: longer}, 0, true, 1)
	prefix, _ := newQUICID(quicIDOf(1, 12).bytes()[:6], true)
	q.add(prefix, &quicEntry{server: shorter}, 0, true, 1)
	if e, _ := q.find(short(quicIDOf(1, 12).bytes())); e.server != longer {
		t.Error("the shorter id was found")
	}
	if e, _ := q.find(short(append(prefix.bytes(), "other!"...))); e.server != shorter {
		t.Error("the shorter id was not found")
	}
}

// Two servers may issue one id: the last one has it. What only a client claims
// takes nothing away.
func TestQUICIDsOfTwoServers(t *testing.T) {
	t.Parallel()
	var q quicIDs
	id := quicIDOf(1, 8)
	one, two, three := &upstream.Server{}, &upstream.Server{}, &upstream.Server{}
	q.add(id, &quicEntry{server: one}, 0, true, 1)
	if q.add(id, &quicEntry{server: three}, 0, false, 1) {
		t.Error("a client has taken the id of a server")
	}
	if e, _ := q.find(short(id.bytes())); e.server != one {
		t.Error("the id leads elsewhere")
	}
	if !q.add(id, &quicEntry{server: one}, 0, false, 1) {
		t.Error("a client may not use what its server has issued")
	}
	if !q.add(id, &quicEntry{server: two}, 0, true, 1) {
		t.Error("not added")
	}
	if e, _ := q.find(short(id.bytes())); e.server != two || e.sessions != 3 {
		t.Errorf("%+v", e)
	}
	ids := []quicID{id}
	q.leave(ids, 5)
	q.leave(ids, 6)
	if e, _ := q.find(short(id.bytes())); e.gone != 0 || e.sessions != 1 {
		t.Errorf("while there is a session: %+v", e)
	}
	q.leave(ids, 7)
	if e, ok := q.find(short(id.bytes())); !ok || e.gone != 7 {
		t.Errorf("after the last: %+v, %v", e, ok)
	}
	q.add(id, &quicEntry{server: two}, 0, true, 8)
	if e, _ := q.find(short(id.bytes())); e.gone != 0 || e.sessions != 1 {
		t.Errorf("there is a session again: %+v", e)
	}
	q.leave([]quicID{quicIDOf(2, 8)}, 9) // never added
	q.leave(nil, 9)
}

func TestQUICIDsSweep(t *testing.T) {
	t.Parallel()
	var q quicIDs
	sv := &upstream.Server{}
	const start = int64(time.Hour)
	add := func(n int, now int64) bool { return q.add(quicIDOf(n, 8), &quicEntry{server: sv}, 0, true, now) }
	// Of 1024: one lives, one has just gone, the others long ago.
	for n := range 1024 {
		if !add(n, start) {
			t.Fatal("not added")
		}
		if n > 0 {
			q.leave([]quicID{quicIDOf(n, 8)}, start+int64(n))
		}
	}
	q.leave([]quicID{quicIDOf(1, 8)}, start+int64(time.Minute))
	add(2000, start+int64(quicMemory)) // none is old enough
	if len(q.ids) != 1025 {
		t.Errorf("%d ids", len(q.ids))
	}
	for n := 2001; n < 2001+1100; n++ {
		add(n, start+int64(quicMemory+2*quicSweep))
		q.leave([]quicID{quicIDOf(n, 8)}, start+int64(quicMemory+2*quicSweep))
	}
	for n, want := range map[int]bool{0: true, 1: true, 2: false, 1023: false, 2000: true, 3100: true} {
		if _, ok := q.find(short(quicIDOf(n, 8).bytes())); ok != want {
			t.Errorf("%d: %v", n, ok)
		}
	}
}

func TestQUICIDsBound(t *testing.T) {
	t.Parallel()
	var q quicIDs
	sv := &upstream.Server{}
	for n := range quicMost {
		if !q.add(quicIDOf(n, 12), &quicEntry{server: sv}, 0, true, 1) {
			t.Fatalf("the %dth was not added", n)
		}
	}
	if q.add(quicIDOf(quicMost, 12), &quicEntry{server: sv}, 0, true, 1) || len(q.ids) != quicMost {
		t.Errorf("%d ids", len(q.ids))
	}
	if !q.add(quicIDOf(7, 12), &quicEntry{server: sv}, 0, true, 1) {
		t.Error("one that is there already was refused")
	}
	// When those have been gone for long, there is room again.
	for n := range quicMost {
		q.leave([]quicID{quicIDOf(n, 12)}, 2)
	}
	if !q.add(quicIDOf(quicMost, 12), &quicEntry{server: sv}, 0, true, 3+int64(2*quicMemory)) {
		t.Error("no room")
	}
	if len(q.ids) != 2 { // 7 has a session
		t.Errorf("%d ids are left", len(q.ids))
	}
}

// draft-ietf-quic-load-balancers-21: the server id stands behind the first
// byte, whose highest bits tell whether there is one.
func TestQUICServerIDs(t *testing.T) {
	t.Parallel()
	learned, configured := &upstream.Server{}, &upstream.Server{}
	tb := &table{opts: &Options{Network: UDP, UDP: UDPOptions{QUICServerID: 2}}, quicServers: map[string]quicEntry{"\x0a\x02": {server: configured}}}
	var q quicIDs
	issued, _ := newQUICID([]byte("\x00\x0a\x01random"), true)
	q.add(issued, &quicEntry{server: learned, table: tb, sni: "a.example.com"}, 2, true, 1)
	used, _ := newQUICID([]byte("\x00\x0a\x03random"), true)
	q.add(used, &quicEntry{server: learned}, 2, false, 1)
	unroutable, _ := newQUICID([]byte("\xe0\x0a\x04random"), true)
	q.add(unroutable, &quicEntry{server: learned}, 2, true, 1)
	for _, tt := range []struct {
		name string
		data []byte
		want *upstream.Server
	}{
		{"learned", short([]byte("\x00\x0a\x01another")), learned},
		{"learned, of another configuration", short([]byte("\xdf\x0a\x01another")), learned},
		{"configured", short([]byte("\x20\x0a\x02another")), configured},
		{"configured, Handshake", long(typeHandshake, []byte("\x20\x0a\x02another")), configured},
		{"an Initial's id is the client's choice", long(typeInitial, []byte("\x20\x0a\x02another")), nil},
		{"of 0-RTT, too", long(type0RTT, []byte("\x20\x0a\x02another")), nil},
		{"unroutable", short([]byte("\xe0\x0a\x02another")), nil},
		{"learned from one unroutable", short([]byte("\x00\x0a\x04another")), nil},
		{"claimed by a client", short([]byte("\x00\x0a\x03another")), nil},
		{"unknown", short([]byte("\x00\x0a\x09another")), nil},
		{"too short", []byte("\x40\x00\x0a"), nil},
		{"a long header with too short an id", long(typeHandshake, []byte("\x00\x0a")), nil},
		{"nothing", nil, nil},
	} {
		e, ok := tb.quicServer(&q, tt.data)
		if ok != (tt.want != nil) || e.server != tt.want {
			t.Errorf("%s: %+v, %v", tt.name, e, ok)
		}
		if e.sni != "" {
			t.Errorf("%s: the name of another connection: %q", tt.name, e.sni)
		}
	}
	if _, ok := (&table{opts: &Options{}}).quicServer(&q, short([]byte("\x00\x0a\x01another"))); ok {
		t.Error("found where servers have no ids")
	}
	// Another server has it now.
	q.add(issued, &quicEntry{server: configured}, 2, true, 1)
	if e, _ := tb.quicServer(&q, short([]byte("\x00\x0a\x01another"))); e.server != configured {
		t.Error("the server id leads to the server that had it before")
	}
}

// Where server ids are configured, and servers put none into their connection
// ids, each looks like another server: that is bounded, and leaves the
// connection ids alone.
func TestQUICServerIDsBound(t *testing.T) {
	t.Parallel()
	var q quicIDs
	sv := &upstream.Server{}
	for n := range quicServers + 10 {
		if !q.add(quicIDOf(n<<8, 8), &quicEntry{server: sv}, 3, true, 1) {
			t.Fatalf("the %dth was not added", n)
		}
	}
	count := 0
	for id := range q.ids {
		if id.n < 0 {
			count++
		}
	}
	if count != quicServers || len(q.ids) != 2*quicServers+10 {
		t.Errorf("%d server ids of %d in all", count, len(q.ids))
	}
}

// A full map is not looked through for each id that finds no room: a flood
// would have all loops wait for that.
func TestQUICIDsSweptSeldom(t *testing.T) {
	t.Parallel()
	var q quicIDs
	sv := &upstream.Server{}
	now := int64(time.Hour)
	for n := range quicMost {
		q.add(quicIDOf(n, 8), &quicEntry{server: sv}, 0, true, now)
	}
	sweeps, last := 0, q.swept
	for n := range 1000 {
		now += int64(50 * time.Millisecond)
		q.add(quicIDOf(quicMost+n, 8), &quicEntry{server: sv}, 0, true, now)
		if q.swept != last {
			sweeps, last = sweeps+1, q.swept
		}
	}
	if most := int(50*time.Second/quicSweep) + 1; sweeps > most {
		t.Errorf("%d sweeps in 50 s, want %d at most", sweeps, most)
	}
}

// A session has but a few ids at any time: its client may name one after the
// other, and those that no server has issued are not remembered.
func TestIDsThatAreLetGo(t *testing.T) {
	t.Parallel()
	q, sv := &quicIDs{}, &upstream.Server{}
	issued, named := quicIDOf(1, 8), quicIDOf(2, 8)
	q.add(issued, &quicEntry{server: sv}, 0, true, 1)
	q.add(named, &quicEntry{server: sv}, 0, false, 1)
	for _, id := range []quicID{issued, named} {
		q.letGo(id, 2)
	}
	q.letGo(quicIDOf(3, 8), 2) // unknown
	if q.ids[issued] == nil || q.ids[issued].gone != 2 || q.ids[named] != nil {
		t.Errorf("%+v", q.ids)
	}
}
