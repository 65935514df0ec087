package traffic

import (
	"fmt"
	"log"
	"net/netip"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// served is one connection of the backend.
type served struct {
	fd      int32
	offset  uint32
	pos     int64  // of the answer, sent so far
	answer  int64  // bytes; 0: none is being sent
	close   bool   // after the answer
	queued  bool   // in backendLoop.again
	request []byte // what has arrived of a request that came in pieces
}

// backendLoop is one thread of the backend, with a listening socket of its own.
type backendLoop struct {
	*poller
	listening int32
	conns     []served
	free      []int32
	again     []int32 // connections whose answer goes on at the next turn
	turn      []int32 // those of this turn
	buf       []byte
}

const listenerSlot = -1

// Serve answers requests on address until the process ends, over TCP and UDP.
// 0.0.0.0 makes it answer on all of 127.0.0.0/8, which is how one process plays
// 10 000 servers.
func Serve(address netip.AddrPort, threads int) error {
	failed := make(chan error, 2*threads)
	for range threads {
		l, err := newBackendLoop(address)
		if err != nil {
			return err
		}
		go func() {
			runtime.LockOSThread()
			failed <- l.run()
		}()
		d, err := newDatagramBackend(address)
		if err != nil {
			return err
		}
		go func() {
			runtime.LockOSThread()
			failed <- d.run()
		}()
	}
	return <-failed
}

func newBackendLoop(address netip.AddrPort) (*backendLoop, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("backend: socket: %w", err)
	}
	for _, option := range []int{unix.SO_REUSEADDR, unix.SO_REUSEPORT} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1); err != nil {
			return nil, fmt.Errorf("backend: setsockopt: %w", err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()}); err != nil {
		return nil, fmt.Errorf("backend: binding %s: %w", address, err)
	}
	if err := unix.Listen(fd, 65535); err != nil { // the kernel cuts it to somaxconn
		return nil, fmt.Errorf("backend: listening on %s: %w", address, err)
	}
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	l := &backendLoop{poller: p, listening: int32(fd), buf: make([]byte, maxRequest+1)}
	return l, p.add(l.listening, unix.EPOLLIN, listenerSlot)
}

func (l *backendLoop) run() error {
	for {
		timeout := time.Duration(-1)
		if len(l.again) > 0 {
			timeout = 0
		}
		events, err := l.wait(timeout)
		if err != nil {
			return err
		}
		l.again, l.turn = l.turn[:0], l.again
		for _, ev := range events {
			if ev.Fd == listenerSlot {
				if err := l.acceptSome(); err != nil {
					return err
				}
				continue
			}
			l.ready(ev.Fd, ev.Events)
		}
		for _, slot := range l.turn {
			if c := &l.conns[slot]; c.queued {
				c.queued = false
				l.send(slot)
			}
		}
	}
}

func (l *backendLoop) acceptSome() error {
	for range 64 {
		fd, e := accept(l.listening)
		switch e {
		case 0:
		case syscall.EAGAIN:
			return nil
		case syscall.EINTR, syscall.ECONNABORTED:
			continue
		default:
			return fmt.Errorf("backend: accept: %w", e)
		}
		noDelay(fd)
		var slot int32
		if n := len(l.free); n > 0 {
			slot, l.free = l.free[n-1], l.free[:n-1]
		} else {
			slot = int32(len(l.conns))
			l.conns = append(l.conns, served{})
		}
		l.conns[slot] = served{fd: fd}
		// Edge-triggered both ways: one epoll_ctl in a connection's life.
		if err := l.add(fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET, slot); err != nil {
			return err
		}
	}
	return nil
}

func (l *backendLoop) drop(slot int32) {
	c := &l.conns[slot]
	closeSocket(c.fd)
	*c = served{fd: -1}
	l.free = append(l.free, slot)
}

func (l *backendLoop) ready(slot int32, events uint32) {
	c := &l.conns[slot]
	if c.fd < 0 {
		return // dropped earlier in this batch
	}
	if c.answer > 0 && events&unix.EPOLLOUT != 0 {
		l.send(slot)
		if c.fd < 0 {
			return
		}
	}
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) == 0 {
		return
	}
	n, e := read(c.fd, l.buf)
	switch {
	case e == syscall.EAGAIN:
		return
	case e != 0 || n == 0:
		l.drop(slot) // the client is done, or gone
		return
	}
	b := l.buf[:n]
	if len(c.request) > 0 {
		c.request = append(c.request, b...)
		b = c.request
	}
	h, whole, err := parseRequest(b)
	if err == nil && c.answer > 0 {
		err = fmt.Errorf("%d bytes arrived before the answer was sent", n)
	}
	if err != nil {
		log.Print("backend: ", err) // the client sees the connection end and counts an error
		l.drop(slot)
		return
	}
	if !whole {
		if len(c.request) == 0 {
			c.request = append(c.request, b...)
		}
		return
	}
	c.request = nil
	c.pos, c.answer, c.offset, c.close = 0, int64(h.answer), h.offset, h.close
	l.send(slot)
	// A short read has emptied the socket, but a FIN behind it comes with no
	// further edge if it was there already.
	if c.fd >= 0 && events&unix.EPOLLRDHUP != 0 {
		l.drop(slot)
	}
}

// send writes one chunk of the answer, so that streams take turns.
func (l *backendLoop) send(slot int32) {
	c := &l.conns[slot]
	if c.answer > c.pos {
		n, e := write(c.fd, patternAt(c.offset, c.pos)[:min(chunk, c.answer-c.pos)])
		switch {
		case e == syscall.EAGAIN:
			return // the next edge says when
		case e != 0:
			l.drop(slot)
			return
		}
		c.pos += int64(n)
	}
	if c.pos < c.answer {
		if !c.queued {
			c.queued = true
			l.again = append(l.again, slot)
		}
		return
	}
	c.answer = 0
	if c.close {
		l.drop(slot)
	}
}
