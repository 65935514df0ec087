package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"edgeproxy/integration/bench/peer"
	"edgeproxy/integration/bench/proc"
)

// The harness starts its own binary for client, backend and the io.Copy proxy,
// which in a test is this one.
func TestMain(m *testing.M) {
	switch argument(1) {
	case "load", "backend", "iocopy":
		main()
		return
	}
	os.Exit(m.Run())
}

func smokeOptions() options {
	o := fullOptions()
	o.Rounds, o.Scale, o.Idle, o.Shrink, o.Bulk, o.Subject = 1, 0.03, 100, 40, 4_000_000, "iocopy"
	o.Quiet, o.Ladder = 100*time.Millisecond, 2
	return o
}

func smokePeers(t *testing.T) []*peer.Peer {
	t.Helper()
	peers, err := findPeers([]string{"iocopy", "direct"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return peers
}

// Every scenario, for a moment.
func TestEveryScenario(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	o := smokeOptions()
	r, err := compare(t.Context(), o, smokePeers(t), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	measured := map[string]Measurement{}
	for _, m := range r.Measurements {
		if m.Error != "" || m.Note != "" && m.Rate == 0 { // a busy machine may be late for a rate
			t.Errorf("%s on %s: %s%s", m.Scenario, m.Peer, m.Error, m.Note)
		}
		measured[m.Scenario+" "+m.Peer] = m
	}
	scenarios := scenarioList(o)
	for _, s := range scenarios {
		if s.also != "" {
			s.Name, s.also = s.also, ""
			scenarios = append(scenarios, s)
		}
	}
	for _, s := range scenarios {
		m, ok := measured[s.Name+" iocopy"]
		switch {
		case s.kind == check: // io.Copy's has no such mode
			continue
		case !ok:
			t.Errorf("%s was not measured", s.Name)
			continue
		case s.kind == start:
			if m.Millis <= 0 {
				t.Errorf("%s took %v ms", s.Name, m.Millis)
			}
			continue
		case s.kind == idle:
			held, connections := 6.0, o.Idle
			switch s.setup {
			case datagramSetup:
				held, connections = 1, o.Idle*2
			case tlsSetup:
				held, connections = 2, o.Idle*4/5
				if m.MemoryAtOnce < 1024 || m.MemoryAtOnce > 1<<20 {
					t.Errorf("%s: %v bytes per connection at once", s.Name, m.MemoryAtOnce)
				}
			}
			if m.Requests != uint64(connections+firstIdle) || m.Descriptors < held-0.1 || m.Descriptors > held+0.1 || m.Memory < 1024 || m.Memory > 1<<20 {
				t.Errorf("%s: %d requests, %v descriptors, %v bytes per connection", s.Name, m.Requests, m.Descriptors, m.Memory)
			}
			continue
		}
		if s.Name == spoofedScenario && m.Used <= 0 {
			t.Errorf("%s: %v CPUs", s.Name, m.Used)
		}
		if s.Name == floodScenario || s.Name == spoofedScenario {
			if m.Flood <= 0 || m.CPU != 0 {
				t.Errorf("%s: %v per second beside it, CPU %v", s.Name, m.Flood, m.CPU)
			}
			m.CPU = 1
		}
		if m.CPU <= 0 || m.LoadCPU <= 0 || m.ServerCPU <= 0 {
			t.Errorf("%s: CPU %v, client %v, backend %v", s.Name, m.CPU, m.LoadCPU, m.ServerCPU)
		}
		if m.Requests == 0 || m.Bytes != m.Requests*uint64(max(s.request, s.answer)) || m.PerSecond <= 0 {
			t.Errorf("%s: %d requests, %d bytes, %v per second", s.Name, m.Requests, m.Bytes, m.PerSecond)
		}
		if !slices.IsSorted([]float64{1, m.P50, m.P99, m.P999, m.Max}) { // nothing takes under a microsecond
			t.Errorf("%s: p50 %v, p99 %v, p99.9 %v, max %v", s.Name, m.P50, m.P99, m.P999, m.Max)
		}
		if direct := measured[s.Name+" direct"]; s.withDirect && (direct.Requests == 0 || direct.CPU != 0) {
			t.Errorf("%s without a proxy: %d requests, CPU %v", s.Name, direct.Requests, direct.CPU)
		}
	}

	out := t.TempDir()
	if err := r.save(out); err != nil {
		t.Fatal(err)
	}
	again, err := readResults(filepath.Join(out, "result.json"))
	if err != nil {
		t.Fatal(err)
	}
	var now, then bytes.Buffer
	if err := errors.Join(r.writeTable(&now), again.writeTable(&then)); err != nil {
		t.Fatal(err)
	}
	if now.String() != then.String() {
		t.Errorf("the table from result.json differs:\n%s\n%s", now.String(), then.String())
	}
	assertNothingLeft(t, temp)
}

func TestInterruptedRunLeavesNothing(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	ctx, cancel := context.WithCancelCause(t.Context())
	interrupted := errors.New("interrupted")
	// At the first line of progress, while proxies and backend run.
	progress := writerFunc(func(p []byte) (int, error) { cancel(interrupted); return len(p), nil })
	if _, err := compare(ctx, smokeOptions(), smokePeers(t), progress); !errors.Is(err, interrupted) {
		t.Errorf("got %v", err)
	}
	assertNothingLeft(t, temp)
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func assertNothingLeft(t *testing.T, temp string) {
	t.Helper()
	if pids := proc.Tree(os.Getpid()); len(pids) > 1 {
		t.Errorf("processes are left: %v", pids[1:])
	}
	if left, _ := filepath.Glob(filepath.Join(temp, "edgeproxy-bench-*")); len(left) > 0 {
		t.Errorf("folders are left: %v", left)
	}
}

// A proxy that cannot work must end the run with the reason.
func TestPeerThatDoesNotStart(t *testing.T) {
	program := filepath.Join(t.TempDir(), "proxy")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho cannot do that >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	peers, err := findPeers(nil, []string{"other"}, map[string]string{"other": program})
	if err != nil {
		t.Fatal(err)
	}
	o := smokeOptions()
	o.Scenarios = regexp.MustCompile("^request64$")
	_, err = compare(t.Context(), o, peers, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "other ended") || !strings.Contains(err.Error(), "cannot do that") {
		t.Errorf("got %v", err)
	}
}

func TestFindPeers(t *testing.T) {
	t.Parallel()
	if _, err := findPeers([]string{"iocopy", "envoy"}, nil, nil); err == nil || !strings.Contains(err.Error(), `"envoy"`) {
		t.Errorf("unknown: %v", err)
	}
	gone := map[string]string{"haproxy": "/nowhere/h", "edgeproxy": "/nowhere/e"}
	_, err := findPeers([]string{"haproxy", "edgeproxy", "direct"}, nil, gone)
	if err == nil || !strings.Contains(err.Error(), "apt-get install haproxy") || !strings.Contains(err.Error(), "go build") {
		t.Errorf("both missing programs should be named: %v", err)
	}
	peers, err := findPeers([]string{"direct", "direct"}, []string{"old"}, map[string]string{"old": "/bin/true"})
	if err != nil || len(peers) != 2 || peers[1].Name != "old" || peers[1].Kind != peer.Edgeproxy {
		t.Errorf("got %v, %v", peers, err)
	}
}

func TestPacedScenarioBringsItsBase(t *testing.T) {
	t.Parallel()
	o := fullOptions()
	o.Scenarios = regexp.MustCompile("^connect-paced$")
	var names []string
	for _, s := range scenarioList(o) {
		names = append(names, s.Name)
	}
	if !slices.Equal(names, []string{connectScenario, pacedConnectScenario}) {
		t.Errorf("got %v", names)
	}
}

// What the table asks for must be measured, and nothing twice.
func TestTargetsNameScenarios(t *testing.T) {
	t.Parallel()
	var names []string
	for _, s := range scenarioList(fullOptions()) {
		if slices.Contains(names, s.Name) {
			t.Errorf("two scenarios are called %s", s.Name)
		}
		names = append(names, s.Name)
		if s.also != "" {
			names = append(names, s.also)
		}
	}
	for _, tt := range targets {
		for _, s := range []string{tt.scenario, tt.base} {
			if s != "" && !slices.Contains(names, s) {
				t.Errorf("%s: no scenario %q", tt.measure, s)
			}
		}
	}
}
