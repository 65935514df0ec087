package tlsterm

import (
	"crypto/tls"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"edgeproxy/internal/ktls"
)

// maxActive bounds the handshakes that one worker has begun and not finished:
// each holds a stack and crypto/tls's state, about 40 KB. Further ones wait,
// at the cost of a few hundred bytes.
const maxActive = 4096

// Pool runs handshakes on a few workers, each a goroutine: however many
// handshakes there are, no more than so many compete with the loops for the
// CPUs. A handshake that waits for its peer gives the worker to the next: it is
// a coroutine, resumed when the loop has seen its socket become ready.
//
//	waiting ──▶ active ⇄ parked (for the peer)
//	               └──▶ done
type Pool struct {
	workers []*worker
	next    atomic.Uint64
	wg      sync.WaitGroup
}

// worker runs the handshakes given to it, one at a time.
type worker struct {
	mu     sync.Mutex
	queue  []*Handshake // guarded by mu
	closed bool         // guarded by mu
	wake   chan struct{}

	// What follows is the worker's goroutine's.
	running []*Handshake
	most    int // maxActive
	active  map[*Handshake]struct{}
	waiting []*Handshake // not begun, as maxActive are active
	free    []*coroutine
	current *Handshake // whose coroutine runs: the key log is about this one
	configs map[*tls.Config]*tls.Config
	tickets map[*tls.Config]time.Time // when one of a server was last waited for
	kernel  *ktls.Support             // nil: kernel TLS is not used
}

// NewPool starts n workers. With kernel they hand sessions that it covers over
// to kernel TLS; it may be nil.
func NewPool(n int, kernel *ktls.Support) *Pool {
	p := &Pool{}
	for range n {
		w := &worker{wake: make(chan struct{}, 1), most: maxActive, active: map[*Handshake]struct{}{}, configs: map[*tls.Config]*tls.Config{}, tickets: map[*tls.Config]time.Time{}, kernel: kernel}
		p.workers = append(p.workers, w)
		p.wg.Go(w.run)
	}
	return p
}

// Close ends the handshakes under way, as if they had been cancelled, and
// waits for the workers.
func (p *Pool) Close() {
	for _, w := range p.workers {
		w.mu.Lock()
		w.closed = true
		w.mu.Unlock()
		w.signal()
	}
	p.wg.Wait()
}

// Start begins a handshake. The caller watches h's socket and calls
// [Handshake.Wake] whenever it may have become ready.
func (p *Pool) Start(h *Handshake) {
	h.worker = p.workers[p.next.Add(1)%uint64(len(p.workers))]
	h.Wake()
}

// Handshakes is how many have been started.
func (p *Pool) Handshakes() uint64 { return p.next.Load() }

func (w *worker) push(h *Handshake) {
	w.mu.Lock()
	w.queue = append(w.queue, h)
	w.mu.Unlock()
	w.signal()
}

func (w *worker) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *worker) run() {
	for {
		w.mu.Lock()
		w.running, w.queue = w.queue, w.running[:0]
		closed := w.closed
		w.mu.Unlock()
		for i, h := range w.running {
			w.running[i] = nil
			h.queued.Store(false)
			w.step(h)
		}
		if len(w.running) > 0 {
			continue
		}
		if closed {
			w.close()
			return
		}
		<-w.wake
	}
}

// step lets h go on until it waits for its peer or is done.
func (w *worker) step(h *Handshake) {
	if h.finished {
		return // woken once more while it finished
	}
	if h.co == nil {
		if h.begun { // waits for its turn to begin
			if h.cancelled.Load() {
				h.fail(errCancelled)
				h.finished = true
				h.Done(h)
			}
			return
		}
		h.begun = true
		if len(w.active) >= w.most {
			w.waiting = append(w.waiting, h)
			return
		}
		w.begin(h)
	}
	w.resume(h)
	for len(w.waiting) > 0 && len(w.active) < w.most {
		next := w.waiting[0]
		w.waiting[0] = nil
		w.waiting = w.waiting[1:]
		if !next.finished {
			w.begin(next)
			w.resume(next)
		}
	}
}

func (w *worker) begin(h *Handshake) {
	if n := len(w.free); n > 0 {
		h.co = w.free[n-1]
		w.free = w.free[:n-1]
	} else {
		h.co = newCoroutine()
	}
	h.co.job = h
	w.active[h] = struct{}{}
}

func (w *worker) resume(h *Handshake) {
	w.current = h
	h.co.next()
	w.current = nil
	if !h.finished {
		return
	}
	delete(w.active, h)
	if len(w.free) < spareCoroutines {
		w.free = append(w.free, h.co)
	} else {
		h.co.stop()
	}
	h.co = nil
	h.Done(h)
}

func (w *worker) close() {
	for _, h := range w.waiting {
		if !h.finished {
			w.begin(h)
			h.Cancel()
			w.resume(h)
		}
	}
	for h := range w.active {
		h.Cancel()
		w.resume(h)
	}
	for _, c := range w.free {
		c.stop()
	}
}

// config returns the worker's clone of a template. Each worker has its own
// because the key log is a field of the configuration, and tells nothing of
// the connection but a random number that clients choose: two of them could
// choose the same.
func (w *worker) config(template *tls.Config) *tls.Config {
	c := w.configs[template]
	if c == nil {
		if len(w.configs) >= maxConfigs {
			clear(w.configs) // of configurations that reloads have replaced, most likely
		}
		c = template.Clone()
		c.KeyLogWriter = (*keyLog)(w)
		if unwrap := template.UnwrapSession; unwrap != nil {
			c.UnwrapSession = func(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
				ss, err := unwrap(ticket, cs)
				if err == nil && ss != nil {
					w.current.secrets.resume(ss)
					w.current.secrets.session = ss
				}
				return ss, err
			}
		}
		if wrap := template.WrapSession; wrap != nil {
			c.WrapSession = func(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
				if session := w.current.secrets.session; cs.DidResume && session != nil {
					inheritSession(ss, session)
				}
				return wrap(cs, ss)
			}
		}
		if choose := template.GetConfigForClient; choose != nil {
			c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
				chosen, err := choose(hello)
				if err != nil || chosen == nil {
					return nil, err
				}
				return w.config(chosen), nil
			}
		}
		if cache := template.ClientSessionCache; cache != nil {
			c.ClientSessionCache = sessionCache{cache, w}
		}
		w.configs[template] = c
	}
	return c
}

const (
	maxConfigs      = 256
	spareCoroutines = 64
)

// coroutine is a stack that runs one handshake after the other: growing it
// anew for each would cost more than the rest of the bookkeeping.
type coroutine struct {
	job  *Handshake
	park func(struct{}) bool
	next func() (struct{}, bool)
	stop func()
}

func newCoroutine() *coroutine {
	c := new(coroutine)
	c.next, c.stop = iter.Pull(func(yield func(struct{}) bool) {
		c.park = yield
		for {
			c.job.run()
			c.job.finished = true
			c.job = nil
			if !yield(struct{}{}) {
				return
			}
		}
	})
	return c
}
