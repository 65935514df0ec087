package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"edgeproxy/integration/bench/peer"
	"edgeproxy/integration/bench/proc"
	"edgeproxy/integration/bench/traffic"
)

// harness holds what lives through all rounds.
type harness struct {
	options
	self        string // this binary
	dir         string // temporary files
	scenarios   []scenario
	backend     *peer.Process
	backendPort int
	certificate *peer.Certificate
	rates       map[string]float64 // of paced scenarios, set in the first round
	descriptors int                // a process may have
}

// proxy is a peer that runs.
type proxy struct {
	peer    *peer.Peer
	setup   setup
	process *peer.Process // nil: direct
	listen  []string
	bulk    string // where bulk scenarios connect to
	named   string // the listener that routes by name; "": none
	pids    []int
	sockets int // when nothing was connected
}

// compare runs all rounds and stops everything it started.
func compare(ctx context.Context, o options, peers []*peer.Peer, progress io.Writer) (_ *results, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	h := &harness{options: o, self: self, scenarios: scenarioList(o), rates: map[string]float64{}}
	if len(h.scenarios) == 0 {
		return nil, usageError{errors.New("-scenarios matches none; -list lists them")}
	}
	if h.descriptors, err = proc.DescriptorLimit(); err != nil {
		return nil, err
	}
	if h.dir, err = os.MkdirTemp("", "edgeproxy-bench-"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(h.dir)
	if h.certificate, err = peer.NewCertificate(h.dir, traffic.ServerName); err != nil {
		return nil, err
	}
	if err := h.startBackend(ctx); err != nil {
		return nil, err
	}
	defer h.backend.Stop()

	began := time.Now()
	res := &results{Machine: describeMachine(), Started: began, Rounds: o.Rounds, Workers: o.Workers, Subject: o.Subject}
	for _, p := range peers {
		res.Peers = append(res.Peers, peerInfo{Name: p.Name, Program: p.Program, Version: p.Version()})
	}
	for round := range o.Rounds {
		if err := h.round(ctx, round, peers, res, progress); err != nil {
			return nil, err
		}
	}
	res.Rates = h.rates
	res.Seconds = time.Since(began).Seconds()
	return res, nil
}

func (h *harness) startBackend(ctx context.Context) (err error) {
	if h.backendPort, err = peer.FreePorts(2); err != nil { // the second is for QUIC
		return err
	}
	// All of 127.0.0.0/8, so that one process can play 10 000 servers.
	argv := []string{h.self, "backend", "-listen", fmt.Sprintf("0.0.0.0:%d", h.backendPort), "-threads", fmt.Sprint(h.Threads),
		"-quic", h.quicAddress(), "-certificate", h.certificate.CertFile, "-key", h.certificate.KeyFile}
	if h.backend, err = peer.StartProcess("backend", argv, leanRuntime(h.Threads), nil, nil); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := h.backend.WaitReady(ctx, time.Millisecond, func() error { return ask(h.serverAddress(0), traffic.Plain) }); err != nil {
		h.backend.Stop()
		return err
	}
	return nil
}

// backendFailure says why the backend has ended, if it has: no proxy is to be
// blamed for that.
func (h *harness) backendFailure() error {
	select {
	case <-h.backend.Exited():
		return h.backend.Failure()
	default:
		return nil
	}
}

// leanRuntime is the environment of client and backend: they keep no garbage, and
// signals to preempt long loops would only disturb them.
func leanRuntime(threads int) []string {
	return []string{"GOGC=off", "GOMEMLIMIT=1GiB", "GODEBUG=asyncpreemptoff=1", "QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING=true", fmt.Sprintf("GOMAXPROCS=%d", threads+1)}
}

// sessions is how many sessions of so many descriptors each a proxy can have.
func (h *harness) sessions(descriptors int) int {
	const others = 600 // listeners, loops, a pool of pipes
	return max(h.descriptors-others, 0) / descriptors
}

// serverAddress is an address of the backend; each i has one of its own.
func (h *harness) serverAddress(i int) string {
	if i == 0 {
		return fmt.Sprintf("127.0.0.1:%d", h.backendPort)
	}
	return fmt.Sprintf("127.%d.%d.%d:%d", 1+i>>16, i>>8&0xff, i&0xff, h.backendPort)
}

// quicAddress is where the backend speaks QUIC.
func (h *harness) quicAddress() string { return fmt.Sprintf("127.0.0.1:%d", h.backendPort+1) }

// ask makes one request over a new connection.
func ask(address string, speech traffic.Speech) error {
	network, patience := "tcp", 5*time.Second
	switch speech {
	case traffic.QUIC:
		return traffic.AskQUIC(address)
	case traffic.Datagrams:
		network, patience = "udp", 100*time.Millisecond // nothing is sent again
	}
	c, err := net.DialTimeout(network, address, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	switch speech {
	case traffic.Datagrams:
		return traffic.AskDatagram(c)
	case traffic.TLS:
		return traffic.Ask(tls.Client(c, traffic.ClientConfig()))
	case traffic.Hello:
		return traffic.AskWithHello(c)
	}
	return traffic.Ask(c)
}

func (h *harness) round(ctx context.Context, round int, peers []*peer.Peer, res *results, progress io.Writer) error {
	proxies := make([]*proxy, len(peers))
	stopAll := func() {
		for i, p := range proxies {
			p.stop()
			proxies[i] = nil
		}
	}
	defer stopAll()
	setup := relaySetup
	for si, s := range h.scenarios {
		if s.rounds > 0 && round >= s.rounds {
			continue
		}
		if s.setup != setup {
			stopAll()
			setup = s.setup
		}
		h.setRate(s, res)
		record := func(p *peer.Peer, all []Measurement, err error) {
			if err != nil {
				all = []Measurement{{Scenario: s.Name, Error: err.Error()}}
			}
			for _, m := range all {
				m.Round, m.Peer = round, p.Name
				res.Measurements = append(res.Measurements, m)
				fmt.Fprintf(progress, "round %d/%d  %-17s %-10s %s\n", round+1, h.Rounds, m.Scenario, p.Name, m.summary())
			}
		}
		if s.quiet > 0 {
			if err := errors.Join(h.measureQuiet(ctx, s, peers, record), h.backendFailure()); err != nil {
				return err
			}
			continue
		}
		for i := range peers {
			at := (i + round + si) % len(peers)
			p := peers[at]
			if p.Kind == peer.Direct && !s.withDirect || s.kind == check && p.Kind.Check == nil || s.setup.datagrams() && !p.Kind.Datagrams {
				continue
			}
			if proxies[at] == nil && s.shared() {
				var err error
				if proxies[at], err = h.start(ctx, p, s.setup, 1, 1); err != nil {
					return err // a peer that does not even start: nothing to compare
				}
			}
			all, err := h.measure(ctx, s, p, proxies[at])
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				if err := h.backendFailure(); err != nil {
					return err
				}
				// Whatever state it is in now: the next scenario gets a fresh one.
				proxies[at].stop()
				proxies[at] = nil
			}
			record(p, all, err)
		}
	}
	return nil
}

// shared says whether the scenario uses the proxy that runs through the round.
func (s scenario) shared() bool {
	// Sessions of UDP outlive the scenario.
	return s.servers <= 1 && s.listeners <= 1 && s.quiet == 0 && !s.setup.datagrams()
}

// setRate fixes the rate of a paced scenario once the first round has the
// throughput of all peers: latencies at different rates could not be compared.
func (h *harness) setRate(s scenario, res *results) {
	if s.paceOf == "" || h.rates[s.Name] > 0 {
		return
	}
	slowest := 0.0
	for _, m := range res.Measurements {
		if m.Scenario == s.paceOf && m.Error == "" && m.PerSecond > 0 && (slowest == 0 || m.PerSecond < slowest) && h.sets(s, m.Peer) {
			slowest = m.PerSecond
		}
	}
	share := h.Pace
	if s.kind == loss {
		share = 1
	}
	h.rates[s.Name] = slowest * share
}

// sets says whether a peer has a say in the rate of a paced scenario.
func (h *harness) sets(s scenario, name string) bool {
	return s.paceBy == nil || name == h.Subject || slices.Contains(s.paceBy, name)
}

// start runs a peer until it answers through its last listener.
func (h *harness) start(ctx context.Context, p *peer.Peer, setup setup, servers, listeners int) (*proxy, error) {
	if p.Kind == peer.Direct {
		address := h.serverAddress(0)
		if setup == quicSetup {
			address = h.quicAddress()
		}
		return &proxy{peer: p, listen: []string{address}, bulk: address}, nil
	}
	x, config, err := h.prepare(p, setup, servers, listeners)
	if err != nil {
		return nil, err
	}
	if err := h.launch(ctx, x, config, 2*time.Millisecond); err != nil {
		return nil, err
	}
	x.pids = x.process.PIDs()
	// The sessions that asked whether it is ready may still be closing.
	for i := range 5 {
		n, err := proc.Sockets(x.pids)
		if err != nil {
			x.stop()
			return nil, fmt.Errorf("%s: %w", p.Name, err)
		}
		if i == 0 || n < x.sockets {
			x.sockets = n
		}
		sleep(ctx, 5*time.Millisecond)
	}
	return x, nil
}

// prepare writes a configuration with ports of its own.
func (h *harness) prepare(p *peer.Peer, setup setup, servers, listeners int) (*proxy, string, error) {
	port, err := peer.FreePorts(listeners + 3)
	if err != nil {
		return nil, "", err
	}
	s := peer.Setup{
		Workers:     h.Workers,
		Admin:       fmt.Sprintf("127.0.0.1:%d", port+listeners),
		Bulk:        fmt.Sprintf("127.0.0.1:%d", port+listeners+1),
		Descriptors: h.descriptors,
		Sessions:    h.sessions(2),
		Name:        traffic.ServerName,
	}
	bulkListener := p.Kind.BulkListener
	switch setup {
	case tlsSetup:
		s.Certificate = h.certificate
		bulkListener = p.Kind.TLSBulkListener
	case datagramSetup, quicSetup:
		s.Datagrams, s.Sessions = true, h.sessions(1)
	case nameSetup:
		s.Named = fmt.Sprintf("127.0.0.1:%d", port+listeners+2)
	}
	for i := range listeners {
		s.Listen = append(s.Listen, fmt.Sprintf("127.0.0.1:%d", port+i))
	}
	for i := range servers {
		s.Servers = append(s.Servers, h.serverAddress(i))
	}
	if setup == quicSetup {
		s.Servers = []string{h.quicAddress()}
	}
	dir := filepath.Join(h.dir, fmt.Sprintf("%s-%d-%d-%d", p.Name, setup, servers, listeners))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, "", err
	}
	config, err := p.WriteConfig(dir, s)
	x := &proxy{peer: p, setup: setup, listen: s.Listen, bulk: s.Listen[0], named: s.Named}
	if bulkListener {
		x.bulk = s.Bulk
	}
	return x, config, err
}

// launch starts the process and returns when a request through its last
// listener has been answered and all others accept.
func (h *harness) launch(ctx context.Context, x *proxy, config string, every time.Duration) error {
	env := []string(nil)
	if x.peer.Kind == peer.IOCopy {
		env = []string{fmt.Sprintf("GOMAXPROCS=%d", h.Workers)}
	}
	var err error
	if x.process, err = peer.StartProcess(x.peer.Name, x.peer.Kind.Run(x.peer.Program, config), env, nil, nil); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	last := len(x.listen) - 1
	speech := traffic.Plain
	switch x.setup {
	case tlsSetup:
		speech = traffic.TLS
	case datagramSetup:
		speech = traffic.Datagrams
	case quicSetup:
		speech = traffic.QUIC
	}
	err = x.process.WaitReady(ctx, every, func() error { return ask(x.listen[last], speech) })
	if x.named != "" && err == nil {
		err = x.process.WaitReady(ctx, every, func() error { return ask(x.named, traffic.Hello) })
	}
	for i := 0; i < last && err == nil; i++ {
		err = x.process.WaitReady(ctx, every, func() error {
			c, err := net.Dial("tcp", x.listen[i])
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	if err != nil {
		x.process.Stop()
	}
	return err
}

func (p *proxy) stop() {
	if p != nil && p.process != nil {
		p.process.Stop()
	}
}

// machine is where a result comes from.
type machine struct {
	CPUs   int    `json:"cpus"`
	Model  string `json:"model"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`

	Congestion string `json:"tcp_congestion_control"`
}

func describeMachine() machine {
	m := machine{CPUs: runtime.NumCPU(), Go: runtime.Version()}
	m.Model = proc.CPUModel()
	m.Kernel = proc.Kernel()
	m.Congestion = proc.Sysctl("net/ipv4/tcp_congestion_control")
	return m
}
