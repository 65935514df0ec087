package traffic

import (
	"encoding/binary"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batchSize = 64
	// Room for IP_PKTINFO and UDP_SEGMENT or UDP_GRO, aligned as control
	// messages are.
	controlSize = 64
	controlHead = unix.SizeofCmsghdr
	// Buffers lie a little more than 64 KB apart: at a power of two their first
	// bytes would share a few cache lines.
	bufferStride = 64<<10 + 192
	// Asked for on every socket; the kernel cuts it to its limits.
	socketBuffer = 4 << 20
)

// mmsghdr is struct mmsghdr of Linux.
type mmsghdr struct {
	unix.Msghdr
	n uint32
}

// batch is the messages of one system call.
type batch struct {
	msgs     [batchSize]mmsghdr
	iovs     [batchSize]unix.Iovec
	names    [batchSize]unix.RawSockaddrInet4
	controls [batchSize][controlSize]byte
	n        int
}

func (b *batch) init() {
	for i := range b.msgs {
		m := &b.msgs[i]
		m.Name = (*byte)(unsafe.Pointer(&b.names[i]))
		m.Namelen = unix.SizeofSockaddrInet4
		m.Iov = &b.iovs[i]
		m.SetIovlen(1)
		m.Control = &b.controls[i][0]
		m.SetControllen(controlSize)
	}
}

// inbox receives.
type inbox struct {
	batch
	buf []byte
}

func newInbox() *inbox {
	b := &inbox{buf: make([]byte, batchSize*bufferStride)}
	b.init()
	for i := range b.iovs {
		b.iovs[i].Base = &b.buf[i*bufferStride]
		b.iovs[i].SetLen(64 << 10)
	}
	return b
}

// receive takes what has arrived, up to a batch.
func (b *inbox) receive(fd int32) syscall.Errno {
	for i := range b.n {
		b.msgs[i].Namelen = unix.SizeofSockaddrInet4
		b.msgs[i].SetControllen(controlSize)
	}
	n, _, e := syscall.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs)), batchSize, 0, 0, 0)
	if b.n = int(n); e != 0 {
		b.n = 0
	}
	return e
}

// message is the i-th of those received: who sent it to which of our addresses,
// and of what size the datagrams are that it was made of.
func (b *inbox) message(i int) (from *unix.RawSockaddrInet4, to [4]byte, data []byte, segment int) {
	m := &b.msgs[i]
	data = b.buf[i*bufferStride:][:m.n]
	segment = len(data)
	control := b.controls[i][:m.Controllen]
	for len(control) >= controlHead {
		size := int(binary.NativeEndian.Uint64(control))
		if size < controlHead || size > len(control) {
			break
		}
		body := control[controlHead:size]
		switch [2]uint32{binary.NativeEndian.Uint32(control[8:]), binary.NativeEndian.Uint32(control[12:])} {
		case [2]uint32{unix.IPPROTO_IP, unix.IP_PKTINFO}:
			to = [4]byte(body[8:]) // ipi_addr
		case [2]uint32{unix.IPPROTO_UDP, unix.UDP_GRO}:
			segment = int(binary.NativeEndian.Uint32(body))
		}
		control = control[min(unix.CmsgSpace(size-controlHead), len(control)):]
	}
	return &b.names[i], to, data, segment
}

// outbox gathers what is to be sent.
type outbox struct {
	batch
	fd   int32
	buf  []byte
	used int
}

func newOutbox(fd int32) *outbox {
	b := &outbox{fd: fd, buf: make([]byte, 8*maxTrainSize)}
	b.init()
	return b
}

// train adds the datagrams of a request or an answer, which d describes, each of
// size bytes: in one message if segmented.
func (b *outbox) train(to *unix.RawSockaddrInet4, from [4]byte, d datagram, size int, segmented bool) error {
	total := int(d.count) * size
	messages, each, segment := int(d.count), size, 0
	if segmented && d.count > 1 {
		messages, each, segment = 1, total, size
	}
	if b.n+messages > batchSize || b.used+total > len(b.buf) {
		if err := b.flush(); err != nil {
			return err
		}
	}
	data := b.buf[b.used:][:total]
	b.used += total
	for i := range d.count {
		d.index = i
		d.put(data[int(i)*size:][:size])
	}
	for i := range messages {
		b.add(to, from, data[i*each:][:each], segment)
	}
	return nil
}

// add makes a message of data. An address of zero leaves the choice of its
// source to the kernel.
func (b *outbox) add(to *unix.RawSockaddrInet4, from [4]byte, data []byte, segment int) {
	i := b.n
	b.n++
	b.names[i] = *to
	b.iovs[i].Base = &data[0]
	b.iovs[i].SetLen(len(data))
	control := b.controls[i][:0]
	if from != ([4]byte{}) {
		control = appendControl(control, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
		copy(control[len(control)-unix.CmsgSpace(unix.SizeofInet4Pktinfo)+controlHead+4:], from[:]) // ipi_spec_dst
	}
	if segment > 0 {
		control = appendControl(control, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 2)
		binary.NativeEndian.PutUint16(control[len(control)-unix.CmsgSpace(2)+controlHead:], uint16(segment))
	}
	b.msgs[i].SetControllen(len(control))
}

// appendControl appends a control message of size zero bytes.
func appendControl(b []byte, level, typ uint32, size int) []byte {
	b = binary.NativeEndian.AppendUint64(b, uint64(unix.CmsgLen(size)))
	b = binary.NativeEndian.AppendUint32(b, level)
	b = binary.NativeEndian.AppendUint32(b, typ)
	body := len(b)
	b = b[:body+unix.CmsgSpace(size)-controlHead]
	clear(b[body:])
	return b
}

// flush sends what is gathered. On loopback it is with its receiver, or lost,
// when the call returns, so that there is always room for more.
func (b *outbox) flush() error {
	for sent := 0; sent < b.n; {
		n, _, e := syscall.RawSyscall6(unix.SYS_SENDMMSG, uintptr(b.fd), uintptr(unsafe.Pointer(&b.msgs[sent])), uintptr(b.n-sent), 0, 0, 0)
		if e != 0 {
			b.n, b.used = 0, 0
			return fmt.Errorf("sendmmsg: %w", e)
		}
		sent += int(n)
	}
	b.n, b.used = 0, 0
	return nil
}

// datagramSocket is a socket that receives trains as they come and tells to
// which address.
func datagramSocket(at *unix.SockaddrInet4) (int32, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	for _, o := range []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1},
		{unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer},
		{unix.SOL_SOCKET, unix.SO_SNDBUF, socketBuffer},
		{unix.IPPROTO_IP, unix.IP_PKTINFO, 1},
		{unix.IPPROTO_UDP, unix.UDP_GRO, 1},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("setsockopt of a UDP socket: %w (the benchmark needs Linux 5.11 or later)", err)
		}
	}
	if err := unix.Bind(fd, at); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("binding a UDP socket to %v:%d: %w", at.Addr, at.Port, err)
	}
	return int32(fd), nil
}
