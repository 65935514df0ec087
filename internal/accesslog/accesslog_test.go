package accesslog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"edgeproxy/listener"
)

func open(t *testing.T, o Options, report func(error)) *Logger {
	t.Helper()
	l, err := New(o, report)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func lines(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := strings.SplitAfter(string(b), "\n")
	if s[len(s)-1] != "" {
		t.Errorf("%s ends in the middle of a line: %q", path, s[len(s)-1])
	}
	return s[:len(s)-1]
}

// record numbers sessions, so that each line can be looked for.
func record(id uint64, loop int) *listener.Record {
	r := full
	r.ID, r.Loop = id, loop
	return &r
}

// count asserts that the files hold sessions 0 to n-1 once each, those of one
// file and loop in order.
func count(t *testing.T, n int, inOrder bool, files ...string) {
	t.Helper()
	seen := make([]int, n)
	for _, f := range files {
		last := make(map[string]uint64)
		for _, s := range lines(t, f) {
			var v line
			if err := json.Unmarshal([]byte(s), &v); err != nil {
				t.Fatalf("%s: %v: %q", f, err, s)
			}
			var id uint64
			if _, err := fmt.Sscanf(v.ID, "%x", &id); err != nil || id >= uint64(n) {
				t.Fatalf("%s: id %q", f, v.ID)
			}
			seen[id]++
			if inOrder && id < last[v.Listener] {
				t.Errorf("%s: session %d after %d", f, id, last[v.Listener])
			}
			last[v.Listener] = id
		}
	}
	for id, times := range seen {
		if times != 1 {
			t.Fatalf("session %d is there %d times", id, times)
		}
	}
}

func TestLinesAreFlushedInTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	synctest.Test(t, func(t *testing.T) {
		l, err := New(Options{Output: path}, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		for i := range 10 {
			l.Log(record(uint64(i), i))
			time.Sleep(FlushInterval - 1)
			if n := len(lines(t, path)); n != i {
				t.Errorf("%d lines just before the interval is over, want %d", n, i)
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			if n := len(lines(t, path)); n != i+1 {
				t.Errorf("%d lines after the interval, want %d", n, i+1)
			}
			time.Sleep(time.Hour)
		}
		// A full buffer does not wait.
		n := 3 * flushSize / 2 / len(lines(t, path)[0])
		for i := range n {
			l.Log(record(uint64(i), 0))
		}
		synctest.Wait()
		if got := len(lines(t, path)) - 10; got < n/2 || got > n*3/4 {
			t.Errorf("%d of %d lines written at once, want those of full buffers", got, n)
		}
	})
}

func TestOrderOfOneLoop(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	l := open(t, Options{Output: path}, nil)
	const n = 5000
	for i := range n {
		l.Log(record(uint64(i), 3))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	count(t, n, true, path)
}

// The loops go on logging while the file is rotated and the options change.
func TestReopenLosesNothing(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "access.log"), filepath.Join(dir, "other.log")
	l := open(t, Options{Output: path}, func(err error) { t.Error(err) })
	const loops, each, rotations = 4, 3000, 30
	var wg sync.WaitGroup
	var turn atomic.Int64 // paces the loops to the rotations
	for loop := range loops {
		wg.Go(func() {
			for i := range each {
				for int64(i) > (turn.Load()+1)*each/rotations {
					runtime.Gosched()
				}
				l.Log(record(uint64(loop*each+i), loop))
			}
		})
	}
	var files []string
	output := path
	for i := range rotations {
		moved := fmt.Sprintf("%s.%d", output, i)
		if err := os.Rename(output, moved); err != nil {
			t.Fatal(err)
		}
		files = append(files, moved)
		if i%5 == 4 {
			output = map[string]string{path: other, other: path}[output]
			c, err := l.Prepare(Options{Output: output})
			if err != nil {
				t.Fatal(err)
			}
			c.Commit()
		} else if err := l.Reopen(); err != nil {
			t.Fatal(err)
		}
		turn.Add(1)
	}
	wg.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	count(t, loops*each, false, append(files, output)...)
	if l.Dropped() != 0 {
		t.Errorf("%d lines dropped", l.Dropped())
	}
}

func TestFormatsDoNotMix(t *testing.T) {
	dir := t.TempDir()
	path := [2]string{filepath.Join(dir, "json"), filepath.Join(dir, "console")}
	l := open(t, Options{Output: path[0]}, nil)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for loop := range 2 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					l.Log(record(uint64(i), loop))
					runtime.Gosched()
				}
			}
		})
	}
	for i := range 10 {
		c, err := l.Prepare(Options{Output: path[(i+1)%2], Format: filepath.Base(path[(i+1)%2])})
		if err != nil {
			t.Fatal(err)
		}
		c.Commit()
	}
	close(stop)
	wg.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for i, p := range path {
		for _, s := range lines(t, p) {
			if json.Valid([]byte(s)) != (i == 0) {
				t.Fatalf("%s: %q", p, s)
			}
		}
	}
}

func TestOffAndOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	l := open(t, Options{}, nil)
	id := uint64(0)
	for i, o := range []string{"", path, "", path, path} {
		c, err := l.Prepare(Options{Output: o})
		if err != nil {
			t.Fatal(err)
		}
		c.Commit()
		for range 3 {
			l.Log(record(id, i))
			if o != "" {
				id++
			}
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l.Log(record(0, 0)) // after Close: nothing
	count(t, 9, false, path)
	if l.Dropped() != 0 {
		t.Errorf("%d lines dropped", l.Dropped())
	}
}

func TestBadOptions(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "access.log")
	l := open(t, Options{Output: path}, nil)
	for _, tt := range []struct {
		o    Options
		want string
	}{
		{Options{Output: path, Format: "xml"}, `access_log format "xml" is unknown; use json or console`},
		{Options{Output: dir + "/no/access.log"}, "create the directory " + dir + "/no"},
	} {
		if _, err := New(tt.o, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("New(%+v): %v, want %q", tt.o, err, tt.want)
		}
		if _, err := l.Prepare(tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Prepare(%+v): %v, want %q", tt.o, err, tt.want)
		}
	}
	c, err := l.Prepare(Options{Output: dir + "/other"})
	if err != nil {
		t.Fatal(err)
	}
	c.Discard()
	l.Log(record(0, 0))
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err == nil || !strings.Contains(err.Error(), "still writing to the file opened before") {
		t.Errorf("reopening a directory: %v", err)
	}
	l.Log(record(1, 0))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	count(t, 2, true, path+".1")
}

// fifo is an output that takes as much as the test wants.
func fifo(t *testing.T) (path string, r *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return path, r
}

func TestOverflowIsCounted(t *testing.T) {
	path, r := fifo(t)
	var mu sync.Mutex
	var reports []string
	l, err := newLogger(Options{Output: path}, func(err error) {
		mu.Lock()
		defer mu.Unlock()
		reports = append(reports, err.Error())
	}, 2, 4)
	if err != nil {
		t.Fatal(err)
	}
	logged := 0
	for ; l.Dropped() < 1000; logged++ { // returns: a full log does not block
		l.Log(record(uint64(logged), 0))
	}
	got := make(chan string)
	go func() {
		var b []byte
		for chunk := make([]byte, 1<<16); !bytes.HasSuffix(b, []byte("\nend\n")); {
			n, err := r.Read(chunk)
			if err != nil {
				break
			}
			b = append(b, chunk[:n]...)
		}
		got <- string(b)
	}()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	r.WriteString("end\n") // r itself keeps the FIFO open: there is no end of file
	text := <-got
	if n := strings.Count(text, "\n") - 1; n+int(l.Dropped()) != logged {
		t.Errorf("%d lines logged, %d written, %d dropped", logged, n, l.Dropped())
	}
	if len(text) < 4*flushSize || len(text) > 5*bufferSize { // 4 buffers, and what the FIFO took before it was full
		t.Errorf("%d bytes kept in memory, want about 4 buffers full", len(text))
	}
	mu.Lock()
	defer mu.Unlock()
	if len(reports) == 0 || !strings.Contains(reports[len(reports)-1], "lines dropped") {
		t.Errorf("reports: %q", reports)
	}
}

func TestDiskFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	synctest.Test(t, func(t *testing.T) {
		reports := make(chan string, 100)
		l, err := newLogger(Options{Output: "/dev/full"}, func(err error) { reports <- err.Error() }, 2, 4)
		if err != nil {
			t.Fatal(err)
		}
		const n = 200
		for i := range n {
			l.Log(record(uint64(i), i))
			time.Sleep(reportInterval / n)
			synctest.Wait()
		}
		if n := len(reports); n != 1 {
			t.Errorf("%d reports within one interval", n)
		}
		if got := <-reports; !strings.Contains(got, "/dev/full: no space left on device; lines are kept") {
			t.Errorf("reported %q", got)
		}
		time.Sleep(2 * reportInterval)
		synctest.Wait()
		if n := len(reports); n != 2 {
			t.Errorf("%d further reports in two more intervals", n)
		}
		// The lines were kept, and go to the output that takes them.
		c, err := l.Prepare(Options{Output: path})
		if err != nil {
			t.Fatal(err)
		}
		c.Commit()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		count(t, n, false, path)
		if l.Dropped() != 0 {
			t.Errorf("%d lines dropped", l.Dropped())
		}
	})
}

func TestLinesLeftAtCloseAreCounted(t *testing.T) {
	l := open(t, Options{Output: "/dev/full"}, nil)
	for i := range 7 {
		l.Log(record(uint64(i), i))
	}
	if err := l.Close(); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "the last 7 lines are lost") {
		t.Errorf("Close: %v", err)
	}
	if l.Dropped() != 7 {
		t.Errorf("%d lines dropped, want 7", l.Dropped())
	}
}

// A write that ends in the middle of a line is continued where it ended, or,
// in another file, from the beginning of that line.
func TestShortWrites(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	l := open(t, Options{Output: a}, nil)
	for i := range 3 {
		l.Log(record(uint64(i), 0))
	}
	// The writer is driven by hand: it sleeps until the interval is over.
	l.w.flushShards(false)
	l.w.collect()
	text := string(l.w.todo[0].b)
	first := strings.Index(text, "\n") + 1
	half := first + 10
	l.w.written = half
	if _, err := l.w.file.WriteString(text[:half]); err != nil {
		t.Fatal(err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	good := l.w.file
	l.w.file = full
	l.w.write()
	if l.w.err == nil || l.w.written != half {
		t.Fatalf("after a failed write: %v, %d bytes written, want %d", l.w.err, l.w.written, half)
	}
	c, err := l.Prepare(Options{Output: b})
	if err != nil {
		t.Fatal(err)
	}
	good.Close()
	c.Commit()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(b)
	if err != nil || string(got) != text[first:] {
		t.Errorf("%v: the new file has %q, want %q", err, got, text[first:])
	}
}

func TestLogDoesNotAllocate(t *testing.T) {
	l := open(t, Options{Output: "/dev/null"}, nil)
	r := record(1, 0)
	if n := testing.AllocsPerRun(2000, func() { l.Log(r) }); n != 0 {
		t.Errorf("%v allocations per line", n)
	}
}

func BenchmarkLog(b *testing.B) {
	for _, format := range []string{"json", "console"} {
		b.Run(format, func(b *testing.B) {
			l, err := New(Options{Output: "/dev/null", Format: format}, nil)
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			r := record(1, 0)
			r.Time, r.BytesOut, r.End, r.Err = time.Now(), 1024, listener.ClientClosed, nil
			b.ReportAllocs()
			for b.Loop() {
				r.Time = r.Time.Add(10 * time.Microsecond)
				l.Log(r)
			}
			b.ReportMetric(float64(l.Dropped())/float64(b.N), "dropped/op")
		})
	}
}

func BenchmarkLogParallel(b *testing.B) {
	l, err := New(Options{Output: "/dev/null"}, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	var loops atomic.Int64
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		r := record(1, int(loops.Add(1)))
		for pb.Next() {
			l.Log(r)
		}
	})
	b.ReportMetric(float64(l.Dropped())/float64(b.N), "dropped/op")
}
