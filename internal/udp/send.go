package udp

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxSegments in one UDP_SEGMENT send: UDP_MAX_SEGMENTS of Linux before
	// 6.9, and as many as UDP_GRO puts together again.
	maxSegments = 64
	// maxTrain is the payload of one send in bytes, for both versions of IP:
	// 65 535 less the headers of IPv6 and UDP.
	maxTrain = 65535 - headersIPv6
	// maxBatch is less than UIO_MAXIOV (1024), the messages of one sendmmsg, by
	// the datagrams of one train.
	maxBatch = 512
)

// Packet is to be sent: one datagram, or a train of them.
type Packet struct {
	Data    []byte // as in [Message]
	Segment int    // as in [Message]
	// Header is put before every single datagram (PROXY protocol).
	Header []byte
	To     *Addr  // nil: the peer of a connected socket
	Local  *Local // the source address; nil or zero: the kernel's choice
	TOS    uint8  // DSCP and ECN; 0: the socket's own
}

// Sender collects packets and sends them in as few system calls as possible.
type Sender struct {
	size   int
	runs   []run
	iovecs []unix.Iovec // of all runs, in order

	// Scratch of Flush: one header, and perhaps control messages, for each
	// part of the runs that goes into the next sendmmsg, and iovecs for runs
	// that go one by one.
	hdrs    []mmsghdr
	parts   []part
	control []sendControl
	pieces  []unix.Iovec
}

// run is one or more datagrams that may leave in one UDP_SEGMENT send: all have
// size bytes, headers included, but for the last, which may have fewer.
type run struct {
	to     *Addr
	local  *Local // nil: none
	tos    uint8
	closed bool // the last is shorter, or empty: nothing may follow
	split  bool // go one by one …
	// … because of this, to be remembered once one of them has gone well.
	refused unix.Errno
	header  int // bytes of header in each datagram
	size    int
	wire    int // bytes of all, headers included
	count   int // datagrams
	iovec   int // the first
	iovecs  int
}

// part is what one header of sendmmsg sends of a run.
type part struct {
	run    int
	before int // datagrams of the run ahead of it
	count  int // datagrams
	wire   int // bytes, headers included
}

// NewSender collects up to about size sends between two flushes; each may be a
// train.
func NewSender(size int) *Sender {
	batch := min(max(size, 1), maxBatch)
	room := batch + maxSegments // a batch ends behind a whole run
	return &Sender{
		size:    batch,
		runs:    make([]run, 0, batch),
		iovecs:  make([]unix.Iovec, 0, 4*batch),
		hdrs:    make([]mmsghdr, room),
		parts:   make([]part, 0, room),
		control: make([]sendControl, room),
		pieces:  make([]unix.Iovec, 0, 2*room),
	}
}

// Full reports that it is time to flush. A packet that is added all the same
// makes the Sender grow.
func (s *Sender) Full() bool { return len(s.runs) >= s.size }

// Add takes a packet. What it points to — Data, Header, To and Local — must
// stay as it is until the packet has been flushed or dropped.
//
// It is merged with the packet before it into one send where peer, source and
// TOS are the same and the sizes allow it.
func (s *Sender) Add(p *Packet) {
	local := p.Local
	if local != nil && *local == (Local{}) {
		local = nil
	}
	data := p.Data
	for {
		segment := len(data)
		n, size := 1, len(p.Header)+segment
		if p.Segment > 0 && p.Segment < segment {
			segment = p.Segment
			size = len(p.Header) + segment
			n = min(count(len(data), segment), maxSegments, max(maxTrain/size, 1))
		}
		now := data[:min(n*segment, len(data))]
		s.add(p, local, now, segment, n, size)
		if data = data[len(now):]; len(data) == 0 {
			return
		}
	}
}

// add appends n datagrams that fit in one send: to the last run if they may
// leave with it.
func (s *Sender) add(p *Packet, local *Local, data []byte, segment, n, size int) {
	wire := n*len(p.Header) + len(data)
	var r *run
	if last := len(s.runs) - 1; last >= 0 && s.runs[last].takes(p, local, n, size, wire) {
		r = &s.runs[last]
	} else {
		s.runs = append(s.runs, run{to: p.To, local: local, tos: p.TOS, header: len(p.Header), size: size, iovec: len(s.iovecs)})
		r = &s.runs[len(s.runs)-1]
	}
	r.wire += wire
	r.count += n
	r.closed = wire < n*r.size || size == 0
	before := len(s.iovecs)
	if len(p.Header) == 0 {
		segment = len(data)
	}
	for ; n > 0; n-- {
		s.gather(p.Header)
		piece := data[:min(segment, len(data))]
		s.gather(piece)
		if data = data[len(piece):]; len(p.Header) == 0 {
			break
		}
	}
	r.iovecs += len(s.iovecs) - before
}

// takes reports whether n datagrams, wire bytes in all and size in the first,
// may be appended.
func (r *run) takes(p *Packet, local *Local, n, size, wire int) bool {
	return !r.closed && r.count+n <= maxSegments && r.wire+wire <= maxTrain &&
		// A shorter one is the last; an empty one could not be seen in a train.
		(size == r.size || n == 1 && 0 < size && size < r.size) &&
		r.header == len(p.Header) && r.tos == p.TOS &&
		same(r.to, p.To) && same(r.local, local)
}

func same[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}

func (s *Sender) gather(b []byte) {
	if len(b) > 0 {
		v := unix.Iovec{Base: unsafe.SliceData(b)}
		v.SetLen(len(b))
		s.iovecs = append(s.iovecs, v)
	}
}

// Drop forgets what has not been sent, and says how much that was: datagrams,
// and bytes without headers.
func (s *Sender) Drop() (datagrams, bytes int) {
	for i := range s.runs {
		r := &s.runs[i]
		datagrams += r.count
		bytes += r.wire - r.count*r.header
	}
	s.reset()
	return datagrams, bytes
}

func (s *Sender) reset() {
	s.runs = s.runs[:0]
	s.iovecs = s.iovecs[:0]
}
