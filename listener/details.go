package listener

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"edgeproxy/internal/proxyproto"
	"edgeproxy/internal/sniff"
	"edgeproxy/splice"
	"edgeproxy/tlsterm"
	"edgeproxy/upstream"
)

// Engine is how the bytes of a TLS session are sealed and opened.
type Engine uint8

const (
	EngineRecords   Engine = iota // our record layer, on the loop
	EngineKernel                  // kernel TLS
	EngineGoroutine               // crypto/tls
	engineCount
)

// Engines holds the names, indexed by Engine.
var Engines = [...]string{"records", "kernel", "goroutine"}

func (e Engine) String() string { return Engines[e] }

// details is what is known of a session that has more to it than bytes: a
// PROXY header, sniffed names, TLS. On the loop.
type details struct {
	local     netip.AddrPort // destination by the PROXY header
	sni       string
	alpn      string
	tlvs      []byte // of the PROXY header
	identity  *tlsterm.Identity
	handshake *handshaking // TLS handshake under way
	bridges   [2]*tlsterm.Bridge
	engines   [2]Engine // of client and server, if secure
	secure    [2]bool
	took      time.Duration // the client's handshake
	lowat     int32         // SO_RCVLOWAT of the client's socket, 0: never set
	version   uint16
	suite     uint16
	protocol  sniff.Protocol
	crc       bool // the PROXY header had a checksum
	records   bool // the relay has ciphers to shed
}

// The sides of a session with TLS.
const (
	clientLeg = iota
	serverLeg
)

func (s *session) detail() *details {
	if s.more == nil {
		s.more = new(details)
	}
	return s.more
}

// secured notes what the client's handshake has agreed on.
func (d *details) secured(h *tlsterm.Handshake) {
	d.version, d.suite, d.identity, d.took = h.Version, h.Suite, h.Identity, h.Took
	if d.protocol == sniff.Unknown {
		d.protocol = sniff.TLS
	}
	if h.ServerName != "" && d.sni == "" {
		d.sni = intern(h.ServerName)
	}
	if h.ALPN != "" {
		d.alpn = intern(h.ALPN)
	}
}

// secureClient puts TLS between the client and the relay.
func (s *session) secureClient(h *tlsterm.Handshake) error {
	if h.Records != nil {
		s.relay.SecureClient(splice.TLS{Conn: h.Records, Kernel: h.InKernel})
		s.countRecords(clientLeg, h.InKernel)
		return nil
	}
	h.FD = s.relay.Detach()
	b, fd, err := tlsterm.NewBridge(h)
	if err != nil {
		return err
	}
	if err := s.relay.Adopt(fd); err != nil {
		s.a.w.loop.CloseLater(fd)
		b.Abort()
		return err
	}
	s.bridge(clientLeg, b)
	return nil
}

// secureServer notes the TLS of the server's side.
func (s *session) secureServer(d *upstream.Dial) {
	s.detail()
	if d.Bridge != nil {
		s.bridge(serverLeg, d.Bridge)
		return
	}
	s.countRecords(serverLeg, d.Kernel)
}

func (s *session) countRecords(leg int, kernel bool) {
	if kernel {
		s.countEngine(leg, EngineKernel)
		return
	}
	s.more.records = true
	s.countEngine(leg, EngineRecords)
}

func (s *session) bridge(leg int, b *tlsterm.Bridge) {
	s.more.bridges[leg] = b
	s.countEngine(leg, EngineGoroutine)
	w, id := s.a.w, s.id
	b.Start(func(err error) {
		w.loop.Post(func() {
			if s.id == id { // the slab's session may be another's by now
				s.bridgeFailed(leg, err)
			}
		})
	})
}

// bridgeFailed ends a session for what crypto/tls has met on one side.
func (s *session) bridgeFailed(leg int, err error) {
	reset, side := ClientReset, "client"
	if leg == serverLeg {
		reset, side = ServerReset, "server"
	}
	var errno syscall.Errno
	switch {
	case err == tlsterm.ErrTruncated:
		if c := s.relay.Cut(leg == serverLeg); c == splice.ClientClosed || c == splice.ServerClosed {
			if b := s.more.bridges[1-leg]; b != nil {
				b.Abort()
			}
			s.RelayEnded(c)
			return
		}
		s.end(reset, err)
	case errors.As(err, &errno):
		s.end(reset, errno)
	default:
		s.end(TLSFailed, fmt.Errorf("%s: %w", side, err))
	}
}

func (s *session) countEngine(leg int, e Engine) {
	s.more.secure[leg], s.more.engines[leg] = true, e
	s.a.ln.engines[e].Add(1)
}

// end gives back what the details hold.
func (d *details) end(s *session, e End) {
	if d.handshake != nil {
		d.handshake.abandon()
	}
	for leg, secure := range d.secure {
		if secure {
			s.a.ln.engines[d.engines[leg]].Add(-1)
		}
		switch b := d.bridges[leg]; {
		case b == nil:
		case e.orderly():
			b.Linger()
		default:
			b.Abort()
		}
	}
}

// fill adds the details to the access log's record.
func (d *details) fill(r *Record) {
	r.Protocol, r.SNI, r.ALPN = d.protocol, d.sni, d.alpn
	r.TLSVersion, r.TLSCipher, r.TLS = d.version, d.suite, d.took
	if d.identity != nil {
		r.ClientName = d.identity.Subject
	}
}

// tlvs is what a PROXY header tells servers besides addresses; nil: nothing.
func (s *session) tlvs() *proxyproto.TLVs {
	d := s.more
	if d == nil || d.sni == "" && d.version == 0 && d.tlvs == nil {
		return nil
	}
	t := &proxyproto.TLVs{Authority: d.sni, ALPN: d.alpn, Keep: d.tlvs, CRC: d.crc}
	if d.version != 0 {
		t.SSL = &proxyproto.SSL{Client: proxyproto.ClientSSL, Version: versionName(d.version), Cipher: tls.CipherSuiteName(d.suite)}
		if id := d.identity; id != nil {
			t.SSL.Client |= proxyproto.ClientCertConn | proxyproto.ClientCertSess
			t.SSL.CN = id.CommonName
		} else {
			t.SSL.Verify = 1 // section 2.2.6: zero only if a certificate was verified
		}
	}
	return t
}

// versionName is the form of OpenSSL and of the PROXY protocol's text.
func versionName(v uint16) string {
	switch v {
	case tls.VersionTLS10:
		return "TLSv1"
	case tls.VersionTLS11:
		return "TLSv1.1"
	case tls.VersionTLS12:
		return "TLSv1.2"
	case tls.VersionTLS13:
		return "TLSv1.3"
	}
	return ""
}
