package tlsterm

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/tlsrecord"
)

// floor is a pool with what stands for the loops: something that sees sockets
// become ready, and wakes their handshakes.
type floor struct {
	t    testing.TB
	pool *Pool
	ep   int
	mu   sync.Mutex
	on   map[int32]*Handshake // guarded by mu, by descriptor
}

func newFloor(t testing.TB, workers int) *floor {
	t.Helper()
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	// A pipe ends the watching.
	var stop [2]int
	if err := unix.Pipe2(stop[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	f := &floor{t: t, pool: NewPool(workers, nil), ep: ep, on: map[int32]*Handshake{}}
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, stop[0], &unix.EpollEvent{Events: unix.EPOLLIN, Fd: -1}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(f.watch)
	t.Cleanup(func() {
		f.pool.Close()
		unix.Write(stop[1], []byte{0})
		wg.Wait()
		for _, fd := range []int{ep, stop[0], stop[1]} {
			unix.Close(fd)
		}
	})
	return f
}

func (f *floor) watch() {
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(f.ep, events, -1)
		if err != nil && err != unix.EINTR {
			f.t.Error(err)
			return
		}
		for _, ev := range events[:max(n, 0)] {
			if ev.Fd == -1 {
				return
			}
			f.mu.Lock()
			h := f.on[ev.Fd]
			f.mu.Unlock()
			if h != nil {
				h.Wake()
			}
		}
	}
}

// errTwice would be the end of a handshake that is told of twice.
var errTwice = errors.New("the end was told twice: Done was called twice")

// start begins h on one end of a new connection. The result is the other end;
// ended has h when it is done.
func (f *floor) start(h *Handshake) (far net.Conn, ended chan *Handshake) {
	f.t.Helper()
	near, far := f.connect()
	return far, f.startOn(near, h)
}

// connect makes a connection; its ends are closed with the test.
func (f *floor) connect() (near int, far net.Conn) {
	f.t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		f.t.Fatal(err)
	}
	c, err := connOf(pair[1])
	if err != nil {
		f.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	f.t.Cleanup(func() {
		c.Close()
		unix.Close(pair[0])
	})
	return pair[0], c
}

func (f *floor) startOn(fd int, h *Handshake) (ended chan *Handshake) {
	f.t.Helper()
	ended = make(chan *Handshake, 1)
	h.FD = fd
	h.Done = func(h *Handshake) {
		f.mu.Lock()
		delete(f.on, int32(fd))
		f.mu.Unlock()
		select {
		case ended <- h:
		default:
			f.t.Error(errTwice)
		}
	}
	f.mu.Lock()
	f.on[int32(fd)] = h
	f.mu.Unlock()
	f.pool.Start(h) // before it is watched: Wake wants a worker
	err := unix.EpollCtl(f.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(fd)})
	if err != nil {
		f.t.Fatal(err)
	}
	return ended
}

// await returns a handshake that is done.
func await(t testing.TB, ended chan *Handshake) *Handshake {
	t.Helper()
	select {
	case h := <-ended:
		if h.secrets != (secrets{}) {
			t.Error("the handshake is done, and its secrets are still there")
		}
		return h
	case <-time.After(30 * time.Second):
		t.Fatal("the handshake does not end")
		return nil
	}
}

// agreed makes a whole handshake with a peer that crypto/tls plays, and
// asserts that both go on to understand each other.
func (f *floor) agreed(h *Handshake, peer func(net.Conn) *tls.Conn) (*Handshake, *tls.Conn) {
	f.t.Helper()
	far, ended := f.start(h)
	c := peer(far)
	failed := make(chan error, 1)
	go func() { failed <- c.Handshake() }()
	h = await(f.t, ended)
	if err := <-failed; err != nil || h.Err != nil {
		f.t.Fatalf("peer: %v; ours: %v", err, h.Err)
	}
	if h.Records != nil {
		talk(f.t, h, c)
	}
	return h, c
}

func (f *floor) serve(c *Context, client *tls.Config) (*Handshake, *tls.Conn) {
	f.t.Helper()
	return f.agreed(&Handshake{Context: c}, func(far net.Conn) *tls.Conn { return tls.Client(far, client) })
}

func (f *floor) dial(client, server *tls.Config) (*Handshake, *tls.Conn) {
	f.t.Helper()
	return f.agreed(&Handshake{Client: client}, func(far net.Conn) *tls.Conn { return tls.Server(far, server) })
}

// talk asserts that keys and sequence numbers are right in both directions:
// a few records each way.
func talk(t testing.TB, h *Handshake, peer *tls.Conn) {
	t.Helper()
	for i := range 3 {
		text := fmt.Sprintf("message %d", i)
		r := h.Records
		buf := make([]byte, r.Header()+len(text)+r.Trailer())
		copy(buf[r.Header():], text)
		if _, err := unix.Write(h.FD, r.Seal(tlsrecord.ApplicationData, buf, len(text))); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(peer, got); err != nil || string(got) != text {
			t.Fatalf("the peer has read %q, %v; want %q", got, err, text)
		}
		if _, err := peer.Write(got); err != nil {
			t.Fatal(err)
		}
		if back := readData(t, h); back != text {
			t.Fatalf("read %q, want %q", back, text)
		}
	}
}

// poll waits until there is something to be read.
func poll(fd int) {
	for {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 30_000); err != unix.EINTR {
			return
		}
	}
}

// readData reads and opens one record with data from what is in the socket.
func readData(t testing.TB, h *Handshake) string {
	t.Helper()
	for {
		rec := make([]byte, recordHeader)
		for have := 0; have < len(rec); {
			n, errno := recvNow(h.FD, rec[have:])
			if errno == unix.EAGAIN {
				poll(h.FD)
				continue
			}
			if errno != 0 || n == 0 {
				t.Fatalf("the record ends after %d bytes: %v", have, errno)
			}
			if have += n; have == recordHeader && len(rec) == recordHeader {
				rec = append(rec, make([]byte, int(rec[3])<<8|int(rec[4]))...)
			}
		}
		typ, text, err := h.Records.Open(make([]byte, len(rec)), rec)
		if err != nil {
			t.Fatal(err)
		}
		if typ == tlsrecord.ApplicationData {
			return string(text)
		}
		if _, err := h.Records.Control(typ, text); err != nil { // tickets
			t.Fatal(err)
		}
	}
}

// Go CVE-2024-24783, CVE-2026-27138: hostile certificates make verification
// panic. That ends one handshake, with a text of bounded length.
func TestPanicEndsOneHandshake(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	f := newFloor(t, 1)
	good := l.context(t, l.mutual())
	long := strings.Repeat("certificate ", 10_000)
	for name, spoil := range map[string]func(*tls.Config){
		"GetCertificate": func(c *tls.Config) {
			c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { panic(long) }
		},
		"GetConfigForClient": func(c *tls.Config) {
			c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { panic(long) }
		},
		"VerifyConnection": func(c *tls.Config) { c.VerifyConnection = func(tls.ConnectionState) error { panic(errors.New(long)) } },
		"WrapSession": func(c *tls.Config) {
			c.WrapSession = func(tls.ConnectionState, *tls.SessionState) ([]byte, error) { panic(nil) }
		},
		"a nil pointer": func(c *tls.Config) {
			c.VerifyConnection = func(cs tls.ConnectionState) error { return cs.PeerCertificates[99].VerifyHostname("") }
		},
	} {
		template := good.Template().Clone()
		spoil(template)
		far, ended := f.start(&Handshake{Context: &Context{template: template}})
		go tls.Client(far, l.client(l.alice)).Handshake()
		h := await(t, ended)
		if h.Err == nil || !strings.Contains(h.Err.Error(), "panic") || len(h.Err.Error()) > 400 || h.Records != nil {
			t.Errorf("%s: ended with %.500v", name, h.Err)
		}
		f.serve(good, l.client(l.alice)) // the worker is well
	}
}

// helloOf is a ClientHello as a client with that configuration sends it.
func helloOf(t testing.TB, client *tls.Config) []byte {
	t.Helper()
	var hello []byte
	a, b := net.Pipe()
	defer a.Close()
	tls.Client(&writeHook{a, func(p []byte) {
		hello = append([]byte(nil), p...)
		b.Close()
	}}, client).Handshake()
	if len(hello) == 0 {
		t.Fatal("no ClientHello")
	}
	return hello
}

// sockets returns descriptors of connections, and of their far ends.
func sockets(t testing.TB, n int) (near, far []int) {
	t.Helper()
	for range n {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			unix.Close(pair[0])
			unix.Close(pair[1])
		})
		near, far = append(near, pair[0]), append(far, pair[1])
	}
	return near, far
}

// inUse is what the heap and stacks take, and how much CPU this process has
// had.
func inUse() (memory int64, cpu time.Duration) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return int64(m.HeapInuse + m.StackInuse), time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Thousands of clients that send a hello and nothing more cost memory that is
// bounded, no CPU, and others their handshakes do not wait for them. It counts
// what the whole process uses, and so does not run beside other tests.
func TestThousandsHalfDone(t *testing.T) {
	n := 2000
	if rlimit := (unix.Rlimit{}); unix.Getrlimit(unix.RLIMIT_NOFILE, &rlimit) == nil {
		n = min(n, int(rlimit.Cur)/2-100)
	}
	l := newLab(t)
	f := newFloor(t, 1)
	c := l.context(t, l.options())
	hello := helloOf(t, l.client())
	near, far := sockets(t, n)
	f.serve(c, l.client())
	before, _ := inUse()
	ended := make([]chan *Handshake, n)
	hs := make([]*Handshake, n)
	for i := range n {
		unix.Write(far[i], hello)
		hs[i] = &Handshake{Context: c}
		ended[i] = f.startOn(near[i], hs[i])
	}
	for i := range n {
		readFlight(t, far[i]) // the server's answer is there: now it waits
	}
	after, cpu := inUse()
	each := (after - before) / int64(n)
	t.Logf("%d handshakes half done: %d bytes each", n, each)
	if each > 100<<10 { // the race detector doubles stacks
		t.Errorf("a handshake half done takes %d bytes", each)
	}
	began := time.Now()
	f.serve(c, l.client())
	t.Logf("a handshake beside them: %v", time.Since(began))

	// Nothing happens: nothing is done.
	time.Sleep(300 * time.Millisecond)
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	if took := time.Duration(u.Utime.Nano()+u.Stime.Nano()) - cpu; took > 150*time.Millisecond {
		t.Errorf("%v of CPU in 300ms of waiting", took)
	}

	for _, h := range hs {
		h.Cancel()
	}
	for _, e := range ended {
		if h := await(t, e); !errors.Is(h.Err, errCancelled) {
			t.Errorf("ended with %v", h.Err)
		}
	}
	clear(hs)
	clear(ended)
	f.on1(func() {
		if w := f.pool.workers[0]; len(w.active) != 0 || len(w.free) > spareCoroutines {
			t.Errorf("%d active in the end, %d stacks kept", len(w.active), len(w.free))
		}
	})
}

// readFlight reads a first answer.
func readFlight(t testing.TB, fd int) {
	t.Helper()
	poll(fd)
	var b [8 << 10]byte
	if n, err := unix.Read(fd, b[:]); n <= 0 {
		t.Fatalf("no answer: %v", err)
	}
}

// Beyond a number of active handshakes others wait, with their hello still in
// the socket, and go on in the order they came. Those that are cancelled do not
// wait for their turn to end.
func TestHandshakesWaitForTheirTurn(t *testing.T) {
	t.Parallel()
	const most, more = 3, 20
	l := newLab(t)
	f := newFloor(t, 1)
	w := f.pool.workers[0]
	c := l.context(t, l.options())
	f.on1(func() { w.most = most })

	hello := helloOf(t, l.client())
	near, far := sockets(t, most)
	var idle []*Handshake
	var idleEnds []chan *Handshake
	for i := range most {
		unix.Write(far[i], hello)
		h := &Handshake{Context: c}
		idle, idleEnds = append(idle, h), append(idleEnds, f.startOn(near[i], h))
		readFlight(t, far[i])
	}
	var waiting []*Handshake
	var ends []chan *Handshake
	var peers []chan error
	for range more {
		h := &Handshake{Context: c}
		conn, ended := f.start(h)
		met := make(chan error, 1)
		go func() { met <- tls.Client(conn, l.client()).Handshake() }()
		waiting, ends, peers = append(waiting, h), append(ends, ended), append(peers, met)
	}
	f.on1(func() {
		if len(w.active) != most || len(w.waiting) != more {
			t.Errorf("%d active, %d waiting; want %d and %d", len(w.active), len(w.waiting), most, more)
		}
	})
	for _, i := range []int{0, 7, more - 1} {
		waiting[i].Cancel()
		if h := await(t, ends[i]); !errors.Is(h.Err, errCancelled) {
			t.Errorf("cancelled while waiting: %v", h.Err)
		}
		ends[i] = nil
	}
	idle[0].Cancel()
	await(t, idleEnds[0])
	for i, e := range ends {
		if e == nil {
			continue
		}
		if h := await(t, e); h.Err != nil {
			t.Errorf("%d: %v", i, h.Err)
		}
		if err := <-peers[i]; err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
	f.on1(func() {
		if len(w.active) != most-1 || len(w.waiting) != 0 {
			t.Errorf("%d active, %d waiting in the end", len(w.active), len(w.waiting))
		}
	})
}

// on1 runs do in the goroutine of the only worker: within the handshake of a
// client that has gone.
func (f *floor) on1(do func()) {
	f.t.Helper()
	h := &Handshake{Context: &Context{}, worker: f.pool.workers[0]}
	ended := make(chan struct{})
	h.begun = true
	h.cancelled.Store(true)
	h.Done = func(*Handshake) {
		do()
		close(ended)
	}
	h.Wake()
	<-ended
}

// Close ends what is under way, and what has not begun, each with its Done,
// and leaves no goroutine.
func TestCloseWithHandshakesUnderWay(t *testing.T) {
	l := newLab(t)
	before := runtime.NumGoroutine()
	f := newFloor(t, 2)
	for _, w := range f.pool.workers {
		w.most = 10
	}
	c := l.context(t, l.options())
	hello := helloOf(t, l.client())
	const n = 60
	near, far := sockets(t, n)
	var ends []chan *Handshake
	for i := range n {
		// At all stages: without a byte, half a hello, a whole one.
		unix.Write(far[i], hello[:len(hello)*(i%3)/2])
		ends = append(ends, f.startOn(near[i], &Handshake{Context: c}))
	}
	f.pool.Close()
	for i, e := range ends {
		select {
		case h := <-e:
			if !errors.Is(h.Err, errCancelled) {
				t.Errorf("%d ended with %v", i, h.Err)
			}
		default:
			t.Errorf("%d was not told", i)
		}
	}
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before+1 }) // that which watches
}

// Handshakes are woken for all kinds of reasons: as often as one likes, from
// anywhere, while they run and after their end. The descriptor is not touched
// then: its number may be another's.
func TestWakeStorm(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	f := newFloor(t, 2)
	c := l.context(t, l.options())
	for range 20 {
		near, far := f.connect()
		h := &Handshake{Context: c}
		ended := f.startOn(near, h)
		stop := make(chan struct{})
		var storm sync.WaitGroup
		for range 4 {
			storm.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						h.Wake()
						runtime.Gosched()
					}
				}
			})
		}
		peer := tls.Client(far, l.client())
		if err := peer.Handshake(); err != nil {
			t.Fatal(err)
		}
		if h := await(t, ended); h.Err != nil {
			t.Fatal(h.Err)
		}
		// Somebody else's bytes, under the same number.
		other, otherFar := sockets(t, 1)
		unix.Write(otherFar[0], []byte("not yours"))
		if err := unix.Dup3(other[0], near, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		h.Cancel()
		f.serve(c, l.client()) // the workers have had their turns
		f.serve(c, l.client())
		close(stop)
		storm.Wait()
		var b [32]byte
		if n, _ := unix.Read(near, b[:]); string(b[:max(n, 0)]) != "not yours" {
			t.Fatalf("read %q: the pool has touched the descriptor after Done", b[:max(n, 0)])
		}
		if n, err := unix.Read(otherFar[0], b[:]); err != unix.EAGAIN {
			t.Fatalf("%q, %v was written after Done", b[:max(n, 0)], err)
		}
	}
}

// One worker, one client that keeps it busy with a hello of thousands of tiny
// records: others get their turn, for it has to wait for its bytes, and its
// hello is bounded.
func TestTinyRecordsStarveNobody(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	f := newFloor(t, 1)
	c := l.context(t, l.options())
	far, ended := f.start(&Handshake{Context: c})
	go func() {
		// A ClientHello that claims 60 000 bytes, a byte at a time.
		message := append([]byte{1, 0, 0xea, 0x60}, make([]byte, 60_000)...)
		for chunk := range slices.Chunk(message, 100) {
			var records []byte
			for _, b := range chunk {
				records = append(records, 22, 3, 1, 0, 1, b)
			}
			if _, err := far.Write(records); err != nil {
				return
			}
		}
	}()
	for range 5 {
		f.serve(c, l.client())
	}
	if h := await(t, ended); h.Err == nil {
		t.Error("a handshake of nothing but zeros")
	}
}
