package splice

import "golang.org/x/sys/unix"

const (
	// spliceSize is the size of a pipe and the most that one splice moves.
	spliceSize = 1 << 20
	// meagre splices, so many in a row, send a direction back to copying.
	meagre     = 16 << 10
	meagreRuns = 3
)

// pipe is a kernel pipe that holds n bytes.
type pipe struct {
	r, w int32
	n    int
	next *pipe // free list
}

// splice moves once from src into a pipe and from there to dst. It returns
// how much left src.
func (r *Relay) splice(src, dst *side, want int) int {
	p := r.engine.getPipe()
	if p == nil {
		src.state &^= splicing // no pipe to be had: copy until there is more
		src.runs = 0
		return 0
	}
	n, errno := spliceFD(src.fd, p.w, want)
	if errno != 0 || n == 0 {
		// The pipe was empty, so EAGAIN can only mean the socket.
		r.engine.putPipe(p)
		if src.odd(n, errno) {
			return r.kernelRead(src, dst, errno)
		}
		switch errno {
		case 0:
			src.state = src.state&^readable | eof
		case unix.EAGAIN:
			src.state &^= readable
		case unix.EINTR:
		case unix.EINVAL, unix.ENOMEM, unix.EBADF, unix.ENOSYS, unix.EPERM:
			// Nothing was taken from the socket: go on by copying.
			src.state = src.state&^splicing | noSplicing
		default:
			src.errno = uint8(errno)
		}
		return 0
	}
	if n < meagre {
		if src.runs++; src.runs >= meagreRuns {
			src.state &^= splicing
			src.runs = 0
		}
	} else {
		src.runs = 0
	}
	p.n = n
	src.pipe = p
	if r.opened(src, dst, n) {
		r.drain(src, dst)
	}
	return n
}

// drain moves the pipe of src to dst, as far as it is taken.
func (r *Relay) drain(src, dst *side) {
	p := src.pipe
	short := false // the last splice moved less than there was
	for p.n > 0 {
		n, errno := spliceFD(p.r, dst.fd, p.n)
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			dst.state &^= writable // the pipe is not empty: it can only be dst
			return
		case errno == unix.EINVAL, errno == unix.ENOMEM, errno == unix.ENOSYS, errno == unix.EPERM:
			r.empty(src, dst)
			return
		case errno != 0:
			if short && errno == unix.EPIPE {
				// A splice that fails midway returns what it has moved and
				// swallows the error, a reset for all we know.
				errno = unix.ECONNRESET
			}
			r.writeFailed(src, dst, errno)
			return
		case n == 0:
			// Cannot happen while the pipe has bytes; a lost byte must not
			// become a clean end.
			r.writeFailed(src, dst, unix.EIO)
			return
		}
		short = n < p.n
		p.n -= n
		r.took(src, n)
		r.count.Spliced.Add(uint64(n))
	}
	r.drop(src)
}

// empty reads the pipe of src into user space, because dst cannot be spliced
// to, and goes on by copying. Nothing is lost.
func (r *Relay) empty(src, dst *side) {
	p := src.pipe
	src.state = src.state&^splicing | noSplicing
	k := r.engine.getKept(p.n)
	for k.to < p.n {
		n, errno := read(p.r, k.buf[k.to:p.n])
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 || n == 0 {
			r.engine.putKept(k)
			r.writeFailed(src, dst, unix.EIO)
			return
		}
		k.to += n
	}
	p.n = 0
	r.drop(src)
	src.kept = k
	r.flush(src, dst)
}
