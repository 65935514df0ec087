package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
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
	Bytes     uint64  `json:"bytes,omitempty"`    // of answers
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

	Memory      float64 `json:"bytes_per_connection,omitempty"`
	Descriptors float64 `json:"descriptors_per_connection,omitempty"`
	Millis      float64 `json:"milliseconds,omitempty"` // of check and start
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
	case m.Memory != 0:
		return fmt.Sprintf("%.2f KB and %.2f descriptors per connection%s", m.Memory/1024, m.Descriptors, note)
	case m.Millis > 0:
		return fmt.Sprintf("%.1f ms%s", m.Millis, note)
	case m.Bytes/max(m.Requests, 1) > 1<<20:
		return fmt.Sprintf("%.2f GB/s  %.0f ms CPU/GB  p99 %.1f ms%s", float64(m.Bytes)/m.Seconds/1e9, m.CPU*1e3/(float64(m.Bytes)/1e9), m.P99/1e3, note)
	}
	return fmt.Sprintf("%.0f/s  %.2f µs CPU  p50 %.0f p99 %.0f p99.9 %.0f µs%s", m.PerSecond, m.CPU*1e6/float64(m.Requests), m.P50, m.P99, m.P999, note)
}

// measure runs one scenario. shared is the proxy of the round, for the scenarios
// that use it.
func (h *harness) measure(ctx context.Context, s scenario, p *peer.Peer, shared *proxy) (Measurement, error) {
	switch s.kind {
	case check:
		return h.measureCheck(ctx, s, p)
	case start:
		return h.measureStart(ctx, s, p)
	}
	if !s.shared() {
		own, err := h.start(ctx, p, max(s.servers, 1), max(s.listeners, 1))
		if err != nil {
			return Measurement{}, err
		}
		defer own.stop()
		shared = own
	}
	note := ""
	if most := h.sessions(max(p.Kind.Descriptors, 2)); s.connections > most && s.kind != connect {
		note = fmt.Sprintf("with the %d descriptors a process may have here it cannot hold %d connections", h.descriptors, s.connections)
		if s.kind != idle {
			return Measurement{Note: "not measured: " + note}, nil
		}
		s.connections = most
		note += fmt.Sprintf("; measured with %d", most)
	}
	target := shared.listen[0]
	if s.bulk {
		target = shared.bulk
	}
	l, err := h.startLoad(ctx, target)
	if err != nil {
		return Measurement{}, err
	}
	defer l.close()
	var m Measurement
	if s.kind == idle {
		m, err = h.measureIdle(ctx, s, shared, l)
	} else {
		m, err = h.measureTraffic(s, shared, l)
	}
	if err != nil {
		return m, err
	}
	l.close()
	if note == "" {
		note = shared.settle(ctx)
	}
	if note != "" {
		m.Note = note
	}
	return m, nil
}

// measureIdle opens connections, each of which has had one request answered,
// and looks at what the proxy holds for them.
func (h *harness) measureIdle(ctx context.Context, s scenario, x *proxy, l *loader) (Measurement, error) {
	var m Measurement
	hold := func(connections int) (memory int64, descriptors int, err error) {
		if err := l.open(connections, answerSize); err != nil {
			return 0, 0, err
		}
		// What the proxy frees a moment later is not the connections' cost.
		sleep(ctx, h.scaled(500*time.Millisecond))
		if memory, err = proc.Memory(x.pids); err != nil {
			return 0, 0, err
		}
		descriptors, err = proc.Descriptors(x.pids)
		return memory, descriptors, err
	}
	// The first ones pay for what is allocated once.
	memory, descriptors, err := hold(64)
	if err != nil {
		return m, err
	}
	fullMemory, fullDescriptors, err := hold(s.connections)
	if err != nil {
		return m, err
	}
	m.Memory = float64(fullMemory-memory) / float64(s.connections)
	m.Descriptors = float64(fullDescriptors-descriptors) / float64(s.connections)
	// All of them are still there and work.
	result, err := l.run(traffic.Run{Request: requestSize, Answer: answerSize})
	if err != nil {
		return m, err
	}
	m.Requests, m.Bytes = result.Requests, result.Bytes
	if want := uint64(s.connections + 64); result.Requests != want {
		return m, fmt.Errorf("%d of %d idle connections answered a second request: %s", result.Requests, want, result.FirstError)
	}
	return m, nil
}

// measureTraffic lets the client work, after a moment to warm up. Before and
// after the measured time no request is under way, so that the proxy's CPU time
// belongs to exactly the requests that are counted.
func (h *harness) measureTraffic(s scenario, x *proxy, l *loader) (Measurement, error) {
	var m Measurement
	run := traffic.Run{
		Duration: h.scaled(s.duration), Request: requestSize, Answer: s.answer,
		Connect: s.kind == connect, Connections: s.connections,
	}
	if s.kind == kept {
		if err := l.open(s.connections, answerSize); err != nil {
			return m, err
		}
	}
	warm := run
	warm.Duration = h.scaled(250 * time.Millisecond)
	warm.Answer = min(warm.Answer, 4<<20)
	warm.Connections = min(warm.Connections, connectSlots)
	if _, err := l.run(warm); err != nil {
		return m, err
	}
	if s.paceOf != "" {
		if run.Rate = h.rates[s.Name]; run.Rate <= 0 {
			return m, fmt.Errorf("no rate: %s was not measured", s.paceOf)
		}
		// At least a few, however short the run is.
		run.Duration = max(run.Duration, time.Duration(4/run.Rate*float64(time.Second)))
		m.Rate = run.Rate
	}
	before, err := h.clocks(x, l)
	if err != nil {
		return m, err
	}
	result, err := l.run(run)
	if err != nil {
		return m, err
	}
	after, err := h.clocks(x, l)
	if err != nil {
		return m, err
	}
	m.CPU = (after.proxy - before.proxy).Seconds()
	m.LoadCPU = (after.load - before.load).Seconds()
	m.ServerCPU = (after.backend - before.backend).Seconds()
	if wall := after.at.Sub(before.at).Seconds(); wall > 0 {
		all := (after.machine.Busy + after.machine.Stolen - before.machine.Busy - before.machine.Stolen).Seconds()
		m.OthersCPU = max(all-m.CPU-m.LoadCPU-m.ServerCPU, 0) / wall / float64(after.cpus)
	}
	m.Requests, m.Bytes, m.Seconds = result.Requests, result.Bytes, result.Elapsed.Seconds()
	m.PerSecond = float64(m.Requests) / m.Seconds
	latency := func(q float64) float64 { return float64(result.Latency.Quantile(q)) / 1e3 }
	m.P50, m.P99, m.P999, m.Max = latency(0.5), latency(0.99), latency(0.999), latency(1)
	switch {
	case result.Unsent > 0:
		m.Note = fmt.Sprintf("did not sustain the rate: %d requests were never begun", result.Unsent)
	case m.Rate > 0 && m.PerSecond < 0.9*m.Rate && m.Requests > 100:
		m.Note = fmt.Sprintf("%.0f%% of the rate", 100*m.PerSecond/m.Rate)
	}
	return m, nil
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
	c.load, errs[1] = proc.CPU([]int{l.PID()})
	c.backend, errs[2] = proc.CPU([]int{h.backend.PID()})
	c.machine, errs[3] = proc.ReadMachine()
	return c, errors.Join(errs[:]...)
}

// measureCheck times a run of the peer that only reads its configuration.
func (h *harness) measureCheck(ctx context.Context, s scenario, p *peer.Peer) (Measurement, error) {
	var m Measurement
	_, config, err := h.prepare(p, s.servers, 1)
	if err != nil {
		return m, err
	}
	argv := p.Kind.Check(p.Program, config)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	began := time.Now()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return m, fmt.Errorf("%v: %w: %.500s", argv, err, out)
	}
	m.Millis = time.Since(began).Seconds() * 1e3
	return m, nil
}

// measureStart times from exec until the last listener has answered a request
// and all others accept.
func (h *harness) measureStart(ctx context.Context, s scenario, p *peer.Peer) (Measurement, error) {
	var m Measurement
	x, config, err := h.prepare(p, 1, s.listeners)
	if err != nil {
		return m, err
	}
	began := time.Now()
	if err := h.launch(ctx, x, config, 200*time.Microsecond); err != nil {
		return m, err
	}
	m.Millis = time.Since(began).Seconds() * 1e3
	x.stop()
	return m, nil
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

// loader is the client process.
type loader struct {
	*peer.Process
	in, out *os.File
	enc     *json.Encoder
	dec     *json.Decoder
	release func() bool
	closed  bool
}

func (h *harness) startLoad(ctx context.Context, target string) (*loader, error) {
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		theirIn.Close()
		in.Close()
		return nil, err
	}
	argv := []string{h.self, "load", "-target", target, "-threads", fmt.Sprint(h.Threads)}
	process, err := peer.StartProcess("load", argv, leanRuntime(h.Threads), theirIn, theirOut)
	theirIn.Close()
	theirOut.Close()
	if err != nil {
		in.Close()
		out.Close()
		return nil, err
	}
	l := &loader{Process: process, in: in, out: out, enc: json.NewEncoder(in), dec: json.NewDecoder(out)}
	l.release = context.AfterFunc(ctx, process.Stop)
	return l, nil
}

func (l *loader) close() {
	if l.closed {
		return
	}
	l.closed = true
	l.release()
	l.in.Close() // it ends at the end of its commands
	l.Stop()
	l.out.Close()
}

func (l *loader) do(c traffic.Command) (traffic.Reply, error) {
	var r traffic.Reply
	if err := l.enc.Encode(c); err != nil {
		return r, fmt.Errorf("load: %w: %s", err, l.Log())
	}
	if err := l.dec.Decode(&r); err != nil {
		return r, fmt.Errorf("load: %w: %s", err, l.Log())
	}
	if r.Error != "" {
		return r, errors.New(r.Error)
	}
	return r, nil
}

func (l *loader) open(connections int, answer int64) error {
	_, err := l.do(traffic.Command{Open: &traffic.Open{Connections: connections, Request: requestSize, Answer: answer}})
	if err != nil {
		return fmt.Errorf("opening %d connections: %w", connections, err)
	}
	return nil
}

// run fails if any request did: numbers of a proxy that loses requests mean
// nothing.
func (l *loader) run(r traffic.Run) (*traffic.Result, error) {
	reply, err := l.do(traffic.Command{Run: &r})
	if err != nil {
		return nil, err
	}
	if reply.Result.Errors > 0 {
		return nil, fmt.Errorf("%d of %d requests failed, the first: %s",
			reply.Result.Errors, reply.Result.Errors+reply.Result.Requests, reply.Result.FirstError)
	}
	if reply.Result.Requests == 0 {
		return nil, errors.New("no request was answered")
	}
	return reply.Result, nil
}
