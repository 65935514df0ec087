package splice

import "golang.org/x/sys/unix"

// fullReads is how many reads in a row must fill the whole buffer before a
// direction changes to splice(2): below that, copying is cheaper than two
// splices and a pipe.
const fullReads = 2

// kept is what one side did not take at once.
type kept struct {
	buf      []byte // capacity of its size class
	from, to int
	next     *kept // free list
}

// copy reads once from src and writes to dst. It returns how much was read.
func (r *Relay) copy(src, dst *side, want int) int {
	buf := r.engine.buf[:want]
	n, errno := recv(src.fd, buf)
	if src.odd(n, errno) {
		return r.kernelRead(src, dst, errno)
	}
	if !src.brought(n, errno) {
		return 0
	}
	if n < want {
		if src.emptied() {
			src.state &^= readable
		}
		src.runs = 0
	} else if want == len(r.engine.buf) && src.state&noSplicing == 0 {
		if src.runs++; src.runs >= fullReads {
			src.state |= splicing
			src.runs = 0
		}
	}
	if !r.opened(src, dst, n) || dst.state&broken != 0 {
		return n // thrown away, see writeFailed
	}
	flags := 0
	if n < want && src.state&fin != 0 && dst.tls == nil {
		// The next read ends the stream: the kernel holds the bytes back
		// until the shutdown, and FIN goes with them in one segment.
		flags = unix.MSG_MORE
	}
	r.deliver(src, dst, buf[:n], flags)
	return n
}

// brought reports whether a read of s, which returned n and errno, brought
// bytes, and notes what it means if it did not.
func (s *side) brought(n int, errno unix.Errno) bool {
	switch {
	case errno == unix.EAGAIN:
		s.state &^= readable
	case errno == unix.EINTR:
	case errno != 0:
		s.errno = uint8(errno)
	case n == 0:
		s.state = s.state&^readable | eof
	default:
		return true
	}
	return false
}

// deliver sends b, made of what was read from src, to dst, and keeps what dst
// does not take.
func (r *Relay) deliver(src, dst *side, b []byte, flags int) {
	w, errno := send(dst.fd, b, unix.MSG_NOSIGNAL|flags)
	if errno != 0 && errno != unix.EAGAIN && errno != unix.EINTR {
		r.writeFailed(src, dst, errno)
		return
	}
	if w > 0 {
		r.sent(src, dst, w)
	}
	if w < len(b) {
		dst.state &^= writable
		src.kept = r.engine.keep(b[w:])
	}
}

// flush writes what src holds to dst, as far as it is taken.
func (r *Relay) flush(src, dst *side) {
	if src.pipe != nil {
		r.drain(src, dst)
		return
	}
	k := src.kept
	w, errno := send(dst.fd, k.buf[k.from:k.to], unix.MSG_NOSIGNAL)
	if errno != 0 && errno != unix.EAGAIN && errno != unix.EINTR {
		r.writeFailed(src, dst, errno)
		return
	}
	if w > 0 {
		k.from += w
		r.sent(src, dst, w)
	}
	if k.from < k.to {
		dst.state &^= writable
		return
	}
	r.drop(src)
}
