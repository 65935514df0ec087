package splice

import (
	"time"

	"edgeproxy/internal/reactor"
)

// Shaper limits the bandwidth of one relay. Each direction is a token bucket
// that holds at most 125 ms worth of bytes: with less, a
// loop that is busy for so long would fall behind the rate.
type Shaper struct {
	relay   *Relay
	timer   reactor.Timer
	in, out bucket
}

type bucket struct {
	rate   int64 // bytes per second, 0: no limit
	tokens int64
	last   int64 // ns
}

// NewShaper limits to the given bytes per second of each direction; 0: no limit.
func NewShaper(in, out int64) *Shaper {
	return &Shaper{in: bucket{rate: in}, out: bucket{rate: out}}
}

func (s *Shaper) of(client bool) *bucket {
	if client {
		return &s.in
	}
	return &s.out
}

// burst is at least a small segment, so that a tiny rate makes progress.
func (b *bucket) burst() int64 { return max(b.rate/8, 512) }

// allow is how many bytes may be read now. At 0 the relay gets another turn
// when there are some.
func (s *Shaper) allow(client bool) int {
	b := s.of(client)
	if b.rate == 0 {
		return spliceSize
	}
	loop := s.relay.engine.Loop
	now := loop.Now()
	if elapsed := now - b.last; elapsed >= int64(time.Second) {
		b.tokens, b.last = b.burst(), now
	} else if n := b.rate * elapsed / 1e9; n > 0 {
		b.tokens = min(b.tokens+n, b.burst())
		b.last += n * 1e9 / b.rate // what the division left over counts next time
		if b.tokens == b.burst() {
			b.last = now
		}
	}
	if b.tokens > 0 {
		return int(min(b.tokens, spliceSize))
	}
	if !s.timer.Active() {
		missing := b.burst()/8 - b.tokens
		loop.StartTimer(&s.timer, time.Duration(missing*1e9/b.rate))
	}
	return 0
}

func (s *Shaper) spend(client bool, n int) {
	if b := s.of(client); b.rate != 0 {
		b.tokens -= int64(n)
	}
}

// Expired gives the relay its next turn.
func (s *Shaper) Expired(*reactor.Timer) { s.relay.run() }
