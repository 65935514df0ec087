package main

import (
	"encoding/xml"
	"io"
	"math"
	"strings"
	"testing"
)

// made makes results of one scenario from a CPU time per request in µs by peer
// and round; NaN is a measurement that failed.
func made(scenario string, byPeer map[string][]float64) *results {
	r := &results{Subject: "edgeproxy"}
	for peer, values := range byPeer {
		r.Peers = append(r.Peers, peerInfo{Name: peer})
		r.Rounds = max(r.Rounds, len(values))
		for round, v := range values {
			m := Measurement{Round: round, Scenario: scenario, Peer: peer, Requests: 1000, Seconds: 1, PerSecond: 1000, CPU: v * 1e-3}
			if math.IsNaN(v) {
				m = Measurement{Round: round, Scenario: scenario, Peer: peer, Error: "it broke"}
			}
			r.Measurements = append(r.Measurements, m)
		}
	}
	return r
}

func TestJudge(t *testing.T) {
	t.Parallel()
	nan := math.NaN()
	relative := target{scenario: "s", metric: cpuPerRequest, unit: "µs", limit: 0.9, peers: established}
	absolute := target{scenario: "s", metric: cpuPerRequest, unit: "µs", limit: 10}
	for _, tt := range []struct {
		name   string
		target target
		values map[string][]float64
		want   verdict
	}{
		{
			"met in every round", relative,
			map[string][]float64{"edgeproxy": {8, 16, 8}, "haproxy": {10, 20, 10}, "nginx": {11, 40, 11}},
			verdict{value: "8.00 µs", against: "haproxy 10.0 µs", ratio: "0.80 (0.80–0.80)", outcome: "met"},
		},
		{
			// nginx is luckier in one round; its median is what counts.
			"the better peer by its median", relative,
			map[string][]float64{"edgeproxy": {9, 9, 9}, "haproxy": {9, 9, 9}, "nginx": {1, 20, 20}},
			verdict{value: "9.00 µs", against: "haproxy 9.00 µs", ratio: "1.00 (1.00–1.00)", outcome: "missed"},
		},
		{
			"limit within the range", relative,
			map[string][]float64{"edgeproxy": {8, 8, 8}, "haproxy": {10, 10, 8}},
			verdict{value: "8.00 µs", against: "haproxy 10.0 µs", ratio: "0.80 (0.80–1.00)", outcome: "met, within the spread"},
		},
		{
			// Rounds that only one of them finished make no ratio.
			"failed rounds", relative,
			map[string][]float64{"edgeproxy": {nan, 9, 18}, "haproxy": {1, nan, 20}},
			verdict{value: "13.5 µs", against: "haproxy 10.5 µs", ratio: "0.90 (0.90–0.90)", outcome: "met"},
		},
		{
			"no peer", relative,
			map[string][]float64{"edgeproxy": {8}},
			verdict{value: "8.00 µs", against: "–", ratio: "–", outcome: "not measured"},
		},
		{
			"no subject", absolute,
			map[string][]float64{"haproxy": {8}},
			verdict{value: "–", against: "–", ratio: "–", outcome: "not measured"},
		},
		{
			"absolute", absolute,
			map[string][]float64{"edgeproxy": {11, 12, 9}},
			verdict{value: "11.0 µs", against: "–", ratio: "(9.00–12.0)", outcome: "missed, within the spread"},
		},
	} {
		got := made("s", tt.values).judge(tt.target)
		got.target = ""
		if got != tt.want {
			t.Errorf("%s:\n got %+v\nwant %+v", tt.name, got, tt.want)
		}
	}
}

func TestJudgeAgainstItself(t *testing.T) {
	t.Parallel()
	r := made("many", map[string][]float64{"edgeproxy": {12, 24}})
	few := made("few", map[string][]float64{"edgeproxy": {10, 20}})
	r.Measurements = append(r.Measurements, few.Measurements...)
	got := r.judge(target{scenario: "many", base: "few", than: "itself", metric: cpuPerRequest, unit: "µs", limit: 1.3})
	if got.ratio != "1.20 (1.20–1.20)" || got.outcome != "met" || got.target != "≤ 1.30 × itself" {
		t.Errorf("got %+v", got)
	}
}

func TestTableSaysWhatFailed(t *testing.T) {
	t.Parallel()
	r := made("connect", map[string][]float64{"edgeproxy": {8, math.NaN()}, "haproxy": {10, 10}})
	var b strings.Builder
	if err := r.writeTable(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| CPU per connect–request–close", "0.80 (0.80–0.80)", "- connect, edgeproxy: it broke (round 2)"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, b.String())
		}
	}
	if n := r.failures(); n != 1 {
		t.Errorf("%d failures", n)
	}
}

func TestPlotIsXML(t *testing.T) {
	t.Parallel()
	r := made(keptScenario(64), map[string][]float64{"edgeproxy": {8, 9}, "a<b": {10, 10}})
	if r.scalingPlot() != nil {
		t.Error("one point makes no curve")
	}
	r.Measurements = append(r.Measurements, made(keptScenario(8000), map[string][]float64{"edgeproxy": {12, 19}, "a<b": {10, 400}}).Measurements...)
	svg := string(r.scalingPlot())
	for dec := xml.NewDecoder(strings.NewReader(svg)); ; {
		if _, err := dec.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
	}
	if n := strings.Count(svg, "<polyline"); n != 2 {
		t.Errorf("%d lines, want 2", n)
	}
}
