package splice

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/reactor"
)

// bench joins two real connections by a relay on a loop of its own.
type bench struct {
	t              *testing.T
	loop           *reactor.Loop
	engine         *Engine
	relay          Relay
	count          Counters
	client, server stream // the far ends
	ended          chan Cause
	err            error
	warmed         int // on the loop
}

type stream interface {
	net.Conn
	CloseWrite() error
	SetReadBuffer(int) error
	SetWriteBuffer(int) error
}

func (b *bench) RelayHalfClosed() {}

func (b *bench) ClientReady(reactor.Events) {}

func (b *bench) RelayWarm() { b.warmed++ }

func (b *bench) RelayEnded(c Cause) {
	b.err = b.relay.Err()
	b.relay.Close(c != ClientClosed && c != ServerClosed)
	b.ended <- c
}

func newBench(t *testing.T, network string, maxPipes int, shaper *Shaper) *bench {
	t.Helper()
	return newSecureBench(t, network, maxPipes, shaper, TLS{}, TLS{})
}

// newSecureBench is newBench with what seals and opens the relay's sides.
func newSecureBench(t *testing.T, network string, maxPipes int, shaper *Shaper, client, server TLS) *bench {
	t.Helper()
	l, err := reactor.New(0, -1)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, loop: l, engine: NewEngine(l, maxPipes), ended: make(chan Cause, 2)}
	var cfd, sfd int
	b.client, cfd = connect(t, network)
	b.server, sfd = connect(t, network)
	done := make(chan struct{})
	go func() { l.Run(); close(done) }()
	t.Cleanup(func() {
		b.client.Close()
		b.server.Close()
		l.Do(func() {
			if b.engine.held != 0 {
				t.Errorf("%d pipes are still given out", b.engine.held)
			}
			b.engine.Tidy()
			b.engine.Tidy()
		})
		l.Post(l.Stop)
		<-done
	})
	l.Do(func() {
		if err := b.relay.Init(b.engine, b, &b.count, cfd); err != nil {
			t.Error(err)
		}
		tok, err := l.Add(sfd, reactor.Stream, nil)
		if err != nil {
			t.Error(err)
		}
		if client.Conn != nil {
			b.relay.SecureClient(client)
		}
		b.relay.Join(sfd, tok, 0, server, shaper)
	})
	return b
}

// connect returns the far end of a connection, and the near one's descriptor.
func connect(t *testing.T, network string) (stream, int) {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	far, err := net.Dial(network, ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	near, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	f, err := near.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	unix.SetNonblock(fd, true)
	f.Close()
	near.Close()
	far.SetDeadline(time.Now().Add(20 * time.Second))
	return far.(stream), fd
}

func (b *bench) end() Cause {
	b.t.Helper()
	select {
	case c := <-b.ended:
		return c
	case <-time.After(20 * time.Second):
		b.t.Fatal("the relay does not end")
		return Running
	}
}

// pour writes n pseudo-random bytes in pieces of varying size, and finishes.
func pour(w stream, seed uint64, n int) (sum [32]byte, err error) {
	rnd := rand.New(rand.NewPCG(seed, 0))
	h := sha256.New()
	buf := make([]byte, 300<<10)
	for n > 0 {
		p := buf[:min(1+rnd.IntN(1<<(1+rnd.IntN(18))), n)]
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		h.Write(p)
		if _, err := w.Write(p); err != nil {
			return sum, err
		}
		n -= len(p)
	}
	return [32]byte(h.Sum(nil)), w.CloseWrite()
}

func drink(r io.Reader) (sum [32]byte, n int64, err error) {
	h := sha256.New()
	n, err = io.Copy(h, r)
	return [32]byte(h.Sum(nil)), n, err
}

func TestBytesArriveIntactBothWays(t *testing.T) {
	for _, c := range []struct {
		name, network string
		pipes, bytes  int
		small         bool // socket buffers, so that many a write is taken in part
	}{
		{"tcp", "tcp", 10, 8 << 20, false},
		{"tcp, small buffers", "tcp", 10, 4 << 20, true},
		{"tcp, no pipe to be had", "tcp", 0, 4 << 20, true},
		{"unix", "unix", 10, 4 << 20, false},
		{"unix, small buffers", "unix", 0, 2 << 20, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, c.network, c.pipes, nil)
			if c.small {
				for _, s := range []stream{b.client, b.server} {
					s.SetReadBuffer(64 << 10)
					s.SetWriteBuffer(64 << 10)
				}
			}
			type result struct {
				sum [32]byte
				n   int64
				err error
			}
			sent, got := [2]chan result{make(chan result, 1), make(chan result, 1)}, [2]chan result{make(chan result, 1), make(chan result, 1)}
			for i, s := range []stream{b.client, b.server} {
				go func() {
					sum, err := pour(s, uint64(i), c.bytes)
					sent[i] <- result{sum, int64(c.bytes), err}
				}()
				go func() {
					sum, n, err := drink(s)
					got[1-i] <- result{sum, n, err}
				}()
			}
			for i := range 2 {
				if s, g := <-sent[i], <-got[i]; s != g {
					t.Errorf("direction %d: sent %+v, got %+v", i, s, g)
				}
			}
			if c := b.end(); c != ClientClosed && c != ServerClosed {
				t.Errorf("ended by %d, error %v", c, b.err)
			}
			if in, out := b.count.In.Load(), b.count.Out.Load(); in != uint64(c.bytes) || out != uint64(c.bytes) {
				t.Errorf("counted %d in, %d out of %d", in, out, c.bytes)
			}
			if n := b.count.Spliced.Load(); (n > 0) != (c.pipes > 0) {
				t.Errorf("spliced %d bytes with %d pipes", n, c.pipes)
			}
		})
	}
}

func TestHalfCloseTravelsAndNamesWhoBegan(t *testing.T) {
	for _, first := range []Cause{ClientClosed, ServerClosed} {
		b := newBench(t, "tcp", 10, nil)
		one, other := b.client, b.server
		if first == ServerClosed {
			one, other = other, one
		}
		io.WriteString(one, "request")
		one.CloseWrite()
		if got, err := io.ReadAll(other); err != nil || string(got) != "request" {
			t.Fatalf("got %q, %v", got, err)
		}
		io.WriteString(other, "late answer") // long after the FIN
		other.Close()
		if got, err := io.ReadAll(one); err != nil || string(got) != "late answer" {
			t.Fatalf("got %q, %v", got, err)
		}
		if c := b.end(); c != first {
			t.Errorf("ended by %d, want %d", c, first)
		}
	}
}

func TestResetBecomesReset(t *testing.T) {
	for _, who := range []Cause{ClientReset, ServerReset} {
		b := newBench(t, "tcp", 10, nil)
		one, other := b.client, b.server
		if who == ServerReset {
			one, other = other, one
		}
		io.WriteString(one, "partial")
		buf := make([]byte, 7)
		io.ReadFull(other, buf)
		one.(*net.TCPConn).SetLinger(0)
		one.Close()
		if c := b.end(); c != who || !errors.Is(b.err, unix.ECONNRESET) {
			t.Errorf("ended by %d (%v), want %d", c, b.err, who)
		}
		if _, err := other.Read(buf); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the other side sees %v: a broken stream looks whole", err)
		}
	}
}

// A server that answers early and closes, as with 413 Request Entity Too
// Large: the answer still reaches a client that is sending.
func TestEarlyAnswerReachesABusyClient(t *testing.T) {
	b := newBench(t, "tcp", 10, nil)
	io.WriteString(b.client, "upload")
	buf := make([]byte, 6)
	io.ReadFull(b.server, buf)
	io.WriteString(b.server, "too large")
	b.server.Close() // a FIN: everything was read
	got := make(chan string, 1)
	go func() {
		s, err := io.ReadAll(b.client)
		got <- string(s)
		if err != nil {
			t.Error(err)
		}
	}()
	for range 50 { // the first write makes the server's kernel send a reset
		if _, err := b.client.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	if s := <-got; s != "too large" {
		t.Errorf("got %q", s)
	}
	b.client.CloseWrite()
	if c := b.end(); c != ServerClosed {
		t.Errorf("ended by %d (%v)", c, b.err)
	}
}

// A read stops at the urgent mark, and a splice never gets past it: neither
// must lose a byte or leave the rest behind.
func TestUrgentDataStaysInTheStream(t *testing.T) {
	for _, before := range []int{3, 4 << 20} { // copying; splicing by then
		b := newBench(t, "tcp", 10, nil)
		for _, s := range []*side{&b.relay.client, &b.relay.server} {
			inlineUrgent(s.fd) // as on accepted sockets
		}
		want := append(bytes.Repeat([]byte("a"), before), "!rest"...)
		done := make(chan error, 1)
		go func() {
			raw, _ := b.client.(*net.TCPConn).SyscallConn()
			b.client.Write(want[:before])
			raw.Write(func(fd uintptr) bool {
				return unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) != unix.EAGAIN
			})
			_, err := b.client.Write([]byte("rest")) // no FIN: nothing else wakes the relay
			done <- err
		}()
		got := make([]byte, len(want))
		if n, err := io.ReadFull(b.server, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("after %d bytes: got %d of %d, %v", before, n, len(want), err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		b.client.Close()
		b.server.Close()
		b.end()
	}
}

func TestBackPressureHoldsLittle(t *testing.T) {
	b := newBench(t, "tcp", 10, nil)
	b.client.SetDeadline(time.Now().Add(500 * time.Millisecond))
	n, err := b.client.Write(make([]byte, 256<<20)) // nobody reads
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote %d bytes, %v: there is no back-pressure", n, err)
	}
	b.loop.Do(func() {
		s := &b.relay.client
		if s.kept != nil && len(s.kept.buf) > bufferSize {
			t.Errorf("%d bytes kept", len(s.kept.buf))
		}
		if b.engine.held > 1 {
			t.Errorf("%d pipes held by one session", b.engine.held)
		}
		b.relay.Close(true)
	})
}

// What is in a pipe when splicing to the destination turns out to be
// impossible is delivered by copying, in order.
func TestPipeIsEmptiedIntoUserSpace(t *testing.T) {
	b := newBench(t, "tcp", 10, nil)
	want := bytes.Repeat([]byte("0123456789abcdef"), 2000)
	b.loop.Do(func() {
		r := &b.relay
		p := r.engine.getPipe()
		n, err := unix.Write(int(p.w), want)
		if err != nil || n != len(want) {
			t.Errorf("filling the pipe: %d, %v", n, err)
		}
		p.n = n
		r.client.pipe = p
		r.client.state |= splicing
		r.empty(&r.client, &r.server)
		if r.client.pipe != nil || r.client.state&splicing != 0 {
			t.Error("still splicing")
		}
	})
	io.WriteString(b.client, "the end")
	b.client.CloseWrite()
	got, err := io.ReadAll(b.server)
	if err != nil || string(got) != string(want)+"the end" {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	b.server.Close()
	b.end()
}

func TestShaperKeepsTheRate(t *testing.T) {
	const rate = 2 << 20
	b := newBench(t, "tcp", 10, NewShaper(0, rate))
	go pour(b.server, 1, rate) // a second's worth
	began := time.Now()
	if _, n, err := drink(b.client); n != rate || err != nil {
		t.Fatalf("got %d bytes, %v", n, err)
	}
	if d := time.Since(began); d < 850*time.Millisecond || d > 5*time.Second {
		t.Errorf("a second's worth took %v", d)
	}
	b.client.Close()
	b.end()
}

func TestDirtyPipeIsNotUsedAgain(t *testing.T) {
	l, err := reactor.New(0, -1)
	if err != nil {
		t.Fatal(err)
	}
	l.Post(l.Stop)
	e := NewEngine(l, 4)
	p := e.getPipe()
	unix.Write(int(p.w), []byte("another session's"))
	p.n = 17
	e.putPipe(p)
	if q := e.getPipe(); q == p || q.n != 0 {
		t.Error("a pipe with bytes in it was given out")
	} else {
		e.putPipe(q)
	}
	e.Tidy()
	e.Tidy()
	l.Run() // closes what is due
	if e.held != 0 || e.pipes != nil {
		t.Errorf("%d pipes held", e.held)
	}
}
