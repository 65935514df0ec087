package listener

import (
	"slices"

	"edgeproxy/internal/quic"
)

// Sessions with the same addresses: of QUIC clients that have several
// connections on one socket, each perhaps to another name, and so to another
// server. Their datagrams are told apart by their connection ids.

// bind has the port find a session by its addresses, before older ones of the
// same: those are found by their QUIC connection ids.
func (p *udpPort) bind(s *udpSession) {
	s.bound = true
	if s.more != nil && s.more.proxied {
		if p.proxied == nil {
			p.proxied = map[proxiedKey]*udpSession{}
		}
		s.sibling = p.proxied[s.proxiedKey()]
		p.proxied[s.proxiedKey()] = s
		return
	}
	s.sibling = p.sessions[s.key]
	p.sessions[s.key] = s
}

// unbind has the port forget the session: its client's next datagram begins
// another one.
func (s *udpSession) unbind() {
	if !s.bound {
		return
	}
	s.bound = false
	p := s.p
	proxied := s.more != nil && s.more.proxied
	var first *udpSession
	if proxied {
		first = p.proxied[s.proxiedKey()]
	} else {
		first = p.sessions[s.key]
	}
	switch {
	case first != s:
		for first.sibling != s {
			first = first.sibling
		}
		first.sibling = s.sibling
	case s.sibling != nil && proxied:
		p.proxied[s.proxiedKey()] = s.sibling
	case s.sibling != nil:
		p.sessions[s.key] = s.sibling
	case proxied:
		delete(p.proxied, s.proxiedKey())
	default:
		delete(p.sessions, s.key)
	}
	s.sibling = nil
}

func (s *udpSession) proxiedKey() proxiedKey { return proxiedKey{s.key, s.more.source, s.more.local} }

// owner finds, among the sessions of the same addresses, the one of the QUIC
// connection that a datagram belongs to. Nil: it begins another connection,
// which may ask for another name.
//
// It is a guess if its connection id has never been seen: a new one, issued in
// an encrypted packet, of several connections that could go on with it. Only
// servers that put a server id there leave nothing to guess.
func (s *udpSession) owner(data []byte) (owner *udpSession, guess bool) {
	if len(data) == 0 {
		return s, false
	}
	if data[0]&0x80 == 0 {
		if s.sibling == nil {
			return s, false
		}
		return s.ownerOfShort(data)
	}
	h, _, ok := quic.ParseLong(data)
	if !ok {
		return s, false
	}
	id, ok := newQUICID(h.DCID, true)
	for x := s; x != nil && ok; x = x.sibling {
		if x.more != nil && (x.more.first == id || slices.Contains(x.more.ids, id)) {
			return x, false
		}
	}
	if ok && (h.Type == quic.Initial || h.Type == quic.ZeroRTT) {
		return nil, false
	}
	return s, false
}

// ownerOfShort: a short header says nothing but the connection id.
func (s *udpSession) ownerOfShort(data []byte) (owner *udpSession, guess bool) {
	byID := s.table.serverOf(&s.ln.ids, data)
	var known, latest *udpSession
	var only *udpSession // that has not changed its connection id since the handshake
	waiting, servers := 0, 0
	for x := s; x != nil; x = x.sibling {
		if x.server != s.server {
			servers++
		}
		if x.more == nil || !x.quic {
			continue
		}
		for i := range x.more.ids {
			id := &x.more.ids[i]
			if cid, ok := quic.ShortDCID(data, int(id.n)); ok && id.is(cid) {
				return x, false
			}
		}
		if byID != nil && x.server == byID {
			known = x
		}
		if x.server == nil { // its client cannot have got that far
			continue
		}
		if latest == nil {
			latest = x
		}
		if !x.more.settled {
			only = x
			waiting++
		}
	}
	switch {
	case known != nil:
		return known, false
	case servers == 0:
		return s, false
	case waiting == 1:
		return only, false
	case latest != nil:
		return latest, true
	}
	return s, false
}

// admits reports whether a datagram may go where the session goes. One that
// begins a connection, to a connection id that is known, may ask for another
// name than the one that the session was routed by: anew, it is for another
// session then.
func (s *udpSession) admits(data []byte) (ok, anew bool) {
	if len(data) == 0 || data[0]&0x80 == 0 || s.more == nil || s.phase == PhaseSniff {
		return true, false
	}
	d, info := s.more, &s.p.w.udp.info
	h := d.again
	if h == nil {
		h = new(quic.Hello)
	}
	opened, done, err := h.Again(data, info)
	switch {
	case err != nil:
		return false, false
	case !opened:
		return true, false
	case !done:
		d.again = h
		return true, false
	}
	d.again = nil
	same := s.table.route(&facts{source: s.source().Addr(), port: s.local().Port(), info: info}) == int(s.routeNo)
	return same, !same
}
