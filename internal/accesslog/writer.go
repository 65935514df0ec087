package accesslog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"time"
)

// writer is the goroutine that does the I/O.
type writer struct {
	*Logger
	file     *os.File // nil: no output
	name     string
	console  bool // guarded by Logger.mu: Reopen reads it
	report   func(error)
	todo     []*buffer // taken from the queue and not yet written, oldest first
	written  int       // bytes of todo[0]
	err      error     // of the last write
	reported time.Time
	told     uint64 // lines dropped that have been reported
	closeErr error
}

func (w *writer) run() {
	defer close(w.closed)
	timer := time.NewTimer(FlushInterval)
	timer.Stop()
	for {
		select {
		case <-w.wake:
			timer.Reset(FlushInterval)
			continue
		case <-w.now:
			w.swap()
			w.collect()
		case <-timer.C:
			// An output that fails is tried again with what it did not take.
			// The shards go on filling their buffers: taken each time, a
			// handful of lines would soon occupy all the memory there is.
			if w.write(); w.err == nil {
				// Before the shards are emptied: a line that comes after its
				// shard's turn asks for the next round.
				w.armed.Store(false)
				w.flushShards(false)
			}
			w.collect()
		case <-w.closing:
			timer.Stop()
			w.finish()
			return
		}
		w.write()
		w.complain(false)
		if w.err != nil {
			w.armed.Store(true)
			timer.Reset(FlushInterval)
		}
	}
}

// flushShards moves the lines of all shards into the queue. With a change of
// format, those that follow are of the next epoch.
func (w *writer) flushShards(epoch bool) {
	for i := range w.shards {
		s := &w.shards[i]
		s.mu.Lock()
		if s.buf != nil && len(s.buf.b) > 0 {
			w.enqueue(s)
		}
		if epoch {
			s.epoch++
			s.console = w.console
			if s.buf != nil {
				s.buf.epoch = s.epoch
			}
		}
		s.mu.Unlock()
	}
}

func (w *writer) collect() {
	w.mu.Lock()
	w.todo = append(w.todo, w.queue...)
	clear(w.queue)
	w.queue = w.queue[:0]
	w.mu.Unlock()
}

// swap makes the change of output or format that is due, if one is.
func (w *writer) swap() {
	w.mu.Lock()
	s := w.next
	w.next = nil
	if s == nil {
		w.mu.Unlock()
		return
	}
	w.console = s.console
	name := w.output
	w.mu.Unlock()

	epoch := w.shards[0].epoch // only the writer changes it
	w.flushShards(true)
	w.collect()
	// Lines from before go to the old output, though some from after, of a
	// shard that was quick, may lie between them.
	var after []*buffer
	before := w.todo[:0]
	for _, b := range w.todo {
		if b.epoch == epoch {
			before = append(before, b)
		} else {
			after = append(after, b)
		}
	}
	w.todo = before
	w.write()
	if len(w.todo) > 0 {
		// The old output does not take them. The new one may, from the
		// beginning of the line that was cut.
		b := w.todo[0].b
		w.written = bytes.LastIndexByte(b[:w.written], '\n') + 1
	}
	w.todo = append(w.todo, after...)
	if w.file != nil {
		w.file.Close()
	}
	w.file, w.name, w.err = s.file, name, nil
	w.off.Store(s.file == nil)
	close(s.done)
}

// write writes what there is to do, as far as the output takes it.
func (w *writer) write() {
	n := 0 // buffers done with
	for _, b := range w.todo {
		w.err = nil
		if w.file != nil {
			var m int
			m, w.err = w.file.Write(b.b[w.written:])
			if w.written += m; w.err != nil {
				break
			}
		}
		w.written = 0
		n++
	}
	w.mu.Lock()
	for _, b := range w.todo[:n] {
		b.b = b.b[:0]
		w.free = append(w.free, b)
	}
	w.mu.Unlock()
	left := copy(w.todo, w.todo[n:])
	clear(w.todo[left:])
	w.todo = w.todo[:left]
}

// complain reports what is wrong, unless it did so a moment ago.
func (w *writer) complain(last bool) {
	dropped := w.dropped.Load()
	if w.report == nil || w.err == nil && dropped == w.told || !last && time.Since(w.reported) < reportInterval {
		return
	}
	var err error
	switch {
	case w.err == nil:
		err = fmt.Errorf("access_log: %s is too slow: %d lines dropped", w.name, dropped-w.told)
	case dropped == w.told:
		err = fmt.Errorf("access_log: %w; lines are kept in memory for now", w.err)
	default:
		err = fmt.Errorf("access_log: %w; %d lines dropped", w.err, dropped-w.told)
	}
	w.reported, w.told = time.Now(), dropped
	w.report(err)
}

// finish writes everything and closes the output. What it does not take by
// now is lost.
func (w *writer) finish() {
	w.swap()
	w.off.Store(true)
	w.flushShards(false)
	w.collect()
	w.write()
	lost := 0
	for _, b := range w.todo {
		lost += bytes.Count(b.b[w.written:], []byte{'\n'})
		w.written = 0
	}
	w.dropped.Add(uint64(lost))
	w.complain(true)
	if w.err != nil {
		w.closeErr = fmt.Errorf("access_log: the last %d lines are lost: %w", lost, w.err)
	}
	if w.file != nil {
		w.closeErr = errors.Join(w.closeErr, w.file.Close())
	}
}
