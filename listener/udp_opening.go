package listener

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/quic"
	"edgeproxy/internal/sniff"
	"edgeproxy/upstream"
)

// maxHeld bounds the bytes that wait for a QUIC client's hello to be whole: a
// hello of several Initial packets, and 0-RTT data beside it.
const maxHeld = 16 << 10

// udpOpening is a session whose client's QUIC hello is not whole yet.
type udpOpening struct {
	hello *quic.Hello
	fed   bool // the hello has seen the datagram that comes next
	held  []udpItem
	size  int // bytes of held
}

// open finds the session's server. If the first datagram does not tell enough,
// the phase is PhaseSniff afterwards.
//
// Older is a session with the same addresses, of another QUIC connection: if it
// has the same route, this one goes to its server, so that datagrams with
// connection ids that nobody has seen get there whichever of the two they are
// taken for.
func (s *udpSession) open(older *udpSession, data []byte, segment int, source netip.AddrPort) (why Drop, refused bool) {
	u := s.p.w.udp
	first := data
	if segment > 0 {
		first = data[:segment]
	}
	if s.rejoin(first) {
		return 0, false
	}
	s.quic = quic.Begins(first) && len(first) >= quic.MinDatagram
	f := facts{source: source.Addr(), port: s.local().Port()}
	u.info = sniff.Info{}
	if s.table.sniffs(&f) == 0 {
		return s.choose(&f, older)
	}
	if !quic.Begins(first) {
		f.info = &u.info
		return s.choose(&f, older)
	}
	s.detail().first = firstID(first)
	done, err := s.feed(u.hello, data, segment)
	switch {
	case err != nil:
		*u.hello = quic.Hello{}
		return DropMalformed, true
	case !done:
		d := s.detail()
		d.hello, d.fed = u.hello, true
		u.hello = new(quic.Hello)
		s.phase = PhaseSniff
		return 0, false
	}
	why, refused = s.known(&f, older)
	*u.hello = quic.Hello{}
	return why, refused
}

// feed gives the hello a datagram, or each of a train. What was found is in
// the loop's info.
func (s *udpSession) feed(h *quic.Hello, data []byte, segment int) (done bool, err error) {
	for chunk := range chunks(data, segment) {
		if done, err = h.Datagram(chunk, &s.p.w.udp.info); done || err != nil {
			return done, err
		}
	}
	return false, nil
}

// known goes on with what a hello, or its absence, has told.
func (s *udpSession) known(f *facts, older *udpSession) (why Drop, refused bool) {
	f.info = &s.p.w.udp.info
	if f.info.Protocol == sniff.QUIC {
		s.quic = true
		d := s.detail()
		d.sni = intern(string(f.info.ServerName))
		if f.info.ALPN.Len() == 1 { // of several nobody but the server knows
			for name := range f.info.ALPN.All() {
				d.alpn = intern(string(name))
			}
		}
	}
	return s.choose(f, older)
}

// hold keeps a datagram until the hello is whole.
func (s *udpSession) hold(data []byte, segment int, tos uint8) {
	d, u := s.more, s.p.w.udp
	if d.size+len(data) > maxHeld {
		s.drop(DropLimited, count(data, segment))
		return
	}
	d.size += len(data)
	d.held = append(d.held, udpItem{data: bytes.Clone(data), segment: segment, tos: tos})
	if d.fed {
		d.fed = false
		return
	}
	u.info = sniff.Info{}
	done, err := s.feed(d.hello, data, segment)
	if err != nil {
		s.end(TLSFailed, err) // as a ClientHello of TCP that is malformed
		return
	}
	if !done {
		return
	}
	f := facts{source: s.source().Addr(), port: s.local().Port()}
	if why, refused := s.known(&f, s.sibling); refused {
		s.end(endOf(why), nil)
		return
	}
	for i := range d.held {
		it := &d.held[i]
		u.chain(s, it.data, it.segment, it.tos)
	}
	d.held, d.hello, d.size = nil, nil, 0
	s.watch()
}

// choose finds the route and a server.
func (s *udpSession) choose(f *facts, older *udpSession) (why Drop, refused bool) {
	n := s.table.route(f)
	if n < 0 {
		return DropNoRoute, true
	}
	r := &s.table.routes[n]
	if r.opts.Reject {
		return DropDenied, true
	}
	s.routeNo = int32(n)
	if older != nil && older.id != 0 && older.server != nil && older.table == s.table && older.routeNo == s.routeNo && older.server.Up() {
		s.group = older.group
		if a, o, _ := s.p.w.dialer.Rejoin(s.group, older.server); o == upstream.Connected {
			if o, _ = s.join(a); o == upstream.Connected {
				return 0, false
			}
		}
	}
	s.group = r.group(s.p.w.rnd)
	o, err := s.dial(nil)
	switch o {
	case upstream.Connected:
		return 0, false
	case upstream.Overloaded:
		s.p.ln.acceptErrors.Add(1)
		s.p.w.m.events.AcceptFailed(s.p.ln.name, errnoOf(err))
		return DropLimited, true
	}
	return DropNoServer, true
}

// endOf is how a session ends whose datagrams are dropped.
func endOf(why Drop) End {
	switch why {
	case DropDenied:
		return Denied
	case DropNoServer:
		return NoServer
	case DropLimited:
		return Overloaded
	}
	return NoRoute
}

// forgetOpening counts what waits for a hello that does not come any more.
func (s *udpSession) forgetOpening(e End) {
	why := DropMalformed
	switch e {
	case Denied:
		why = DropDenied
	case NoServer:
		why = DropNoServer
	case Overloaded, Limited:
		why = DropLimited
	case NoRoute:
		why = DropNoRoute
	}
	for i := range s.more.held {
		s.drop(why, count(s.more.held[i].data, s.more.held[i].segment))
	}
}

// rejoin finds the server by a connection id that it has issued, for a QUIC
// client that comes from another address, or after a long silence.
func (s *udpSession) rejoin(data []byte) bool {
	ln := s.p.ln
	e, ok := ln.ids.find(data)
	if !ok {
		e, ok = s.table.quicServer(&ln.ids, data)
	}
	if !ok || !e.server.Up() && e.server.OnDown() != upstream.KeepSessions {
		return false
	}
	if s.table.want != 0 && data[0]&0x80 != 0 {
		var h quic.Hello
		if opened, _, err := h.Again(data, &s.p.w.udp.info); opened || err != nil {
			return false // its name decides
		}
	}
	t := s.table
	s.quic, s.table, s.routeNo, s.group = true, e.table, e.route, e.group
	a, o, _ := s.p.w.dialer.Rejoin(e.group, e.server)
	if o == upstream.Connected {
		d := s.detail()
		d.sni, d.alpn, d.idLen = e.sni, e.alpn, e.idLen
		o, _ = s.join(a)
	}
	if o != upstream.Connected {
		s.quic, s.table, s.routeNo, s.group = false, t, -1, nil
		return false
	}
	return true
}

// learn notes the connection ids by which the server is to be found again.
func (s *udpSession) learn(data []byte) {
	id, ok := newQUICID(quic.ServerSCID(data))
	if !ok {
		return
	}
	s.detail().idLen = int(id.n)
	s.addID(id, true)
}

// learnCurrent notes the connection id that the client uses now. Most are
// issued in encrypted packets, and taken into use soon after the handshake; a
// client whose address is changed by a NAT does not know and goes on with it.
func (s *udpSession) learnCurrent(data []byte) {
	d := s.more
	cid, ok := quic.ShortDCID(data, d.idLen)
	if !ok || d.current.is(cid) {
		return
	}
	if id, ok := newQUICID(cid, true); ok {
		d.current = id
		d.settled = d.settled || !slices.Contains(d.ids, id)
		s.addID(id, false)
	}
}

// addID has the listener find the session's server by a connection id. Of more
// than a few the oldest is let go.
func (s *udpSession) addID(id quicID, issued bool) {
	d := s.more
	if slices.Contains(d.ids, id) {
		return
	}
	e := quicEntry{server: s.server, group: s.group, table: s.table, route: s.routeNo, sni: d.sni, alpn: d.alpn, idLen: d.idLen}
	if !s.ln.ids.add(id, &e, s.table.opts.UDP.QUICServerID, issued, s.last) {
		return
	}
	if len(d.ids) == maxQUICIDs {
		s.ln.ids.letGo(d.ids[0], s.last)
		d.ids = slices.Delete(d.ids, 0, 1)
	}
	d.ids = append(d.ids, id)
}

// fill adds what is known of the session to its log record.
func (s *udpSession) fill(r *Record) {
	if s.quic {
		r.Protocol = sniff.QUIC
	}
	if s.more != nil {
		r.SNI, r.ALPN = s.more.sni, s.more.alpn
	}
}

// police drops what is beyond a bandwidth: the generic cell rate algorithm
// (ITU-T I.371) in bytes.
type police struct{ in, out meter }

type meter int64 // when all that has passed would have, at the rate; ns

// burst is how far ahead of the rate is let pass.
const policeBurst = int64(125e6)

func (m *meter) pass(n int, rate, now int64) bool {
	next := max(int64(*m), now)
	if next-now > policeBurst {
		return false
	}
	*m = meter(next + int64(n)*1e9/rate)
	return true
}

func errnoOf(err error) unix.Errno {
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return errno
	}
	return unix.ENOMEM
}

// firstID is the connection id that a client's first packet is sent to.
func firstID(data []byte) quicID {
	h, _, _ := quic.ParseLong(data)
	id, _ := newQUICID(h.DCID, true)
	return id
}
