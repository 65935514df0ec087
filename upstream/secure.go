package upstream

import (
	"fmt"

	"edgeproxy/internal/reactor"
	"edgeproxy/tlsterm"
)

// securing is a TLS handshake with a server. While it lasts the descriptor is
// the pool's: an attempt that is given up leaves it to the securing, which
// closes it when the pool has let go.
type securing struct {
	tlsterm.Handshake
	d     *Dial // nil: given up. On the loop
	loop  *reactor.Loop
	token reactor.Token
}

// startTLS begins the handshake of d's socket.
func (d *Dial) startTLS() *securing {
	s := &securing{d: d, loop: d.dialer.Loop, token: d.Token}
	s.FD, s.Client = d.FD, d.group.tls.Config(serverName(d.Server))
	s.Done = func(*tlsterm.Handshake) { s.loop.Post(s.finish) }
	d.dialer.Handshakes.Start(&s.Handshake)
	return s
}

// serverName is whom the server's certificate must name when the
// configuration does not say.
func serverName(sv *Server) string {
	switch a := sv.Address; {
	case a.Host != "":
		return a.Host
	case a.AddrPort.IsValid():
		return a.AddrPort.Addr().WithZone("").String()
	}
	return ""
}

// abandon ends the handshake; the descriptor is closed when it has ended. On
// the loop.
func (s *securing) abandon() {
	s.d = nil
	s.loop.Forget(s.token)
	s.Cancel()
}

// finish is what follows the handshake, on the loop.
func (s *securing) finish() {
	d := s.d
	if d == nil {
		s.Discard()
		s.loop.CloseLater(s.FD)
		return
	}
	d.secure = nil
	if err := s.Err; err != nil {
		sv := d.Server
		if d.failedFor(TLS, fmt.Errorf("TLS handshake with server %q at %s: %w", sv.Name, sv.Address, err)) {
			d.end(ConnectFailed)
			return
		}
		d.attempt()
		return
	}
	if s.Records != nil {
		d.TLS, d.Kernel, d.Ticket = s.Records, s.InKernel, s.Ticket
		d.established()
		return
	}
	s.bridge(d)
}

// bridge lets crypto/tls go on, as the record layer does not know the version
// or suite.
func (s *securing) bridge(d *Dial) {
	d.dialer.Loop.Forget(d.Token)
	d.Token, d.FD = reactor.None, -1
	b, fd, err := tlsterm.NewBridge(&s.Handshake)
	if err == nil {
		d.Bridge = b
		if d.Token, err = s.loop.Add(fd, reactor.Stream, d); err == nil {
			d.FD, d.Events = fd, reactor.Writable
			d.established()
			return
		}
		s.loop.CloseLater(fd)
		b.Abort()
	}
	d.abandon()
	d.Err = fmt.Errorf("TLS with server %q: %w", d.Server.Name, err)
	d.end(Overloaded)
}
