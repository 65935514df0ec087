package udp

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// slotSize holds the longest datagram, and the longest train that UDP_GRO makes.
	slotSize = 64 << 10
	// slotGap, an odd number of cache lines, keeps slots from beginning in the
	// same set of a cache: with 64 KiB alone all would compete for 8 lines of it.
	slotGap = 5 * 64
)

// Message is what was received: one datagram, or a train of them.
type Message struct {
	// Data is one datagram, perhaps an empty one; or, with Segment > 0, several
	// of so many bytes each, of which the last may be shorter (UDP_GRO).
	Data    []byte
	Segment int
	From    Addr
	Local   Local
	TOS     uint8 // DSCP and ECN: RFC 2474, RFC 3168
	// ToMany: it was sent to a broadcast or multicast address, as far as the
	// socket tells; each socket of a SO_REUSEPORT group gets it.
	ToMany bool
	// Truncated: the kernel had to leave something out (MSG_TRUNC, MSG_CTRUNC).
	// Data is not what was sent, or not known to be one datagram: it must not
	// be forwarded.
	Truncated bool
}

// Count is the number of datagrams in it.
func (m *Message) Count() int { return count(len(m.Data), m.Segment) }

// count is how many datagrams size bytes are, in segments; segment 0: one.
func count(size, segment int) int {
	if segment <= 0 || size <= segment {
		return 1
	}
	return (size + segment - 1) / segment
}

// Receiver has the slots that datagrams are received into. Slots that were
// never used cost address space only, unless the system is set to back all of
// it with huge pages.
type Receiver struct {
	messages []Message
	buffers  []*byte
	control  []receiveControl
	// Headers for recvmmsg, one per slot, ready for the kernel; what it changes
	// is put right after each call. Those for connected sockets ask for no
	// address, which the kernel would write although it is known.
	unconnected, connected []mmsghdr
	iovecs                 []unix.Iovec
	mapped                 []byte
	slotSize               int
	used                   int

	dropped  uint32
	overflow bool
}

// NewReceiver has room for so many messages at a time.
func NewReceiver(slots int) (*Receiver, error) { return newReceiver(slots, slotSize) }

func newReceiver(slots, size int) (*Receiver, error) {
	if slots < 1 {
		return nil, errors.New("udp: a receiver needs one slot at least")
	}
	stride := size + slotGap
	mapped, err := unix.Mmap(-1, 0, slots*stride, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("mapping %d bytes to receive datagrams: %w", slots*stride, err)
	}
	r := &Receiver{
		messages:    make([]Message, slots),
		buffers:     make([]*byte, slots),
		control:     make([]receiveControl, slots),
		unconnected: make([]mmsghdr, slots),
		connected:   make([]mmsghdr, slots),
		iovecs:      make([]unix.Iovec, slots),
		mapped:      mapped,
		slotSize:    size,
	}
	for i := range slots {
		r.buffers[i] = &mapped[i*stride]
		r.iovecs[i].Base = r.buffers[i]
		r.iovecs[i].SetLen(size)
		h := &r.connected[i]
		h.Iov = &r.iovecs[i]
		h.SetIovlen(1)
		h.Control = (*byte)(unsafe.Pointer(&r.control[i]))
		h.SetControllen(int(unsafe.Sizeof(r.control[i])))
		r.unconnected[i] = *h
		r.unconnected[i].Name = &r.messages[i].From[0]
		r.unconnected[i].Namelen = unix.SizeofSockaddrInet6
	}
	return r, nil
}

// Close gives the memory back; no message is valid any more.
func (r *Receiver) Close() error {
	mapped := r.mapped
	*r = Receiver{}
	return unix.Munmap(mapped)
}

// Free is the number of slots that are not in use.
func (r *Receiver) Free() int { return len(r.messages) - r.used }

// Release makes all slots free again: messages received before are not valid
// any more.
func (r *Receiver) Release() { r.used = 0 }

// Receive takes up to most messages, and no more than there are free slots,
// from an unconnected socket; each has From, TOS, and Local if the socket is
// one that [Listen] bound to a wildcard address. They are valid until Release.
// Fewer than most means that the queue was empty: an edge-triggered caller may
// wait for the next event. An empty queue is no error.
func (r *Receiver) Receive(fd int, most int) ([]Message, unix.Errno) {
	return r.receive(fd, most, false)
}

// ReceiveConnected is Receive for a connected socket: there is no From and no
// Local, and TOS only after [Tune]. An ICMP error that came for the socket
// (ECONNREFUSED, EHOSTUNREACH, EMSGSIZE, …) is returned once, in place of
// messages; the call after it goes on as if nothing had been.
//
// With most = 1 the kernel looks at the queue once, with more it looks once
// again behind the last message.
func (r *Receiver) ReceiveConnected(fd int, most int) ([]Message, unix.Errno) {
	return r.receive(fd, most, true)
}

func (r *Receiver) receive(fd int, most int, connected bool) ([]Message, unix.Errno) {
	first, last := r.used, min(r.used+most, len(r.messages))
	r.overflow = false
	if first >= last {
		return nil, 0
	}
	hdrs := r.unconnected[first:last]
	if connected {
		hdrs = r.connected[first:last]
	}
	n, errno := recvmmsg(fd, hdrs)
	for errno == unix.EINTR {
		n, errno = recvmmsg(fd, hdrs)
	}
	if errno != 0 {
		if errno == unix.EAGAIN {
			errno = 0
		}
		return nil, errno
	}
	messages := r.messages[first : first+n]
	for i := range messages {
		r.read(&messages[i], &hdrs[i], first+i, connected)
	}
	r.used += n
	return messages, 0
}

// read makes the message of a slot from what the kernel wrote, and puts the
// header right for the next call.
func (r *Receiver) read(m *Message, h *mmsghdr, slot int, connected bool) {
	m.Data = unsafe.Slice(r.buffers[slot], r.slotSize)[:h.n:h.n]
	m.Truncated = h.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0
	h.Flags = 0
	if connected {
		m.From = Addr{}
	} else {
		clear(m.From[min(h.Namelen, unix.SizeofSockaddrInet6):]) // a former message's may have been longer
		h.Namelen = unix.SizeofSockaddrInet6
	}
	if h.Controllen == 0 {
		m.Local, m.Segment, m.TOS, m.ToMany = Local{}, 0, 0, false
	} else {
		var t told
		r.control[slot].parse(int(h.Controllen), &t)
		m.Local, m.Segment, m.TOS, m.ToMany = t.local, t.segment, t.tos, t.many
		if m.Segment >= len(m.Data) {
			m.Segment = 0
		}
		if t.overflow {
			r.dropped, r.overflow = t.dropped, true
		}
	}
	h.SetControllen(int(unsafe.Sizeof(receiveControl{})))
}

// Dropped is how many datagrams the kernel had dropped for want of room in the
// socket's queue, since the socket was made, when the last message of the last
// Receive was queued (SO_RXQ_OVFL). Counts belong to a socket and wrap; the
// caller takes differences. Not ok: the last Receive brought no count, which
// stays so until the first drop.
func (r *Receiver) Dropped() (dropped uint32, ok bool) { return r.dropped, r.overflow }
