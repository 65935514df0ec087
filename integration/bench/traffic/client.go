package traffic

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Run says what a client does for a while.
type Run struct {
	// Duration is how long new requests are begun; those begun are waited for.
	// Zero: each connection makes exactly one request.
	Duration time.Duration `json:"duration"`
	// Rate is requests per second over all threads, evenly spaced. A request
	// that finds no free connection is late, and its time counts from when it
	// was due. Zero: each connection asks again as soon as it has its answer.
	Rate float64 `json:"rate,omitempty"`
	// Connect makes every request on a new connection, which the backend closes
	// after the answer. Connections is then how many there are at a time; else
	// the ones opened before are used.
	Connect     bool `json:"connect,omitempty"`
	Connections int  `json:"connections,omitempty"`
	// Handshake ends each new connection after its TLS handshake: there are no
	// requests, and what is counted as such are handshakes.
	Handshake bool  `json:"handshake,omitempty"`
	Request   int   `json:"request"` // bytes, at least 24
	Answer    int64 `json:"answer"`  // bytes

	// What is for UDP alone. Segment is the largest datagram: longer requests
	// and answers are trains, each sent with UDP_SEGMENT, or Singly. Zero:
	// each is one datagram.
	Segment int  `json:"segment,omitempty"`
	Singly  bool `json:"singly,omitempty"`
	// Window is how many requests a closed loop has under way; 0: 64.
	Window int `json:"window,omitempty"`
	// Open, of a run at a Rate, lets a connection ask again while it waits for
	// answers: none is ever late.
	Open bool `json:"open,omitempty"`
	// A request with no answer after Timeout is lost; 0: a second.
	Timeout time.Duration `json:"timeout,omitempty"`
	// Sources makes it a flood: requests come from so many addresses in turn, at
	// Rate, and nobody looks at answers. Those sent are counted as Requests.
	Sources int `json:"sources,omitempty"`
}

// Result is what a run brought.
type Result struct {
	Requests   uint64        `json:"requests"` // answered in full, with the right bytes
	Handshakes uint64        `json:"handshakes,omitempty"`
	Resumed    uint64        `json:"resumed,omitempty"` // of these
	Bytes      uint64        `json:"bytes"`             // of answers
	Unsent     uint64        `json:"unsent,omitempty"`
	Lost       uint64        `json:"lost,omitempty"` // over UDP, never answered
	Errors     uint64        `json:"errors,omitempty"`
	FirstError string        `json:"first_error,omitempty"`
	Elapsed    time.Duration `json:"elapsed"` // until the last answer
	Latency    Histogram     `json:"latency"` // from due, or begun, to the last byte
}

func (r *Result) merge(o *Result) {
	r.Requests += o.Requests
	r.Handshakes += o.Handshakes
	r.Resumed += o.Resumed
	r.Bytes += o.Bytes
	r.Unsent += o.Unsent
	r.Lost += o.Lost
	r.Errors += o.Errors
	if r.FirstError == "" {
		r.FirstError = o.FirstError
	}
	r.Elapsed = max(r.Elapsed, o.Elapsed)
	r.Latency.Merge(&o.Latency)
}

const (
	// Connections opened but not yet answered: below every peer's accept queue.
	openWindow = 128
	// A run with no answer for this long has failed.
	stalled = 10 * time.Second
	// After the last due time of a paced run, late requests are still begun for
	// this long; the rest is counted as unsent.
	lateness = time.Second
	// More errors than this end a run.
	tooManyErrors = 100
)

// clientConn is one connection of a client.
//
//	idle ──► connecting or handshaking ──► asking ──► ending ──► idle
//	  └────────────────(kept)────────────────┘ ▲└─────(kept)─────► idle
type clientConn struct {
	fd     int32 // -1: not open
	state  connState
	reads  uint8 // of this answer, modulo 256
	fresh  bool  // this is its first request
	offset uint32
	got    int64         // bytes of the answer
	began  time.Duration // since client.epoch
	tls    *session      // nil: it speaks none
}

type connState uint8

const (
	connIdle        connState = iota
	connConnecting            // the request waits for the connection
	connHandshaking           // … for the connection and its TLS handshake
	connAsking                // the answer is awaited
	connEnding                // the answer is here, the end of the stream is not
)

// client is one thread that makes requests.
type client struct {
	*poller
	targets []unix.RawSockaddrInet4 // connected to in turn
	next    int
	conns   []clientConn
	free    []int32 // idle connections of a paced run, a ring
	head    int
	busy    int
	buf     []byte
	out     []byte
	epoch   time.Time
	offset  uint32 // of the next answer in the pattern
	run     Run
	result  *Result
	last    time.Duration // when the last answer arrived

	speech  Speech
	tls     *tls.Config
	current *session // whose handshake runs
	sealed  []byte   // records to send
	raw     []byte   // records received
}

func newClient(targets []netip.AddrPort, speech Speech) (*client, error) {
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	c := &client{poller: p, speech: speech, buf: make([]byte, chunk), epoch: time.Now()}
	for _, t := range targets {
		sa, err := rawAddress(t)
		if err != nil {
			return nil, err
		}
		c.targets = append(c.targets, sa)
	}
	if speech.encrypted() {
		if err := c.prepareTLS(targets[0]); err != nil {
			p.close()
			return nil, err
		}
	}
	return c, nil
}

func (c *client) now() time.Duration { return time.Since(c.epoch) }

// open adds n kept connections; each has had a request answered when it returns.
func (c *client) open(n int, request int, answer int64) error {
	c.result = &Result{}
	c.run = Run{Request: request, Answer: answer}
	want := len(c.conns) + n
	c.last = c.now()
	for c.busy > 0 || len(c.conns) < want {
		for c.busy < openWindow && len(c.conns) < want {
			c.conns = append(c.conns, clientConn{fd: -1})
			c.begin(int32(len(c.conns)-1), c.now())
		}
		if err := c.turn(time.Second, nil); err != nil {
			return err
		}
		if c.result.Errors > 0 {
			return errors.New(c.result.FirstError)
		}
	}
	return nil
}

// do makes one run. Only a broken client is an error; what the proxy did wrong
// is counted in the result.
func (c *client) do(r Run) (*Result, error) {
	c.run, c.result = r, &Result{}
	if r.Connect {
		c.conns = make([]clientConn, r.Connections)
		for i := range c.conns {
			c.conns[i].fd = -1
		}
	}
	began := c.now()
	c.last = began
	deadline := began + r.Duration
	var err error
	if r.Rate > 0 {
		err = c.paced(began, deadline)
	} else {
		err = c.closedLoop(deadline)
	}
	c.result.Elapsed = c.last - began
	return c.result, err
}

func (c *client) closedLoop(deadline time.Duration) error {
	for slot := range c.conns {
		c.begin(int32(slot), c.now())
	}
	again := func(slot int32, now time.Duration) {
		if now < deadline && c.result.Errors <= tooManyErrors {
			c.begin(slot, now)
		}
	}
	for c.busy > 0 {
		if err := c.turn(time.Second, again); err != nil {
			return err
		}
	}
	return nil
}

func (c *client) paced(began, deadline time.Duration) error {
	c.free, c.head = c.free[:0], 0
	for slot := range c.conns {
		c.free = append(c.free, int32(slot))
	}
	release := func(slot int32, _ time.Duration) { c.free = append(c.free, slot) }
	total := uint64(c.run.Rate * c.run.Duration.Seconds())
	due := func(k uint64) time.Duration {
		return began + time.Duration(float64(k)/c.run.Rate*float64(time.Second))
	}
	sent := uint64(0)
	for sent < total || c.busy > 0 {
		now := c.now()
		if now > deadline+lateness || c.result.Errors > tooManyErrors {
			c.result.Unsent += total - sent
			total = sent
		}
		timeout := time.Second
		for sent < total && c.head < len(c.free) {
			if wait := due(sent) - now; wait > 0 {
				timeout = wait
				break
			}
			slot := c.free[c.head]
			c.head++
			c.begin(slot, due(sent))
			sent++
			if sent%16 == 0 {
				timeout = 0
				break // look for answers in between
			}
		}
		if c.head > len(c.free)/2 && c.head > 1024 {
			c.free = c.free[:copy(c.free, c.free[c.head:])]
			c.head = 0
		}
		if err := c.turn(timeout, release); err != nil {
			return err
		}
	}
	return nil
}

// turn handles what is ready; done is told of each connection that can be used
// again.
func (c *client) turn(timeout time.Duration, done func(slot int32, now time.Duration)) error {
	events, err := c.wait(timeout)
	if err != nil {
		return err
	}
	for _, ev := range events {
		if c.ready(ev.Fd, ev.Events) && done != nil {
			done(ev.Fd, c.last)
		}
	}
	if len(events) == 0 && c.busy > 0 && c.now()-c.last > stalled {
		c.fail(fmt.Errorf("no answer for %v on %d connections", stalled, c.busy))
		for slot := range c.conns {
			if c.conns[slot].state != connIdle {
				c.drop(int32(slot))
			}
		}
	}
	return nil
}

func (c *client) fail(err error) {
	c.result.Errors++
	if c.result.FirstError == "" {
		c.result.FirstError = err.Error()
	}
}

// drop closes a connection and leaves it idle.
func (c *client) drop(slot int32) {
	conn := &c.conns[slot]
	if conn.tls != nil {
		conn.tls.stop()
		conn.tls = nil
	}
	if conn.fd >= 0 {
		closeSocket(conn.fd)
		conn.fd = -1
	}
	if conn.state != connIdle {
		conn.state = connIdle
		c.busy--
	}
}

// begin makes one request on the connection, opening it if need be.
func (c *client) begin(slot int32, at time.Duration) {
	conn := &c.conns[slot]
	c.offset = (c.offset + 12345) % patternPeriod
	conn.offset, conn.got, conn.reads, conn.began = c.offset, 0, 0, at
	conn.state, conn.fresh = connAsking, conn.fd < 0
	c.busy++
	if conn.fd >= 0 {
		if e := c.ask(conn); e != 0 {
			c.fail(fmt.Errorf("sending a request: %w", e))
			c.drop(slot)
		}
		return
	}
	fd, e := socket()
	if e != 0 {
		c.fail(fmt.Errorf("socket: %w", e))
		c.drop(slot)
		return
	}
	conn.fd = fd
	noDelay(fd)
	target := &c.targets[c.next]
	c.next = (c.next + 1) % len(c.targets)
	if e := connect(fd, target); e != 0 && e != syscall.EINPROGRESS {
		c.fail(fmt.Errorf("connect: %w", e))
		c.drop(slot)
		return
	}
	if c.speech.encrypted() {
		conn.state, conn.tls = connHandshaking, c.startSession(fd)
		if err := c.add(fd, unix.EPOLLIN|unix.EPOLLOUT, slot); err != nil {
			c.fail(err)
			c.drop(slot)
		}
		return // the first event is the socket's being ready to send
	}
	// On loopback TCP's handshake is over when connect returns, and the request
	// can go at once.
	interest := uint32(unix.EPOLLIN)
	switch e := c.ask(conn); e {
	case 0:
	case syscall.EAGAIN:
		conn.state = connConnecting
		interest |= unix.EPOLLOUT
	default:
		c.fail(fmt.Errorf("connecting: %w", e))
		c.drop(slot)
		return
	}
	if err := c.add(fd, interest, slot); err != nil {
		c.fail(err)
		c.drop(slot)
	}
}

func (c *client) ask(conn *clientConn) syscall.Errno {
	h := header{size: uint32(c.run.Request), answer: uint64(c.run.Answer), offset: conn.offset, close: c.run.Connect}
	if conn.fresh && c.speech == Hello {
		c.out = appendHello(c.out[:0], h)
	} else {
		c.out = appendRequest(c.out[:0], h)
	}
	out := c.out
	if conn.tls != nil {
		out = c.seal(conn.tls, out)
	}
	n, e := write(conn.fd, out)
	if e == 0 && n != len(out) {
		return syscall.EMSGSIZE // a request is far smaller than any send buffer
	}
	return e
}

// ready handles one event. It reports whether the connection became idle.
func (c *client) ready(slot int32, events uint32) bool {
	conn := &c.conns[slot]
	if conn.state == connConnecting && events&unix.EPOLLOUT != 0 {
		if e := c.ask(conn); e != 0 {
			c.fail(fmt.Errorf("connecting: %w", e))
			c.drop(slot)
			return true
		}
		conn.state = connAsking
		if err := c.modify(conn.fd, unix.EPOLLIN, slot); err != nil {
			c.fail(err)
			c.drop(slot)
			return true
		}
		if events&unix.EPOLLIN == 0 {
			return false
		}
	}
	if conn.fd < 0 {
		return false // dropped earlier in this batch
	}
	if conn.state == connHandshaking {
		return c.shake(slot)
	}
	var n int
	var e syscall.Errno
	compared := conn.reads%16 == 0 || c.run.Answer <= chunk
	switch {
	case conn.tls != nil:
		var err error
		if n, e, err = c.receive(conn.tls); err != nil {
			c.fail(err)
			c.drop(slot)
			return c.run.Connect
		}
	case compared:
		n, e = read(conn.fd, c.buf)
	default:
		n, e = discard(conn.fd, chunk)
	}
	if e == syscall.EAGAIN {
		return false
	}
	if conn.state == connIdle {
		// An idle connection that ends or speaks: a proxy closed it too early.
		c.fail(fmt.Errorf("idle connection: %d bytes, %v", n, errnoOrEnd(e, n)))
		c.drop(slot)
		return false
	}
	switch {
	case e == 0 && n == 0 && conn.state == connEnding:
		if conn.tls != nil && conn.tls.closed {
			c.farewell(conn.tls)
		}
		c.drop(slot)
		return true
	case e != 0 || n == 0:
		c.fail(fmt.Errorf("after %d of %d bytes: %v", conn.got, c.run.Answer, errnoOrEnd(e, n)))
	case conn.got+int64(n) > c.run.Answer:
		c.fail(fmt.Errorf("an answer is longer than %d bytes", c.run.Answer))
	case compared && !bytes.Equal(c.buf[:n], patternAt(conn.offset, conn.got)[:n]):
		c.fail(fmt.Errorf("an answer has wrong bytes between %d and %d", conn.got, conn.got+int64(n)))
	default:
		conn.got += int64(n)
		conn.reads++
		if conn.got < c.run.Answer {
			return false
		}
		c.last = c.now()
		c.result.Latency.Record(c.last - conn.began)
		c.result.Requests++
		c.result.Bytes += uint64(c.run.Answer)
		if c.run.Connect {
			conn.state = connEnding
			// close_notify may have come with the answer.
			return conn.tls != nil && conn.tls.closed && c.ready(slot, 0)
		}
		conn.state = connIdle
		c.busy--
		return true
	}
	c.drop(slot)
	return c.run.Connect
}

// shake goes on with a TLS handshake, and asks when it is over. It reports
// whether the connection became idle.
func (c *client) shake(slot int32) bool {
	conn := &c.conns[slot]
	s := conn.tls
	done := c.advance(s)
	if s.err != nil {
		c.fail(fmt.Errorf("TLS handshake: %w", s.err))
		c.drop(slot)
		return true
	}
	if done {
		c.result.Handshakes++
		if s.resumed {
			c.result.Resumed++
		}
		if c.run.Handshake {
			c.last = c.now()
			c.result.Latency.Record(c.last - conn.began)
			c.result.Requests++
			c.drop(slot)
			return true
		}
		conn.state = connAsking
		if e := c.ask(conn); e != 0 {
			c.fail(fmt.Errorf("sending a request: %w", e))
			c.drop(slot)
			return true
		}
	}
	if s.polled != s.wantWrite {
		s.polled = s.wantWrite
		interest := uint32(unix.EPOLLIN)
		if s.wantWrite {
			interest |= unix.EPOLLOUT
		}
		if err := c.modify(conn.fd, interest, slot); err != nil {
			c.fail(err)
			c.drop(slot)
			return true
		}
	}
	return false
}

func errnoOrEnd(e syscall.Errno, n int) error {
	switch {
	case e != 0:
		return e
	case n == 0:
		return errors.New("the connection ended")
	}
	return errors.New("unexpected bytes")
}
