//go:build linux

package reactor

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/histogram"
)

// Events are epoll's event bits.
type Events = uint32

const (
	Readable Events = unix.EPOLLIN
	Writable Events = unix.EPOLLOUT
	PeerShut Events = unix.EPOLLRDHUP // the peer has finished sending
	Hangup   Events = unix.EPOLLHUP   // both directions are shut
	Failed   Events = unix.EPOLLERR   // the socket holds an error
	Urgent   Events = unix.EPOLLPRI   // TCP urgent data: a read stops at the mark

	// Stream is what a connection is registered with, once for its life.
	Stream Events = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLPRI | unix.EPOLLRDHUP | unix.EPOLLET
	// Accepting is level-triggered, so that a bounded accept loop needs no
	// memory of what it left in the queue.
	Accepting Events = unix.EPOLLIN
	// AcceptingShared is for one socket watched by several loops: the kernel
	// wakes one of them, not all.
	AcceptingShared Events = unix.EPOLLIN | unix.EPOLLEXCLUSIVE
)

// Handler is told of the events of its descriptor, on the loop. A call with no
// events is the further turn it asked for with [Loop.Again].
type Handler interface {
	Ready(ev Events)
}

// Finisher is called at the end of a turn, on the loop: see [Loop.AtEnd].
type Finisher interface {
	Finish()
}

// Token names a registered descriptor: slot and generation.
type Token uint64

// None is the token of no descriptor.
const None Token = 0

const (
	chunkBits  = 10
	batch      = 512
	rawWaitMax = 5 // ms that a wait keeps its P
)

type slot struct {
	h    Handler
	gen  uint32 // odd while in use
	fd   int32
	next int32 // free list
}

// Loop is one event loop. Make one with [New], then call [Loop.Run] in a
// goroutine of its own.
type Loop struct {
	Index int

	now    int64 // monotonic ns at the start of this turn
	epfd   int
	wakefd int
	cpu    int // to be pinned to; -1: none

	chunks [][]slot
	free   int32 // first free slot, -1: none
	wheel  wheel

	closing []int32 // descriptors to close at the end of the turn
	again   []Token
	turn    []Token // again of the last turn, being worked off
	last    []Finisher
	events  [batch]unix.EpollEvent

	mu      sync.Mutex
	posted  []func() // guarded by mu
	running []func()
	closed  bool        // guarded by mu
	pending atomic.Bool // a wake-up is on its way

	stop     bool
	sessions atomic.Int64
	delay    *histogram.Histogram
	busy     meter
	beat     atomic.Int64 // l.now of the last turn, for the watchdog
}

var start = time.Now()

// nanotime is the monotonic clock: time.Since does not read the wall clock.
func nanotime() int64 { return int64(time.Since(start)) + 1 }

// New makes a loop. With cpu ≥ 0 its thread stays on that CPU.
func New(index, cpu int) (*Loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	wakefd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epfd)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	l := &Loop{Index: index, epfd: epfd, wakefd: wakefd, cpu: cpu, free: -1, now: nanotime(), delay: histogram.New(
		50*time.Microsecond, 100*time.Microsecond, 250*time.Microsecond, 500*time.Microsecond, time.Millisecond, 2500*time.Microsecond,
		5*time.Millisecond, 10*time.Millisecond, 25*time.Millisecond, 50*time.Millisecond, 100*time.Millisecond, time.Second)}
	l.wheel.init(uint64(l.now) >> tickShift)
	l.beat.Store(l.now)
	if _, err := l.Add(wakefd, unix.EPOLLIN|unix.EPOLLET, wakeup{}); err != nil {
		unix.Close(wakefd)
		unix.Close(epfd)
		return nil, err
	}
	return l, nil
}

// wakeup needs no reading: the eventfd is edge-triggered, each write is an edge.
type wakeup struct{}

func (wakeup) Ready(Events) {}

// Now is the monotonic clock in nanoseconds, read once a turn. On the loop.
func (l *Loop) Now() int64 { return l.now }

// NowExact reads the clock. For what is measured within a turn.
func (l *Loop) NowExact() int64 { return nanotime() }

// LastBeat is how long ago the loop last began a turn. An idle loop turns at
// least once a second.
func (l *Loop) LastBeat() time.Duration { return time.Duration(nanotime() - l.beat.Load()) }

// AddSession changes the number of live sessions by d. On the loop.
func (l *Loop) AddSession(d int64) { l.sessions.Add(d) }

// Sessions is the number of live sessions; from any goroutine.
func (l *Loop) Sessions() int64 { return l.sessions.Load() }

// Stats returns what the loop has counted, from any goroutine.
func (l *Loop) Stats() Stats {
	s := Stats{Sessions: l.sessions.Load(), Busy: l.busy.ratio()}
	l.delay.AddTo(&s.Delay)
	return s
}

// Post has f run on the loop soon. It may be called from any goroutine, and
// reports whether it will run: a loop that has ended takes nothing.
func (l *Loop) Post(f func()) bool {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return false
	}
	l.posted = append(l.posted, f)
	l.mu.Unlock()
	if !l.pending.Swap(true) {
		one := [8]byte{1}
		unix.Write(l.wakefd, one[:])
	}
	return true
}

// Do runs f on the loop and waits for it. Not to be called on a loop.
func (l *Loop) Do(f func()) {
	done := make(chan struct{})
	if l.Post(func() { f(); close(done) }) {
		<-done
	}
}

// Stop ends Run after the current turn. On the loop.
func (l *Loop) Stop() { l.stop = true }

func (l *Loop) at(i int32) *slot { return &l.chunks[i>>chunkBits][i&(1<<chunkBits-1)] }

// lookup returns the slot of a token, nil when it has been freed.
func (l *Loop) lookup(t Token) *slot {
	i := int32(uint32(t))
	if s := l.at(i); s.gen == uint32(t>>32) {
		return s
	}
	return nil
}

// Add registers a descriptor, which then belongs to the loop: [Loop.Close]
// closes it. On failure it still belongs to the caller. On the loop.
func (l *Loop) Add(fd int, ev Events, h Handler) (Token, error) {
	if l.free < 0 {
		// Chunks never move and are never given back: no copy, no garbage.
		base := int32(len(l.chunks) << chunkBits)
		c := make([]slot, 1<<chunkBits)
		for i := range c {
			c[i].next = base + int32(i) + 1
		}
		c[len(c)-1].next = -1
		l.chunks = append(l.chunks, c)
		l.free = base
	}
	i := l.free
	s := l.at(i)
	e := unix.EpollEvent{Events: ev, Fd: i, Pad: int32(s.gen + 1)}
	if err := epollCtl(l.epfd, unix.EPOLL_CTL_ADD, fd, &e); err != nil {
		return None, fmt.Errorf("epoll_ctl: %w", err)
	}
	l.free = s.next
	s.gen++
	s.h, s.fd = h, int32(fd)
	return Token(s.gen)<<32 | Token(uint32(i)), nil
}

// SetHandler hands a registered descriptor to another handler. On the loop.
func (l *Loop) SetHandler(t Token, h Handler) {
	if s := l.lookup(t); s != nil {
		s.h = h
	}
}

// Forget takes a descriptor off the loop without closing it. Needed before
// closing, too, where another loop or process holds the same open file: epoll
// forgets by itself only what nobody holds any more. On the loop.
func (l *Loop) Forget(t Token) {
	if s := l.lookup(t); s != nil {
		epollCtl(l.epfd, unix.EPOLL_CTL_DEL, int(s.fd), &unix.EpollEvent{})
		l.release(t, s)
	}
}

// Close frees the slot now and closes the descriptor at the end of the turn.
// A token already closed is left alone. On the loop.
func (l *Loop) Close(t Token) {
	if t == None {
		return
	}
	if s := l.lookup(t); s != nil {
		l.closing = append(l.closing, s.fd)
		l.release(t, s)
	}
}

// CloseLater closes an unregistered descriptor at the end of the turn. On the loop.
func (l *Loop) CloseLater(fd int) { l.closing = append(l.closing, int32(fd)) }

func (l *Loop) release(t Token, s *slot) {
	s.h = nil
	s.gen++
	s.next = l.free
	l.free = int32(uint32(t))
}

// Again has the descriptor's handler called once more, with no events, in the
// next turn. On the loop.
func (l *Loop) Again(t Token) { l.again = append(l.again, t) }

// AtEnd has f called once at the end of this turn, when all events, further
// turns and timers have been handled: what they have gathered can then leave in
// one system call. On the loop.
func (l *Loop) AtEnd(f Finisher) { l.last = append(l.last, f) }

// Run turns the loop until [Loop.Stop], then closes every descriptor that is
// left. It blocks.
func (l *Loop) Run() {
	if l.cpu >= 0 {
		runtime.LockOSThread()
		var set unix.CPUSet
		set.Set(l.cpu)
		// An error means the CPU went away meanwhile; the loop works unpinned.
		unix.SchedSetaffinity(0, &set)
	}
	idle := false
	for !l.stop {
		timeout := l.timeout()
		n := l.wait(timeout, idle)
		l.now = nanotime()
		l.beat.Store(l.now)
		idle = n == 0 && timeout != 0 && !l.pending.Load()
		sampled := l.busy.woke(l.now)
		if l.pending.Load() {
			l.runPosted()
		}
		for i := range l.events[:n] {
			e := &l.events[i]
			if s := l.at(e.Fd); s.gen == uint32(e.Pad) {
				s.h.Ready(e.Events)
			}
		}
		if len(l.again) > 0 {
			l.runAgain()
		}
		if tick := uint64(l.now) >> tickShift; tick > l.wheel.now {
			l.wheel.advance(tick)
		}
		for i := 0; i < len(l.last); i++ { // a Finisher may add another
			l.last[i].Finish()
		}
		l.last = l.last[:0]
		for _, fd := range l.closing {
			closeRaw(fd)
		}
		l.closing = l.closing[:0]
		if sampled {
			t := nanotime()
			l.busy.slept(t)
			if n > 0 {
				l.delay.Observe(time.Duration(t - l.now))
			}
		}
	}
	l.finish()
}

func (l *Loop) finish() {
	l.mu.Lock()
	l.closed = true
	rest := l.posted
	l.posted = nil
	l.mu.Unlock()
	for _, f := range rest {
		f()
	}
	for _, c := range l.chunks {
		for i := range c {
			if c[i].gen&1 == 1 && int(c[i].fd) != l.wakefd {
				closeRaw(c[i].fd)
			}
		}
	}
	for _, fd := range l.closing {
		closeRaw(fd)
	}
	// wakefd stays open: Post may be writing to it. The process is ending.
	unix.Close(l.epfd)
}

// timeout is how long the next wait may take, in ms.
func (l *Loop) timeout() int {
	if len(l.again) > 0 {
		return 0
	}
	next := l.wheel.next()
	due := int64(min(next, 1<<39)) << tickShift
	return int(min(max(due-l.now+1e6-1, 0)/1e6, 1000))
}

func (l *Loop) wait(timeout int, idle bool) int {
	if idle && timeout > 0 {
		n, err := unix.EpollWait(l.epfd, l.events[:], timeout)
		if err != nil {
			return 0 // EINTR
		}
		return n
	}
	return epollWaitRaw(l.epfd, l.events[:], min(timeout, rawWaitMax))
}

func (l *Loop) runPosted() {
	l.pending.Store(false)
	l.mu.Lock()
	l.posted, l.running = l.running[:0], l.posted
	l.mu.Unlock()
	for i, f := range l.running {
		l.running[i] = nil
		f()
	}
}

func (l *Loop) runAgain() {
	l.again, l.turn = l.turn[:0], l.again
	for _, t := range l.turn {
		if s := l.lookup(t); s != nil {
			s.h.Ready(0)
		}
	}
}
