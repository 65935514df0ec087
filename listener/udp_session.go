package listener

import (
	"bytes"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/proxyproto"
	"edgeproxy/internal/quic"
	"edgeproxy/internal/reactor"
	"edgeproxy/internal/udp"
	"edgeproxy/upstream"
)

const (
	// evictAfter is how old a session must be at least to make room for
	// another. It bounds the work of a flood, too: no more sessions a second
	// begin than there may be at one time.
	evictAfter = time.Second
	// evictLook is how many of the oldest are looked at for one of a listener.
	evictLook = 16
	// keepUnanswered bounds the bytes that are kept for another server until
	// the first has answered.
	keepUnanswered = 4096
	// movePause is how long a session without another server to go to stays
	// with its own before it looks again.
	movePause = 100 * time.Millisecond
	// drainIdle is how long a session may be silent when the process ends.
	drainIdle = 2 * time.Second
)

// udpSession is one client's exchange of datagrams with a server. It is on the
// loop, and lives in its loop's slab.
//
//	sniff ─▶ relay ─▶ end
//
// Sniff is for a QUIC client whose hello is not whole yet; udp_opening.go.
type udpSession struct {
	p       *udpPort
	ln      *Listener // where it counts
	table   *table    // in force when it began
	limits  *limiter  // that has counted it; nil: none has
	server  *upstream.Server
	group   *upstream.Group
	more    *udpDetails // nil: none
	next    *udpSession // free list
	sibling *udpSession // older one with the same addresses; see udpPort.bind
	older   *udpSession // of those not proven
	newer   *udpSession
	timer   reactor.Timer
	sock    udp.Socket // to the server
	token   reactor.Token
	key     udpKey
	id      uint64 // 0: free
	begun   int64  // loop clock, ns
	last    int64  // … of the last datagram
	asked   uint64 // datagrams of the client, and of the server: those dropped as well
	answers uint64
	in, out exchanged

	head, tail int32 // items in the batch; head -1: none
	routeNo    int32 // -1: none
	overflow   uint32
	phase      Phase
	retries    uint8
	bound      bool // the port finds it
	proven     bool // the client has sent again after an answer
	tuned      bool
	quic       bool
}

// exchanged is what was relayed in one direction.
type exchanged struct{ datagrams, bytes uint64 }

func (e *exchanged) add(datagrams, bytes int) {
	e.datagrams += uint64(datagrams)
	e.bytes += uint64(bytes)
}

// udpDetails is what few sessions have.
type udpDetails struct {
	udpOpening
	proxied   bool
	source    netip.AddrPort // by the PROXY header
	local     netip.AddrPort
	tlvs      []byte // likewise
	crc       bool
	header    []byte // goes before each datagram to the server
	sni, alpn string
	first     quicID             // the connection id that the client began with
	ids       []quicID           // by which the listener finds the session's server
	again     *quic.Hello        // of a connection that begins within the session; nil: none is under way
	current   quicID             // the connection id that the client sends to
	idLen     int                // of the connection ids of the server; 0: not known
	settled   bool               // current is none that the server has issued in the clear
	kept      []byte             // unanswered datagrams, each after its length
	moved     int64              // loop clock at the last try to find another server
	tried     []*upstream.Server // that have refused since the client's last datagram
	police    police
}

func (s *udpSession) detail() *udpDetails {
	if s.more == nil {
		s.more = new(udpDetails)
	}
	return s.more
}

// spent reports whether the next datagram of the client begins another session.
func (s *udpSession) spent() bool {
	n := s.table.opts.UDP.Requests
	return n > 0 && s.asked >= uint64(n)
}

// source is the client's address.
func (s *udpSession) source() netip.AddrPort {
	if s.more != nil && s.more.proxied {
		return s.more.source
	}
	return s.key.from.AddrPort()
}

// local is the address the client sends to.
func (s *udpSession) local() netip.AddrPort {
	switch {
	case s.more != nil && s.more.proxied && s.more.local.IsValid():
		return s.more.local
	case s.p.local.IsValid():
		return s.p.local
	}
	return netip.AddrPortFrom(s.key.local.Addr(), s.p.socket.local.Port())
}

// begin starts a session with its first datagram; nil: that was dropped.
func (p *udpPort) begin(key *udpKey, h *proxyproto.Header, older *udpSession, data []byte, segment int) *udpSession {
	u, w, n := p.w.udp, p.w, count(data, segment)
	t := p.ln.table.Load()
	source := key.from.AddrPort()
	if why, refused := p.stranger(t, source); refused {
		p.drop(why, n)
		return nil
	}
	if h != nil {
		source = h.Source
	}
	if !t.allowed(source.Addr()) {
		p.drop(DropDenied, n)
		return nil
	}
	if !p.room(t) {
		p.drop(DropLimited, n)
		return nil
	}
	if t.limits != nil && t.limits.enter(source.Addr(), w.loop.Now()) != "" {
		w.m.unreserve()
		p.drop(DropLimited, n)
		return nil
	}
	s := u.newSession()
	s.p, s.ln, s.table, s.key, s.begun, s.last = p, p.ln, t, *key, w.loop.Now(), w.loop.Now()
	s.head, s.routeNo, s.phase, s.limits = -1, -1, PhaseAccept, t.limits
	if h != nil {
		d := s.detail()
		d.proxied, d.source, d.local, d.tlvs, d.crc = true, h.Source, h.Destination, bytes.Clone(h.TLVs), h.CRC
	}
	if why, refused := s.open(older, data, segment, source); refused {
		s.discard()
		p.drop(why, n)
		return nil
	}
	w.ids++
	s.id = w.ids
	p.bind(s)
	c := p.counters()
	c.sessions.Add(1)
	p.ln.active.Add(1)
	p.socket.live.Add(1)
	w.loop.AddSession(1)
	w.tally.begin(false)
	u.unproven.push(s)
	s.watch()
	return s
}

// stranger refuses sources that no session may come from.
func (p *udpPort) stranger(t *table, source netip.AddrPort) (why Drop, refused bool) {
	switch {
	case p.closed:
		return DropNoRoute, true
	case source.Port() == 0:
		return DropMalformed, true // no reply can be sent there
	case p.w.m.own.Load().has(source):
		// A datagram that pretends to come from one of our own addresses
		// would go round for ever (CVE-2024-2169).
		return DropDenied, true
	}
	return 0, false
}

// room takes a place among the sessions of the process and of the listener. If
// there is none, the oldest session makes room that is not proven.
func (p *udpPort) room(t *table) bool {
	if n := t.opts.Limits.Connections; n > 0 && p.ln.active.Load() >= int64(n) && !p.w.udp.evict(p.ln) {
		return false
	}
	return p.w.m.reserve() || p.w.udp.evict(nil) && p.w.m.reserve()
}

// evict ends the oldest session of a listener, nil: of any, whose client has
// sent nothing since it was answered: it may not be there at all.
func (u *datagrams) evict(ln *Listener) bool {
	if u == nil {
		return false
	}
	s := u.unproven.head
	for range evictLook {
		if s == nil || u.w.loop.Now()-s.begun < int64(evictAfter) {
			return false
		}
		if ln == nil || s.ln == ln {
			s.end(Limited, errEvicted)
			return true
		}
		s = s.newer
	}
	return false
}

var errEvicted = errors.New("made room for another session: its client had sent nothing since it was answered")

// discard gives up a session that has not begun.
func (s *udpSession) discard() {
	w := s.p.w
	w.m.unreserve()
	if s.limits != nil {
		s.limits.leave(s.source().Addr(), w.loop.Now())
	}
	w.udp.recycle(s)
}

// dial finds a server. On failure the reason to drop the datagram is returned.
func (s *udpSession) dial(but []*upstream.Server) (o upstream.Outcome, err error) {
	c := upstream.Client{Source: s.source(), Local: s.local()}
	if s.more != nil {
		c.SNI = s.more.sni
	}
	a, o, err := s.p.w.dialer.Associate(s.group, &c, but)
	if o != upstream.Connected {
		return o, err
	}
	return s.join(a)
}

// join goes on with a server that is leased.
func (s *udpSession) join(a upstream.Association) (upstream.Outcome, error) {
	loop := s.p.w.loop
	t, err := loop.Add(a.FD, unix.EPOLLIN|unix.EPOLLET, s)
	if err != nil {
		a.Server.Release()
		unix.Close(a.FD)
		return upstream.Overloaded, err
	}
	if s.server != nil {
		s.leave()
	}
	s.server, s.token, s.phase, s.tuned = a.Server, t, PhaseRelay, false
	s.sock = udp.Socket{FD: a.FD, V6: a.V6, NoSegments: !segments(s.table)}
	s.overflow = 0
	if s.group.Options().ProxyProtocol != upstream.ProxyNone && (s.more == nil || s.more.header == nil) {
		s.addHeader()
	}
	if s.quic || s.proven {
		s.tune()
	}
	return upstream.Connected, nil
}

// addHeader makes the PROXY header that goes before each datagram.
func (s *udpSession) addHeader() {
	d := s.detail()
	t := proxyproto.TLVs{Authority: d.sni, ALPN: d.alpn, Keep: d.tlvs, CRC: d.crc}
	d.header = proxyproto.AppendV2DatagramTLVs(nil, s.source(), s.local(), &t)
}

// leave gives the server and its socket back.
func (s *udpSession) leave() {
	s.p.w.loop.Close(s.token)
	s.server.Release()
	s.server, s.token = nil, reactor.None
}

// tune sets what one-shot sessions can do without.
func (s *udpSession) tune() {
	s.tuned = true
	udp.Tune(s.sock.FD, s.sock.V6, udp.TuneOptions{
		GRO: !s.table.opts.UDP.NoOffload, TOS: true, PMTUProbe: s.quic,
	})
}

// receive takes a datagram of the client, or a train.
func (s *udpSession) receive(data []byte, segment int, tos uint8) {
	if s.phase == PhaseSniff {
		s.asked += count(data, segment)
		s.last = s.p.w.loop.Now()
		s.hold(data, segment, tos)
		return
	}
	if s.quic && s.answers > 0 && s.more != nil && s.more.idLen > 0 {
		s.learnCurrent(data)
	}
	s.pass(data, segment, tos)
}

// pass has a datagram, or a train, forwarded at the end of the batch.
func (s *udpSession) pass(data []byte, segment int, tos uint8) {
	s.asked += count(data, segment)
	s.last = s.p.w.loop.Now()
	if s.more != nil {
		s.more.tried = s.more.tried[:0]
	}
	if s.answers > 0 && !s.proven {
		s.proven = true
		s.p.w.udp.unproven.remove(s)
		if !s.tuned {
			s.tune()
		}
	}
	s.p.w.udp.chain(s, data, segment, tos)
}

// forward sends the items of the batch to the server.
func (s *udpSession) forward() {
	u := s.p.w.udp
	if !s.server.Up() && s.moves() {
		s.move(nil)
	}
	keep := s.answers == 0 && s.group.Size() > 1
	out := &u.out1
	*out = udp.Packet{}
	if s.more != nil {
		out.Header = s.more.header
	}
	for i := s.head; i >= 0; {
		it := &u.batch[i]
		i = it.next
		if limit := s.table.opts.Limits.BandwidthIn; limit > 0 && !s.detail().police.in.pass(len(it.data), limit, s.last) {
			s.drop(DropLimited, count(it.data, it.segment))
			continue
		}
		if keep && it.segment == 0 {
			s.keep(it.data)
		}
		if u.servers.Full() {
			s.send()
		}
		out.Data, out.Segment, out.TOS = it.data, it.segment, it.tos
		u.servers.Add(out)
	}
	s.send()
}

// send sends what has been gathered for the server, or for the next one if
// there is news that it is not there.
func (s *udpSession) send() {
	u := s.p.w.udp
	for range 3 {
		r := u.servers.Flush(&s.sock)
		c := s.counters()
		c.datagramsIn.Add(uint64(r.Sent))
		c.bytes.In.Add(uint64(r.Bytes))
		s.in.add(r.Sent, r.Bytes)
		s.p.dropped(r)
		if r.Errno == 0 {
			return
		}
		if s.refused(r.Errno) && s.answers == 0 && s.more.kept != nil {
			n, size := u.servers.Drop() // it is among what is kept
			c.datagramsIn.Add(uint64(n))
			c.bytes.In.Add(uint64(size))
			s.in.add(n, size)
			s.resend()
			return
		}
	}
	n, _ := u.servers.Drop()
	s.drop(DropNoServer, uint64(n))
}

func (s *udpSession) counters() *counters { return &s.ln.loops[s.p.w.loop.Index] }

func (s *udpSession) drop(why Drop, n uint64) {
	if n > 0 {
		s.counters().drops[why].Add(n)
	}
}

// moves reports whether a server that is down is to be left.
func (s *udpSession) moves() bool { return s.group.Options().OnDown == upstream.OnDownDefault }

// refused handles an ICMP error: the server, or its host, is not there. It
// reports whether the session has gone to another one.
func (s *udpSession) refused(errno unix.Errno) (moved bool) {
	if errno == unix.EMSGSIZE { // a router says so (RFC 1191): the kernel has noted the path's MTU
		return false
	}
	s.server.Failed(upstream.DatagramReason(errno))
	d := s.detail()
	if !s.moves() || len(d.tried) >= s.group.Retries() {
		return false
	}
	d.tried = append(d.tried, s.server)
	return s.move(d.tried)
}

// move goes on with another server, if there is one.
func (s *udpSession) move(but []*upstream.Server) bool {
	now := s.p.w.loop.Now()
	if s.more != nil && s.more.moved != 0 && now-s.more.moved < int64(movePause) {
		return false
	}
	s.detail().moved = now
	if o, _ := s.dial(but); o != upstream.Connected {
		return false
	}
	s.more.moved = 0
	s.retries = min(s.retries, 254) + 1
	return true
}

// keep remembers a datagram until the server has answered.
func (s *udpSession) keep(data []byte) {
	d := s.detail()
	if len(d.kept)+2+len(data) > keepUnanswered {
		return
	}
	d.kept = append(append(d.kept, byte(len(data)>>8), byte(len(data))), data...)
}

// resend sends what the last server has not answered.
func (s *udpSession) resend() {
	u := s.p.w.udp
	kept := s.more.kept
	p := udp.Packet{Header: s.more.header}
	for len(kept) >= 2 {
		n := int(kept[0])<<8 | int(kept[1])
		p.Data, kept = kept[2:2+n], kept[2+n:]
		if u.servers.Full() {
			u.servers.Flush(&s.sock)
		}
		u.servers.Add(&p)
	}
	if r := u.servers.Flush(&s.sock); r.Errno != 0 {
		u.servers.Drop()
	}
}

// Ready implements [reactor.Handler]: the server has sent something, or ICMP
// tells that it is not there.
func (s *udpSession) Ready(ev reactor.Events) {
	token := s.token
	s.relay()
	if ev&reactor.Failed != 0 && s.id != 0 && s.token == token {
		// The error itself is known by now; the queue has it once more, and
		// taking it from there clears it.
		var b [1]byte
		for errno := unix.Errno(0); errno == 0; {
			_, errno = recvFlags(s.sock.FD, b[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		}
	}
}

// relay takes what the server has sent.
func (s *udpSession) relay() {
	u := s.p.w.udp
	for size := 0; s.id != 0; {
		if u.out.Free() < fewSlots {
			u.flush()
		}
		most := u.out.Free()
		msgs, errno := u.out.ReceiveConnected(s.sock.FD, most)
		if n, ok := u.out.Dropped(); ok && n != s.overflow {
			s.drop(DropSocketFull, uint64(n-s.overflow))
			s.overflow = n
		}
		for i := range msgs {
			m := &msgs[i]
			size += len(m.Data)
			s.reply(m)
			if s.done() {
				s.end(ResponsesDone, nil)
				return
			}
		}
		switch {
		case errno != 0:
			if s.refused(errno) {
				if s.answers == 0 && s.more.kept != nil {
					s.resend()
				}
				return
			}
		case len(msgs) < most:
			return
		case size > udpBudget:
			s.p.w.loop.Again(s.token)
			return
		}
	}
}

// done reports whether each of the client's datagrams has its answers.
func (s *udpSession) done() bool {
	n := s.table.opts.UDP.Responses
	return n > 0 && s.answers >= uint64(n)*s.asked
}

// reply puts what the server has sent among what leaves at the end of the turn.
func (s *udpSession) reply(m *udp.Message) {
	p, u := s.p, s.p.w.udp
	n := uint64(m.Count())
	s.last = p.w.loop.Now()
	if m.Truncated {
		s.drop(DropTooBig, n)
		return
	}
	if s.quic && len(m.Data) > 0 && m.Data[0]&0x80 != 0 {
		s.learn(m.Data)
	}
	s.answers += n
	if s.more != nil {
		s.more.kept = nil
	}
	if limit := s.table.opts.Limits.BandwidthOut; limit > 0 && !s.detail().police.out.pass(len(m.Data), limit, s.last) {
		s.drop(DropLimited, n)
		return
	}
	if u.replier != p && u.replier != nil || u.clients.Full() {
		// Not flush: that would release the buffers m is in.
		u.sendReplies()
	}
	u.replier = p
	u.finish()
	s.out.add(int(n), len(m.Data))
	u.clients.Add(&udp.Packet{Data: m.Data, Segment: m.Segment, To: &s.key.from, Local: &s.key.local, TOS: m.TOS})
}
