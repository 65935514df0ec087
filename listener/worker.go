package listener

import (
	"math/rand/v2"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/reactor"
	"edgeproxy/splice"
	"edgeproxy/upstream"
)

const (
	// acceptBurst bounds what one listening socket is given in one turn.
	acceptBurst = 64
	// fullPause and shortPause are how long a loop accepts nothing when
	// max_connections is reached, and when the system is short of descriptors
	// or memory. Clients wait in the kernel's queue meanwhile.
	fullPause  = 20 * time.Millisecond
	shortPause = 100 * time.Millisecond
	tidyEvery  = time.Second

	slabBits = 8 // sessions per slab chunk: 256
)

// worker is what one loop has: its acceptors, its sessions, what they share.
// All of it is on the loop.
type worker struct {
	m         *Manager
	loop      *reactor.Loop
	engine    *splice.Engine
	dialer    upstream.Dialer
	rnd       *rand.Rand
	tally     tally
	acceptors []*acceptor
	paused    bool
	resume    reactor.Timer
	tidy      reactor.Timer
	ids       uint64
	slab      []*[1 << slabBits]session
	free      *session
	addr      [unix.SizeofSockaddrAny]byte // accept4 and getsockname write here
	addrLen   uint32
	record    Record
	udp       *datagrams // nil: there has been no UDP listener
	ports     []*udpPort
}

func newWorker(m *Manager, l *reactor.Loop, maxPipes int) *worker {
	w := &worker{m: m, loop: l, engine: splice.NewEngine(l, maxPipes), dialer: upstream.Dialer{Loop: l, Handshakes: m.env.Handshakes}}
	w.rnd = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	// Unique in this process, and most likely among a fleet's log lines.
	w.ids = rand.Uint64()<<44 | uint64(l.Index)<<36
	w.resume.Owner = (*resumer)(w)
	w.tidy.Owner = (*tidier)(w)
	return w
}

type (
	resumer worker
	tidier  worker
)

func (r *resumer) Expired(*reactor.Timer) { (*worker)(r).resumeAccepting() }

func (t *tidier) Expired(*reactor.Timer) {
	t.engine.Tidy()
	t.tally.settle(t.paused)
	t.loop.StartTimer(&t.tidy, tidyEvery)
}

// acceptor is one loop's share of a listening socket.
type acceptor struct {
	w      *worker
	ln     *Listener
	socket *socket
	fd     int
	token  reactor.Token
	local  netip.AddrPort // what sessions were connected to, invalid if that differs between them
	burst  int            // how many the last turns suggest to try
}

// attach begins to accept. On the loop.
func (w *worker) attach(s *socket, ln *Listener) {
	if s.network == UDP {
		w.attachDatagrams(s, ln)
		return
	}
	a := &acceptor{w: w, ln: ln, socket: s, fd: s.fds[w.loop.Index], burst: 1}
	if s.local.IsValid() && !s.local.Addr().IsUnspecified() {
		a.local = netip.AddrPortFrom(s.local.Addr().Unmap(), s.local.Port())
	}
	w.acceptors = append(w.acceptors, a)
	if !w.paused {
		a.watch()
	}
}

// move has a kept socket serve ln. The sessions that it has accepted for
// another listener stay that one's, as they count there: they keep the old
// acceptor. On the loop.
func (w *worker) move(s *socket, ln *Listener) {
	if s.network == UDP {
		w.moveDatagrams(s, ln)
		return
	}
	for i, a := range w.acceptors {
		if a.socket != s || a.ln == ln {
			continue
		}
		moved := *a
		moved.ln = ln
		w.acceptors[i] = &moved
		if moved.token != reactor.None {
			w.loop.SetHandler(moved.token, &moved)
		}
	}
}

func (a *acceptor) watch() {
	ev := reactor.Accepting
	if a.socket.shared {
		ev = reactor.AcceptingShared
	}
	t, err := a.w.loop.Add(a.fd, ev, a)
	if err != nil { // out of memory or epoll watches: try again soon
		a.ln.acceptErrors.Add(1)
		a.w.pause(a.ln, shortPause)
		return
	}
	a.token = t
}

func (a *acceptor) unwatch() {
	if a.token != reactor.None {
		a.w.loop.Forget(a.token)
		a.token = reactor.None
	}
}

// detach takes what is still in the queue and closes the socket. On the loop.
func (w *worker) detach(s *socket) {
	for i, a := range w.acceptors {
		if a.socket != s {
			continue
		}
		w.acceptors = append(w.acceptors[:i:i], w.acceptors[i+1:]...)
		for a.accept() {
		}
		a.unwatch()
		w.loop.CloseLater(a.fd)
		return
	}
}

// pause stops accepting on this loop for a moment.
func (w *worker) pause(ln *Listener, d time.Duration) {
	ln.acceptPauses.Add(1)
	if w.paused {
		return
	}
	w.paused = true
	for _, a := range w.acceptors {
		a.unwatch()
	}
	w.loop.StartTimer(&w.resume, d)
}

func (w *worker) resumeAccepting() {
	w.paused = false
	for _, a := range w.acceptors {
		if a.token == reactor.None && !w.paused {
			a.watch()
		}
	}
}

// Ready implements [reactor.Handler].
func (a *acceptor) Ready(reactor.Events) {
	n := 0
	for n < a.burst && a.accept() {
		n++
	}
	// The socket is level-triggered: a guess that is too low costs another
	// turn, one that is too high costs an accept4 that finds nothing.
	if n == a.burst {
		a.burst = min(a.burst*2, acceptBurst)
	} else {
		a.w.tally.drained()
		a.burst = max(n, 1)
	}
}

// accept takes one connection and reports whether to go on.
func (a *acceptor) accept() bool {
	w := a.w
	if !w.m.reserve() && !(w.udp.evict(nil) && w.m.reserve()) {
		w.pause(a.ln, fullPause)
		return false
	}
	w.addrLen = unix.SizeofSockaddrAny
	fd, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(a.fd), uintptr(unsafe.Pointer(&w.addr)), uintptr(unsafe.Pointer(&w.addrLen)),
		unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno == 0 {
		w.begin(a, int(fd), sourceOf(&w.addr))
		return true
	}
	w.m.unreserve()
	switch errno {
	case unix.EAGAIN:
		return false
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		a.ln.acceptErrors.Add(1)
		w.m.events.AcceptFailed(a.ln.name, errno)
		w.pause(a.ln, shortPause)
		return false
	default:
		// ECONNABORTED and what accept(2) passes on of the connection itself
		// (ENETDOWN, EPROTO, …): the next one may be well.
		a.ln.acceptErrors.Add(1)
		return errno == unix.ECONNABORTED || errno == unix.EINTR
	}
}

// newSession takes a session from the slab.
func (w *worker) newSession() *session {
	if w.free == nil {
		c := new([1 << slabBits]session)
		for i := range c {
			s := &c[i]
			s.timer.Owner = s
			s.next = w.free
			w.free = s
		}
		w.slab = append(w.slab, c)
	}
	s := w.free
	w.free = s.next
	s.next = nil
	return s
}

// each calls f for every live session. On the loop.
func (w *worker) each(f func(*session)) {
	for _, c := range w.slab {
		for i := range c {
			if c[i].live() {
				f(&c[i])
			}
		}
	}
}

func recvFlags(fd int, b []byte, flags int) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(flags), 0, 0)
	return int(n), errno
}

// localOf asks the kernel what address a client connected to.
func (w *worker) localOf(fd int) netip.AddrPort {
	w.addrLen = unix.SizeofSockaddrAny
	_, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&w.addr)), uintptr(unsafe.Pointer(&w.addrLen)))
	if errno != 0 {
		return netip.AddrPort{}
	}
	return sourceOf(&w.addr)
}
