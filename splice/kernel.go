package splice

import (
	"golang.org/x/sys/unix"

	"edgeproxy/internal/ktls"
	"edgeproxy/internal/tlsrecord"
)

// Kernel TLS: the socket takes and gives plain text, so that it is copied and
// spliced as one without TLS. What differs is that records other than
// application data make a read fail, and that an empty record looks like the
// end: then the record layer's view, with its type, decides. What each error
// means is the table of package internal/ktls.

// kernelRecords is after how many records, estimated from below, we change our
// key (RFC 8446, section 5.5): the kernel does not tell its sequence number.
const kernelRecords = 1 << 23

// userTLS reports whether the records of s are sealed and opened here.
func (s *side) userTLS() bool { return s.tls != nil && !s.tls.kernel }

// kernelTLS reports whether they are by the kernel.
func (s *side) kernelTLS() bool { return s.tls != nil && s.tls.kernel }

// ClientInKernel reports whether the kernel opens the client's records. An
// error of the socket without a hang-up is then about one of them, and Join
// will find it.
func (r *Relay) ClientInKernel() bool { return r.client.kernelTLS() }

// emptied reports whether a read of s that brought less than it had room for
// has emptied the socket: what comes after it is a new edge, unless the edge
// of a FIN or an error has been and gone, or the kernel's TLS has stopped at a
// record of another type.
func (s *side) emptied() bool { return s.state&hurry == 0 && !s.kernelTLS() }

// opened tells the record layer of n bytes of src that the kernel has opened.
// It reports false if they are not allowed there.
func (r *Relay) opened(src, dst *side, n int) bool {
	if !src.kernelTLS() {
		return true
	}
	if src.tls.err = src.tls.conn.Data(n); src.tls.err != nil {
		r.alert(src, dst)
	}
	return src.tls.err == nil
}

// odd reports whether a plain read or a splice of src, which returned n and
// errno, needs kernelRead to tell what is next.
func (s *side) odd(n int, errno unix.Errno) bool {
	return s.kernelTLS() && (errno != 0 && errno != unix.EAGAIN && errno != unix.EINTR || errno == 0 && n == 0)
}

// kernelRead goes on where a plain read of src, which failed with errno or
// found nothing, could not tell what is next.
func (r *Relay) kernelRead(src, dst *side, errno unix.Errno) int {
	l := src.tls
	var n int
	var typ byte
	if was := errno; errno == 0 || errno == unix.EIO || errno == unix.EINVAL {
		n, typ, errno = ktls.Recv(int(src.fd), r.engine.buf)
		if was == unix.EINVAL && errno == unix.EAGAIN {
			errno = was // it was about a header, and told only once
		}
	}
	switch {
	case errno == unix.EAGAIN:
		src.state &^= readable
		return 0
	case errno == unix.EINTR:
		return 0
	case errno == unix.EBADMSG:
		l.err = &tlsrecord.AlertError{Alert: tlsrecord.AlertBadRecordMAC, Reason: "bad record MAC"}
	case errno == unix.EMSGSIZE:
		l.err = &tlsrecord.AlertError{Alert: tlsrecord.AlertRecordOverflow, Reason: "record too long"}
	case errno == unix.EKEYEXPIRED:
		l.err = &tlsrecord.AlertError{Alert: tlsrecord.AlertUnexpectedMessage, Reason: "KeyUpdate in more than one record"}
	case errno == unix.EINVAL:
		l.err = &tlsrecord.AlertError{Alert: tlsrecord.AlertProtocolVersion, Reason: "record of another version, or no record"}
	case errno != 0:
		src.errno = uint8(errno)
		return 0
	case n == 0 && typ == 0:
		src.state = src.state&^readable | eof
		r.truncated(src, dst)
		return 0
	case typ == ktls.Data:
		if l.err = l.conn.Data(n); l.err == nil && n > 0 && dst.state&broken == 0 {
			r.forward(src, dst, r.engine.buf[:n])
		}
	default:
		var ev tlsrecord.Event
		switch ev, l.err = l.conn.Control(typ, r.engine.buf[:n]); ev {
		case tlsrecord.Closed:
			src.state = src.state&^readable | eof
		case tlsrecord.Rekeyed:
			if err := ktls.SetKeys(int(src.fd), ktls.RX, l.conn.Keys(false)); err != nil {
				l.err = err
			}
		}
	}
	if l.err != nil {
		r.alert(src, dst)
	}
	return n
}

// forward sends plain, read from src outside of its usual path, to dst.
func (r *Relay) forward(src, dst *side, plain []byte) {
	if dst.userTLS() {
		r.engine.sealed()
		r.sealFrom(src, dst, plain, 0)
		return
	}
	r.deliver(src, dst, plain, 0)
}

// kernelDue sends the KeyUpdate that must precede further data to s, if one
// must. It reports false if the socket does not take it now.
func (r *Relay) kernelDue(s *side) bool {
	l := s.tls
	if !l.conn.Due() && l.records < kernelRecords {
		return true
	}
	l.records = 0
	var msg [8]byte
	switch ktls.Send(int(s.fd), ktls.Handshake, keyUpdate[:]) {
	case 0:
		l.conn.AppendKeyUpdate(msg[:0]) // what was sent; and the next keys
		if err := ktls.SetKeys(int(s.fd), ktls.TX, l.conn.Keys(true)); err != nil {
			l.err = err
		}
	case unix.EAGAIN:
		l.records = kernelRecords // not forgotten
		s.state &^= writable
		return false
	}
	return true // of an error the data will tell
}

// keyUpdate is a KeyUpdate message that asks for none in return (RFC 8446,
// section 4.6.3).
var keyUpdate = [...]byte{24, 0, 0, 1, 0}

// kernelAlert sends an alert to s. It reports false if the socket does not
// take it now.
func kernelAlert(s *side, alert uint8) bool {
	if tlsrecord.AlertLevel(alert) == 2 {
		return ktls.Fatal(int(s.fd), alert) != unix.EAGAIN
	}
	msg := [...]byte{tlsrecord.AlertLevel(alert), alert}
	return ktls.Send(int(s.fd), ktls.Alert, msg[:]) != unix.EAGAIN
}
