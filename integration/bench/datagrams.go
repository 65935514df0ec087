package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"edgeproxy/integration/bench/proc"
	"edgeproxy/integration/bench/traffic"
)

const (
	datagramMemoryScenario = "udp-memory"
	trainScenario          = "udp-train"
	singlyScenario         = "udp-train-singly"
	trainDownScenario      = "udp-train-down"
	quicScenario           = "udp-quic"
	ladderScenario         = "udp-ladder"
	lossScenario           = "udp-loss"
	spoofedScenario        = "udp-flood"
	unspoofedScenario      = "udp-calm"
)

func roundTripScenario(clients int) string {
	if clients >= 1000 {
		return fmt.Sprintf("udp-rtt-%dk", clients/1000)
	}
	return fmt.Sprintf("udp-rtt-%d", clients)
}

func pacedTripScenario(clients int) string { return roundTripScenario(clients) + "-paced" }

const (
	// Datagrams as QUIC and iperf3 send them, and how many at a time.
	segmentSize = 1200
	trainLength = 32
	// Trains go on so many sessions, each of which has one under way: 512
	// datagrams together, and 32 on a socket, which fit into every buffer.
	trainStreams = 16

	quicStreams = 4
	// Requests under way with very many clients.
	manyWindow = 256

	// The ladder's first step, in requests per second, how much higher each is
	// than the one before, and the loss at which one has fallen off.
	ladderFirst = 20_000
	ladderStep  = 1.25
	ladderLoss  = 0.001
	// What comes back later than this is lost to the ladder: where the rate is
	// too high, socket buffers, which hold some 10 000 datagrams, fill first.
	ladderTimeout = 100 * time.Millisecond
	// Shorter steps would fill buffers, and lose nothing.
	ladderLeast = 300 * time.Millisecond

	// A flood comes from so many addresses, so fast.
	spoofedSources = 100_000
	spoofedRate    = 25_000
)

// datagramScenarios are UDP. Each proxy is started afresh for each of them.
func datagramScenarios(o options) []scenario {
	const train = trainLength * segmentSize
	sessions := 2 * o.Idle // one descriptor each
	all := []scenario{{
		Name: datagramMemoryScenario, Title: fmt.Sprintf("memory and descriptors of %d idle UDP sessions", sessions),
		kind: idle, connections: sessions, answer: requestSize,
	}}
	for _, n := range []int{64, 10_000} {
		closed := scenario{
			Name: roundTripScenario(n), Title: fmt.Sprintf("100 B → 100 B over UDP, %d clients, closed loop", n),
			kind: kept, connections: n, answer: requestSize, duration: 1500 * time.Millisecond, withDirect: true,
		}
		paced := closed
		if n > manyWindow {
			closed.window = manyWindow
			closed.Title += fmt.Sprintf(", %d requests at a time", manyWindow)
		}
		paced.Name, paced.paceOf = pacedTripScenario(n), closed.Name
		paced.Title = fmt.Sprintf("100 B → 100 B over UDP, %d clients, at one rate for all", n)
		all = append(all, closed, paced)
	}
	up := scenario{
		Name: trainScenario, Title: "trains of 32 × 1200 B over UDP to the server",
		kind: kept, connections: trainStreams, request: train, answer: requestSize, segment: segmentSize, duration: 1500 * time.Millisecond, withDirect: true,
	}
	singly := up
	singly.Name, singly.Title, singly.singly = singlyScenario, "the same, sent as single datagrams", true
	down := up
	down.Name, down.Title, down.request, down.answer = trainDownScenario, "trains of 32 × 1200 B over UDP from the server", requestSize, train
	all = append(all, up, singly, down,
		scenario{
			Name: quicScenario, Title: "4 QUIC connections (quic-go), answers of 50 MB",
			kind: kept, connections: quicStreams, answer: o.Bulk / 2, duration: 2 * time.Second, withDirect: true, setup: quicSetup, speech: traffic.QUIC,
		},
		scenario{
			Name: ladderScenario, Title: "the highest rate of 100 B → 100 B over UDP with under 0.1 % loss",
			kind: ladder, connections: 64, answer: requestSize, duration: 500 * time.Millisecond, rounds: 1,
		},
		scenario{
			Name: lossScenario, Title: "loss at the highest rate that nginx and the subject sustain",
			kind: loss, connections: 64, answer: requestSize, duration: 1500 * time.Millisecond, paceOf: ladderScenario, paceBy: []string{"nginx"}, withDirect: true,
		},
		scenario{
			Name: spoofedScenario, Title: "100 B → 100 B of 64 UDP clients, 2000/s, before and during a flood from 100 000 sources",
			kind: spoofed, connections: 64, answer: requestSize, duration: 4 * time.Second, also: unspoofedScenario, rounds: o.QuietRounds,
		},
	)
	for i := range all {
		if all[i].speech == "" {
			all[i].setup, all[i].speech = datagramSetup, traffic.Datagrams
		}
	}
	return all
}

// measureLadder raises the rate until requests are lost, and says which was the
// last without. A step that fails is tried again: the machine may have been busy
// with other things.
func (h *harness) measureLadder(ctx context.Context, s scenario, x *proxy) ([]Measurement, error) {
	l, err := h.startLoad(ctx, x.listen[0], s.speech, false)
	if err != nil {
		return nil, err
	}
	defer l.close()
	run := h.traffic(s)
	if err := h.warm(s, run, l); err != nil {
		return nil, err
	}
	run.Open, run.Timeout, run.Duration = true, ladderTimeout, max(run.Duration, ladderLeast)
	var best *Measurement
	run.Rate = ladderFirst / float64(h.Shrink)
	for range h.Ladder {
		m, err := h.step(x, l, run)
		if err == nil && !m.sustained() {
			m, err = h.step(x, l, run)
		}
		if err != nil {
			return nil, err
		}
		if !m.sustained() {
			break
		}
		best = &m
		run.Rate *= ladderStep
	}
	if best == nil {
		return nil, fmt.Errorf("even %.0f requests per second cannot be sustained", run.Rate)
	}
	best.Scenario, best.Note = s.Name, ""
	return []Measurement{*best}, nil
}

func (h *harness) step(x *proxy, l *loader, run traffic.Run) (Measurement, error) {
	var t tally
	err := h.run(x, l, atLeastAFew(run), &t)
	m := t.measurement("", run.Rate)
	if t.unsent > 0 {
		m.Lost += t.unsent // the client is at its end, or waits for answers
	}
	return m, err
}

func (m *Measurement) sustained() bool { return m.lossShare() < ladderLoss }

// measureSpoofed measures the latency of requests on sessions that are there,
// first with nothing else going on, then while there are datagrams from very
// many other sources, each of which would be a session.
func (h *harness) measureSpoofed(ctx context.Context, s scenario, x *proxy) ([]Measurement, error) {
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
	before, err := lookAt(x)
	if err != nil {
		return nil, err
	}

	f, err := h.startLoad(ctx, x.listen[0], s.speech, false)
	if err != nil {
		return nil, err
	}
	defer f.close()
	l.pids = append(l.pids, f.pids...)
	type outcome struct {
		reply traffic.Reply
		err   error
	}
	over := make(chan outcome, 1)
	go func() {
		var o outcome
		o.reply, o.err = f.do(traffic.Command{Run: &traffic.Run{
			Duration: run.Duration, Rate: spoofedRate / float64(h.Shrink), Sources: spoofedSources, Request: requestSize, Answer: requestSize,
		}})
		over <- o
	}()
	err = h.run(x, l, run, &flooded)
	o := <-over
	after, lookErr := lookAt(x)
	if err := errors.Join(err, o.err, lookErr); err != nil {
		return nil, err
	}
	m := flooded.measurement(s.Name, run.Rate)
	m.Flood = float64(o.reply.Result.Requests) / o.reply.Result.Elapsed.Seconds()
	m.Growth, m.Held = float64(after.memory-before.memory), float64(after.descriptors-before.descriptors)
	m.Used = float64(runtime.NumCPU()) * flooded.proxy.Seconds() / flooded.capacity.Seconds()
	m.CPU = 0 // not that of the requests
	return []Measurement{m, calm.measurement(s.also, run.Rate)}, nil
}

// holding is what a proxy holds at one moment.
type holding struct {
	memory      int64
	descriptors int
}

func lookAt(x *proxy) (h holding, err error) {
	if h.memory, err = proc.Memory(x.pids); err != nil {
		return h, err
	}
	h.descriptors, err = proc.Descriptors(x.pids)
	return h, err
}
