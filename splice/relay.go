package splice

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/reactor"
)

// Cause says why a relay ended.
type Cause uint8

const (
	Running      Cause = iota
	ClientClosed       // both sides have finished, the client first
	ServerClosed       // both sides have finished, the server first
	ClientReset        // the client's socket failed, or its TLS stream was cut; Err tells how
	ServerReset
	ClientTLS // the client has broken the TLS protocol, or sent a fatal alert; Err tells how
	ServerTLS
)

// Owner is told of its relay's fate, on the loop.
type Owner interface {
	// ClientReady tells of the client's socket before Join.
	ClientReady(ev reactor.Events)
	// RelayWarm tells that [Relay.Shed] has something to give up again.
	RelayWarm()
	// RelayHalfClosed tells that one side has finished sending, once.
	RelayHalfClosed()
	// RelayEnded tells of the end, once. The descriptors are still open then:
	// the owner calls [Relay.Close].
	RelayEnded(c Cause)
}

// Counters add up the bytes of many relays. Written by one loop, read by all.
type Counters struct {
	In, Out, Spliced atomic.Uint64
}

const (
	readable   uint16 = 1 << iota // reading may bring something
	writable                      // writing may be taken
	eof                           // the peer has finished sending
	hurry                         // a FIN or an error is near: a short read does not mean empty
	shut                          // we have finished sending to it
	broken                        // writing failed: nothing goes there any more
	splicing                      // what is read here is spliced
	noSplicing                    // splice(2) cannot be used here
	fin                           // the peer's FIN is in: what is read next is the last
)

// side is one of the two sockets, and the direction that reads from it.
type side struct {
	token reactor.Token
	kept  *kept  // read here, not yet taken by the other side
	pipe  *pipe  // spliced from here, not yet taken by the other side
	tls   *leg   // nil: none
	bytes uint64 // read here and taken by the other side
	fd    int32
	state uint16
	runs  uint8 // copying: full reads in a row; splicing: meagre splices in a row; sealing: small records
	errno uint8 // why reading failed, or writing (with broken); Linux has 133
}

// Relay joins two sockets. It is embedded in its session. All methods are for
// the loop only.
type Relay struct {
	engine         *Engine
	owner          Owner
	count          *Counters
	shaper         *Shaper
	client, server side
	active         uint32 // coarse clock of the last byte moved
	joined         bool
	queued         bool  // has asked for another turn
	first          Cause // who finished first; Running: nobody yet
}

// By these types the loop tells which of the two sockets is ready.
type (
	clientSide Relay
	serverSide Relay
)

func (c *clientSide) Ready(ev reactor.Events) { (*Relay)(c).ready(&c.client, ev) }
func (s *serverSide) Ready(ev reactor.Events) { (*Relay)(s).ready(&s.server, ev) }

// Init begins with an accepted client, before there is a server, and registers
// it with the loop. On failure the descriptor still belongs to the caller.
func (r *Relay) Init(e *Engine, o Owner, c *Counters, clientFD int) error {
	*r = Relay{engine: e, owner: o, count: c, active: e.coarse()}
	r.client.fd, r.client.state = int32(clientFD), writable
	r.server.fd = -1
	t, err := e.Loop.Add(clientFD, reactor.Stream, (*clientSide)(r))
	if err != nil {
		return err
	}
	r.client.token = t
	return nil
}

// Join adds a connected server, already registered with the loop, and begins
// to relay. ev is what the loop reported of it together with the connection's
// establishment. A nil shaper limits nothing. The relay may have ended when
// Join returns.
func (r *Relay) Join(serverFD int, t reactor.Token, ev reactor.Events, tls TLS, shaper *Shaper) {
	r.engine.Loop.SetHandler(t, (*serverSide)(r))
	r.server = side{token: t, fd: int32(serverFD), state: writable}
	if tls.Conn != nil {
		r.server.tls = &leg{conn: tls.Conn, kernel: tls.Kernel, first: tls.First}
		r.server.state |= readable
	}
	r.joined = true
	r.active = r.engine.coarse()
	if shaper != nil {
		shaper.relay = r
		shaper.timer.Owner = shaper
		r.shaper = shaper
	}
	r.ready(&r.server, ev|reactor.Writable)
}

// Close gives back what the relay holds and closes both sockets. With reset
// the peers see a reset (RST) where the kernel can send one, so that neither
// takes a broken stream for a whole one.
func (r *Relay) Close(reset bool) {
	r.joined = false
	for _, s := range [...]*side{&r.client, &r.server} {
		r.drop(s)
		if s.tls != nil {
			r.forget(s.tls)
		}
		if s.token != reactor.None {
			if reset && (s.tls == nil || !s.tls.notified) {
				abortive(s.fd)
			}
			r.engine.Loop.Close(s.token)
			s.token = reactor.None
		}
		s.tls = nil
	}
	if r.shaper != nil {
		r.engine.Loop.StopTimer(&r.shaper.timer)
		r.shaper = nil
	}
}

// BytesIn counts what was taken from the client and by the server.
func (r *Relay) BytesIn() uint64 { return r.client.bytes }

// BytesOut counts what was taken from the server and by the client.
func (r *Relay) BytesOut() uint64 { return r.server.bytes }

// Idle is how long no byte has moved, to about a millisecond, up to 52 days.
func (r *Relay) Idle() time.Duration {
	return time.Duration(r.engine.coarse()-r.active) << coarseShift
}

// Cut is for an owner who keeps a side's TLS elsewhere: its stream has ended
// without close_notify. It returns what that makes of the relay, as truncated
// decides it; an orderly end if that side had been sent everything.
func (r *Relay) Cut(server bool) Cause {
	src, dst := &r.client, &r.server
	if server {
		src, dst = dst, src
	}
	if src.state&shut == 0 {
		return r.resetBy(src)
	}
	if dst.tls != nil {
		dst.tls.notified = true
	}
	abortive(dst.fd)
	return r.first
}

// HalfClosed reports whether one side has finished sending.
func (r *Relay) HalfClosed() bool { return r.first != Running }

// ClientFD is the client's descriptor.
func (r *Relay) ClientFD() int { return int(r.client.fd) }

// ServerFD is the server's descriptor, once joined.
func (r *Relay) ServerFD() int { return int(r.server.fd) }

// Err is the error of the socket that ended the relay; nil if none did.
func (r *Relay) Err() error {
	for _, s := range [...]*side{&r.client, &r.server} {
		if s.tls != nil && s.tls.err != nil {
			return s.tls.err
		}
		if s.errno != 0 {
			return unix.Errno(s.errno)
		}
	}
	return nil
}

// ClientFailed is what a hang-up or an error of the client's socket means,
// before Join.
func (r *Relay) ClientFailed() error {
	r.client.errno = socketError(r.client.fd)
	return unix.Errno(r.client.errno)
}

// ClientShut reports whether the client has finished sending, before Join.
func (r *Relay) ClientShut() bool { return r.client.state&fin != 0 }

// Detach takes the client's descriptor out of the relay and off the loop: it
// is the caller's again.
func (r *Relay) Detach() int {
	r.engine.Loop.Forget(r.client.token)
	r.client.token = reactor.None
	return int(r.client.fd)
}

// Adopt takes another descriptor in the place of the one that was detached. On
// failure it still belongs to the caller.
func (r *Relay) Adopt(clientFD int) error {
	t, err := r.engine.Loop.Add(clientFD, reactor.Stream, (*clientSide)(r))
	if err != nil {
		return err
	}
	r.client.fd, r.client.token, r.client.state = int32(clientFD), t, writable
	return nil
}

func (r *Relay) ready(s *side, ev reactor.Events) {
	if ev == 0 {
		r.queued = false
	}
	if ev&reactor.Writable != 0 {
		s.state |= writable
	}
	if ev&reactor.Readable != 0 {
		s.state |= readable
	}
	if ev&(reactor.PeerShut|reactor.Hangup|reactor.Failed|reactor.Urgent) != 0 {
		s.state |= readable | hurry
		if ev&(reactor.PeerShut|reactor.Failed) == reactor.PeerShut {
			s.state |= fin
		}
		if ev&reactor.Urgent != 0 {
			// The byte stays in its place in the stream (RFC 6093, section 6).
			// A splice would never get past the mark.
			s.state = s.state&^splicing | noSplicing
			inlineUrgent(s.fd)
		}
	}
	if r.joined {
		r.run()
	} else {
		r.owner.ClientReady(ev)
	}
}

// run works both directions until each waits for its source or its
// destination, or has used up its budget.
func (r *Relay) run() {
	in, out := turnBudget, turnBudget
	if cause := r.move(&r.client, &r.server, &in); cause != Running {
		r.owner.RelayEnded(cause)
		return
	}
	if cause := r.move(&r.server, &r.client, &out); cause != Running {
		r.owner.RelayEnded(cause)
		return
	}
	if r.client.gone() {
		r.owner.RelayEnded(ClientReset)
		return
	}
	if in <= 0 || out <= 0 {
		r.again()
	}
}

// gone reports whether s takes nothing any more, and has nothing left to give.
// A server must hear of that, or it would send to nobody for ever; after a
// reset at once.
func (s *side) gone() bool {
	return s.state&broken != 0 && (unix.Errno(s.errno) != unix.EPIPE ||
		s.kept == nil && s.pipe == nil && s.state&(readable|eof) != readable)
}

// again asks for another turn after everybody else had theirs.
func (r *Relay) again() {
	if !r.queued {
		r.queued = true
		r.engine.Loop.Again(r.client.token)
	}
}

// move takes bytes from src to dst, and returns why the relay ends, or Running.
func (r *Relay) move(src, dst *side, budget *int) Cause {
	if src.kept != nil || src.pipe != nil {
		if dst.state&writable == 0 || dst.kernelTLS() && !r.kernelDue(dst) {
			return Running
		}
		r.flush(src, dst)
		if src.kept != nil || src.pipe != nil {
			return Running
		}
	}
	for src.state&(readable|eof) == readable {
		if dst.state&writable == 0 || *budget <= 0 || dst.kernelTLS() && !r.kernelDue(dst) {
			return Running
		}
		want := spliceSize
		if r.shaper != nil {
			if want = r.shaper.allow(src == &r.client); want <= 0 {
				return Running
			}
		}
		var n int
		if src.userTLS() || dst.userTLS() {
			n = r.crypt(src, dst, want)
		} else if src.state&splicing != 0 && dst.state&broken == 0 {
			n = r.splice(src, dst, want)
		} else {
			n = r.copy(src, dst, min(want, len(r.engine.buf)))
		}
		*budget -= n + turnCost
		if r.shaper != nil {
			r.shaper.spend(src == &r.client, n)
		}
		if src.errno != 0 && src.state&broken == 0 {
			return r.resetBy(src)
		}
		if src.tls != nil && src.tls.err != nil {
			return r.tlsEnded(src)
		}
		if dst.tls != nil && dst.tls.err != nil {
			return r.tlsEnded(dst)
		}
	}
	if src.state&eof != 0 && dst.state&shut == 0 && src.kept == nil && src.pipe == nil {
		return r.finish(src, dst)
	}
	return Running
}

// finish passes on that src has finished sending and everything was delivered.
func (r *Relay) finish(src, dst *side) Cause {
	if src.state&broken != 0 && unix.Errno(src.errno) != unix.EPIPE {
		// Writing to src failed for a reset, after which reading it ends as
		// if by a FIN: its stream is not known to be whole.
		return r.resetBy(src)
	}
	if dst.tls != nil && !r.notify(src, dst) {
		return Running
	}
	dst.state |= shut
	if r.first == Running {
		r.first = ClientClosed
		if src == &r.server {
			r.first = ServerClosed
		}
	}
	if src.state&shut != 0 {
		return r.first // both have finished: close does what shutdown would
	}
	shutdownWrite(dst.fd)
	r.active = r.engine.coarse()
	r.owner.RelayHalfClosed()
	return Running
}

func (r *Relay) resetBy(s *side) Cause {
	if s == &r.client {
		return ClientReset
	}
	return ServerReset
}

// tlsEnded is the cause of an end by what src has sent, or not sent, as TLS.
func (r *Relay) tlsEnded(s *side) Cause {
	switch {
	case s.tls.err == ErrTruncated:
		return r.resetBy(s)
	case s == &r.client:
		return ClientTLS
	}
	return ServerTLS
}

// writeFailed notes that dst takes nothing any more. What it has sent before
// is still delivered, as a server may answer and close while the client is
// still sending; what src sends from now on is read and thrown away, until it
// closes or half_close is over.
func (r *Relay) writeFailed(src, dst *side, errno unix.Errno) {
	r.drop(src)
	dst.state |= broken | writable | readable | hurry
	dst.errno = uint8(errno)
	r.again() // dst's own direction may have had its turn already
}

// drop gives back what was read from s and not delivered.
func (r *Relay) drop(s *side) {
	if s.kept != nil {
		r.engine.putKept(s.kept)
		s.kept = nil
	}
	if s.pipe != nil {
		r.engine.putPipe(s.pipe)
		s.pipe = nil
	}
}

// sent notes that dst has taken n bytes. Those of a TLS side have been counted
// when they were sealed.
func (r *Relay) sent(src, dst *side, n int) {
	if dst.userTLS() {
		r.active = r.engine.coarse()
		return
	}
	if dst.tls != nil {
		dst.tls.records += 1 + n>>14
	}
	r.took(src, n)
}

// took counts bytes that dst has taken.
func (r *Relay) took(src *side, n int) {
	src.bytes += uint64(n)
	r.active = r.engine.coarse()
	if src == &r.client {
		r.count.In.Add(uint64(n))
	} else {
		r.count.Out.Add(uint64(n))
	}
}
