package health

import (
	"context"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Target is where a probe goes.
type Target struct {
	Network string // "tcp", also for checks by UDP, or "unix"
	Address string // "10.0.0.1:80", or a unix socket's path; a leading '@' means the abstract namespace
	Host    string // the HTTP Host header, unless the options say another
}

// Report is the outcome of one probe.
type Report struct {
	Up       bool          // the server's state, all of its checks together, after this probe
	Changed  bool          // … which this probe has changed
	Err      error         // what the probe failed of; nil: it passed
	Duration time.Duration // of the probe
	Check    string        // kind of the check: "tcp", "http", "udp"
}

// Watch is the checks of one server.
type Watch struct {
	scheduler *Scheduler
	target    func() (Target, bool)
	report    func(Report)
	checks    []check
	stopped   atomic.Bool

	mu sync.Mutex // held while reporting; guards the checks' verdicts and up
	up bool
}

// check is one kind of probe of one server.
type check struct {
	watch   *Watch
	opts    Options // with defaults
	verdict verdict // guarded by watch.mu

	// The rest is guarded by scheduler.mu.
	due    time.Time
	pos    int  // in scheduler.queue; -1: not there
	probed bool // at least once
	crowd  bool // began with many others: the rhythm is spread out after the first probe
	cancel context.CancelFunc
}

// Stop ends the checks. Once it returns, nothing is reported any more: a
// report that is under way is waited for, unless Stop is called by a report.
// Locks that the report function takes must therefore not be held.
func (w *Watch) Stop() {
	w.stopped.Store(true)
	w.scheduler.remove(w)
	if !w.mu.TryLock() {
		if insideReport() {
			return
		}
		w.mu.Lock()
	}
	w.mu.Unlock()
}

// deliver judges a probe's result and reports it.
func (w *Watch) deliver(c *check, err error, took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped.Load() || w.scheduler.ctx.Err() != nil {
		return // the probe may have failed of being broken off
	}
	c.verdict.add(err == nil, c.opts.Rise, c.opts.Fall)
	was := w.up
	w.up = w.allUp()
	w.report(Report{Up: w.up, Changed: w.up != was, Err: err, Duration: took, Check: c.opts.Kind.String()})
}

func (w *Watch) allUp() bool {
	for i := range w.checks {
		if w.checks[i].verdict.state == Down {
			return false
		}
	}
	return true
}

// insideReport reports whether the caller was called by a report function,
// directly or not. Waiting for a report would then be waiting for oneself.
func insideReport() bool {
	pc := make([]uintptr, 64)
	n := runtime.Callers(2, pc)
	for n == len(pc) {
		pc = make([]uintptr, 2*len(pc))
		n = runtime.Callers(2, pc)
	}
	frames := runtime.CallersFrames(pc[:n])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, "/health.(*Watch).deliver") {
			return true
		}
		if !more {
			return false
		}
	}
}
