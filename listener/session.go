package listener

import (
	"fmt"
	"net/netip"
	"time"

	"edgeproxy/internal/reactor"
	"edgeproxy/splice"
	"edgeproxy/upstream"
)

// tuneAfter is how long a session must have lived for its server's socket to
// be given a keepalive: the many short ones are spared the system calls.
const tuneAfter = 30 * time.Second

// session is one client's connection from accept to end. It is on the loop,
// and lives in its worker's slab: nothing outside may keep a pointer to it.
//
//	accept ──▶ connect ──▶ relay
//	   └──────────┴──────────┴──▶ end
type session struct {
	relay  splice.Relay
	a      *acceptor
	table  *table           // in force when it began
	server *upstream.Server // leased; nil: none
	group  *upstream.Group
	dial   *upstream.Dial // under way; nil: none
	next   *session       // free list
	timer  reactor.Timer

	id      uint64 // 0: free
	begun   int64  // loop clock, ns
	connect time.Duration
	source  netip.AddrPort
	limited bool // the limiter has counted it
	tuned   bool
	phase   Phase
	retries uint8
	routeNo int32 // -1: none
}

func (s *session) live() bool { return s.id != 0 }

// begin starts the session of an accepted socket.
func (w *worker) begin(a *acceptor, fd int, source netip.AddrPort) {
	ln := a.ln
	c := &ln.loops[w.loop.Index]
	c.sessions.Add(1)
	ln.active.Add(1)
	w.loop.AddSession(1)
	w.tally.begin(a.socket.steered)
	w.ids++
	s := w.newSession()
	s.a, s.table, s.id, s.begun, s.source = a, ln.table.Load(), w.ids, w.loop.Now(), source
	s.phase, s.routeNo = PhaseAccept, -1
	if err := s.relay.Init(w.engine, s, &c.bytes, fd); err != nil {
		w.loop.CloseLater(fd)
		s.end(Overloaded, err)
		return
	}
	t := s.table
	if !t.allowed(source.Addr()) {
		s.end(Denied, nil)
		return
	}
	if n := t.opts.Limits.Connections; n > 0 && ln.active.Load() > int64(n) {
		s.end(Limited, errLimit("connections"))
		return
	}
	if t.limits != nil {
		if which := t.limits.enter(source.Addr(), w.loop.Now()); which != "" {
			s.end(Limited, errLimit(which))
			return
		}
		s.limited = true
	}
	s.route()
}

type errLimit string

func (e errLimit) Error() string { return "limits." + string(e) + " is reached" }

// route chooses the upstream, and begins to connect.
func (s *session) route() {
	w, t := s.a.w, s.table
	n := t.route(&facts{source: s.source.Addr(), port: s.localPort()})
	if n < 0 {
		s.end(NoRoute, nil)
		return
	}
	s.routeNo = int32(n)
	r := &t.routes[n]
	if r.opts.Reject {
		s.end(Denied, nil)
		return
	}
	s.phase = PhaseConnect
	s.group = r.group(w.rnd)
	if t.handshake > 0 {
		w.loop.StartTimer(&s.timer, t.handshake)
	}
	var local netip.AddrPort
	if s.group.Options().ProxyProtocol != upstream.ProxyNone {
		local = s.local()
	}
	// The session may be over when Dial returns: then the result is nil.
	if d := w.dialer.Dial(s.group, s, s.source, local); d != nil {
		s.dial = d
	}
}

// local is the address the client connected to; invalid for a unix socket.
func (s *session) local() netip.AddrPort {
	if s.a.local.IsValid() || !s.a.socket.local.IsValid() {
		return s.a.local
	}
	return s.a.w.localOf(s.relay.ClientFD())
}

func (s *session) localPort() uint16 { return s.a.socket.local.Port() }

// Dialed implements [upstream.Owner].
func (s *session) Dialed(d *upstream.Dial, o upstream.Outcome) {
	s.dial = nil
	s.retries = uint8(min(d.Retries, 255))
	if o != upstream.Connected {
		s.server = nil
		end := ConnectFailed
		switch o {
		case upstream.NoServer:
			end = NoServer
		case upstream.ConnectTimeout:
			end = ConnectTimeout
		case upstream.Overloaded:
			end = Overloaded
		}
		s.endAt(end, d.Err, d.Server)
		return
	}
	s.server, s.connect, s.phase = d.Server, d.Took, PhaseRelay
	s.watch()
	var shaper *splice.Shaper
	if l := &s.table.opts.Limits; l.BandwidthIn > 0 || l.BandwidthOut > 0 {
		shaper = splice.NewShaper(l.BandwidthIn, l.BandwidthOut)
	}
	s.relay.Join(d.FD, d.Token, d.Events, shaper)
}

// watch starts the timer for whatever is due first while relaying.
func (s *session) watch() {
	t, loop := s.table, s.a.w.loop
	due := time.Duration(-1)
	sooner := func(d time.Duration) {
		if due < 0 || d < due {
			due = d
		}
	}
	if limit := s.idleLimit(); limit > 0 {
		sooner(limit - s.relay.Idle())
	}
	age := time.Duration(loop.Now() - s.begun)
	if t.lifetime > 0 {
		sooner(t.lifetime - age)
	}
	if !s.tuned {
		if idle := s.group.Options().KeepaliveIdle(); idle > 0 {
			sooner(min(tuneAfter, idle) - age)
		} else {
			s.tuned = true
		}
	}
	if due < 0 {
		loop.StopTimer(&s.timer)
		return
	}
	loop.StartTimer(&s.timer, due)
}

// idleLimit is how long no byte may move; 0: for ever.
func (s *session) idleLimit() time.Duration {
	if h := s.table.halfClose; h > 0 && s.relay.HalfClosed() {
		return h
	}
	return s.table.idle
}

// Expired implements [reactor.Expirer].
func (s *session) Expired(*reactor.Timer) {
	if s.phase != PhaseRelay {
		s.end(HandshakeTimeout, fmt.Errorf("not connected to a server within timeouts.handshake (%v)", s.table.handshake))
		return
	}
	age := time.Duration(s.a.w.loop.Now() - s.begun)
	if l := s.table.lifetime; l > 0 && age >= l {
		s.end(Lifetime, nil)
		return
	}
	if l := s.idleLimit(); l > 0 && s.relay.Idle() >= l {
		if s.relay.HalfClosed() && s.table.halfClose > 0 {
			s.end(HalfCloseTimeout, nil)
		} else {
			s.end(IdleTimeout, nil)
		}
		return
	}
	if idle := s.group.Options().KeepaliveIdle(); !s.tuned && age >= min(tuneAfter, idle) {
		s.tuned = true
		s.group.Options().Tune(s.relay.ServerFD())
	}
	s.watch()
}

// RelayHalfClosed implements [splice.Owner].
func (s *session) RelayHalfClosed() {
	if s.table.halfClose > 0 {
		s.watch()
	}
}

// RelayEnded implements [splice.Owner].
func (s *session) RelayEnded(c splice.Cause) {
	switch c {
	case splice.ClientClosed:
		s.end(ClientClosed, nil)
	case splice.ServerClosed:
		s.end(ServerClosed, nil)
	case splice.ClientReset:
		s.end(ClientReset, s.relay.Err())
	case splice.ServerReset:
		s.end(ServerReset, s.relay.Err())
	}
}

func (s *session) end(e End, err error) { s.endAt(e, err, s.server) }

// endAt ends the session; tried is the server to name in the log, leased or not.
func (s *session) endAt(e End, err error, tried *upstream.Server) {
	a := s.a
	w, ln := a.w, a.ln
	if s.dial != nil {
		tried = s.dial.Server
		s.dial.Cancel()
		s.dial = nil
	}
	w.loop.StopTimer(&s.timer)
	if log := w.m.accessLog(); log != nil {
		s.log(log, e, err, tried)
	}
	s.relay.Close(!e.orderly())
	if s.server != nil {
		s.server.Release()
		s.server = nil
	}
	if s.limited {
		s.table.limits.leave(s.source.Addr(), w.loop.Now())
		s.limited = false
	}
	c := &ln.loops[w.loop.Index]
	c.ends[e].Add(1)
	c.seconds.Observe(time.Duration(w.loop.Now() - s.begun))
	c.ended.Add(1)
	ln.active.Add(-1)
	w.loop.AddSession(-1)
	w.tally.end()
	w.m.unreserve()
	s.id, s.tuned, s.retries, s.connect = 0, false, 0, 0
	s.table, s.group, s.a = nil, nil, nil
	s.next = w.free
	w.free = s
}

func (s *session) log(log AccessLogger, e End, err error, tried *upstream.Server) {
	w := s.a.w
	r := &w.record
	*r = Record{
		Time: time.Now(), ID: s.id, Listener: s.a.ln.name, Source: s.source, Destination: s.local(),
		BytesIn: s.relay.BytesIn(), BytesOut: s.relay.BytesOut(), Duration: time.Duration(w.loop.NowExact() - s.begun),
		Connect: s.connect, Retries: int(s.retries), End: e, Phase: s.phase, Err: err, Loop: w.loop.Index,
	}
	if !r.Destination.IsValid() {
		r.DestUnix = s.a.socket.bound
	}
	if s.routeNo >= 0 {
		r.Route = s.table.routes[s.routeNo].opts.Name
	}
	if s.group != nil {
		r.Upstream = s.group.Options().Name
	}
	if tried != nil {
		r.Server, r.ServerAddress = tried.Name, tried.AddressText()
	}
	log.Log(r)
}
