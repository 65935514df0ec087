package listener

import (
	"fmt"
	"time"

	"edgeproxy/internal/reactor"
)

// watch starts the timer for whatever is due first.
func (s *udpSession) watch() {
	t, loop := s.table, s.p.w.loop
	due := time.Duration(-1)
	sooner := func(d time.Duration) {
		if due < 0 || d < due {
			due = max(d, 0)
		}
	}
	age := time.Duration(loop.Now() - s.begun)
	if s.phase == PhaseSniff {
		if t.handshake > 0 {
			sooner(t.handshake - age)
		}
	} else if idle := s.idleLimit(); idle > 0 {
		sooner(idle - time.Duration(loop.Now()-s.last))
	}
	if t.lifetime > 0 {
		sooner(t.lifetime - age)
	}
	if due < 0 {
		loop.StopTimer(&s.timer)
		return
	}
	loop.StartTimer(&s.timer, due)
}

// idleLimit is how long no datagram may move; 0: for ever.
func (s *udpSession) idleLimit() time.Duration {
	idle := s.table.idle
	if s.p.w.m.stopping.Load() && (idle == 0 || idle > drainIdle) {
		return drainIdle
	}
	return idle
}

// Expired implements [reactor.Expirer].
func (s *udpSession) Expired(*reactor.Timer) {
	t, now := s.table, s.p.w.loop.Now()
	age := time.Duration(now - s.begun)
	switch idle := s.idleLimit(); {
	case t.lifetime > 0 && age >= t.lifetime:
		s.end(Lifetime, nil)
	case s.phase == PhaseSniff:
		if t.handshake > 0 && age >= t.handshake {
			s.end(HandshakeTimeout, fmt.Errorf("the client's QUIC hello did not come whole within timeouts.handshake (%v)", t.handshake))
			return
		}
		s.watch()
	case idle > 0 && time.Duration(now-s.last) >= idle:
		if s.p.w.m.stopping.Load() {
			s.end(Drained, nil)
			return
		}
		s.end(IdleTimeout, nil)
	default:
		s.watch()
	}
}

func (s *udpSession) end(e End, err error) {
	w, ln := s.p.w, s.ln
	u := w.udp
	w.loop.StopTimer(&s.timer)
	if log := w.m.accessLog(); log != nil {
		s.log(log, e, err)
	}
	s.unbind()
	if !s.proven {
		u.unproven.remove(s)
	}
	if s.more != nil {
		s.forgetOpening(e)
		ln.ids.leave(s.more.ids, w.loop.Now())
	}
	if s.server != nil {
		s.leave()
	}
	if s.limits != nil {
		s.limits.leave(s.source().Addr(), w.loop.Now())
	}
	c := s.counters()
	c.ends[e].Add(1)
	c.seconds.Observe(time.Duration(w.loop.Now() - s.begun))
	c.ended.Add(1)
	ln.active.Add(-1)
	w.loop.AddSession(-1)
	w.tally.end()
	w.m.unreserve()
	if s.p.socket.live.Add(-1) == 0 && s.p.socket.draining.Load() {
		go w.m.closeDrained(s.p.socket)
	}
	s.id = 0
	// Not to be used again in this turn: its address may be among what is to be sent.
	s.next = u.ended
	u.ended = s
	u.finish()
}

func (s *udpSession) log(log AccessLogger, e End, err error) {
	w := s.p.w
	r := &w.record
	*r = Record{
		Time: time.Now(), ID: s.id, Listener: s.ln.name, Network: UDP, Source: s.source(), Destination: s.local(),
		BytesIn: s.in.bytes, BytesOut: s.out.bytes, DatagramsIn: s.in.datagrams, DatagramsOut: s.out.datagrams,
		Duration: time.Duration(w.loop.NowExact() - s.begun), Retries: int(s.retries),
		End: e, Phase: s.phase, Err: err, Loop: w.loop.Index,
	}
	if s.routeNo >= 0 {
		r.Route = s.table.routes[s.routeNo].opts.Name
	}
	if s.group != nil {
		r.Upstream = s.group.Options().Name
	}
	if s.server != nil {
		r.Server, r.ServerAddress = s.server.Name, s.server.AddressText()
	}
	s.fill(r)
	log.Log(r)
}
