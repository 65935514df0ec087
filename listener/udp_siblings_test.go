package listener

import (
	"net/netip"
	"slices"
	"testing"

	"edgeproxy/upstream"
)

// Sessions of the same addresses end in any order, and others begin meanwhile;
// the port finds each that lives, and no other. Once a session that had been
// evicted, or was spent, stayed in the chain or took others out of it.
func TestSiblings(t *testing.T) {
	t.Parallel()
	orders := [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}
	for _, proxied := range []bool{false, true} {
		for _, order := range orders {
			p := &udpPort{sessions: map[udpKey]*udpSession{}}
			var key proxiedKey
			make1 := func() *udpSession {
				s := &udpSession{p: p}
				if proxied {
					d := s.detail()
					d.proxied, d.source = true, netip.MustParseAddrPort("192.0.2.1:5")
					key.source = d.source
				}
				return s
			}
			check := func(want ...*udpSession) {
				t.Helper()
				s := p.sessions[udpKey{}]
				if proxied {
					s = p.proxied[key]
				}
				var got []*udpSession
				for ; s != nil; s = s.sibling {
					got = append(got, s)
				}
				if !slices.Equal(got, want) {
					t.Fatalf("%v: %d found, want %d", order, len(got), len(want))
				}
			}
			var live []*udpSession // the newest first
			begin := func() *udpSession {
				s := make1()
				p.bind(s)
				live = slices.Insert(live, 0, s)
				check(live...)
				return s
			}
			end := func(s *udpSession) {
				s.unbind()
				s.unbind() // spent, and then ended
				live = slices.DeleteFunc(live, func(x *udpSession) bool { return x == s })
				check(live...)
				if s.sibling != nil || s.bound {
					t.Fatal("holds on to another one")
				}
			}
			ss := []*udpSession{begin(), begin(), begin()}
			end(ss[order[0]])
			more := begin()
			end(ss[order[1]])
			end(ss[order[2]])
			end(more)
			if len(p.sessions)+len(p.proxied) != 0 {
				t.Errorf("%v: the port remembers nobody", order)
			}
		}
	}
}

func TestOwner(t *testing.T) {
	t.Parallel()
	one, two := &upstream.Server{}, &upstream.Server{}
	ln, table := &Listener{}, &table{opts: &Options{Network: UDP, UDP: UDPOptions{QUICServerID: 2}}}
	for id, sv := range map[string]*upstream.Server{"a1": one, "b2": two} {
		cid := quicIDOf(0, 8)
		copy(cid.b[1:], id)
		ln.ids.add(cid, &quicEntry{server: sv}, 2, true, 1)
	}
	older := &udpSession{ln: ln, table: table, server: one, quic: true, more: &udpDetails{first: quicIDOf(1, 8), ids: []quicID{quicIDOf(11, 8)}, settled: true}}
	newer := &udpSession{ln: ln, table: table, server: two, quic: true, sibling: older, more: &udpDetails{first: quicIDOf(2, 8), ids: []quicID{quicIDOf(22, 12), quicIDOf(23, 12)}, settled: true}}
	for _, tt := range []struct {
		name      string
		data      []byte
		want      *udpSession // nil: another connection begins
		ambiguous bool
	}{
		{"a client's first id, again", long(typeInitial, quicIDOf(1, 8).bytes()), older, false},
		{"of the newer one", long(typeInitial, quicIDOf(2, 8).bytes()), newer, false},
		{"0-RTT with it", long(type0RTT, quicIDOf(1, 8).bytes()), older, false},
		{"a server's id", long(typeHandshake, quicIDOf(11, 8).bytes()), older, false},
		{"another first id", long(typeInitial, quicIDOf(3, 8).bytes()), nil, false},
		{"0-RTT that came first", long(type0RTT, quicIDOf(3, 8).bytes()), nil, false},
		{"an unknown id after the handshake began", long(typeHandshake, quicIDOf(3, 8).bytes()), newer, false},
		{"short", short(quicIDOf(11, 8).bytes()), older, false},
		{"short, longer id", short(quicIDOf(23, 12).bytes()), newer, false},
		{"short, an id that nobody has seen", short(quicIDOf(99, 12).bytes()), newer, true},
		{"short, a server id of the older one's server", short([]byte("\x01a1random")), older, false},
		{"short, … of the newer one's", short([]byte("\x01b2random")), newer, false},
		{"short, one that says that it has no server id", short([]byte("\xe1a1random")), newer, true},
		{"nothing", nil, newer, false},
		{"a long header cut", []byte{0xc0, 0, 0}, newer, false},
	} {
		got, ambiguous := newer.owner(tt.data)
		if got != tt.want || ambiguous != tt.ambiguous {
			t.Errorf("%s: %p, %v; want %p, %v", tt.name, got, ambiguous, tt.want, tt.ambiguous)
		}
	}
	// One that is alone has all of it, but for what begins another connection.
	if got, ambiguous := older.owner(short(quicIDOf(99, 12).bytes())); got != older || ambiguous {
		t.Error("of no sibling")
	}
	// At one server it does not matter which session carries it.
	older.server = two
	if got, ambiguous := newer.owner(short(quicIDOf(99, 12).bytes())); got != newer || ambiguous {
		t.Error("ambiguous though both are at one server")
	}
	// Only one could go on with an id that nobody has seen.
	older.server, older.more.settled = one, false
	if got, ambiguous := newer.owner(short(quicIDOf(99, 12).bytes())); got != older || ambiguous {
		t.Error("not taken for the one that has not changed its id yet")
	}
}
