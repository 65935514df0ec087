package traffic

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// A request of UDP without an answer for this long is lost, unless the run
	// says otherwise.
	datagramTimeout = time.Second
	// How many requests are under way at a time where nothing says it.
	datagramWindow = 64
)

// pending is a request under way, or one that was.
type pending struct {
	began  time.Duration
	got    uint64 // datagrams of the answer
	source int32
	done   bool // answered, or given up
}

// datagramClient is one thread that makes requests over UDP. All of its clients
// share a socket: each datagram is sent from the address that IP_PKTINFO names,
// and answers tell to which address they came. So 10 000 clients cost what 64 do.
type datagramClient struct {
	*poller
	fd      int32
	target  unix.RawSockaddrInet4
	process uint16
	in      *inbox
	out     *outbox

	sources int     // clients: each has an address of its own out of 127.0.0.0/8
	free    []int32 // those with nothing under way, a ring: taken in turn
	head    int
	busy    int       // requests under way
	pending []pending // by when they were begun, a ring: those before oldest are done
	oldest  int
	first   uint32 // the number of pending[0]

	epoch  time.Time
	at     time.Duration // the moment of this turn
	last   time.Duration // when the last answer arrived
	run    Run
	shape  trainShape
	result *Result
}

// trainShape is how requests and answers are sent.
type trainShape struct {
	requests, request int // datagrams, and the size of each
	answers, answer   int
}

func newDatagramClient(target netip.AddrPort) (*datagramClient, error) {
	sa, err := rawAddress(target)
	if err != nil {
		return nil, err
	}
	fd, err := datagramSocket(&unix.SockaddrInet4{})
	if err != nil {
		return nil, err
	}
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	c := &datagramClient{
		poller: p, fd: fd, target: sa, process: uint16(rand.Uint32()),
		in: newInbox(), out: newOutbox(fd), epoch: time.Now(),
	}
	return c, p.add(fd, unix.EPOLLIN, 0)
}

func (c *datagramClient) close() {
	closeSocket(c.fd)
	c.poller.close()
}

func (c *datagramClient) now() time.Duration { return time.Since(c.epoch) }

// Clients, and the sources of a flood, have these addresses and those after them.
const (
	firstSource = 127<<24 | 64<<16
	firstFlood  = 127<<24 | 128<<16
)

func addressAt(first, i uint32) [4]byte {
	a := first + i
	return [4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)}
}

// open adds n clients, each of which has had a request answered when it returns.
func (c *datagramClient) open(n int, request int, answer int64) error {
	c.sources += n
	err := c.prepare(Run{Request: request, Answer: answer}, c.sources-n)
	if err == nil {
		err = c.closedLoop(n, 0)
	}
	if err == nil && c.result.Requests != uint64(n) {
		err = fmt.Errorf("%d of %d clients got no answer %s", n-int(c.result.Requests), n, c.result.FirstError)
	}
	return err
}

// do makes one run.
func (c *datagramClient) do(r Run) (*Result, error) {
	if err := c.prepare(r, 0); err != nil {
		return nil, err
	}
	began := c.now()
	c.at, c.last = began, began
	var err error
	switch {
	case r.Sources > 0:
		err = c.flood(began)
	case r.Rate > 0:
		err = c.paced(began)
	case r.Duration > 0:
		err = c.closedLoop(-1, began+r.Duration)
	default:
		err = c.closedLoop(c.sources, 0)
	}
	if r.Rate > 0 && c.result.Lost > 0 {
		c.last = max(c.last, began+r.Duration) // whatever the last answer was
	}
	c.result.Elapsed = c.last - began
	return c.result, err
}

// prepare makes ready for a run of the clients from the from-th.
func (c *datagramClient) prepare(r Run, from int) (err error) {
	c.free, c.head = c.free[:0], 0
	for i := from; i < c.sources; i++ {
		c.free = append(c.free, int32(i))
	}
	if r.Timeout == 0 {
		r.Timeout = datagramTimeout
	}
	if r.Window == 0 {
		r.Window = datagramWindow
	}
	c.run, c.result = r, &Result{}
	c.first += uint32(len(c.pending))
	c.pending, c.oldest = c.pending[:0], 0
	s := &c.shape
	if s.requests, s.request, err = trainOf(int64(r.Request), r.Segment); err == nil {
		s.answers, s.answer, err = trainOf(r.Answer, r.Segment)
	}
	return err
}

// closedLoop makes n requests, or as many as it can until the deadline, a window
// of them at a time.
func (c *datagramClient) closedLoop(n int, deadline time.Duration) error {
	c.at = c.now()
	for {
		for n != 0 && c.busy < c.run.Window && c.head < len(c.free) {
			if n < 0 && (c.at >= deadline || c.result.Errors > tooManyErrors) {
				n = 0
				break
			}
			if err := c.begin(c.at); err != nil {
				return err
			}
			n = max(n-1, -1)
		}
		if c.busy == 0 {
			return nil
		}
		if err := c.turn(c.run.Timeout); err != nil {
			return err
		}
	}
}

// paced begins requests at the run's rate, evenly spaced.
func (c *datagramClient) paced(began time.Duration) error {
	total := uint64(c.run.Rate * c.run.Duration.Seconds())
	interval := float64(time.Second) / c.run.Rate
	for sent := uint64(0); sent < total || c.busy > 0; {
		c.at = c.now()
		if c.at > began+c.run.Duration+lateness || c.result.Errors > tooManyErrors {
			c.result.Unsent += total - sent
			total = sent
		}
		timeout := c.run.Timeout
		for sent < total && c.head < len(c.free) {
			due := began + time.Duration(float64(sent)*interval)
			if due > c.at {
				timeout = min(timeout, due-c.at)
				break
			}
			if err := c.begin(due); err != nil {
				return err
			}
			if sent++; sent%16 == 0 {
				timeout = 0
				break // look for answers in between
			}
		}
		if err := c.turn(timeout); err != nil {
			return err
		}
	}
	return nil
}

// flood sends requests at the run's rate from one source after the other, and
// looks at no answer.
func (c *datagramClient) flood(began time.Duration) error {
	if err := c.modify(c.fd, 0, 0); err != nil {
		return err
	}
	total := uint64(c.run.Rate * c.run.Duration.Seconds())
	interval := float64(time.Second) / c.run.Rate
	for sent := uint64(0); sent < total; {
		due := began + time.Duration(float64(sent)*interval)
		if c.last = c.now(); due > c.last {
			if err := c.out.flush(); err != nil {
				return err
			}
			if _, err := c.wait(due - c.last); err != nil {
				return err
			}
			continue
		}
		i := uint32(sent % uint64(c.run.Sources))
		d := datagram{client: i, seq: uint32(sent), process: c.process, count: uint16(c.shape.requests), answers: uint16(c.shape.answers), answer: uint16(c.shape.answer)}
		if err := c.out.train(&c.target, addressAt(firstFlood, i), d, c.shape.request, true); err != nil {
			return err
		}
		sent++
		c.result.Requests++
	}
	return c.out.flush()
}

// begin makes a request from the source that has been free for longest.
func (c *datagramClient) begin(at time.Duration) error {
	i := c.free[c.head]
	if c.head++; c.head > len(c.free)/2 && c.head > 1024 {
		c.free = c.free[:copy(c.free, c.free[c.head:])]
		c.head = 0
	}
	if c.run.Open {
		c.free = append(c.free, i)
	}
	d := datagram{
		client: uint32(i), seq: c.first + uint32(len(c.pending)), process: c.process,
		count: uint16(c.shape.requests), answers: uint16(c.shape.answers), answer: uint16(c.shape.answer),
	}
	if c.run.Singly {
		d.flags |= flagPlain
	}
	c.busy++
	c.pending = append(c.pending, pending{began: at, source: i})
	return c.out.train(&c.target, addressAt(firstSource, uint32(i)), d, c.shape.request, !c.run.Singly)
}

// turn sends what has been begun, waits for answers, and gives up on those that
// are overdue.
func (c *datagramClient) turn(timeout time.Duration) error {
	if err := c.out.flush(); err != nil {
		return err
	}
	if len(c.pending) > c.oldest {
		due := c.pending[c.oldest].began + c.run.Timeout
		timeout = max(min(timeout, due-c.now()), 0)
	}
	events, err := c.wait(timeout)
	if err != nil {
		return err
	}
	if len(events) > 0 {
		e := c.in.receive(c.fd)
		if e != 0 && e != syscall.EAGAIN {
			return fmt.Errorf("recvmmsg: %w", e)
		}
		c.at = c.now()
		for i := range c.in.n {
			c.take(i)
		}
	}
	c.at = c.now()
	c.expire()
	return nil
}

// expire counts as lost what has had no answer in time. It is called when what
// had arrived has been looked at.
func (c *datagramClient) expire() {
	for c.oldest < len(c.pending) {
		p := &c.pending[c.oldest]
		if !p.done {
			if c.at-p.began < c.run.Timeout {
				break
			}
			c.result.Lost++
			c.release(p)
		}
		c.oldest++
	}
	if c.oldest > len(c.pending)/2 && c.oldest > 1024 {
		c.pending = c.pending[:copy(c.pending, c.pending[c.oldest:])]
		c.first += uint32(c.oldest)
		c.oldest = 0
	}
}

func (c *datagramClient) release(p *pending) {
	p.done = true
	c.busy--
	if !c.run.Open {
		c.free = append(c.free, p.source)
	}
}

// take looks at the i-th message received.
func (c *datagramClient) take(i int) {
	from, to, data, segment := c.in.message(i)
	for len(data) > 0 {
		one := data[:min(segment, len(data))]
		data = data[len(one):]
		if err := c.answer(from, to, one); err != nil {
			c.result.Errors++
			if c.result.FirstError == "" {
				c.result.FirstError = err.Error()
			}
		}
	}
}

func (c *datagramClient) answer(from *unix.RawSockaddrInet4, to [4]byte, data []byte) error {
	d, err := parseDatagram(data)
	switch {
	case err != nil:
		return err
	case from.Addr != c.target.Addr || from.Port != c.target.Port:
		return fmt.Errorf("an answer came from %v, port %d, not from where the request went to", from.Addr, from.Port>>8|from.Port<<8)
	case d.flags&flagAnswer == 0 || d.process != c.process || int(d.client) >= c.sources:
		return fmt.Errorf("an answer to nobody's request: %+v", d)
	case to != addressAt(firstSource, d.client):
		return fmt.Errorf("an answer for client %d came to %v", d.client, to)
	}
	nth := d.seq - c.first
	if nth >= uint32(len(c.pending)) || c.pending[nth].done {
		return nil // it was given up
	}
	p := &c.pending[nth]
	switch {
	case p.source != int32(d.client):
		return fmt.Errorf("request %d of client %d was answered to client %d", d.seq, p.source, d.client)
	case int(d.count) != c.shape.answers || len(data) != c.shape.answer:
		return fmt.Errorf("an answer of %d datagrams of %d bytes, not %d of %d", d.count, len(data), c.shape.answers, c.shape.answer)
	}
	if p.got |= 1 << d.index; p.got != whole(d.count) {
		return nil
	}
	c.last = c.at
	c.result.Requests++
	c.result.Bytes += uint64(max(int64(c.run.Request), c.run.Answer))
	c.result.Latency.Record(c.at - p.began)
	c.release(p)
	return nil
}
