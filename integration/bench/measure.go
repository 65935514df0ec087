package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"time"

	"edgeproxy/integration/bench/peer"
	"edgeproxy/integration/bench/proc"
	"edgeproxy/integration/bench/traffic"
)

// Measurement is one scenario on one peer in one round. What a scenario does not
// measure is zero.
type Measurement struct {
	Round    int    `json:"round"`
	Scenario string `json:"scenario"`
	Peer     string `json:"peer"`
	Error    string `json:"error,omitempty"`
	Note     string `json:"note,omitempty"`

	Requests  uint64  `json:"requests,omitempty"` // each answered with the right bytes
	Lost      uint64  `json:"lost,omitempty"`     // over UDP, not answered
	Bytes     uint64  `json:"bytes,omitempty"`    // of answers, or of requests where these are longer
	Seconds   float64 `json:"seconds,omitempty"`
	PerSecond float64 `json:"per_second,omitempty"`   // requests
	Rate      float64 `json:"rate,omitempty"`         // asked for, in paced scenarios
	CPU       float64 `json:"cpu_seconds,omitempty"`  // of the proxy
	LoadCPU   float64 `json:"load_cpu,omitempty"`     // of the client
	ServerCPU float64 `json:"server_cpu,omitempty"`   // of the backend
	OthersCPU float64 `json:"others_share,omitempty"` // of all CPUs: used by none of these, stolen time included

	// Microseconds.
	P50  float64 `json:"p50_us,omitempty"`
	P99  float64 `json:"p99_us,omitempty"`
	P999 float64 `json:"p999_us,omitempty"`
	Max  float64 `json:"max_us,omitempty"`

	Memory       float64 `json:"bytes_per_connection,omitempty"`
	MemoryAtOnce float64 `json:"bytes_per_connection_at_once,omitempty"` // where Memory is that of a quiet while later
	Descriptors  float64 `json:"descriptors_per_connection,omitempty"`
	Millis       float64 `json:"milliseconds,omitempty"`     // of check and start
	Flood        float64 `json:"flood_per_second,omitempty"` // handshakes, or datagrams, beside the requests

	// Of a flood of datagrams: what the proxy held at its end more than before,
	// and how many CPUs it used.
	Growth float64 `json:"flood_bytes,omitempty"`
	Held   float64 `json:"flood_descriptors,omitempty"`
	Used   float64 `json:"flood_cpus,omitempty"`
}

// summary is for the progress line.
func (m *Measurement) summary() string {
	note := ""
	if m.Note != "" {
		note = "  (" + m.Note + ")"
	}
	switch {
	case m.Error != "":
		return "FAILED: " + m.Error
	case m.Requests == 0 && m.Millis == 0:
		return m.Note
	case m.MemoryAtOnce != 0:
		return fmt.Sprintf("%.2f KB, later %.2f KB and %.2f descriptors per session%s", m.MemoryAtOnce/1024, m.Memory/1024, m.Descriptors, note)
	case m.Memory != 0:
		return fmt.Sprintf("%.2f KB and %.2f descriptors per connection%s", m.Memory/1024, m.Descriptors, note)
	case m.Millis > 0:
		return fmt.Sprintf("%.1f ms%s", m.Millis, note)
	case m.Bytes/max(m.Requests, 1) > 16<<10:
		return fmt.Sprintf("%.2f GB/s  %.0f ms CPU/GB  p99 %.2f ms%s", float64(m.Bytes)/m.Seconds/1e9, m.CPU*1e3/(float64(m.Bytes)/1e9), m.P99/1e3, note)
	}
	if m.Used > 0 {
		return fmt.Sprintf("%.0f/s beside %.0f datagrams/s  p50 %.0f p99 %.0f p99.9 %.0f µs, %.0f lost of a million, %.1f MB and %.0f descriptors more, %.2f CPUs%s",
			m.PerSecond, m.Flood, m.P50, m.P99, m.P999, 1e6*m.lossShare(), m.Growth/1e6, m.Held, m.Used, note)
	}
	if m.Flood > 0 {
		return fmt.Sprintf("%.0f/s beside %.0f handshakes/s  p50 %.0f p99 %.0f p99.9 %.0f µs%s", m.PerSecond, m.Flood, m.P50, m.P99, m.P999, note)
	}
	return fmt.Sprintf("%.0f/s  %.2f µs CPU  p50 %.0f p99 %.0f p99.9 %.0f µs%s", m.PerSecond, m.CPU*1e6/float64(m.Requests), m.P50, m.P99, m.P999, note)
}

// lossShare is the share of requests that were not answered.
func (m *Measurement) lossShare() float64 {
	return float64(m.Lost) / float64(max(m.Requests+m.Lost, 1))
}

// measure runs one scenario. shared is the proxy of the round, for the scenarios
// that use it.
func (h *harness) measure(ctx context.Context, s scenario, p *peer.Peer, shared *proxy) ([]Measurement, error) {
	switch s.kind {
	case check:
		return h.measureCheck(ctx, s, p)
	case start:
		return h.measureStart(ctx, s, p)
	}
	if !s.shared() {
		own, err := h.start(ctx, p, s.setup, max(s.servers, 1), max(s.listeners, 1))
		if err != nil {
			return nil, err
		}
		defer own.stop()
		shared = own
	}
	note := h.fit(&s, p)
	if s.connections == 0 {
		return []Measurement{{Scenario: s.Name, Note: "not measured: " + note}}, nil
	}
	var all []Measurement
	var err error
	switch {
	case s.kind == idle:
		all, err = h.measureIdle(ctx, s, shared)
	case s.kind == flood:
		all, err = h.measureFlood(ctx, s, shared)
	case s.kind == ladder:
		all, err = h.measureLadder(ctx, s, shared)
	case s.kind == spoofed:
		all, err = h.measureSpoofed(ctx, s, shared)
	case s.also != "":
		all, err = h.measureTurns(ctx, s, shared)
	default:
		all, err = h.measureTraffic(ctx, s, shared)
	}
	if err != nil {
		return all, err
	}
	if note == "" && s.shared() {
		note = shared.settle(ctx)
	}
	if note != "" {
		all[0].Note = note
	}
	return all, nil
}

// fit makes a scenario's connections as many as the proxy can have, and says so.
// With no connections the scenario cannot be measured.
func (h *harness) fit(s *scenario, p *peer.Peer) (note string) {
	if s.kind == connect {
		return ""
	}
	each := max(p.Kind.Descriptors, 2)
	switch {
	case s.setup == tlsSetup:
		each = 2 // nothing is spliced
	case s.setup.datagrams():
		each = 1 // the clients' side has none
	}
	wanted := s.connections
	if s.also != "" {
		each *= 2 // those of both sides are open at the same time
	}
	most := h.sessions(each)
	if wanted <= most {
		return ""
	}
	note = fmt.Sprintf("with the %d descriptors a process may have here it cannot hold %d connections", h.descriptors, wanted)
	if s.kind != idle {
		s.connections = 0
		return note
	}
	s.connections = most
	return note + fmt.Sprintf("; measured with %d", most)
}

// target is where a scenario's client connects to.
func (x *proxy) target(s scenario) string {
	if s.bulk {
		return x.bulk
	}
	return x.listen[0]
}

// traffic is what a scenario's client does.
func (h *harness) traffic(s scenario) traffic.Run {
	return traffic.Run{
		Duration: h.scaled(s.duration), Request: int(s.request), Answer: s.answer,
		Segment: s.segment, Singly: s.singly, Window: s.window,
		Connect: s.kind == connect, Connections: s.connections,
	}
}

// measureTraffic lets the client work, after a moment to warm up.
func (h *harness) measureTraffic(ctx context.Context, s scenario, x *proxy) ([]Measurement, error) {
	l, err := h.startLoad(ctx, x.target(s), s.speech, false)
	if err != nil {
		return nil, err
	}
	defer l.close()
	run := h.traffic(s)
	if err := h.warm(s, run, l); err != nil {
		return nil, err
	}
	if s.paceOf != "" {
		if run.Rate = h.rates[s.Name]; run.Rate <= 0 {
			return nil, fmt.Errorf("no rate: %s was not measured", s.paceOf)
		}
		run = atLeastAFew(run)
		if s.kind == loss {
			run.Open, run.Duration = true, max(run.Duration, ladderLeast)
		}
	}
	var t tally
	if err := h.run(x, l, run, &t); err != nil {
		return nil, err
	}
	switch {
	case t.requests == 0:
		return nil, fmt.Errorf("at %.0f requests per second none was answered", run.Rate)
	case s.speech == traffic.TLS && t.resumed > 0:
		return nil, fmt.Errorf("%d of %d handshakes resumed a session", t.resumed, t.handshakes)
	case s.speech == traffic.Resumed && float64(t.resumed) < 0.99*float64(t.handshakes):
		return nil, fmt.Errorf("only %d of %d handshakes resumed a session", t.resumed, t.handshakes)
	}
	return []Measurement{t.measurement(s.Name, run.Rate)}, nil
}

// warm opens what stays open, and lets everything run for a moment.
func (h *harness) warm(s scenario, run traffic.Run, l *loader) error {
	if !run.Connect {
		if err := l.open(s.connections, s.opening()); err != nil {
			return err
		}
	}
	run.Duration = h.scaled(250 * time.Millisecond)
	run.Answer = min(run.Answer, 4<<20)
	run.Connections = min(run.Connections, connectSlots)
	_, err := l.run(run)
	return err
}

// opening is the answer that a connection has when it is opened.
func (s scenario) opening() int64 {
	if s.setup == datagramSetup {
		return requestSize
	}
	return answerSize
}

// atLeastAFew makes a paced run long enough for some requests.
func atLeastAFew(run traffic.Run) traffic.Run {
	run.Duration = max(run.Duration, time.Duration(4/run.Rate*float64(time.Second)))
	return run
}

// tally is what one or several runs brought, and what they cost everybody.
type tally struct {
	requests, bytes, unsent, lost, handshakes, resumed uint64
	elapsed                                            time.Duration
	latency                                            traffic.Histogram

	proxy, load, backend time.Duration
	others, capacity     time.Duration // of all CPUs: used by none of these, and there was
}

// run adds a run to t. Before and after it no request is under way, so that the
// proxy's CPU time belongs to exactly the requests that are counted.
func (h *harness) run(x *proxy, l *loader, r traffic.Run, t *tally) error {
	before, err := h.clocks(x, l)
	if err != nil {
		return err
	}
	result, err := l.run(r)
	if err != nil {
		return err
	}
	after, err := h.clocks(x, l)
	if err != nil {
		return err
	}
	proxy, load, backend := after.proxy-before.proxy, after.load-before.load, after.backend-before.backend
	t.proxy += proxy
	t.load += load
	t.backend += backend
	all := after.machine.Busy + after.machine.Stolen - before.machine.Busy - before.machine.Stolen
	t.others += all - proxy - load - backend
	t.capacity += after.at.Sub(before.at) * time.Duration(after.cpus)
	t.requests += result.Requests
	t.bytes += result.Bytes
	t.unsent += result.Unsent
	t.lost += result.Lost
	t.handshakes += result.Handshakes
	t.resumed += result.Resumed
	t.elapsed += result.Elapsed
	t.latency.Merge(&result.Latency)
	return nil
}

func (t *tally) measurement(scenario string, rate float64) Measurement {
	m := Measurement{
		Scenario: scenario, Rate: rate,
		Requests: t.requests, Bytes: t.bytes, Seconds: t.elapsed.Seconds(), PerSecond: float64(t.requests) / t.elapsed.Seconds(),
		Lost: t.lost, CPU: t.proxy.Seconds(), LoadCPU: t.load.Seconds(), ServerCPU: t.backend.Seconds(),
	}
	if t.capacity > 0 {
		m.OthersCPU = max(t.others.Seconds(), 0) / t.capacity.Seconds()
	}
	latency := func(q float64) float64 { return float64(t.latency.Quantile(q)) / 1e3 }
	m.P50, m.P99, m.P999, m.Max = latency(0.5), latency(0.99), latency(0.999), latency(1)
	switch {
	case t.unsent > 0:
		m.Note = fmt.Sprintf("did not sustain the rate: %d requests were never begun", t.unsent)
	case t.lost > 0:
		m.Note = fmt.Sprintf("%.3g %% of the requests were lost", 100*m.lossShare())
	case rate > 0 && m.PerSecond < 0.9*rate && m.Requests > 100:
		m.Note = fmt.Sprintf("%.0f%% of the rate", 100*m.PerSecond/rate)
	}
	return m
}

// clocks is the CPU time of everybody at one moment.
type clocks struct {
	at                   time.Time
	cpus                 int
	proxy, load, backend time.Duration
	machine              proc.Machine
}

func (h *harness) clocks(x *proxy, l *loader) (c clocks, err error) {
	c.at, c.cpus = time.Now(), runtime.NumCPU()
	var errs [4]error
	c.proxy, errs[0] = proc.CPU(x.pids)
	c.load, errs[1] = proc.CPU(l.pids)
	c.backend, errs[2] = proc.CPU([]int{h.backend.PID()})
	c.machine, errs[3] = proc.ReadMachine()
	return c, errors.Join(errs[:]...)
}

// measureCheck times a run of the peer that only reads its configuration.
func (h *harness) measureCheck(ctx context.Context, s scenario, p *peer.Peer) ([]Measurement, error) {
	_, config, err := h.prepare(p, s.setup, s.servers, 1)
	if err != nil {
		return nil, err
	}
	argv := p.Kind.Check(p.Program, config)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	began := time.Now()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%v: %w: %.500s", argv, err, out)
	}
	return []Measurement{{Scenario: s.Name, Millis: time.Since(began).Seconds() * 1e3}}, nil
}

// measureStart times from exec until the last listener has answered a request
// and all others accept.
func (h *harness) measureStart(ctx context.Context, s scenario, p *peer.Peer) ([]Measurement, error) {
	x, config, err := h.prepare(p, s.setup, 1, s.listeners)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := h.launch(ctx, x, config, 200*time.Microsecond); err != nil {
		return nil, err
	}
	took := time.Since(began)
	x.stop()
	return []Measurement{{Scenario: s.Name, Millis: took.Seconds() * 1e3}}, nil
}

// settle waits until the proxy has let go of the last scenario's connections.
func (p *proxy) settle(ctx context.Context) (note string) {
	if p.process == nil {
		return ""
	}
	for deadline := time.Now().Add(5 * time.Second); ; sleep(ctx, 5*time.Millisecond) {
		// Sockets alone: pipes may stay in a pool.
		n, err := proc.Sockets(p.pids)
		switch {
		case err != nil:
			return err.Error()
		case n <= p.sockets || ctx.Err() != nil:
			return ""
		case time.Now().After(deadline):
			return fmt.Sprintf("holds %d sockets 5 s after its clients have gone", n-p.sockets)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
