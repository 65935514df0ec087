package upstream

import (
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Reason classifies a failure to connect to a server.
type Reason uint8

const (
	Refused     Reason = iota // nobody listens, or the queue of a unix socket is full
	TimedOut                  // no answer within connect_timeout
	Unreachable               // no route to the host or the network, or it says so
	Reset                     // accepted and reset before a byte was exchanged
	NoPorts                   // no local port is left towards the server
	TLS                       // connected, but the TLS handshake failed
	Other
	reasonCount
)

// Reasons holds the names, indexed by Reason.
var Reasons = [...]string{"refused", "timeout", "unreachable", "reset", "no_ports", "tls", "other"}

func (r Reason) String() string { return Reasons[r] }

func reasonOf(errno unix.Errno) Reason {
	switch errno {
	case unix.ECONNREFUSED, unix.ENOENT, unix.EAGAIN:
		return Refused
	case unix.ETIMEDOUT:
		return TimedOut
	case unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENETDOWN:
		return Unreachable
	case unix.ECONNRESET, unix.EPIPE:
		return Reset
	case unix.EADDRNOTAVAIL:
		return NoPorts
	default:
		return Other
	}
}

// Server is the live state of one server. It belongs to the server, not to
// the configuration: a reload that still names it (same upstream, name and
// address) goes on with the same Server.
type Server struct {
	Upstream string
	Name     string
	Address  Address

	active   atomic.Int64             // leases
	up       atomic.Bool              // verdict of the health checks
	endpoint atomic.Pointer[endpoint] // nil: the host name has no address yet

	sessions atomic.Uint64
	failures [reasonCount]atomic.Uint64
	passed   atomic.Uint64 // health checks
	failed   atomic.Uint64
	checkErr atomic.Pointer[string]
	group    atomic.Pointer[Group] // that uses it now
	watching *watching
}

func newServer(upstream string, o ServerOptions) *Server {
	s := &Server{Upstream: upstream, Name: o.Name, Address: o.Address}
	s.up.Store(true) // until a check says otherwise
	if o.Address.Host == "" {
		s.endpoint.Store(newEndpoint(o.Address.AddrPort, o.Address.Unix))
	}
	return s
}

// AddressText is the address in use, as a log shows it.
func (s *Server) AddressText() string {
	if e := s.endpoint.Load(); e != nil {
		return e.text
	}
	return s.Address.String()
}

// Active is the number of sessions that hold a lease.
func (s *Server) Active() int64 { return s.active.Load() }

// Up reports the health checks' verdict.
func (s *Server) Up() bool { return s.up.Load() }

// OnDown is what the configuration in force says about the live sessions of a
// server that goes down.
func (s *Server) OnDown() OnDown {
	if g := s.group.Load(); g != nil {
		return g.opts.OnDown
	}
	return OnDownDefault
}

// Release gives a lease back, exactly once.
func (s *Server) Release() { s.active.Add(-1) }

// lease takes one of max sessions, 0: unlimited.
func (s *Server) lease(max int) bool {
	if max <= 0 {
		s.active.Add(1)
		return true
	}
	for {
		n := s.active.Load()
		if n >= int64(max) {
			return false
		}
		if s.active.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (s *Server) stats(o ServerOptions) ServerStats {
	st := ServerStats{
		Name: s.Name, Address: s.Address.String(), Weight: weight(o), Tier: o.Tier, Up: s.up.Load(),
		Active: s.active.Load(), Sessions: s.sessions.Load(), Failures: make(map[string]uint64, reasonCount),
		Checks: CheckStats{Passed: s.passed.Load(), Failed: s.failed.Load()},
	}
	if e := s.endpoint.Load(); e != nil && s.Address.Host != "" {
		st.Resolved = e.addr.String()
	}
	if p := s.checkErr.Load(); p != nil {
		st.LastErr = *p
	}
	for i := range s.failures {
		st.Failures[Reasons[i]] = s.failures[i].Load()
	}
	return st
}

func weight(o ServerOptions) int {
	switch {
	case o.Weight == 0:
		return DefaultWeight
	case o.Weight < 0:
		return 0
	}
	return o.Weight
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

// endpoint is a server's address in the form that connect(2) takes.
type endpoint struct {
	addr   netip.AddrPort
	text   string
	family int
	raw    []byte
}
