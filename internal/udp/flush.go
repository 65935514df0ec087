package udp

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Result is what became of the datagrams of a flush. Each is in exactly one of
// Sent, TooBig, Full and Failed, or, with Errno set, still in the Sender.
type Result struct {
	Sent   int // datagrams
	Bytes  int // of their payload, without headers
	TooBig int // longer than UDP takes or, where nothing may be fragmented, the path (EMSGSIZE)
	Full   int // the socket's buffer or the device's queue is full, or memory is short (EAGAIN, ENOBUFS, ENOMEM)
	// Failed were refused each for itself, the last with FailedErrno: EPERM by a
	// packet filter, ENETUNREACH, EINVAL for a source address that is gone, …
	Failed      int
	FailedErrno unix.Errno
	// Errno is an ICMP error that had come for a connected socket, or the lack
	// of a route for it: ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, EHOSTDOWN, ….
	// Those that may pass (host or network unreachable, RFC 1122 section
	// 4.2.3.9) come only to a socket with IP_RECVERR or IPV6_RECVERR.
	//
	// Nothing from there on was sent. Those packets stay in the Sender, to be
	// flushed through another socket, or dropped. The kernel tells such an
	// error once: the same socket may be tried again, too.
	Errno unix.Errno
}

// Flush sends all that was added, in order. Afterwards the Sender is empty,
// unless Errno is set.
func (s *Sender) Flush(sock *Socket) Result {
	var res Result
	var errno unix.Errno
	if len(s.runs) == 1 && s.runs[0].plain() {
		// A request or a response: nothing is quicker than sendto.
		r := &s.runs[0]
		var data *byte
		if r.iovecs > 0 {
			data = s.iovecs[r.iovec].Base
		}
		if errno = sendto(sock.FD, data, r.wire, r.to); errno == 0 {
			res.Sent, res.Bytes = 1, r.wire-r.header
			s.reset()
			return res
		}
	}
	for next := 0; next < len(s.runs); {
		next = s.flush(sock, next, errno, &res)
		errno = 0
	}
	if res.Errno == 0 {
		s.reset()
	}
	return res
}

// plain: one datagram in one piece that needs no control messages.
func (r *run) plain() bool {
	return r.count == 1 && r.iovecs <= 1 && r.local == nil && r.tos == 0
}

// flush sends a batch that begins with the run next, and returns the run to go
// on with. errno is what the first message of the batch has met already.
func (s *Sender) flush(sock *Socket, next int, errno unix.Errno, res *Result) int {
	end := s.build(sock, next)
	again := -1 // the part that is on its second try
	for k := 0; k < len(s.parts); {
		var n int
		if errno == 0 {
			n, errno = sendmmsg(sock.FD, s.hdrs[k:len(s.parts)])
		}
		if errno == 0 {
			s.sent(sock, s.parts[k:k+n], res)
			k += n
			continue
		}
		met := errno
		errno = 0
		p := &s.parts[k]
		r := &s.runs[p.run]
		connected := r.to == nil
		switch {
		case met == unix.EINTR:
		case met == unix.EAGAIN:
			for _, p := range s.parts[k:] {
				res.Full += p.count
			}
			for i := end; i < len(s.runs); i++ {
				res.Full += s.runs[i].count
			}
			return len(s.runs)
		case met == unix.ENOBUFS || met == unix.ENOMEM:
			res.Full += p.count
			k++
		case connected && again != k && ambiguous(met, p.count > 1):
			again = k
		case p.count > 1 && refusal(met):
			r.split, r.refused = true, met
			return p.run
		case met == unix.EMSGSIZE:
			res.TooBig += p.count
			k++
		case connected && fromPeer(met):
			res.Errno = met
			s.keep(p)
			return len(s.runs)
		default:
			res.Failed += p.count
			res.FailedErrno = met
			k++
		}
	}
	return end
}

func (s *Sender) sent(sock *Socket, parts []part, res *Result) {
	for i := range parts {
		p := &parts[i]
		r := &s.runs[p.run]
		res.Sent += p.count
		res.Bytes += p.wire - p.count*r.header
		if p.count > 1 {
			sock.refusals = 0
		} else if r.refused != 0 {
			sock.refused(r.refused, r.size, r.to == nil)
			r.refused = 0
		}
	}
}

// ambiguous: an error of this send, or an ICMP error that came for an earlier
// one and is thereby told. A second try knows.
func ambiguous(errno unix.Errno, train bool) bool {
	return errno == unix.EMSGSIZE || train && (errno == unix.EOPNOTSUPP || errno == unix.ENOPROTOOPT)
}

// refusal of UDP_SEGMENT, not of the datagrams: larger than the MTU (EMSGSIZE,
// EINVAL), checksums switched off (EINVAL), IPsec or an interface that cannot
// compute checksums (EIO).
func refusal(errno unix.Errno) bool {
	switch errno {
	case unix.EINVAL, unix.EIO, unix.EMSGSIZE, unix.EOPNOTSUPP, unix.ENOPROTOOPT:
		return true
	}
	return false
}

// fromPeer is what Linux makes of ICMP errors (icmp_err_convert, RFC 1122
// section 3.2.2.1; icmpv6_err_convert, RFC 4443 section 3), but for those about
// the size.
func fromPeer(errno unix.Errno) bool {
	switch errno {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENETDOWN,
		unix.ENONET, unix.ENOPROTOOPT, unix.EOPNOTSUPP, unix.EPROTO, unix.EACCES:
		return true
	}
	return false
}

// keep leaves in the Sender what p sends, and all behind it.
func (s *Sender) keep(p *part) {
	r := &s.runs[p.run]
	bytes := p.before * r.size
	r.count -= p.before
	r.wire -= bytes
	for bytes > 0 {
		v := &s.iovecs[r.iovec]
		n := min(bytes, int(v.Len))
		bytes -= n
		if *v = beyond(v, n); v.Len == 0 {
			r.iovec++
			r.iovecs--
		}
	}
	for i := p.run; i < len(s.runs); i++ {
		s.runs[i].split, s.runs[i].refused = false, 0 // another socket may take it
	}
	s.runs = s.runs[:copy(s.runs, s.runs[p.run:])]
}

func beyond(v *unix.Iovec, n int) unix.Iovec {
	rest := unix.Iovec{}
	if left := int(v.Len) - n; left > 0 {
		rest.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
		rest.SetLen(left)
	}
	return rest
}

// build prepares the headers for whole runs from next on, and returns the first
// run that is not among them.
func (s *Sender) build(sock *Socket, next int) int {
	s.parts, s.pieces = s.parts[:0], s.pieces[:0]
	for ; next < len(s.runs) && len(s.parts) < s.size; next++ {
		r := &s.runs[next]
		vecs := s.iovecs[r.iovec : r.iovec+r.iovecs]
		if r.count == 1 {
			s.message(sock, r, part{run: next, count: 1, wire: r.wire}, vecs)
			continue
		}
		if !r.split && !sock.NoSegments && (sock.SegmentMax == 0 || r.size <= sock.SegmentMax) {
			s.message(sock, r, part{run: next, count: r.count, wire: r.wire}, vecs)
			continue
		}
		var at cursor
		for i := range r.count {
			n := min(r.size, r.wire-i*r.size)
			first := len(s.pieces)
			s.pieces = at.take(s.pieces, vecs, n)
			s.message(sock, r, part{run: next, before: i, count: 1, wire: n}, s.pieces[first:])
		}
	}
	return next
}

// message fills in the header of the next part.
func (s *Sender) message(sock *Socket, r *run, p part, vecs []unix.Iovec) {
	k := len(s.parts)
	s.parts = append(s.parts, p)
	h := &s.hdrs[k]
	sa, n := r.to.sockaddr()
	h.Name, h.Namelen = (*byte)(sa), n
	h.Iov = unsafe.SliceData(vecs)
	h.SetIovlen(len(vecs))
	segment := 0
	if p.count > 1 {
		segment = r.size
	}
	size := 0
	if r.local != nil || r.tos != 0 || segment != 0 {
		ipv4 := !sock.V6 || r.to != nil && r.to.speaksIPv4()
		size = s.control[k].build(ipv4, r.local, r.tos, segment)
	}
	h.Control = nil
	if size > 0 {
		h.Control = (*byte)(unsafe.Pointer(&s.control[k]))
	}
	h.SetControllen(size)
}

// cursor walks through the bytes of a run.
type cursor struct{ vec, offset int }

// take appends n bytes' worth of iovecs to pieces.
func (c *cursor) take(pieces, vecs []unix.Iovec, n int) []unix.Iovec {
	for n > 0 {
		v := beyond(&vecs[c.vec], c.offset)
		if int(v.Len) > n {
			v.SetLen(n)
			c.offset += n
		} else {
			c.vec++
			c.offset = 0
		}
		n -= int(v.Len)
		pieces = append(pieces, v)
	}
	return pieces
}
