package listener

import (
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/proxyproto"
	"edgeproxy/internal/quic"
	"edgeproxy/internal/reactor"
	"edgeproxy/internal/sniff"
	"edgeproxy/internal/udp"
)

const (
	// udpSlots is how many messages a loop receives in one call, and holds
	// until they are sent. Each may be a train of 64 KiB.
	udpSlots = 64
	// udpBudget is how many bytes one server may send in one turn.
	udpBudget = 1 << 20
	// fewSlots: with less room left the replies gathered so far go out first.
	fewSlots = 4
)

// datagrams is what a loop has for UDP. All of it is on the loop.
//
//  1. A listening socket is readable: a batch is received, each datagram finds
//     its session or begins one, and what one session has got goes to its
//     server in one call.
//  2. A session's socket is readable: what its server has sent is received,
//     and put off to the end of the turn.
//  3. At the end of the turn all replies of a listening socket leave in one
//     call; only then are buffers and ended sessions used again.
type datagrams struct {
	w       *worker
	in      *udp.Receiver // from clients, until the end of udpPort.Ready
	out     *udp.Receiver // from servers, until the end of the turn
	servers *udp.Sender   // to one session's server
	clients *udp.Sender   // to clients, through replier
	replier *udpPort
	atEnd   bool // Finish is going to be called

	batch   []udpItem
	touched []*udpSession // with items in the batch

	slab     []*[1 << slabBits]udpSession
	free     *udpSession
	ended    *udpSession // to be free at the end of the turn
	unproven udpList

	hello  *quic.Hello // spare
	info   sniff.Info
	header proxyproto.Header
	out1   udp.Packet
}

// udpItem is a datagram, or a train of them, on its way to a server.
type udpItem struct {
	data    []byte
	segment int
	next    int32 // of the same session; -1: none
	tos     uint8
}

// begins reports whether a datagram of a train may begin a QUIC connection.
func begins(m *udp.Message) bool {
	for d := range chunks(m.Data, m.Segment) {
		if quic.Begins(d) {
			return true
		}
	}
	return false
}

// count is how many datagrams there are in data.
func count(data []byte, segment int) uint64 {
	if segment == 0 {
		return 1
	}
	return uint64((len(data) + segment - 1) / segment)
}

// datagrams makes what a loop needs for UDP, once there is a listener for it.
func (w *worker) datagrams() (*datagrams, error) {
	if w.udp != nil {
		return w.udp, nil
	}
	in, err := udp.NewReceiver(udpSlots)
	if err != nil {
		return nil, err
	}
	out, err := udp.NewReceiver(udpSlots)
	if err != nil {
		in.Close()
		return nil, err
	}
	w.udp = &datagrams{
		w: w, in: in, out: out, servers: udp.NewSender(udpSlots), clients: udp.NewSender(udpSlots), hello: new(quic.Hello),
	}
	return w.udp, nil
}

// finish has Finish called at the end of the turn.
func (u *datagrams) finish() {
	if !u.atEnd {
		u.atEnd = true
		u.w.loop.AtEnd(u)
	}
}

// Finish implements [reactor.Finisher].
func (u *datagrams) Finish() {
	u.atEnd = false
	u.flush()
	for u.ended != nil {
		s := u.ended
		u.ended = s.next
		u.recycle(s)
	}
}

// flush sends the replies gathered so far, and frees their buffers.
func (u *datagrams) flush() {
	u.sendReplies()
	u.out.Release()
}

func (u *datagrams) sendReplies() {
	if p := u.replier; p != nil {
		r := u.clients.Flush(&p.sock)
		c := p.counters()
		c.datagramsOut.Add(uint64(r.Sent))
		c.bytes.Out.Add(uint64(r.Bytes))
		p.dropped(r)
		u.replier = nil
	}
}

// newSession takes a session from the slab.
func (u *datagrams) newSession() *udpSession {
	if u.free == nil {
		c := new([1 << slabBits]udpSession)
		for i := range c {
			s := &c[i]
			s.timer.Owner = s
			s.next = u.free
			u.free = s
		}
		u.slab = append(u.slab, c)
	}
	s := u.free
	u.free = s.next
	s.next = nil
	return s
}

func (u *datagrams) recycle(s *udpSession) {
	*s = udpSession{timer: s.timer, next: u.free}
	u.free = s
}

// each calls f for every live session.
func (u *datagrams) each(f func(*udpSession)) {
	if u == nil {
		return
	}
	for _, c := range u.slab {
		for i := range c {
			if c[i].id != 0 {
				f(&c[i])
			}
		}
	}
}

// chain notes a datagram that s is to forward at the end of the batch.
func (u *datagrams) chain(s *udpSession, data []byte, segment int, tos uint8) {
	i := int32(len(u.batch))
	u.batch = append(u.batch, udpItem{data: data, segment: segment, next: -1, tos: tos})
	if s.head < 0 {
		s.head = i
		u.touched = append(u.touched, s)
	} else {
		u.batch[s.tail].next = i
	}
	s.tail = i
}

// forward sends what the batch holds for each session.
func (u *datagrams) forward() {
	for _, s := range u.touched {
		if s.id != 0 {
			s.forward()
		} else { // made room for another one in this very batch
			for i := s.head; i >= 0; i = u.batch[i].next {
				s.drop(DropLimited, count(u.batch[i].data, u.batch[i].segment))
			}
		}
		s.head = -1
	}
	clear(u.touched)
	u.touched = u.touched[:0]
	clear(u.batch)
	u.batch = u.batch[:0]
}

// udpPort is one loop's share of a listening address: a socket of its own in a
// SO_REUSEPORT group. The kernel chooses the socket by a hash of the addresses,
// and so the same one for each datagram of a session, as long as the group
// stays as it is: none is closed before the last session of all loops has ended.
type udpPort struct {
	w        *worker
	ln       *Listener
	socket   *socket
	sock     udp.Socket
	token    reactor.Token
	local    netip.AddrPort // invalid where it differs between datagrams
	sessions map[udpKey]*udpSession
	proxied  map[proxiedKey]*udpSession // nil: none has come
	overflow uint32                     // datagrams lost for want of room, as last heard
	closed   bool                       // takes no new sessions
}

// udpKey is what makes a session.
type udpKey struct {
	from  udp.Addr
	local udp.Local
}

// proxiedKey is what makes a session with PROXY headers.
type proxiedKey struct {
	udpKey
	source, destination netip.AddrPort
}

// attachDatagrams begins to receive. On the loop.
func (w *worker) attachDatagrams(s *socket, ln *Listener) {
	p := &udpPort{w: w, ln: ln, socket: s, sessions: map[udpKey]*udpSession{}}
	p.sock = udp.Socket{FD: s.fds[w.loop.Index], V6: s.local.Addr().Is6()}
	if !s.local.Addr().IsUnspecified() {
		p.local = netip.AddrPortFrom(s.local.Addr().Unmap(), s.local.Port())
	}
	p.configure()
	w.ports = append(w.ports, p)
	if p.sock.FD < 0 {
		return // an inherited socket, which another loop serves
	}
	t, err := w.loop.Add(p.sock.FD, unix.EPOLLIN, p)
	if err != nil {
		ln.acceptErrors.Add(1)
		w.m.events.AcceptFailed(ln.name, unix.ENOMEM)
		return
	}
	p.token = t
}

// moveDatagrams has a kept socket serve ln, and take new sessions again. Those
// that it has count where they began. On the loop.
func (w *worker) moveDatagrams(s *socket, ln *Listener) {
	for _, p := range w.ports {
		if p.socket == s {
			p.ln, p.closed = ln, false
			p.configure()
		}
	}
}

// configure applies what a reload may change.
func (p *udpPort) configure() {
	p.sock.NoSegments = !segments(p.ln.table.Load())
}

// refuse takes no new sessions any more. On the loop.
func (w *worker) refuseDatagrams(s *socket) {
	for _, p := range w.ports {
		if p.socket == s {
			p.closed = true
		}
	}
}

// detachDatagrams closes a socket without sessions. On the loop.
func (w *worker) detachDatagrams(s *socket) {
	for i, p := range w.ports {
		if p.socket == s {
			w.ports = append(w.ports[:i:i], w.ports[i+1:]...)
			if p.token != reactor.None {
				w.loop.Close(p.token)
			} else if p.sock.FD >= 0 {
				w.loop.CloseLater(p.sock.FD)
			}
			return
		}
	}
}

func (p *udpPort) counters() *counters { return &p.ln.loops[p.w.loop.Index] }

func (p *udpPort) drop(why Drop, n uint64) {
	if n > 0 {
		p.counters().drops[why].Add(n)
	}
}

// dropped counts what a socket did not take.
func (p *udpPort) dropped(r udp.Result) {
	p.drop(DropTooBig, uint64(r.TooBig))
	p.drop(DropSocketFull, uint64(r.Full))
	if r.Failed > 0 {
		why := DropSocketFull
		switch r.FailedErrno {
		case unix.EPERM, unix.EACCES: // a packet filter
			why = DropDenied
		case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EADDRNOTAVAIL, unix.ENODEV:
			why = DropNoRoute
		}
		p.drop(why, uint64(r.Failed))
	}
}

// Ready implements [reactor.Handler].
func (p *udpPort) Ready(reactor.Events) {
	u := p.w.udp
	msgs, errno := u.in.Receive(p.sock.FD, udpSlots)
	if errno != 0 {
		// Of memory; ICMP errors are for connected sockets.
		p.ln.acceptErrors.Add(1)
		return
	}
	if n, ok := u.in.Dropped(); ok && n != p.overflow {
		p.drop(DropSocketFull, uint64(n-p.overflow))
		p.overflow = n
	}
	t := p.ln.table.Load()
	for i := range msgs {
		m := &msgs[i]
		switch {
		case m.Truncated:
			p.drop(DropTooBig, 1)
		case m.ToMany:
			// Each loop would have a session of it, and the client as many
			// answers: an amplifier.
			p.drop(DropDenied, uint64(m.Count()))
		case len(t.opts.AcceptProxy) > 0:
			p.takeProxied(t, m)
		case m.Segment > 0 && (t.opts.UDP.Requests > 0 || t.want != 0 && begins(m)):
			for d := range chunks(m.Data, m.Segment) {
				p.take(m, nil, d, 0)
			}
		default:
			p.take(m, nil, m.Data, m.Segment)
		}
	}
	u.forward()
	u.in.Release()
}

// chunks takes a train apart. A single datagram may be empty.
func chunks(data []byte, segment int) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for segment > 0 && len(data) > segment {
			if !yield(data[:segment]) {
				return
			}
			data = data[segment:]
		}
		yield(data)
	}
}

// take hands a datagram, or a train, to its session. h is the PROXY header that
// it came with, nil: none.
func (p *udpPort) take(m *udp.Message, h *proxyproto.Header, data []byte, segment int) {
	key := udpKey{m.From, m.Local}
	var s, older *udpSession
	if h == nil {
		s = p.sessions[key]
	} else {
		s = p.proxied[proxiedKey{key, h.Source, h.Destination}]
	}
	if s != nil && s.table.want != 0 {
		if segment > 0 && s.sibling != nil {
			for d := range chunks(data, segment) {
				p.take(m, h, d, 0)
			}
			return
		}
		owner, guess := s.owner(data)
		if guess { // nothing is learned from it
			owner.pass(data, segment, m.TOS)
			return
		}
		older = s
		if s = owner; s != nil {
			ok, anew := s.admits(data)
			switch {
			case anew:
				s = nil
			case !ok:
				p.drop(DropMalformed, 1)
				return
			}
		}
	}
	if s != nil && s.spent() {
		s.unbind()
		s = nil
	}
	if s == nil {
		if s = p.begin(&key, h, older, data, segment); s == nil {
			return
		}
	}
	s.receive(data, segment, m.TOS)
}

// takeProxied does so for datagrams that each begin with a PROXY header.
func (p *udpPort) takeProxied(t *table, m *udp.Message) {
	h := &p.w.udp.header
	trusted := t.proxied(m.From.AddrPort().Addr())
	for d := range chunks(m.Data, m.Segment) {
		n, err := h.ParseDatagram(d)
		switch {
		case trusted && err != nil, !trusted && err != proxyproto.ErrNoDatagramHeader:
			p.drop(DropMalformed, 1) // from elsewhere a header must not get to a server, which may be less strict
		case !trusted:
			p.take(m, nil, d, 0)
		case h.Local || !h.Source.IsValid():
			p.take(m, nil, d[n:], 0)
		default:
			p.take(m, h, d[n:], 0)
		}
	}
}

// udpList is a list of sessions in the order they began.
type udpList struct{ head, tail *udpSession }

func (l *udpList) push(s *udpSession) {
	s.older, s.newer = l.tail, nil
	if l.tail != nil {
		l.tail.newer = s
	} else {
		l.head = s
	}
	l.tail = s
}

func (l *udpList) remove(s *udpSession) {
	if s.older != nil {
		s.older.newer = s.newer
	} else {
		l.head = s.newer
	}
	if s.newer != nil {
		s.newer.older = s.older
	} else {
		l.tail = s.older
	}
	s.older, s.newer = nil, nil
}
