package listener

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/proxyproto"
	"edgeproxy/internal/reactor"
	"edgeproxy/internal/sniff"
	"edgeproxy/internal/tlsrecord"
	"edgeproxy/tlsterm"
)

// ClientReady implements [splice.Owner]: something has happened to the
// client's socket before it is relayed.
func (s *session) ClientReady(ev reactor.Events) {
	if s.more != nil && s.more.handshake != nil {
		s.more.handshake.Wake()
		return
	}
	if ev&reactor.Hangup != 0 || ev&reactor.Failed != 0 && !s.relay.ClientInKernel() {
		s.end(ClientReset, s.relay.ClientFailed())
		return
	}
	switch s.phase {
	case PhaseProxyHeader:
		s.readHeader()
	case PhaseSniff:
		s.sniff()
	}
}

// late ends a session that has not got to a server in time.
func (s *session) late() {
	t := s.table
	if s.phase == PhaseSniff && t.sniffTimeout > 0 && (t.handshake == 0 || time.Duration(s.a.w.loop.Now()-s.begun) < t.handshake) {
		s.sniffed()
		if b, _, err := s.peek(); err == nil && len(b) == 0 {
			s.choose(&facts{source: s.source.Addr(), port: s.localPort(), info: new(sniff.Info)}, 0)
		}
		return
	}
	var err error
	switch s.phase {
	case PhaseProxyHeader:
		err = fmt.Errorf("no whole PROXY header within timeouts.handshake (%v)", t.handshake)
	case PhaseSniff:
		err = fmt.Errorf("the first bytes did not come, or not all of them, within timeouts.handshake (%v)", t.handshake)
	case PhaseTLS:
		err = fmt.Errorf("TLS handshake not done within timeouts.handshake (%v)", t.handshake)
	default:
		err = fmt.Errorf("not connected to a server within timeouts.handshake (%v)", t.handshake)
	}
	s.end(HandshakeTimeout, err)
}

// peek looks at what the client has sent, without consuming it. With no bytes
// and no error there are none yet; fin tells that no more will come.
func (s *session) peek() (b []byte, fin bool, err error) {
	buf := s.a.w.engine.Scratch()
	n, errno := recvFlags(s.relay.ClientFD(), buf, unix.MSG_PEEK)
	switch errno {
	case 0:
		return buf[:n], n == 0 || s.relay.ClientShut(), nil
	case unix.EAGAIN, unix.EINTR:
		return nil, false, nil
	}
	return nil, false, errno
}

// consume takes n bytes that peek has shown; they are gone from the scratch
// buffer, too.
func (s *session) consume(n int) error {
	for n > 0 {
		m, errno := recvFlags(s.relay.ClientFD(), s.a.w.engine.Scratch()[:n], 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 || m == 0 {
			return unix.EIO
		}
		n -= m
	}
	return nil
}

// await has the loop stay silent until the socket holds need bytes, or an end:
// a long ClientHello in small pieces would be looked at again and again. Where
// little is missing each byte is looked at, so that an error shows at once.
func (s *session) await(need int) {
	const long = 1 << 10
	if need < long {
		need = 1
	}
	if more := s.detail(); int(more.lowat) != need && (need > 1 || more.lowat > 1) {
		more.lowat = int32(need)
		unix.SetsockoptInt(s.relay.ClientFD(), unix.SOL_SOCKET, unix.SO_RCVLOWAT, need)
	}
}

// readHeader reads the PROXY header that a trusted peer begins with.
func (s *session) readHeader() {
	b, fin, err := s.peek()
	if err != nil {
		s.end(ClientReset, err)
		return
	}
	if len(b) == 0 {
		if fin {
			s.end(BadProxyHeader, errors.New("the client closed before its PROXY header"))
		}
		return
	}
	var h proxyproto.Header
	n, need, err := h.Parse(b)
	switch {
	case err != nil:
		s.end(BadProxyHeader, err)
		return
	case n == 0 && fin:
		s.end(BadProxyHeader, fmt.Errorf("the client closed within its PROXY header, after %d bytes", len(b)))
		return
	case n == 0:
		s.await(need)
		return
	}
	if !h.Local {
		if h.Source.IsValid() {
			s.source = h.Source
		}
		more := s.detail()
		more.local = h.Destination
		if len(h.TLVs) > 0 {
			more.tlvs = append([]byte(nil), h.TLVs...)
			more.crc = h.CRC
		}
	}
	if err := s.consume(n); err != nil {
		s.end(ClientReset, err)
		return
	}
	if s.more != nil {
		s.await(1)
	}
	s.admit()
}

// startSniffing waits for the first bytes, or looks at those that are there.
func (s *session) startSniffing(want sniff.Set) {
	again := s.phase == PhaseSniff || s.more != nil
	s.phase, s.want = PhaseSniff, s.want|want
	if t, loop := s.table, s.a.w.loop; t.sniffTimeout > 0 {
		due := t.sniffTimeout
		if t.handshake > 0 { // which is no longer for a PROXY header that took its time
			due = min(due, t.handshake-time.Duration(loop.Now()-s.begun))
		}
		loop.StartTimer(&s.timer, due)
	}
	if again {
		s.sniff() // there may be no further event
	}
}

// sniffed has timeouts.handshake count again instead of timeouts.sniff.
func (s *session) sniffed() {
	if s.table.sniffTimeout > 0 {
		s.a.w.loop.StopTimer(&s.timer)
		s.startDeadline()
	}
}

// sniff looks at the first bytes, and routes by them.
func (s *session) sniff() {
	b, fin, err := s.peek()
	if err != nil {
		s.end(ClientReset, err)
		return
	}
	if len(b) == 0 && !fin {
		return
	}
	t := s.table
	var in sniff.Info
	if len(b) == 0 && t.terminates {
		f := facts{source: s.source.Addr(), port: s.localPort(), info: &in}
		if n := t.route(&f); n >= 0 && t.routes[n].tls != nil {
			s.end(ClientClosed, nil) // without a word, as the checks of balancers do
			return
		}
	}
	if fin {
		err = in.Final(b, s.want)
	} else {
		var need int
		if need, err = in.Sniff(b, s.want); need > 0 {
			if need <= s.a.w.engine.ScratchSize() {
				s.await(need)
				return
			}
			err = fmt.Errorf("%d bytes to tell who is asked for", need)
		}
	}
	if s.more != nil {
		s.await(1)
	}
	if err != nil {
		s.malformed(&in, b, err)
		return
	}
	if in.Protocol == sniff.Proxy && len(t.opts.AcceptProxy) > 0 {
		s.end(BadProxyHeader, fmt.Errorf("a PROXY header from %v, which is not in accept_proxy_protocol.from", s.source.Addr()))
		return
	}
	s.sniffed()
	if len(in.ServerName) > 0 {
		s.detail().sni = intern(string(in.ServerName))
	}
	if in.Protocol != sniff.Unknown {
		s.detail().protocol = in.Protocol
	}
	f := facts{source: s.source.Addr(), port: s.localPort(), info: &in}
	if in.Protocol == sniff.TLS && onlyACME(in.ALPN) {
		if c := t.challenged(string(in.ServerName)); c != nil {
			s.terminate(c, &f, len(b))
			return
		}
	}
	s.choose(&f, len(b))
}

// acmeALPN is what a certificate authority asks for to see whether we control
// a name (RFC 8737).
const acmeALPN = tlsterm.ChallengeProtocol

func onlyACME(offers sniff.ALPNList) bool {
	n := 0
	for p := range offers.All() {
		if string(p) != acmeALPN {
			return false
		}
		n++
	}
	return n == 1
}

// malformed ends a session whose first bytes begin a protocol that routes care
// about, and break its rules: it must not get by to a default route.
func (s *session) malformed(in *sniff.Info, b []byte, err error) {
	if in.Protocol == sniff.TLS {
		s.sendAlert(len(b), tlsrecord.AlertDecodeError)
		s.end(TLSFailed, err)
		return
	}
	s.consume(len(b))
	s.end(NoRoute, err)
}

// refuse ends a session that no route matches. A TLS client is told so.
func (s *session) refuse(f *facts, seen int) {
	switch {
	case f.tls != "":
		s.relay.Alert(tlsrecord.AlertAccessDenied)
	case f.info != nil && f.info.Protocol == sniff.TLS:
		// RFC 6066, section 3.
		s.sendAlert(seen, tlsrecord.AlertUnrecognizedName)
	}
	s.end(NoRoute, nil)
}

// sendAlert tells a client that has sent a ClientHello of seen bytes why there
// will be no handshake. The hello is taken first: unread bytes would turn the
// close into a reset, which may overtake the alert.
func (s *session) sendAlert(seen int, alert uint8) {
	s.consume(seen)
	var buf [16]byte
	b := tlsrecord.AppendPlainAlert(buf[:0], alert)
	unix.SendmsgN(s.relay.ClientFD(), b, nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
}

// handshaking is a TLS handshake with a client. While it lasts the descriptor is
// the pool's: a session that ends leaves it to the handshaking, which closes it
// when the pool has let go.
type handshaking struct {
	tlsterm.Handshake
	w     *worker
	ln    *Listener
	s     *session   // nil: it has ended
	hello sniff.Info // for routes that are chosen after the handshake, with its own copy of the names
}

// terminate begins the TLS handshake.
func (s *session) terminate(c *tlsterm.Context, f *facts, seen int) {
	w, ln, t := s.a.w, s.a.ln, s.table
	s.phase = PhaseTLS
	if n := t.opts.Limits.Handshakes; n > 0 && ln.handshakes.Load() >= int64(n) {
		s.end(Limited, errLimit("handshakes"))
		return
	}
	if !ln.handshakeRate.take(t.handshakeRate, w.loop.Now()) {
		s.end(Limited, errLimit("handshake_rate"))
		return
	}
	o := &handshaking{w: w, ln: ln, s: s}
	o.FD, o.Context = s.relay.ClientFD(), c
	if in := f.info; in != nil && in.Protocol == sniff.Postgres && in.SSLRequest {
		const size = 8
		if seen != size {
			// Bytes behind the request were sent in the clear: they must not
			// pass for what TLS protects (CVE-2021-23214).
			s.end(TLSFailed, errors.New("bytes after the SSLRequest, before TLS"))
			return
		}
		o.Skip, o.Preface = size, []byte{'S'}
	}
	if in := f.info; in != nil && t.reverify {
		o.hello.Protocol = in.Protocol
		o.hello.ServerName, o.hello.ALPN = bytes.Clone(in.ServerName), bytes.Clone(in.ALPN)
	}
	ln.handshakes.Add(1)
	s.detail().handshake = o
	o.Done = func(*tlsterm.Handshake) { w.loop.Post(o.finish) }
	w.m.env.Handshakes.Start(&o.Handshake)
}

// abandon ends the handshake of a session that has ended. On the loop.
func (o *handshaking) abandon() {
	o.s.relay.Detach()
	o.s = nil
	o.Cancel()
}

// finish is what follows the handshake, on the loop.
func (o *handshaking) finish() {
	o.ln.handshakes.Add(-1)
	o.ln.loops[o.w.loop.Index].tls.observe(&o.Handshake)
	s := o.s
	if s == nil {
		o.Discard()
		o.w.loop.CloseLater(o.FD)
		return
	}
	s.more.handshake = nil
	if o.Err != nil {
		s.end(TLSFailed, o.Err)
		return
	}
	s.more.secured(&o.Handshake)
	if err := s.secureClient(&o.Handshake); err != nil {
		s.end(Overloaded, err)
		return
	}
	if o.ALPN == acmeALPN || s.routeNo < 0 {
		// The handshake was all that the certificate authority wanted.
		s.relay.Alert(tlsrecord.AlertCloseNotify)
		s.end(ClientClosed, nil)
		return
	}
	if s.table.reverify {
		s.choose(&facts{source: s.source.Addr(), port: s.localPort(), info: &o.hello, tls: o.Context.Name(), names: o.Identity.Names()}, 0)
		return
	}
	s.dialOut(&s.table.routes[s.routeNo])
}
