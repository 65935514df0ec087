package main

import (
	"context"
	"fmt"
	"time"

	"edgeproxy/integration/bench/peer"
	"edgeproxy/integration/bench/proc"
	"edgeproxy/integration/bench/traffic"
)

// idleSessions are connections on which nothing happens.
type idleSessions struct {
	x           *proxy
	l           *loader
	connections int
	answer      int64
	since       time.Time

	// What the proxy held before them.
	memory      int64
	descriptors int
}

const firstIdle = 64

// openIdle opens connections, each of which has one request answered.
func (h *harness) openIdle(ctx context.Context, s scenario, x *proxy) (*idleSessions, error) {
	l, err := h.startLoad(ctx, x.target(s), s.speech, false)
	if err != nil {
		return nil, err
	}
	held := &idleSessions{x: x, l: l, connections: s.connections, answer: s.answer}
	// The first ones pay for what is allocated once.
	err = l.open(firstIdle, s.answer)
	if err == nil {
		h.pause(ctx)
		held.memory, held.descriptors, err = held.look()
	}
	if err == nil {
		err = l.open(s.connections, s.answer)
	}
	if err != nil {
		l.close()
		return nil, err
	}
	held.since = time.Now()
	h.pause(ctx)
	return held, nil
}

// pause waits: what a proxy frees a moment later is not its connections' cost.
func (h *harness) pause(ctx context.Context) { sleep(ctx, h.scaled(500*time.Millisecond)) }

func (i *idleSessions) look() (memory int64, descriptors int, err error) {
	if memory, err = proc.Memory(i.x.pids); err != nil {
		return 0, 0, err
	}
	descriptors, err = proc.Descriptors(i.x.pids)
	return memory, descriptors, err
}

// each is what the proxy holds for each connection, in bytes and descriptors.
func (i *idleSessions) each() (memory, descriptors float64, err error) {
	m, d, err := i.look()
	n := float64(i.connections)
	return float64(m-i.memory) / n, float64(d-i.descriptors) / n, err
}

// wake makes one request on every connection: all of them are still there and
// work.
func (i *idleSessions) wake(m *Measurement) error {
	result, err := i.l.run(traffic.Run{Request: requestSize, Answer: i.answer})
	if err != nil {
		return err
	}
	m.Requests, m.Bytes = result.Requests, result.Bytes
	if want := uint64(i.connections + firstIdle); result.Requests != want {
		return fmt.Errorf("%d of %d idle connections answered a second request: %s", result.Requests, want, result.FirstError)
	}
	return nil
}

// measureIdle looks at what the proxy holds for idle connections.
func (h *harness) measureIdle(ctx context.Context, s scenario, x *proxy) ([]Measurement, error) {
	held, err := h.openIdle(ctx, s, x)
	if err != nil {
		return nil, err
	}
	defer held.l.close()
	m := Measurement{Scenario: s.Name}
	if m.Memory, m.Descriptors, err = held.each(); err != nil {
		return nil, err
	}
	err = held.wake(&m)
	return []Measurement{m}, err
}

// measureQuiet is measureIdle with a second look after a quiet while, which all
// peers have at the same time.
func (h *harness) measureQuiet(ctx context.Context, s scenario, peers []*peer.Peer, record func(*peer.Peer, []Measurement, error)) error {
	type one struct {
		p    *peer.Peer
		held *idleSessions
		m    Measurement
		err  error
	}
	var all []*one
	defer func() {
		for _, o := range all {
			if o.held != nil {
				o.held.l.close()
				o.held.x.stop()
			}
		}
	}()
	for _, p := range peers {
		if p.Kind == peer.Direct {
			continue
		}
		o := &one{p: p, m: Measurement{Scenario: s.Name}}
		all = append(all, o)
		mine := s
		o.m.Note = h.fit(&mine, p)
		// The backend has a connection for each of all peers' at the same time.
		if most := h.sessions(len(peers)) - firstIdle; mine.connections > most {
			mine.connections = most
			o.m.Note = fmt.Sprintf("with the %d descriptors that the backend may have here, measured with %d", h.descriptors, most)
		}
		x, err := h.start(ctx, p, s.setup, 1, 1)
		if err != nil {
			return err
		}
		if o.held, o.err = h.openIdle(ctx, mine, x); o.err != nil {
			x.stop()
		} else {
			o.m.MemoryAtOnce, _, o.err = o.held.each()
		}
	}
	for _, o := range all {
		if o.err == nil {
			sleep(ctx, time.Until(o.held.since.Add(s.quiet)))
			if o.m.Memory, o.m.Descriptors, o.err = o.held.each(); o.err == nil {
				o.err = o.held.wake(&o.m)
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		record(o.p, []Measurement{o.m}, o.err)
	}
	return nil
}
