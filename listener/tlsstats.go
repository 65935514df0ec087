package listener

import (
	"crypto/tls"
	"sync/atomic"
	"time"
	"unique"

	"edgeproxy/internal/histogram"
	"edgeproxy/tlsterm"
)

// HandshakeResult says how a TLS handshake with a client ended.
type HandshakeResult uint8

const (
	HandshakeFull    HandshakeResult = iota
	HandshakeResumed                 // by a session ticket
	HandshakeFailed
	resultCount
)

// HandshakeResults holds the names, indexed by HandshakeResult.
var HandshakeResults = [...]string{"full", "resumed", "failed"}

// TLSVersions holds the labels of [TLSStats.Handshakes]; the first is that of
// handshakes that failed before a version was agreed on.
var TLSVersions = [...]string{"none", "1.0", "1.1", "1.2", "1.3"}

const versionCount = len(TLSVersions)

// TLSStats is what a listener has counted of TLS with its clients.
type TLSStats struct {
	Handshakes [versionCount][resultCount]uint64
	Seconds    histogram.Data // of those that succeeded
	Sessions   [engineCount]int64
	Configured bool // some route terminates TLS
}

// tlsCounters are one loop's.
type tlsCounters struct {
	handshakes [versionCount][resultCount]atomic.Uint64
	seconds    *histogram.Histogram
}

func newTLSCounters() tlsCounters {
	return tlsCounters{seconds: histogram.New(250*time.Microsecond, 500*time.Microsecond, time.Millisecond, 2500*time.Microsecond, 5*time.Millisecond,
		10*time.Millisecond, 25*time.Millisecond, 50*time.Millisecond, 100*time.Millisecond, 250*time.Millisecond, time.Second, 5*time.Second)}
}

func (c *tlsCounters) observe(h *tlsterm.Handshake) {
	version := 0
	if h.Version >= tls.VersionTLS10 && h.Version <= tls.VersionTLS13 {
		version = int(h.Version-tls.VersionTLS10) + 1
	}
	result := HandshakeFull
	switch {
	case h.Err != nil:
		result = HandshakeFailed
	case h.Resumed:
		result = HandshakeResumed
	}
	c.handshakes[version][result].Add(1)
	if h.Err == nil {
		c.seconds.Observe(h.Took)
	}
}

func (c *tlsCounters) addTo(s *TLSStats) {
	for v := range c.handshakes {
		for r := range c.handshakes[v] {
			s.Handshakes[v][r] += c.handshakes[v][r].Load()
		}
	}
	c.seconds.AddTo(&s.Seconds)
}

// intern makes sessions that ask for the same name share it.
func intern(s string) string { return unique.Make(s).Value() }
