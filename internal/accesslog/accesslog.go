// Package accesslog writes one line for every session's end.
//
// The life of a line, in steps:
//
//  1. A loop calls [Logger.Log]. The line is encoded into a buffer of the
//     loop's shard; no I/O, no allocation, and a lock that nobody else holds
//     for longer than one line takes: if it is taken, the next shard will do.
//  2. A full buffer goes into the queue at once, any other after
//     [FlushInterval].
//  3. The writer, a goroutine, writes the queue and gives the buffers back.
//
// Lines of one loop are in order; those of different loops may be off by
// FlushInterval. While the output does not take lines they are kept; when all
// buffers are full, new lines are dropped and counted.
package accesslog

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"edgeproxy/internal/logging"
	"edgeproxy/listener"
)

const (
	// FlushInterval is how long a line may wait for others.
	FlushInterval = 100 * time.Millisecond
	// reportInterval is how often one and the same trouble is reported.
	reportInterval = 10 * time.Second
	// patience is how long Reopen and Close wait for an output that takes
	// nothing, such as a pipe nobody reads.
	patience = 5 * time.Second

	flushSize  = 64 << 10 // a buffer with so much in it is full
	bufferSize = flushSize + maxLine
	maxMemory  = 8 << 20 // of all buffers, if there are not more loops than that allows
)

// Options say where the lines go. An empty Output means there are none.
type Options struct {
	Output string // a file's path, stderr or stdout
	Format string // json, console; "": json
}

// Logger implements [listener.AccessLogger].
type Logger struct {
	off     atomic.Bool // there is no output
	armed   atomic.Bool // the writer knows that there are lines
	dropped atomic.Uint64
	mask    uint
	shards  []shard

	mu     sync.Mutex // guards what follows; may be taken with a shard's lock held
	free   []*buffer  // last in, first out: the rest of the memory stays untouched
	queue  []*buffer
	next   *swap // for the writer to make
	output string

	wake    chan struct{} // there are lines to write, in FlushInterval
	now     chan struct{} // there is a full buffer, or a swap
	closing chan struct{}
	closed  chan struct{}
	close   func()

	// Of the writer alone.
	w writer
}

// buffer holds whole lines.
type buffer struct {
	b     []byte
	epoch uint32 // of the shard when the lines were encoded
}

// shard is one loop's, as long as no other finds its own taken.
type shard struct {
	mu      sync.Mutex
	console bool
	epoch   uint32  // counts swaps
	buf     *buffer // nil until the next line
	encoder encoder
	_       [64]byte // keeps neighbours off the cache line
}

// swap is a change of output, format, or both.
type swap struct {
	file    *os.File // nil: no output
	console bool
	done    chan struct{}
}

// New opens the output and starts the writer. Report is called by the writer
// with every trouble, but at most once in ten seconds; it may be nil.
func New(o Options, report func(error)) (*Logger, error) {
	shards := 2
	for shards < runtime.NumCPU() {
		shards *= 2
	}
	return newLogger(o, report, shards, max(maxMemory/bufferSize, 2*shards))
}

func newLogger(o Options, report func(error), shards, buffers int) (*Logger, error) {
	s, err := prepare(o)
	if err != nil {
		return nil, err
	}
	l := &Logger{
		mask:    uint(shards - 1),
		shards:  make([]shard, shards),
		free:    make([]*buffer, buffers),
		queue:   make([]*buffer, 0, buffers),
		output:  o.Output,
		wake:    make(chan struct{}, 1),
		now:     make(chan struct{}, 1),
		closing: make(chan struct{}),
		closed:  make(chan struct{}),
	}
	l.close = sync.OnceFunc(func() { close(l.closing) })
	// One piece, fresh from the kernel: pages not written to cost nothing.
	memory, all := make([]byte, buffers*bufferSize), make([]buffer, buffers)
	for i := range all {
		all[i].b = memory[i*bufferSize : i*bufferSize : (i+1)*bufferSize]
		l.free[i] = &all[i]
	}
	for i := range l.shards {
		l.shards[i].console = s.console
	}
	l.off.Store(s.file == nil)
	l.w = writer{Logger: l, file: s.file, name: o.Output, console: s.console, report: report}
	go l.w.run()
	return l, nil
}

func prepare(o Options) (*swap, error) {
	s := &swap{done: make(chan struct{})}
	switch o.Format {
	case "", "json":
	case "console":
		s.console = true
	default:
		return nil, fmt.Errorf("access_log format %q is unknown; use json or console", o.Format)
	}
	if o.Output == "" {
		return s, nil
	}
	var err error
	if s.file, err = logging.Open(o.Output); err != nil {
		return nil, fmt.Errorf("access_log: %w", err)
	}
	return s, nil
}

// Log encodes a line. It does not block, and may be called from any goroutine.
func (l *Logger) Log(r *listener.Record) {
	if l.off.Load() {
		return
	}
	s := l.lock(uint(r.Loop))
	if s.buf == nil {
		if s.buf = l.take(); s.buf == nil {
			s.mu.Unlock()
			l.dropped.Add(1)
			return
		}
		s.buf.epoch = s.epoch
	}
	if s.console {
		s.buf.b = s.encoder.appendConsole(s.buf.b, r)
	} else {
		s.buf.b = s.encoder.appendJSON(s.buf.b, r)
	}
	full := len(s.buf.b) >= flushSize
	if full {
		l.enqueue(s)
	}
	s.mu.Unlock()
	if full {
		signal(l.now)
	} else if !l.armed.Load() && l.armed.CompareAndSwap(false, true) {
		signal(l.wake)
	}
}

// lock finds a shard that is not in use. There are as many as CPUs, and each
// is held for less than a microsecond, so the first round nearly always does.
func (l *Logger) lock(i uint) *shard {
	for range 4 * len(l.shards) {
		s := &l.shards[i&l.mask]
		if s.mu.TryLock() {
			return s
		}
		i++
	}
	s := &l.shards[i&l.mask]
	s.mu.Lock()
	return s
}

func (l *Logger) take() *buffer {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.free)
	if n == 0 {
		return nil
	}
	b := l.free[n-1]
	l.free = l.free[:n-1]
	return b
}

// enqueue hands the buffer of a locked shard to the writer.
func (l *Logger) enqueue(s *shard) {
	l.mu.Lock()
	l.queue = append(l.queue, s.buf)
	l.mu.Unlock()
	s.buf = nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Dropped counts the lines that were lost: because all buffers were full, or
// because the output did not take them until the end.
func (l *Logger) Dropped() uint64 { return l.dropped.Load() }

// Reopen opens the file of that name anew, after someone has moved it away,
// and returns when no line goes to the old one any more. If that fails the old
// one stays in use.
func (l *Logger) Reopen() error {
	l.mu.Lock()
	output := l.output
	l.mu.Unlock()
	if !logging.IsFile(output) {
		return nil
	}
	f, err := logging.Open(output)
	if err != nil {
		return fmt.Errorf("access_log: %w; still writing to the file opened before", err)
	}
	s := &swap{file: f, done: make(chan struct{})}
	l.mu.Lock()
	if l.output != output { // a reload was faster
		l.mu.Unlock()
		return f.Close()
	}
	if l.next != nil {
		s.console = l.next.console
	} else {
		s.console = l.w.console
	}
	l.replace(s)
	l.mu.Unlock()
	if !l.await(s) {
		return fmt.Errorf("access_log: %s does not take its lines; it will be reopened when it does", output)
	}
	return nil
}

// replace gives the writer a swap to make, instead of one it has not yet
// made. l.mu is held.
func (l *Logger) replace(s *swap) {
	if old := l.next; old != nil {
		if old.file != nil {
			old.file.Close()
		}
		close(old.done)
	}
	l.next = s
	if s.file == nil {
		l.off.Store(true)
	}
	signal(l.now)
}

// await waits for the writer to make a swap, and reports whether it did.
func (l *Logger) await(s *swap) bool {
	select {
	case <-s.done:
		return true
	case <-time.After(patience):
		return false
	case <-l.closed:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next == s && s.file != nil {
		s.file.Close()
	}
	l.next = nil
	return true
}

// Change is a prepared change of options. End it with [Change.Commit] or
// [Change.Discard].
type Change struct {
	l      *Logger
	output string
	swap   *swap
}

// Prepare opens what the new options ask for and changes nothing yet.
func (l *Logger) Prepare(o Options) (*Change, error) {
	s, err := prepare(o)
	if err != nil {
		return nil, err
	}
	return &Change{l, o.Output, s}, nil
}

// Commit makes the change: lines logged after it returns follow it, those from
// before still go where they belong. If the old output is stuck, the change
// comes about when it moves on.
func (c *Change) Commit() {
	c.l.mu.Lock()
	c.l.output = c.output
	c.l.replace(c.swap)
	c.l.mu.Unlock()
	c.l.await(c.swap)
}

// Discard gives the change up.
func (c *Change) Discard() {
	if c.swap.file != nil {
		c.swap.file.Close()
	}
}

// Close writes what is left and closes the output. Log does nothing
// afterwards.
func (l *Logger) Close() error {
	l.off.Store(true)
	l.close()
	select {
	case <-l.closed:
		return l.w.closeErr
	case <-time.After(patience):
		return fmt.Errorf("access_log: the last lines are lost: the output does not take them")
	}
}
