//go:build linux

package reactor

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func startLoop(t *testing.T) *Loop {
	t.Helper()
	l, err := New(0, -1)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { l.Run(); close(done) }()
	t.Cleanup(func() {
		l.Post(l.Stop)
		<-done
		unix.Close(l.wakefd)
	})
	return l
}

func socketPair(t *testing.T) (a, b int) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return p[0], p[1]
}

type handlerFunc func(Events)

func (f handlerFunc) Ready(ev Events) { f(ev) }

func TestPostFromManyGoroutines(t *testing.T) {
	l := startLoop(t)
	var n atomic.Int64
	for range 8 {
		go func() {
			for range 1000 {
				l.Post(func() { n.Add(1) })
			}
		}()
	}
	for n.Load() < 8000 {
		time.Sleep(time.Millisecond)
	}
}

// The number of a descriptor closed in a batch must not reach the handler of
// the one that takes its slot: the generation tells them apart.
func TestStaleTokenIsDropped(t *testing.T) {
	l := startLoop(t)
	a, b := socketPair(t)
	defer unix.Close(b)
	c, d := socketPair(t)
	defer unix.Close(d)
	l.Do(func() {
		old, err := l.Add(a, Stream, handlerFunc(func(Events) {}))
		if err != nil {
			t.Error(err)
			return
		}
		l.Close(old)
		fresh, err := l.Add(c, Stream, handlerFunc(func(Events) {}))
		if err != nil {
			t.Error(err)
			return
		}
		if uint32(old) != uint32(fresh) {
			t.Errorf("slot %d was not used again (got %d): the test tests nothing", uint32(old), uint32(fresh))
		}
		l.Close(old) // a second close of the old one must not close the new one
		if l.lookup(fresh) == nil {
			t.Error("closing a stale token freed its successor")
		}
		l.Close(fresh)
	})
	l.Do(func() {}) // the turn that closes is over
	if err := unix.Fstat(c, &unix.Stat_t{}); err != unix.EBADF {
		t.Errorf("descriptor %d is still open: %v", c, err)
	}
}

func TestTimerFiresInTimeAndNotEarly(t *testing.T) {
	l := startLoop(t)
	at := make(chan int64, 1)
	var begin int64
	l.Do(func() {
		begin = l.NowExact()
		l.StartTimer(&Timer{Owner: expireFunc(func() { at <- l.NowExact() })}, 30*time.Millisecond)
	})
	if d := time.Duration(<-at - begin); d < 29*time.Millisecond || d > 5*time.Second {
		t.Errorf("a 30 ms timer fired after %v", d)
	}
}

type expireFunc func()

func (f expireFunc) Expired(*Timer) { f() }

// A loop that waits without telling the scheduler must still let the runtime
// stop the world, and let goroutines run.
func TestCollectionWhileLoopsWait(t *testing.T) {
	l := startLoop(t)
	a, b := socketPair(t)
	defer unix.Close(b)
	var got atomic.Int64
	l.Do(func() {
		l.Add(a, Stream, handlerFunc(func(Events) {
			var buf [64]byte
			n, _ := unix.Read(a, buf[:])
			got.Add(int64(max(n, 0)))
		}))
	})
	deadline := time.Now().Add(10 * time.Second)
	for i := range 200 {
		unix.Write(b, []byte{1})
		_ = make([]byte, 1<<20)
		for got.Load() < int64(i+1) {
			if time.Now().After(deadline) {
				t.Fatal("the loop or the collector is stuck")
			}
			time.Sleep(50 * time.Microsecond)
		}
	}
}

func TestNothingRunsAfterStop(t *testing.T) {
	l, err := New(0, -1)
	if err != nil {
		t.Fatal(err)
	}
	l.Post(l.Stop)
	l.Run()
	unix.Close(l.wakefd)
	if l.Post(func() {}) {
		t.Error("a loop that has ended took a function")
	}
}

func BenchmarkWheelStartStop(b *testing.B) {
	var w wheel
	w.init(0)
	t := &Timer{}
	for b.Loop() {
		w.start(t, 5000)
		w.stop(t)
	}
}

type finisherFunc func()

func (f finisherFunc) Finish() { f() }

// What was put off comes after all events of the turn, once, and before its
// descriptors are closed.
func TestAtEnd(t *testing.T) {
	l := startLoop(t)
	a, b := socketPair(t)
	defer unix.Close(b)
	var order []string
	ended := make(chan struct{})
	l.Do(func() {
		token, err := l.Add(a, Stream, handlerFunc(func(Events) {}))
		if err != nil {
			t.Error(err)
			return
		}
		l.AtEnd(finisherFunc(func() {
			order = append(order, "end")
			if _, err := unix.Write(a, []byte{1}); err != nil {
				t.Errorf("the descriptor is closed already: %v", err)
			}
			l.AtEnd(finisherFunc(func() { order = append(order, "again"); close(ended) }))
		}))
		order = append(order, "turn")
		l.Close(token)
	})
	<-ended
	l.Do(func() {})
	l.Do(func() {
		if want := []string{"turn", "end", "again"}; !slices.Equal(order, want) {
			t.Errorf("%q, want %q", order, want)
		}
	})
}
