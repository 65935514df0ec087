package listener

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/reactor"
	"edgeproxy/tlsterm"
	"edgeproxy/upstream"
)

// Events is told of what an operator should know. It must not block: loops
// call it.
type Events interface {
	// AcceptFailed tells that connections wait because accept(2) failed for
	// want of descriptors or memory.
	AcceptFailed(listener string, errno unix.Errno)
}

// Env is what all listeners of the process share.
type Env struct {
	Loops          []*reactor.Loop
	MaxConnections int64     // sessions at one time, > 0
	MaxPipes       int       // that one loop may hold at one time
	Steering       *Steering // chooses the loop of a new connection; nil: the kernel's hash does
	Inherited      func(name string) []*os.File
	Handshakes     *tlsterm.Pool
	Events         Events
}

// Manager owns the listening sockets, the listeners and the loops' workers.
type Manager struct {
	env     Env
	events  Events
	workers []*worker
	log     atomic.Pointer[AccessLogger]
	active  atomic.Int64
	max     atomic.Int64
	own     atomic.Pointer[ownAddresses]
	// stopping says that no new sessions begin any more.
	stopping atomic.Bool

	mu        sync.Mutex // guards what follows: the admin API reads while a reload writes
	listeners []*Listener
	sockets   map[string][]*use // by socketKey; port 0 may stand for several
	draining  map[string][]*use // UDP sockets that are removed, and still have sessions
}

// socketKey tells addresses of the configuration apart.
func socketKey(n Network, a Address) string { return n.String() + " " + a.String() }

// use is a socket and the listener it serves.
type use struct {
	socket *socket
	ln     *Listener
}

// NewManager makes the workers of the loops, which must be running.
func NewManager(env Env) *Manager {
	m := &Manager{env: env, events: env.Events, sockets: map[string][]*use{}, draining: map[string][]*use{}}
	m.max.Store(env.MaxConnections)
	for _, l := range env.Loops {
		w := newWorker(m, l, env.MaxPipes)
		w.tally.lane = env.Steering.lane(l.Index)
		m.workers = append(m.workers, w)
		l.Do(func() { w.loop.StartTimer(&w.tidy, tidyEvery) })
	}
	return m
}

// SetAccessLog changes where session ends are logged; nil: nowhere.
func (m *Manager) SetAccessLog(l AccessLogger) {
	if l == nil {
		m.log.Store(nil)
		return
	}
	m.log.Store(&l)
}

// SetMaxConnections changes how many sessions there may be at one time. Those
// that live go on.
func (m *Manager) SetMaxConnections(n int64) { m.max.Store(n) }

// Active is the number of live sessions.
func (m *Manager) Active() int64 { return m.active.Load() }

func (m *Manager) accessLog() AccessLogger {
	if p := m.log.Load(); p != nil {
		return *p
	}
	return nil
}

// reserve takes a place for a connection that is about to be accepted.
func (m *Manager) reserve() bool {
	if m.active.Add(1) > m.max.Load() {
		m.active.Add(-1)
		return false
	}
	return true
}

func (m *Manager) unreserve() { m.active.Add(-1) }

// Plan is a configuration ready to take effect.
type Plan struct {
	m         *Manager
	listeners []*Listener
	tables    []*table
	sockets   map[string][]*use
	opened    []*use
	kept      []*use // with the listener they will serve
	revived   []*use // of kept, those that were draining
	closing   []*use
}

// Prepare does all of a reload that can fail: it opens the sockets that are
// new. Sockets of unchanged addresses are kept, with their queues, even if
// they move to another listener. Nothing of what runs changes. The error joins
// all that went wrong.
func (m *Manager) Prepare(opts []Options, groups func(name string) *upstream.Group, contexts func(name string) *tlsterm.Context) (*Plan, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := &Plan{m: m, sockets: map[string][]*use{}}
	known := map[string]*Listener{}
	for _, l := range m.listeners {
		known[l.name] = l
	}
	left := make(map[string][]*use, len(m.sockets))
	for k, v := range m.sockets {
		left[k] = v
	}
	var errs []error
	for i := range opts {
		o := &opts[i]
		ln := known[o.Name]
		if ln == nil {
			ln = newListener(o.Name, len(m.workers))
		}
		t := newTable(o, groups)
		t.secure(contexts)
		if before := ln.table.Load(); before != nil && before.opts.Limits == o.Limits {
			t.limits = before.limits
		} else {
			t.limits = newLimiter(o.Limits)
		}
		p.listeners = append(p.listeners, ln)
		p.tables = append(p.tables, t)
		for _, a := range o.Addresses {
			key := socketKey(o.Network, a)
			old := left[key]
			if len(old) == 0 {
				old = m.draining[key]
				delete(m.draining, key)
				p.revived = append(p.revived, old...)
			}
			if len(old) > 0 {
				n := 1
				if a.Systemd != "" {
					n = len(old)
				}
				for _, u := range old[:n] {
					p.keep(key, &use{u.socket, ln})
				}
				left[key] = old[n:]
				continue
			}
			socks, err := m.open(a, t)
			if err != nil {
				errs = append(errs, fmt.Errorf("listener %q: %w", o.Name, err))
				continue
			}
			for _, s := range socks {
				if s.network == TCP {
					m.env.Steering.attach(s)
				}
				u := &use{s, ln}
				p.opened = append(p.opened, u)
				p.sockets[key] = append(p.sockets[key], u)
			}
		}
	}
	if len(errs) > 0 {
		p.closeOpened()
		m.drain(p.revived)
		go m.closeIdle(p.revived) // it takes the lock, too
		return nil, errors.Join(errs...)
	}
	for _, us := range left {
		p.closing = append(p.closing, us...)
	}
	return p, nil
}

// open listens on a new address.
func (m *Manager) open(a Address, t *table) ([]*socket, error) {
	ours := m.uses(t.opts.Network, a)
	if t.opts.Network == TCP {
		return openBeside(a, len(m.workers), &t.opts.TCP, m.env.Inherited, ours)
	}
	for _, w := range m.workers {
		var err error
		w.loop.Do(func() { _, err = w.datagrams() })
		if err != nil {
			return nil, fmt.Errorf("%s/udp: allocating buffers: %w", a, err)
		}
	}
	return openDatagrams(a, len(m.workers), t, m.env.Inherited, ours)
}

// uses reports whether a socket of this process stands in the way of a: one
// that goes when the plan is committed, as a configuration has no overlaps.
func (m *Manager) uses(n Network, a Address) bool {
	for _, all := range []map[string][]*use{m.sockets, m.draining} {
		for _, us := range all {
			for _, u := range us {
				if u.socket.network == n && u.socket.overlaps(a) {
					return true
				}
			}
		}
	}
	return false
}

func (p *Plan) keep(key string, u *use) {
	p.kept = append(p.kept, u)
	p.sockets[key] = append(p.sockets[key], u)
}

func (p *Plan) closeOpened() {
	for _, u := range p.opened {
		u.socket.close()
	}
}

// Discard gives up a plan that will not be committed.
func (p *Plan) Discard() {
	p.closeOpened()
	if len(p.revived) == 0 {
		return
	}
	p.m.mu.Lock()
	p.m.drain(p.revived)
	p.m.mu.Unlock()
	p.m.closeIdle(p.revived)
}

// Commit puts the plan into effect and returns when every loop works by it.
func (p *Plan) Commit() {
	m := p.m
	m.mu.Lock()
	for i, ln := range p.listeners {
		ln.table.Store(p.tables[i])
	}
	m.listeners, m.sockets = p.listeners, p.sockets
	m.noteOwn()
	m.inherit()
	m.mu.Unlock()
	for _, u := range p.kept {
		u.socket.draining.Store(false)
		u.socket.retune(u.ln.table.Load())
	}
	m.onLoops(func(w *worker) {
		for _, u := range p.kept {
			w.move(u.socket, u.ln)
		}
		for _, u := range p.opened {
			w.attach(u.socket, u.ln)
		}
	})
	m.close(p.closing)
}

// close gives sockets up: those of UDP when their last session has ended.
func (m *Manager) close(us []*use) {
	var listening []*socket
	var datagrams []*use
	for _, u := range us {
		if u.socket.network == UDP {
			datagrams = append(datagrams, u)
		} else {
			listening = append(listening, u.socket)
		}
	}
	if len(datagrams) > 0 {
		m.onLoops(func(w *worker) {
			for _, u := range datagrams {
				w.refuseDatagrams(u.socket)
			}
		})
		// Only now, when none can begin, is it the end of the last session
		// that closes them.
		m.mu.Lock()
		m.drain(datagrams)
		m.inherit()
		m.mu.Unlock()
		m.closeIdle(datagrams)
	}
	m.stopListening(listening)
}

// closeIdle closes those that have no session (any more).
func (m *Manager) closeIdle(us []*use) {
	for _, u := range us {
		m.closeDrained(u.socket)
	}
}

// stopListening stops accepting without losing a connection: none begins any
// more, those that have begun get into the queue, the queue is taken.
func (m *Manager) stopListening(sockets []*socket) {
	if len(sockets) == 0 {
		return
	}
	for _, s := range sockets {
		s.refuseNew()
	}
	time.Sleep(settleTime)
	m.onLoops(func(w *worker) {
		for _, s := range sockets {
			w.detach(s)
		}
	})
}

// onLoops runs f on every loop, side by side, and waits for all.
func (m *Manager) onLoops(f func(*worker)) {
	var wg sync.WaitGroup
	for _, w := range m.workers {
		wg.Go(func() { w.loop.Do(func() { f(w) }) })
	}
	wg.Wait()
}

// Addresses lists what every listener is really bound to.
func (m *Manager) Addresses() map[string][]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string][]string{}
	for _, o := range m.listeners {
		seen := map[string]bool{} // ":0" may be there twice
		for _, a := range o.table.Load().opts.Addresses {
			key := socketKey(o.table.Load().opts.Network, a)
			if seen[key] {
				continue
			}
			seen[key] = true
			for _, u := range m.sockets[key] {
				if u.ln == o {
					out[o.name] = append(out[o.name], u.socket.bound)
				}
			}
		}
	}
	return out
}

// Stats returns what the listeners have counted, in the order of the configuration.
func (m *Manager) Stats() []Stats {
	addrs := m.Addresses()
	m.mu.Lock()
	ls := m.listeners
	m.mu.Unlock()
	out := make([]Stats, len(ls))
	for i, l := range ls {
		out[i] = l.stats()
		out[i].Addresses = addrs[l.name]
	}
	return out
}

// CloseServer ends the live sessions of a server.
func (m *Manager) CloseServer(sv *upstream.Server, e End) {
	m.onLoops(func(w *worker) {
		w.each(func(s *session) {
			if s.server == sv {
				s.end(e, nil)
			}
		})
		w.udp.each(func(s *udpSession) {
			if s.server == sv {
				s.end(e, nil)
			}
		})
	})
}

// StopAccepting closes all listening sockets, after taking what is in their queues.
func (m *Manager) StopAccepting() {
	m.mu.Lock()
	var all []*use
	for _, us := range m.sockets {
		all = append(all, us...)
	}
	m.sockets = map[string][]*use{}
	m.mu.Unlock()
	m.stopping.Store(true)
	m.close(all)
	m.onLoops(func(w *worker) { w.udp.each((*udpSession).watch) })
}

// Drain waits until no session is left, or until stop is closed, and then ends
// the rest. It reports how many those were.
func (m *Manager) Drain(stop <-chan struct{}) (ended int64) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for m.active.Load() > 0 {
		select {
		case <-stop:
			var n atomic.Int64
			m.onLoops(func(w *worker) {
				w.each(func(s *session) {
					n.Add(1)
					s.end(Drained, nil)
				})
				w.udp.each(func(s *udpSession) {
					n.Add(1)
					s.end(Drained, nil)
				})
			})
			return n.Load()
		case <-tick.C:
		}
	}
	return 0
}
