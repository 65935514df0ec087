package listener

import (
	"fmt"
	"net/netip"
	"time"

	"edgeproxy/internal/reactor"
	"edgeproxy/internal/sniff"
	"edgeproxy/splice"
	"edgeproxy/upstream"
)

// tuneAfter is how long a session must have lived for its server's socket to
// be given a keepalive: the many short ones are spared the system calls.
const tuneAfter = 30 * time.Second

// shedAfter is how long a session with TLS must be idle until its ciphers are
// given up: two thirds of a kilobyte for each direction, made anew in less
// than a microsecond.
const shedAfter = 10 * time.Second

// session is one client's connection from accept to end. It is on the loop,
// and lives in its worker's slab: nothing outside may keep a pointer to it.
//
//	accept ─▶ proxy header ─▶ sniff ─▶ TLS ─▶ connect ─▶ relay
//	   └───────────┴────────────┴───────┴────────┴─────────┴──▶ end
//
// The stages between accept and connect are in opening.go; most sessions need
// none of them.
type session struct {
	relay  splice.Relay
	a      *acceptor
	table  *table           // in force when it began
	server *upstream.Server // leased; nil: none
	group  *upstream.Group
	dial   *upstream.Dial // under way; nil: none
	more   *details       // nil: none
	next   *session       // free list
	timer  reactor.Timer

	id      uint64 // 0: free
	begun   int64  // loop clock, ns
	connect time.Duration
	source  netip.AddrPort
	limited bool // the limiter has counted it
	tuned   bool
	shed    bool // the relay has given up its ciphers
	phase   Phase
	retries uint8
	want    sniff.Set // what the first bytes are searched for
	routeNo int32     // -1: none
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
	s.phase, s.want, s.routeNo = PhaseAccept, 0, -1
	if err := s.relay.Init(w.engine, s, &c.bytes, fd); err != nil {
		w.loop.CloseLater(fd)
		s.end(Overloaded, err)
		return
	}
	t := s.table
	if n := t.opts.Limits.Connections; n > 0 && ln.active.Load() > int64(n) {
		s.end(Limited, errLimit("connections"))
		return
	}
	if t.opening {
		s.startDeadline()
		if t.proxied(source.Addr()) {
			s.phase = PhaseProxyHeader
			return // its first event is on its way, with what has come by then
		}
	}
	s.admit()
}

// admit applies what is asked of the client's address, and goes on.
func (s *session) admit() {
	w, t := s.a.w, s.table
	if !t.allowed(s.source.Addr()) {
		s.end(Denied, nil)
		return
	}
	if t.limits != nil {
		if which := t.limits.enter(s.source.Addr(), w.loop.Now()); which != "" {
			s.end(Limited, errLimit(which))
			return
		}
		s.limited = true
	}
	f := facts{source: s.source.Addr(), port: s.localPort()}
	if t.opening {
		want := t.sniffs(&f)
		if len(t.opts.AcceptProxy) > 0 && s.phase == PhaseAccept {
			want = want.With(sniff.Proxy) // it must not get to a server
		}
		if want != 0 {
			s.startSniffing(want)
			return
		}
	}
	s.choose(&f, 0)
}

type errLimit string

func (e errLimit) Error() string { return "limits." + string(e) + " is reached" }

// choose finds the route. Of the client's bytes seen are known by f.
func (s *session) choose(f *facts, seen int) {
	n := s.table.route(f)
	if n < 0 {
		s.refuse(f, seen)
		return
	}
	s.routeNo = int32(n)
	r := &s.table.routes[n]
	if r.opts.Reject {
		s.end(Denied, nil)
		return
	}
	if r.tls != nil && f.tls == "" {
		if f.info == nil {
			// A handshake begins with a whole ClientHello: whoever sends
			// none, or half of it, costs no more than other sessions.
			s.startSniffing(sniff.Set(0).With(sniff.TLS))
			return
		}
		s.terminate(r.tls, f, seen)
		return
	}
	s.dialOut(r)
}

// dialOut begins to connect to a server.
func (s *session) dialOut(r *route) {
	w := s.a.w
	s.phase = PhaseConnect
	s.group = r.group(w.rnd)
	if !s.table.opening {
		s.startDeadline()
	}
	c := upstream.Client{Source: s.source}
	o := s.group.Options()
	if o.ProxyProtocol != upstream.ProxyNone {
		c.Local = s.local()
		c.TLVs = s.tlvs()
	} else if o.NeedsDestination() {
		c.Local = s.local()
	}
	if s.more != nil && o.NeedsName() {
		c.SNI = s.more.sni
	}
	// The session may be over when Dial returns: then the result is nil.
	if d := w.dialer.Dial(s.group, s, c); d != nil {
		s.dial = d
	}
}

// startDeadline starts the one timer that runs until a server is connected to.
func (s *session) startDeadline() {
	if h := s.table.handshake; h > 0 {
		loop := s.a.w.loop
		loop.StartTimer(&s.timer, h-time.Duration(loop.Now()-s.begun))
	}
}

// local is the address the client connected to; invalid for a unix socket.
func (s *session) local() netip.AddrPort {
	if s.more != nil && s.more.local.IsValid() {
		return s.more.local
	}
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
	if d.TLS != nil || d.Bridge != nil {
		s.secureServer(d)
	}
	s.watch()
	var shaper *splice.Shaper
	if l := &s.table.opts.Limits; l.BandwidthIn > 0 || l.BandwidthOut > 0 {
		shaper = splice.NewShaper(l.BandwidthIn, l.BandwidthOut)
	}
	secure := splice.TLS{Conn: d.TLS, Kernel: d.Kernel}
	if d.Ticket != nil {
		secure.First = d.Ticket
	}
	s.relay.Join(d.FD, d.Token, d.Events, secure, shaper)
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
	if s.more != nil && s.more.records && !s.shed {
		sooner(shedAfter)
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
		s.late()
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
	if s.more != nil && s.more.records && !s.shed && s.relay.Idle() >= shedAfter-time.Second {
		s.shed = true
		s.relay.Shed()
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

// RelayWarm implements [splice.Owner].
func (s *session) RelayWarm() {
	s.shed = false
	s.watch()
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
	case splice.ClientTLS:
		s.end(TLSFailed, fmt.Errorf("client: %w", s.relay.Err()))
	case splice.ServerTLS:
		s.end(TLSFailed, fmt.Errorf("server: %w", s.relay.Err()))
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
	if s.more != nil {
		s.more.end(s, e)
		s.more = nil
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
	s.id, s.tuned, s.shed, s.retries, s.connect = 0, false, false, 0, 0
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
	if s.more != nil {
		s.more.fill(r)
	}
	if tried != nil {
		r.Server, r.ServerAddress = tried.Name, tried.AddressText()
	}
	log.Log(r)
}
