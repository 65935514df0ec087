package listener

import (
	"sync/atomic"
	"time"

	"edgeproxy/internal/histogram"
	"edgeproxy/splice"
)

// Listener is what a name in the configuration stands for while it stands
// there: its counters, and the table in force.
type Listener struct {
	name   string
	table  atomic.Pointer[table]
	active atomic.Int64 // sessions, for limits.connections
	loops  []counters

	handshakes    atomic.Int64 // under way, for limits.handshakes
	handshakeRate bucket
	engines       [engineCount]atomic.Int64

	ids quicIDs

	acceptErrors atomic.Uint64
	acceptPauses atomic.Uint64
}

// counters are one loop's: written by it alone, read by all.
type counters struct {
	bytes    splice.Counters
	sessions atomic.Uint64
	ended    atomic.Uint64
	ends     [endCount]atomic.Uint64
	seconds  *histogram.Histogram
	tls      tlsCounters

	datagramsIn  atomic.Uint64
	datagramsOut atomic.Uint64
	drops        [dropCount]atomic.Uint64
	_            [64]byte
}

func newListener(name string, loops int) *Listener {
	l := &Listener{name: name, loops: make([]counters, loops)}
	for i := range l.loops {
		l.loops[i].tls = newTLSCounters()
		l.loops[i].seconds = histogram.New(time.Millisecond, 10*time.Millisecond, 100*time.Millisecond, time.Second, 10*time.Second,
			time.Minute, 10*time.Minute, time.Hour, 6*time.Hour, 24*time.Hour)
	}
	return l
}

func (l *Listener) stats() Stats {
	s := Stats{Name: l.name, AcceptErrors: l.acceptErrors.Load(), AcceptPauses: l.acceptPauses.Load()}
	if t := l.table.Load(); t != nil {
		s.TLS.Configured = t.terminates
		s.Network = t.opts.Network
	}
	for e := range l.engines {
		s.TLS.Sessions[e] = l.engines[e].Load()
	}
	for i := range l.loops {
		c := &l.loops[i]
		// The end first: a session that begins and ends in between must not
		// make a negative number.
		s.Active -= int64(c.ended.Load())
		n := c.sessions.Load()
		s.Sessions += n
		s.Active += int64(n)
		c.tls.addTo(&s.TLS)
		for e := range c.ends {
			s.Ends[e] += c.ends[e].Load()
		}
		s.BytesIn += c.bytes.In.Load()
		s.BytesOut += c.bytes.Out.Load()
		s.Spliced += c.bytes.Spliced.Load()
		s.DatagramsIn += c.datagramsIn.Load()
		s.DatagramsOut += c.datagramsOut.Load()
		for d := range c.drops {
			s.Dropped[d] += c.drops[d].Load()
		}
		c.seconds.AddTo(&s.Seconds)
	}
	return s
}
