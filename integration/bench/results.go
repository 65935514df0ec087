package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// results is all that a run found; result.json is its encoding.
type results struct {
	Machine      machine            `json:"machine"`
	Started      time.Time          `json:"started"`
	Seconds      float64            `json:"seconds"`
	Peers        []peerInfo         `json:"peers"`
	Rates        map[string]float64 `json:"rates"` // requests per second of the paced scenarios
	Measurements []Measurement      `json:"measurements"`
	Rounds       int                `json:"rounds"`
	Workers      int                `json:"workers"`
	Subject      string             `json:"subject"`
}

type peerInfo struct {
	Name    string `json:"name"`
	Program string `json:"program,omitempty"`
	Version string `json:"version,omitempty"`
}

// save writes result.json, table.md, its first part alone as targets.md, and
// scaling.svg.
func (r *results) save(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	var table bytes.Buffer
	var brief strings.Builder
	r.writeTargets(&brief)
	if err := r.writeTable(&table); err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"result.json": append(b, '\n'),
		"table.md":    table.Bytes(),
		"targets.md":  []byte(brief.String()),
		"scaling.svg": r.scalingPlot(),
	} {
		if len(content) == 0 {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func readResults(file string) (*results, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := new(results)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}

func (r *results) failures() (n int) {
	for _, m := range r.Measurements {
		if m.Error != "" {
			n++
		}
	}
	return n
}

// metric is a number of a measurement; false: the scenario does not have it.
type metric func(m *Measurement) (float64, bool)

// The units are those of the table.
var (
	cpuPerRequest metric = func(m *Measurement) (float64, bool) { // µs
		return m.CPU * 1e6 / float64(m.Requests), m.Requests > 0 && m.CPU > 0
	}
	cpuPerGB metric = func(m *Measurement) (float64, bool) { // ms
		return m.CPU * 1e3 / (float64(m.Bytes) / 1e9), m.Bytes > 0 && m.CPU > 0
	}
	// Of client and backend together.
	endsPerRequest metric = func(m *Measurement) (float64, bool) { // µs
		return (m.LoadCPU + m.ServerCPU) * 1e6 / float64(m.Requests), m.Requests > 0
	}
	endsPerGB metric = func(m *Measurement) (float64, bool) { // ms
		return (m.LoadCPU + m.ServerCPU) * 1e3 / (float64(m.Bytes) / 1e9), m.Bytes > 0
	}
	perSecond   metric = func(m *Measurement) (float64, bool) { return m.PerSecond, m.PerSecond > 0 }
	gbPerSecond metric = func(m *Measurement) (float64, bool) {
		return float64(m.Bytes) / 1e9 / m.Seconds, m.Seconds > 0
	}
	p50         metric = func(m *Measurement) (float64, bool) { return m.P50, m.P50 > 0 }
	p99         metric = func(m *Measurement) (float64, bool) { return m.P99, m.P99 > 0 }
	p999        metric = func(m *Measurement) (float64, bool) { return m.P999, m.P999 > 0 }
	kilobytes   metric = func(m *Measurement) (float64, bool) { return m.Memory / 1024, m.Memory != 0 }
	atOnce      metric = func(m *Measurement) (float64, bool) { return m.MemoryAtOnce / 1024, m.MemoryAtOnce != 0 }
	descriptors metric = func(m *Measurement) (float64, bool) { return m.Descriptors, m.Descriptors != 0 }
	millis      metric = func(m *Measurement) (float64, bool) { return m.Millis, m.Millis > 0 }
	flooded     metric = func(m *Measurement) (float64, bool) { return m.Flood, m.Flood > 0 }
	growth      metric = func(m *Measurement) (float64, bool) { return m.Growth / 1e6, m.Used > 0 }
	held        metric = func(m *Measurement) (float64, bool) { return m.Held, m.Used > 0 }
	used        metric = func(m *Measurement) (float64, bool) { return m.Used, m.Used > 0 }
	// In percent. What is less than one of ten thousand counts as that: nothing
	// is no number of times nothing.
	lossPercent metric = func(m *Measurement) (float64, bool) {
		return max(100*m.lossShare(), 0.01), m.Rate > 0 && m.Requests > 0
	}
)

// series is a metric by round; rounds without it are NaN.
func (r *results) series(scenario, peer string, f metric) []float64 {
	s := slices.Repeat([]float64{math.NaN()}, r.Rounds)
	for i := range r.Measurements {
		m := &r.Measurements[i]
		if m.Scenario != scenario || m.Peer != peer || m.Error != "" || m.Round >= r.Rounds {
			continue
		}
		if v, ok := f(m); ok {
			s[m.Round] = v
		}
	}
	return s
}

// ratios divides round by round.
func ratios(a, b []float64) []float64 {
	q := make([]float64, len(a))
	for i := range a {
		q[i] = a[i] / b[i]
	}
	return q
}

// spread is the median of some numbers and how far they go. It says nothing
// when n is zero.
type spread struct {
	n                int
	median, min, max float64
}

func spreadOf(values []float64) spread {
	known := slices.DeleteFunc(slices.Clone(values), math.IsNaN)
	if len(known) == 0 {
		return spread{}
	}
	slices.Sort(known)
	mid := len(known) / 2
	median := known[mid]
	if len(known)%2 == 0 {
		median = (known[mid-1] + known[mid]) / 2
	}
	return spread{len(known), median, known[0], known[len(known)-1]}
}
