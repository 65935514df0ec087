package health

import (
	"container/heap"
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// MaxProbes is the number of probes in flight at one time, of all servers
// together, and so the number of descriptors that checks need. Probes wait
// for their turn beyond it; that takes hundreds of servers that hang.
const MaxProbes = 256

const (
	// crowd is the number of checks without a first result from which on
	// further ones begin spread over crowdSpread, or a tenth of their interval
	// if that is less.
	crowd       = 32
	crowdSpread = time.Second

	// tick is the least time between two looks at the queue. What falls due
	// within it starts together: waking up costs more than starting a probe.
	tick = 10 * time.Millisecond

	// unresolvedPause is the time until a server that has no address yet is
	// asked for it again, at most.
	unresolvedPause = time.Second
)

// Scheduler starts probes when they are due. Make one with [NewScheduler].
type Scheduler struct {
	probe  func(context.Context, *Options, Target) error // tests replace it
	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{}
	done   sync.WaitGroup

	mu       sync.Mutex
	queue    queue // checks that wait, the earliest due first
	inFlight int
	fresh    int // checks without a first probe
	closed   bool
}

// NewScheduler starts a scheduler without checks.
func NewScheduler() *Scheduler { return newScheduler(probe) }

func newScheduler(probe func(context.Context, *Options, Target) error) *Scheduler {
	s := &Scheduler{probe: probe, wake: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.done.Go(s.run)
	return s
}

// Add begins to check a server. It is up only while all of opts pass; there
// must be at least one. Known is what an earlier watch found: with [Unknown]
// the first result decides alone, else it takes the usual number.
//
// Both functions are called from the scheduler's goroutines, for one server
// from several. target says where the server is, false if that is not known
// yet: there is no probe and no report then. report is called after each
// probe, one at a time for each server, and may block; it may call
// [Watch.Stop].
func (s *Scheduler) Add(opts []Options, target func() (Target, bool), known State, report func(Report)) *Watch {
	w := &Watch{scheduler: s, target: target, report: report, checks: make([]check, len(opts)), up: known != Down}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, o := range opts {
		c := &w.checks[i]
		*c = check{watch: w, opts: o.withDefaults(), verdict: verdict{state: known}, due: now, pos: -1}
		if c.crowd = s.fresh >= crowd; c.crowd {
			c.due = now.Add(rand.N(min(crowdSpread, c.opts.Interval/10) + 1))
		}
		s.fresh++
		s.enqueue(c)
	}
	return w
}

// Close stops all checks and waits until nothing is reported any more. It
// must not be called by a report.
func (s *Scheduler) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.done.Wait()
}

// run is the goroutine that waits for due checks.
func (s *Scheduler) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-s.wake:
		case <-s.ctx.Done():
			return
		}
		timer.Reset(s.startDue())
	}
}

// startDue starts what is due and returns the time until there is more.
func (s *Scheduler) startDue() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for len(s.queue) > 0 && s.inFlight < MaxProbes {
		c := s.queue[0]
		if wait := c.due.Sub(now); wait > 0 {
			return max(wait, tick)
		}
		heap.Pop(&s.queue)
		ctx, cancel := context.WithTimeout(s.ctx, c.opts.Timeout)
		c.cancel = cancel
		s.inFlight++
		s.done.Go(func() { s.check(ctx, c, now) })
	}
	return time.Hour // or until woken
}

// check probes once, reports, and puts the check back into the queue.
func (s *Scheduler) check(ctx context.Context, c *check, started time.Time) {
	target, ok := c.watch.target()
	var err error
	if ok {
		err = s.probe(ctx, &c.opts, target)
	}
	took := time.Since(started)

	// A report may block; the room for another probe does not wait for it.
	s.mu.Lock()
	c.cancel()
	c.cancel = nil
	if s.inFlight--; s.inFlight == MaxProbes-1 {
		s.signal()
	}
	first := ok && !c.probed
	if first {
		c.probed = true
		s.fresh--
	}
	s.mu.Unlock()

	if ok {
		c.watch.deliver(c, err, took)
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	pause := jitter(c.opts.Interval)
	switch {
	case first && c.crowd:
		// Those that began together shall not go on together.
		pause = c.opts.Interval/10 + rand.N(c.opts.Interval)
	case !ok && !c.probed:
		pause = min(pause, unresolvedPause)
	}
	c.due = started.Add(pause)
	s.enqueue(c)
}

// jitter spreads an interval by 10 % to either side.
func jitter(d time.Duration) time.Duration { return d - d/10 + rand.N(d/5+1) }

// enqueue lets a check wait until it is due. Called with mu held.
func (s *Scheduler) enqueue(c *check) {
	if s.closed || c.watch.stopped.Load() {
		s.forget(c)
		return
	}
	if heap.Push(&s.queue, c); c.pos == 0 {
		s.signal()
	}
}

// remove takes a stopped watch's checks out, and breaks off its probes.
func (s *Scheduler) remove(w *Watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range w.checks {
		c := &w.checks[i]
		if c.cancel != nil {
			c.cancel()
		}
		if c.pos >= 0 {
			heap.Remove(&s.queue, c.pos)
			s.forget(c)
		}
	}
}

// forget is for checks that leave for good. Called with mu held.
func (s *Scheduler) forget(c *check) {
	if !c.probed {
		c.probed = true
		s.fresh--
	}
}

func (s *Scheduler) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// queue is a heap for container/heap.
type queue []*check

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].pos, q[j].pos = i, j
}

func (q *queue) Push(x any) {
	c := x.(*check)
	c.pos = len(*q)
	*q = append(*q, c)
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	c := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	c.pos = -1
	return c
}
