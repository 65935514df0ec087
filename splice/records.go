package splice

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/tlsrecord"
)

const (
	// bulkRecords full records are read, sealed and sent at a time, once a
	// direction has been found to have that much.
	bulkRecords = 8
	bulkSize    = bulkRecords * tlsrecord.MaxPlaintext
	// A direction that was silent begins with small records, each of which
	// fits a TCP segment: the peer can open the first before the next round
	// trip brings the rest of a large one.
	smallRecord  = 1370
	smallRecords = 40
	// pauseCoarse is how long a direction must be silent to begin again so:
	// about a second.
	pauseCoarse = 1000

	plainSize = bulkSize + tlsrecord.MaxRecord

	maxOverhead = tlsrecord.MaxHeader + tlsrecord.MaxTrailer
	// controlRoom is more than the records need that precede data: AppendDue.
	controlRoom = 256
)

// ErrTruncated is the end of a TLS stream without close_notify (RFC 8446,
// section 6.1): for all one knows it is not whole.
var ErrTruncated = errors.New("the TLS stream ended without close_notify: it may be truncated")

// leg is the TLS of one side.
type leg struct {
	conn     *tlsrecord.Conn
	part     *kept                            // an incomplete record, as read
	records  int                              // kernel: sent since the last KeyUpdate, estimated
	err      error                            // why there is no going on
	first    interface{ Take(record []byte) } // see [TLS]; nil: nothing wants it
	sealedAt uint32                           // coarse clock of the last record to the peer
	kernel   bool                             // the kernel seals and opens
	notified bool                             // close_notify, or a fatal alert, is on its way to the peer
	cold     bool                             // the ciphers have been given up, see [Relay.Shed]
}

// sealed are the buffers of one loop for TLS.
type sealed struct {
	in    [plainSize]byte // what was read, after an incomplete record
	plain [plainSize]byte
	out   [controlRoom + plainSize + (smallRecords+plainSize/tlsrecord.MaxPlaintext+1)*maxOverhead]byte
	iov   [bulkRecords]unix.Iovec
}

func (e *Engine) sealed() *sealed {
	if e.tls == nil {
		e.tls = new(sealed)
	}
	return e.tls
}

// TLS is one side's, after its handshake.
type TLS struct {
	Conn   *tlsrecord.Conn // nil: there is none
	Kernel bool            // the socket has been given the keys
	// First is given the first record that comes, if it holds no application
	// data, as it came; nil: nothing wants it.
	First interface{ Take(record []byte) }
}

// SecureClient puts TLS on the client's side, before Join.
func (r *Relay) SecureClient(t TLS) {
	r.client.tls = &leg{conn: t.Conn, kernel: t.Kernel}
	r.client.state |= readable // what the handshake has left in the socket
}

// Alert sends an alert to a client with TLS, before Join.
func (r *Relay) Alert(alert uint8) {
	if l := r.client.tls; l != nil {
		r.sendAlert(&r.client, alert)
		l.notified = true
	}
}

// Shed gives up the ciphers of TLS sides, which are most of what an idle
// session costs; they are made anew when bytes move again. The owner is told
// then, see [Owner].
func (r *Relay) Shed() {
	for _, s := range [...]*side{&r.client, &r.server} {
		if s.tls != nil {
			s.tls.conn.Shed()
			s.tls.first = nil
			s.tls.cold = true
		}
	}
}

// forget gives back what a leg holds, and wipes its keys.
func (r *Relay) forget(l *leg) {
	if l.part != nil {
		r.engine.putKept(l.part)
		l.part = nil
	}
	l.conn.Wipe()
}

// warm tells the owner that there are ciphers to give up again.
func (r *Relay) warm(l *leg) {
	if l.cold {
		l.cold = false
		r.owner.RelayWarm()
	}
}

// crypt moves once from src to dst where one of them, or both, have TLS. It
// returns how much was read.
func (r *Relay) crypt(src, dst *side, want int) int {
	if src.userTLS() {
		return r.open(src, dst, want)
	}
	return r.seal(src, dst, want)
}

// open reads records from src, opens them, and sends what they hold to dst.
func (r *Relay) open(src, dst *side, want int) int {
	e, l := r.engine, src.tls
	b := e.sealed()
	have := 0
	if l.part != nil {
		have = copy(b.in[:], l.part.buf[:l.part.to])
	}
	room := b.in[have : have+min(want, bulkSize)]
	n, errno := recv(src.fd, room)
	if !src.brought(n, errno) {
		if src.state&eof != 0 {
			r.truncated(src, dst)
		}
		return 0
	}
	if n < len(room) && src.state&hurry == 0 {
		src.state &^= readable
	}
	if l.part != nil {
		e.putKept(l.part)
		l.part = nil
	}
	r.warm(l)
	data, plain := b.in[:have+n], 0
	for len(data) > 0 {
		size, err := l.conn.Size(data)
		if err != nil {
			l.err = err
			break
		}
		if size == 0 || size > len(data) {
			l.part = e.keep(data)
			break
		}
		typ, p, err := l.conn.Open(b.plain[plain:], data[:size])
		if l.first != nil {
			if err == nil && typ == tlsrecord.Handshake {
				l.first.Take(data[:size])
			}
			l.first = nil
		}
		data = data[size:]
		if err == nil && typ == tlsrecord.ApplicationData {
			plain += len(p)
			continue
		}
		if err == nil {
			var ev tlsrecord.Event
			if ev, err = l.conn.Control(typ, p); ev == tlsrecord.Closed {
				src.state = src.state&^readable | eof
				break
			}
		}
		if err != nil {
			l.err = err
			break
		}
	}
	if plain > 0 && dst.state&broken == 0 {
		flags := 0
		if src.state&eof != 0 {
			flags = unix.MSG_MORE // see copy
		}
		if dst.userTLS() {
			r.sealFrom(src, dst, b.plain[:plain], flags)
		} else {
			r.deliver(src, dst, b.plain[:plain], flags)
		}
	}
	if l.err != nil {
		r.alert(src, dst)
	}
	return n
}

// truncated decides what an end without close_notify means.
func (r *Relay) truncated(src, dst *side) {
	l := src.tls
	if src.state&shut != 0 && l.part == nil {
		// We have finished towards src, which closes without a word: many
		// do. dst has said all it had to say, and must not take for whole
		// what it may still be reading: no close_notify, and a reset.
		if dst.tls != nil {
			dst.tls.notified = true
		}
		abortive(dst.fd)
		return
	}
	l.err = ErrTruncated
}

// alert tells src why there is no going on.
func (r *Relay) alert(src, dst *side) {
	var a *tlsrecord.AlertError
	if !errors.As(src.tls.err, &a) || a.Remote || dst.kept != nil && src.userTLS() {
		return // or it would land amid a record
	}
	r.sendAlert(src, a.Alert)
	src.tls.notified = true
}

func (r *Relay) sendAlert(s *side, alert uint8) {
	if s.kernelTLS() {
		kernelAlert(s, alert)
		return
	}
	var buf [64]byte
	send(s.fd, s.tls.conn.AppendAlert(buf[:0], alert), unix.MSG_NOSIGNAL)
}

// seal reads from src, and sends it as records to dst.
func (r *Relay) seal(src, dst *side, want int) int {
	b := r.engine.sealed()
	if r.paused(dst.tls) {
		src.state &^= splicing
		src.runs = 0
	}
	if src.state&splicing != 0 {
		return r.sealBulk(src, dst, want)
	}
	room := b.plain[:min(want, tlsrecord.MaxPlaintext)]
	n, errno := recv(src.fd, room)
	if src.odd(n, errno) {
		return r.kernelRead(src, dst, errno)
	}
	if !src.brought(n, errno) {
		return 0
	}
	flags := 0
	if n < len(room) {
		if src.emptied() {
			src.state &^= readable
		}
		if src.state&fin != 0 {
			flags = unix.MSG_MORE
		}
	} else if src.runs >= smallRecords && n == tlsrecord.MaxPlaintext {
		src.state |= splicing
	}
	if r.opened(src, dst, n) && dst.state&broken == 0 {
		r.sealFrom(src, dst, room[:n], flags)
	}
	return n
}

// paused reports whether the records to a peer begin small again. What the peer
// has sent meanwhile is no matter: it may be the request.
func (r *Relay) paused(l *leg) bool { return r.engine.coarse()-l.sealedAt > pauseCoarse }

// sealFrom sends plain, which was read from src, as records to dst.
func (r *Relay) sealFrom(src, dst *side, plain []byte, flags int) {
	e, c := r.engine, dst.tls.conn
	r.warm(dst.tls)
	out := e.tls.out[:]
	head := c.Header()
	if r.paused(dst.tls) {
		src.runs = 0
	}
	dst.tls.sealedAt = e.coarse()
	total, pos := len(plain), 0
	for len(plain) > 0 {
		if c.Due() {
			pos = len(c.AppendDue(out[:pos]))
		}
		n := min(len(plain), tlsrecord.MaxPlaintext)
		if src.runs < smallRecords {
			src.runs++
			n = min(n, smallRecord)
		}
		copy(out[pos+head:], plain[:n])
		pos += len(c.Seal(tlsrecord.ApplicationData, out[pos:], n))
		plain = plain[n:]
	}
	r.took(src, total)
	r.deliver(src, dst, out[:pos], flags)
}

// sealBulk is seal for a direction that brings much: src is read into the
// places where records are sealed.
func (r *Relay) sealBulk(src, dst *side, want int) int {
	e, c := r.engine, dst.tls.conn
	b := e.sealed()
	head, tail := c.Header(), c.Trailer()
	start := controlRoom
	full := head + tlsrecord.MaxPlaintext + tail
	want = min(want, bulkSize)
	records := 0
	for left := want; left > 0; left -= tlsrecord.MaxPlaintext {
		v := &b.iov[records]
		v.Base = &b.out[start+records*full+head]
		v.SetLen(min(left, tlsrecord.MaxPlaintext))
		records++
	}
	n, errno := readv(src.fd, b.iov[:records])
	if src.odd(n, errno) {
		return r.kernelRead(src, dst, errno)
	}
	if !src.brought(n, errno) {
		return 0
	}
	if n < want && src.emptied() {
		src.state &^= readable
	}
	if n < tlsrecord.MaxPlaintext {
		src.state &^= splicing // little by little again
		src.runs = smallRecords
	}
	if !r.opened(src, dst, n) || dst.state&broken != 0 {
		return n
	}
	r.warm(dst.tls)
	dst.tls.sealedAt = e.coarse()
	if c.Due() {
		// Rare: once in 2²⁴ records, or when the peer asks for new keys.
		due := c.AppendDue(b.in[:0])
		start -= copy(b.out[start-len(due):], due)
	}
	end := controlRoom
	for left := n; left > 0; left -= tlsrecord.MaxPlaintext {
		end += len(c.Seal(tlsrecord.ApplicationData, b.out[end:], min(left, tlsrecord.MaxPlaintext)))
	}
	r.took(src, n)
	r.deliver(src, dst, b.out[start:end], 0)
	return n
}

// notify sends close_notify to dst after all that src had for it. It reports
// whether that is on its way and nothing is left to be sent.
func (r *Relay) notify(src, dst *side) bool {
	l := dst.tls
	if l.notified || dst.state&broken != 0 {
		return true
	}
	if l.kernel {
		if l.notified = kernelAlert(dst, tlsrecord.AlertCloseNotify); !l.notified {
			dst.state &^= writable
		}
		return l.notified
	}
	l.notified = true
	r.warm(l)
	var buf [64]byte
	r.deliver(src, dst, l.conn.AppendAlert(buf[:0], tlsrecord.AlertCloseNotify), unix.MSG_MORE)
	return src.kept == nil
}

func readv(fd int32, iov []unix.Iovec) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READV, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)))
	return int(n), errno
}
