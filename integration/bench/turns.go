package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"edgeproxy/integration/bench/traffic"
)

// measureTurns measures the same traffic through the listener that routes by
// name and through the one that only relays, in short turns: so small a
// difference would else drown in what the machine does from second to second.
func (h *harness) measureTurns(ctx context.Context, s scenario, x *proxy) ([]Measurement, error) {
	const turns = 4
	run := h.traffic(s)
	sides := [2]struct {
		name, target string
		l            *loader
		tally        tally
	}{{name: s.Name, target: x.named}, {name: s.also, target: x.listen[0]}}
	for i := range sides {
		side := &sides[i]
		var err error
		if side.l, err = h.startLoad(ctx, side.target, s.speech, false); err != nil {
			return nil, err
		}
		defer side.l.close()
		if err := h.warm(s, run, side.l); err != nil {
			return nil, fmt.Errorf("%s: %w", side.name, err)
		}
	}
	run.Duration /= turns
	for i := range 2 * turns {
		side := &sides[(i+i/2)%2] // 0, 1, 1, 0, 0, 1, 1, 0: none is always the first
		if err := h.run(x, side.l, run, &side.tally); err != nil {
			return nil, fmt.Errorf("%s: %w", side.name, err)
		}
	}
	var all []Measurement
	for i := range sides {
		all = append(all, sides[i].tally.measurement(sides[i].name, 0))
	}
	return all, nil
}

// measureFlood measures the latency of requests on sessions that are there,
// first with nothing else going on, then while other clients make handshakes as
// fast as they can, or begin them and do not go on.
func (h *harness) measureFlood(ctx context.Context, s scenario, x *proxy) ([]Measurement, error) {
	l, err := h.startLoad(ctx, x.listen[0], s.speech, false)
	if err != nil {
		return nil, err
	}
	defer l.close()
	run := h.traffic(s)
	if err := h.warm(s, run, l); err != nil {
		return nil, err
	}
	run.Rate = floodRate / float64(h.Shrink)
	run = atLeastAFew(run)
	var calm, flooded tally
	if err := h.run(x, l, run, &calm); err != nil {
		return nil, err
	}

	f, err := h.startLoad(ctx, x.listen[0], traffic.TLS, true)
	if err != nil {
		return nil, err
	}
	defer f.close()
	l.pids = append(l.pids, f.pids...)
	if _, err := f.do(traffic.Command{Stall: &traffic.Stall{Connections: (floodStalled + h.Shrink - 1) / h.Shrink}}); err != nil {
		return nil, fmt.Errorf("flood: %w", err)
	}
	lead := h.scaled(200 * time.Millisecond)
	type outcome struct {
		reply traffic.Reply
		err   error
	}
	over := make(chan outcome, 1)
	go func() {
		var o outcome
		o.reply, o.err = f.do(traffic.Command{Run: &traffic.Run{
			Duration: run.Duration + lead, Connect: true, Handshake: true,
			Connections: (floodSlots + h.Shrink - 1) / h.Shrink, Request: requestSize, Answer: answerSize,
		}})
		over <- o
	}()
	sleep(ctx, lead)
	err = h.run(x, l, run, &flooded)
	o := <-over
	if err := errors.Join(err, o.err); err != nil {
		return nil, err
	}
	// A proxy may turn some away, but a flood there must have been.
	if o.reply.Result.Requests == 0 {
		return nil, fmt.Errorf("flood: no handshake: %s", o.reply.Result.FirstError)
	}
	m := flooded.measurement(s.Name, run.Rate)
	m.Flood = float64(o.reply.Result.Requests) / o.reply.Result.Elapsed.Seconds()
	m.CPU = 0 // not that of the requests
	if n := o.reply.Result.Errors; n > 0 && m.Note == "" {
		m.Note = fmt.Sprintf("%d handshakes failed, the first: %s", n, o.reply.Result.FirstError)
	}
	return []Measurement{m, calm.measurement(s.also, run.Rate)}, nil
}
