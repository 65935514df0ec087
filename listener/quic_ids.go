package listener

import (
	"sync"
	"sync/atomic"
	"time"

	"edgeproxy/internal/quic"
	"edgeproxy/upstream"
)

const (
	// maxQUICIDs is how many connection ids a session may be found by: those of
	// a Retry and an Initial, and the last ones that the client has used.
	maxQUICIDs = 4
	// quicMemory is how long a server can be found by a connection id after the
	// last session with it: as long as a silent QUIC connection may live, with
	// the idle timeouts that servers choose (RFC 9000 section 10.1).
	quicMemory = 5 * time.Minute
	// quicMost bounds the connection ids of a listener, quicServers the server
	// ids: servers that put none there have random bytes instead.
	quicMost    = 1 << 17
	quicServers = 1 << 12
	// quicSweep is how often at most all ids are looked at.
	quicSweep = 10 * time.Second
)

// quicID is a connection id, or a server id out of one.
type quicID struct {
	n int8 // length; negative: of a server id
	b [20]byte
}

// newQUICID makes an id that can be looked for: shorter ones might be anyone's.
func newQUICID(cid []byte, ok bool) (id quicID, _ bool) {
	if !ok || len(cid) < 4 || len(cid) > len(id.b) {
		return id, false
	}
	id.n = int8(len(cid))
	copy(id.b[:], cid)
	return id, true
}

func (id *quicID) is(cid []byte) bool { return id.n > 0 && string(cid) == string(id.b[:id.n]) }

func newServerID(sid []byte) (id quicID) {
	id.n = -int8(len(sid))
	copy(id.b[:], sid)
	return id
}

// quicEntry is where the client of a connection id belongs.
type quicEntry struct {
	server    *upstream.Server
	group     *upstream.Group
	table     *table
	route     int32
	sni, alpn string
	idLen     int  // of the server's connection ids
	issued    bool // the server has been seen to issue the id

	sessions int
	gone     int64 // loop clock when the last session ended; 0: there are some
}

// quicIDs finds servers by the connection ids that they have been seen to
// issue in the clear (RFC 9000 section 7.2), by those that their clients use,
// and by the server ids in them (QUIC-LB). It is shared by the loops: a client
// that moves may come by another one. The lock is taken when a connection
// begins, ends, moves, or changes its connection id.
type quicIDs struct {
	some    atomic.Bool
	lengths atomic.Uint32 // bit n: there are ids of n bytes
	mu      sync.Mutex
	ids     map[quicID]*quicEntry
	sweepAt int
	swept   int64 // loop clock
	servers int   // server ids among ids
}

// add notes an id, and the server id in it, if there is one of so many bytes.
// What a client uses, in contrast to what its server has issued, takes no id
// from another server.
func (q *quicIDs) add(id quicID, e *quicEntry, serverID int, issued bool, now int64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ids == nil {
		q.ids, q.sweepAt = map[quicID]*quicEntry{}, 1024
	}
	if len(q.ids) >= q.sweepAt && (q.swept == 0 || now-q.swept > int64(quicSweep)) {
		q.sweep(now)
	}
	if serverID > 0 && issued {
		if sid, ok := quic.ServerID(id.b[:id.n], serverID); ok {
			q.addServer(newServerID(sid), &quicEntry{server: e.server, group: e.group, table: e.table, route: e.route, idLen: e.idLen})
		}
	}
	old := q.ids[id]
	e.issued = issued || old != nil && old.issued
	switch {
	case old == nil && len(q.ids) >= quicMost:
		return false
	case old == nil:
		old = e
		q.ids[id] = e
	case old.server != e.server && !issued:
		return false
	case old.server != e.server:
		e.sessions = old.sessions
		*old = *e
	}
	old.sessions++
	old.gone = 0
	q.lengths.Store(q.lengths.Load() | 1<<id.n)
	q.some.Store(true)
	return true
}

// letGo says that a session has changed to other ids. One that only its client
// has named is not remembered: there might be any number of them.
func (q *quicIDs) letGo(id quicID, now int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	e := q.ids[id]
	if e == nil {
		return
	}
	if e.sessions--; e.sessions > 0 {
		return
	}
	e.gone = now
	if !e.issued {
		delete(q.ids, id)
	}
}

// serverOf finds the server by the server id in a connection id; nil: there is none.
func (t *table) serverOf(q *quicIDs, data []byte) *upstream.Server {
	if e, ok := t.quicServer(q, data); ok {
		return e.server
	}
	return nil
}

func (q *quicIDs) addServer(id quicID, e *quicEntry) {
	if q.ids[id] == nil {
		if q.servers >= quicServers {
			return
		}
		q.servers++
	}
	q.ids[id] = e
}

// leave says that a session with these ids has ended.
func (q *quicIDs) leave(ids []quicID, now int64) {
	if len(ids) == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, id := range ids {
		if e := q.ids[id]; e != nil {
			if e.sessions--; e.sessions <= 0 {
				e.gone = now
			}
		}
	}
}

// sweep removes what nobody will ask for any more.
func (q *quicIDs) sweep(now int64) {
	for id, e := range q.ids {
		if id.n > 0 && e.gone != 0 && now-e.gone > int64(quicMemory) {
			delete(q.ids, id)
		}
	}
	q.swept = now
	q.sweepAt = min(max(1024, 2*len(q.ids)), quicMost)
}

// find looks for the destination connection id of a datagram. That of a short
// header does not tell its length: all that occur are tried, longest first.
func (q *quicIDs) find(data []byte) (quicEntry, bool) {
	if len(data) == 0 || !q.some.Load() {
		return quicEntry{}, false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if data[0]&0x80 != 0 {
		h, _, ok := quic.ParseLong(data)
		if !ok {
			return quicEntry{}, false
		}
		return q.get(newQUICID(h.DCID, true))
	}
	lengths := q.lengths.Load()
	for n := 20; n > 0; n-- {
		if lengths&(1<<n) == 0 {
			continue
		}
		if e, ok := q.get(newQUICID(quic.ShortDCID(data, n))); ok {
			return e, true
		}
	}
	return quicEntry{}, false
}

func (q *quicIDs) get(id quicID, ok bool) (quicEntry, bool) {
	if !ok {
		return quicEntry{}, false
	}
	if e := q.ids[id]; e != nil {
		return *e, true
	}
	return quicEntry{}, false
}

// quicServer finds a server by its server id: learned ones of the listener
// first, then those of the configuration.
func (t *table) quicServer(q *quicIDs, data []byte) (quicEntry, bool) {
	n := t.opts.UDP.QUICServerID
	if n == 0 {
		return quicEntry{}, false
	}
	cid, ok := quicDestination(data, n+1)
	if !ok {
		return quicEntry{}, false
	}
	sid, ok := quic.ServerID(cid, n)
	if !ok {
		return quicEntry{}, false
	}
	if e, ok := t.quicServers[string(sid)]; ok {
		return e, true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.get(newServerID(sid), true)
}

// quicDestination is the beginning of the destination connection id.
func quicDestination(data []byte, n int) ([]byte, bool) {
	if len(data) > 0 && data[0]&0x80 == 0 {
		return quic.ShortDCID(data, n)
	}
	// The id of a client's Initial is of its own choice: chance must not take
	// it for a server's.
	h, _, ok := quic.ParseLong(data)
	if !ok || len(h.DCID) < n || h.Type == quic.Initial || h.Type == quic.ZeroRTT {
		return nil, false
	}
	return h.DCID[:n], true
}

// indexQUICServers notes the server ids of the configuration.
func (t *table) indexQUICServers() {
	if t.opts.Network != UDP || t.opts.UDP.QUICServerID == 0 {
		return
	}
	t.quicServers = map[string]quicEntry{}
	for i := range t.routes {
		for _, share := range t.routes[i].shares {
			if share.group == nil {
				continue
			}
			for id, sv := range share.group.QUICServers() {
				if _, ok := t.quicServers[id]; !ok {
					t.quicServers[id] = quicEntry{server: sv, group: share.group, table: t, route: int32(i)}
				}
			}
		}
	}
}
