package tlsterm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	recordHeader    = 5
	recordHandshake = 22

	// maxHandshakeBytes bounds what a peer may send during a handshake: a hello
	// and the certificates of both are far below. crypto/tls alone would keep
	// 256 KiB of certificates for everyone who does not send the last byte.
	maxHandshakeBytes = 128 << 10
)

var errTooMuch = fmt.Errorf("the peer's handshake is longer than %d KiB", maxHandshakeBytes>>10)

// stream is the socket as crypto/tls sees it during a handshake. A read brings
// bytes of one record and no more, so that crypto/tls never holds any that
// follow the handshake. Where the socket is not ready, the coroutine parks.
type stream struct {
	h       *Handshake
	inner   net.Conn      // after the handshake, where crypto/tls goes on; else nil
	fed     *bytes.Reader // after the handshake, what crypto/tls is given: see [NewTicket]; else nil
	left    int           // of the record being read
	total   int           // of all records, headers included
	head    [recordHeader]byte
	headLen int
	in, out hello
	flight  flight
}

// hello collects the beginning of a direction's first handshake message, a
// ClientHello or a ServerHello: type, length, version and the random
// (RFC 5246, sections 7.4.1.2 and 7.4.1.3).
type hello struct {
	b [4 + 2 + 32]byte
	n int
}

func (h *hello) add(b []byte) { h.n += copy(h.b[h.n:], b) }

func (h *hello) addRecords(b []byte) {
	if h.n == len(h.b) {
		return
	}
	for rec := range records(b) {
		h.add(rec[recordHeader:])
	}
}

func (h *hello) random() []byte {
	if h.n < len(h.b) {
		return nil
	}
	return h.b[4+2:]
}

// Read brings bytes of the record that is under way, or of the next.
func (s *stream) Read(b []byte) (int, error) {
	if s.inner != nil {
		return s.innerRead(b)
	}
	if s.fed != nil {
		return s.fedRead(b)
	}
	if len(b) == 0 {
		return 0, nil
	}
	if s.left > 0 {
		n, err := s.recv(b[:min(len(b), s.left)])
		s.took(b[:n])
		return n, err
	}
	n, err := s.recv(b[:min(len(b), recordHeader-s.headLen)])
	s.headLen += copy(s.head[s.headLen:], b[:n])
	if s.headLen < recordHeader {
		return n, err
	}
	s.headLen = 0
	s.flight.over = true
	// crypto/tls judges type, version and length: an absurd length is its
	// error, before it reads on.
	s.left = int(binary.BigEndian.Uint16(s.head[3:]))
	if s.total += recordHeader + s.left; s.total > maxHandshakeBytes {
		return 0, errTooMuch
	}
	if s.left == 0 || n == len(b) {
		return n, nil
	}
	// The rest of the record is most likely there: spare a turn.
	m, errno := recvNow(s.h.FD, b[n:min(len(b), n+s.left)])
	if errno == 0 && m > 0 {
		s.took(b[n : n+m])
		n += m
	}
	return n, nil
}

// took counts bytes of the record under way. Alerts are no part of the hello: a
// server may send a warning before it.
func (s *stream) took(b []byte) {
	s.left -= len(b)
	if s.head[0] == recordHandshake {
		s.in.add(b)
	}
}

// recv reads at least one byte, and parks until there is one.
func (s *stream) recv(b []byte) (int, error) {
	for {
		if s.h.cancelled.Load() {
			return 0, errCancelled
		}
		n, errno := recvNow(s.h.FD, b)
		switch {
		case errno == unix.EAGAIN:
			s.h.park()
		case errno == unix.EINTR:
		case errno != 0:
			return 0, os.NewSyscallError("recv", errno)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// Write sends all of b, parking as long as the socket's buffer is full.
func (s *stream) Write(b []byte) (int, error) {
	if s.inner != nil {
		return s.inner.Write(b)
	}
	if s.fed != nil {
		return s.fedWrite(b)
	}
	s.out.addRecords(b)
	if s.h.Context != nil {
		s.flight.add(b)
	}
	sent := 0
	for sent < len(b) {
		if s.h.cancelled.Load() {
			return sent, errCancelled
		}
		n, errno := sendNow(s.h.FD, b[sent:])
		switch errno {
		case 0:
			sent += n
		case unix.EAGAIN:
			s.h.park()
		case unix.EINTR:
		default:
			return sent, os.NewSyscallError("send", errno)
		}
	}
	return sent, nil
}

// flight is what was written last, without a read in between.
type flight struct {
	b    []byte
	over bool
}

func (f *flight) add(b []byte) {
	if f.over {
		f.b, f.over = f.b[:0], false
	}
	f.b = append(f.b, b...)
}

func (f *flight) records() iter.Seq[[]byte] { return records(f.b) }

// records are those that b consists of; crypto/tls writes whole ones.
func records(b []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(b) >= recordHeader {
			n := recordHeader + int(binary.BigEndian.Uint16(b[3:]))
			if n > len(b) || !yield(b[:n]) {
				return
			}
			b = b[n:]
		}
	}
}

// park gives the worker to others until the socket is ready.
func (h *Handshake) park() {
	if !h.co.park(struct{}{}) {
		h.cancelled.Store(true)
	}
}

func (s *stream) Close() error {
	if s.inner != nil {
		return s.inner.Close()
	}
	return nil // the descriptor is not ours
}

func (s *stream) LocalAddr() net.Addr {
	if s.inner != nil {
		return s.inner.LocalAddr()
	}
	return noAddr{}
}

func (s *stream) RemoteAddr() net.Addr {
	if s.inner != nil {
		return s.inner.RemoteAddr()
	}
	return noAddr{}
}

// Deadlines are the session's matter: it cancels the handshake.

func (s *stream) SetDeadline(t time.Time) error {
	if s.inner != nil {
		return s.inner.SetDeadline(t)
	}
	return nil
}

func (s *stream) SetReadDeadline(t time.Time) error {
	if s.inner != nil {
		return s.inner.SetReadDeadline(t)
	}
	return nil
}

func (s *stream) SetWriteDeadline(t time.Time) error {
	if s.inner != nil {
		return s.inner.SetWriteDeadline(t)
	}
	return nil
}

// noAddr is what crypto/tls sees of the peer's address: it uses it only to
// name sessions where there is no server name.
type noAddr struct{}

func (noAddr) Network() string { return "tcp" }
func (noAddr) String() string  { return "" }

// ErrTruncated is the end of a stream without close_notify: for all one knows
// it is not whole (RFC 8446, section 6.1).
var ErrTruncated = errors.New("the connection was closed without close_notify: the stream may be truncated")

// innerRead reads for a crypto/tls that goes on after the handshake. It takes
// a bare FIN at a record's boundary for an orderly end; this does not.
func (s *stream) innerRead(b []byte) (int, error) {
	n, err := s.inner.Read(b)
	if n == 0 && err == io.EOF {
		err = ErrTruncated
	}
	return n, err
}

// Raw calls on a non-blocking socket take a microsecond: the scheduler need
// not know of them.

func recvNow(fd int, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0)
	return int(n), errno
}

func sendNow(fd int, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}
