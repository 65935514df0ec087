package listener

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// limiter applies the limits of one listener that need state. It is shared by
// the loops, and taken over by a reload that does not change the limits.
type limiter struct {
	opts    Limits
	rate    bucket
	all     rule
	perRate rule
	seed    maphash.Seed
	shards  [16]shard
}

// shard holds the sources of one sixteenth of the addresses.
type shard struct {
	mu      sync.Mutex
	sources map[netip.Addr]*source
	sweepAt int // size at which those that are forgotten anyway are removed
	_       [32]byte
}

type source struct {
	active int
	rate   bucket
}

// rule is a rate as the generic cell rate algorithm (ITU-T I.371) wants it.
type rule struct {
	interval int64 // ns between two, 0: no limit
	burst    int64 // ns ahead of time that are let pass: one second's worth
}

func newRule(perSecond float64) rule {
	if perSecond <= 0 {
		return rule{}
	}
	// Less than one in a century is none: the sum with a clock must not overflow.
	interval := int64(min(float64(time.Second)/perSecond, 1<<62))
	return rule{max(interval, 1), max(int64(time.Second)-interval, 0)}
}

// bucket is the theoretical arrival time of the next, in monotonic ns.
type bucket struct{ tat atomic.Int64 }

func (b *bucket) take(r rule, now int64) bool {
	if r.interval == 0 {
		return true
	}
	for {
		tat := b.tat.Load()
		next := max(tat, now)
		if next-now > r.burst {
			return false
		}
		if b.tat.CompareAndSwap(tat, next+r.interval) {
			return true
		}
	}
}

func newLimiter(l Limits) *limiter {
	if l.Rate <= 0 && l.RatePerSource <= 0 && l.ConnectionsPerSource <= 0 {
		return nil
	}
	lim := &limiter{opts: l, all: newRule(l.Rate), perRate: newRule(l.RatePerSource), seed: maphash.MakeSeed()}
	for i := range lim.shards {
		lim.shards[i].sources = map[netip.Addr]*source{}
		lim.shards[i].sweepAt = 1024
	}
	return lim
}

// sourceKey is what counts as one source: an IPv4 address, or the /64 that one
// IPv6 site can choose its addresses from.
func sourceKey(a netip.Addr) netip.Addr {
	if a.Is4() || !a.IsValid() {
		return a
	}
	b := a.As16()
	clear(b[8:])
	return netip.AddrFrom16(b)
}

// enter reports which limit, if any, keeps a new session out. What was let in
// is given back with leave.
func (l *limiter) enter(a netip.Addr, now int64) (limit string) {
	if !l.perSource() || !a.IsValid() {
		return l.take(now)
	}
	key := sourceKey(a)
	sh := l.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s := sh.sources[key]
	if s == nil {
		if len(sh.sources) >= sh.sweepAt {
			sh.sweep(now)
		}
		s = &source{}
		sh.sources[key] = s
	}
	if n := l.opts.ConnectionsPerSource; n > 0 && s.active >= n {
		return "connections_per_source"
	}
	if !s.rate.take(l.perRate, now) {
		return "rate_per_source"
	}
	// Last: what a source has beyond its own limit must not use up the others' share.
	if limit := l.take(now); limit != "" {
		return limit
	}
	s.active++
	return ""
}

// take counts a session in the rate of the whole listener.
func (l *limiter) take(now int64) (limit string) {
	if !l.rate.take(l.all, now) {
		return "rate"
	}
	return ""
}

func (l *limiter) leave(a netip.Addr, now int64) {
	if !l.perSource() || !a.IsValid() {
		return
	}
	key := sourceKey(a)
	sh := l.shard(key)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if s := sh.sources[key]; s != nil {
		s.active--
		if s.idle(now) {
			delete(sh.sources, key)
		}
	}
}

func (l *limiter) perSource() bool {
	return l.opts.ConnectionsPerSource > 0 || l.opts.RatePerSource > 0
}

func (l *limiter) shard(a netip.Addr) *shard {
	return &l.shards[maphash.Comparable(l.seed, a)%uint64(len(l.shards))]
}

func (s *source) idle(now int64) bool { return s.active == 0 && s.rate.tat.Load() <= now }

// sweep removes the sources that a new entry would not differ from.
func (sh *shard) sweep(now int64) {
	for k, s := range sh.sources {
		if s.idle(now) {
			delete(sh.sources, k)
		}
	}
	sh.sweepAt = max(1024, 2*len(sh.sources))
}
