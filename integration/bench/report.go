package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// target is a row of the table: a number of the subject, and how large it may be.
type target struct {
	measure  string
	scenario string
	metric   metric
	unit     string
	limit    float64
	// What limit is a multiple of: the best of these peers, or the subject
	// itself in another scenario. Neither: nothing, it is absolute.
	peers []string
	base  string
	than  string // how the table calls it
}

// targets is what edgeproxy has set itself to reach.
var targets = []target{
	{measure: "memory per idle connection", scenario: idleScenario, metric: kilobytes, unit: "KB", limit: 0.5},
	{measure: "descriptors per idle connection", scenario: idleScenario, metric: descriptors, limit: 2},
	{measure: "CPU per request, 64 connections", scenario: keptScenario(64), metric: cpuPerRequest, unit: "µs", limit: 0.90, peers: established},
	{measure: "CPU per request, 1000 connections", scenario: keptScenario(1000), metric: cpuPerRequest, unit: "µs", limit: 0.90, peers: established},
	{measure: "CPU per GB, 8 streams", scenario: bulkScenario, metric: cpuPerGB, unit: "ms", limit: 0.50, peers: []string{"haproxy"}},
	{measure: "CPU per GB, 8 streams", scenario: bulkScenario, metric: cpuPerGB, unit: "ms", limit: 1.0, peers: []string{"iocopy"}},
	{measure: "CPU per connect–request–close", scenario: connectScenario, metric: cpuPerRequest, unit: "µs", limit: 0.85, peers: []string{"haproxy"}},
	{measure: "p99 of a request, 64 connections", scenario: pacedScenario(64), metric: p99, unit: "µs", limit: 1.0, peers: established},
	{measure: "p99 of a request, 1000 connections", scenario: pacedScenario(1000), metric: p99, unit: "µs", limit: 1.0, peers: established},
	{measure: "p99 of a 100 MB answer", scenario: pacedBulkScenario, metric: p99, unit: "µs", limit: 1.0, peers: established},
	{measure: "p99 of connect–request", scenario: pacedConnectScenario, metric: p99, unit: "µs", limit: 1.0, peers: established},
	{measure: "CPU per request, 8000 connections", scenario: keptScenario(8000), metric: cpuPerRequest, unit: "µs", limit: 1.3, base: keptScenario(64), than: "itself at 64"},
	{measure: "CPU per connection, 10 000 servers", scenario: manyServersScenario, metric: cpuPerRequest, unit: "µs", limit: 1.5, base: fewServersScenario, than: "itself with 10"},
	{measure: "reading 10 000 servers", scenario: checkScenario, metric: millis, unit: "ms", limit: 1000},
	{measure: "start with 100 listeners", scenario: startScenario, metric: millis, unit: "ms", limit: 50},

	{measure: "memory per TLS session, after its requests", scenario: tlsIdleScenario, metric: atOnce, unit: "KB", limit: 1.0, peers: established},
	{measure: "memory per idle TLS session", scenario: tlsIdleScenario, metric: kilobytes, unit: "KB", limit: 2.5},
	{measure: "descriptors per idle TLS session", scenario: tlsIdleScenario, metric: descriptors, limit: 2},
	{measure: "CPU per TLS request, 64 sessions", scenario: tlsKeptScenario(64), metric: cpuPerRequest, unit: "µs", limit: 0.95, peers: established},
	{measure: "CPU per TLS request, 1000 sessions", scenario: tlsKeptScenario(1000), metric: cpuPerRequest, unit: "µs", limit: 0.95, peers: established},
	{measure: "CPU per GB over TLS, 8 streams", scenario: tlsBulkScenario, metric: cpuPerGB, unit: "ms", limit: 0.75, peers: []string{"haproxy"}},
	{measure: "CPU per GB over TLS, 8 streams", scenario: tlsBulkScenario, metric: cpuPerGB, unit: "ms", limit: 0.85, peers: []string{"nginx"}},
	{measure: "CPU per full handshake, with request", scenario: tlsFullScenario, metric: cpuPerRequest, unit: "µs", limit: 1.0, peers: []string{"haproxy"}},
	{measure: "CPU per resumed handshake, with request", scenario: tlsResumedScenario, metric: cpuPerRequest, unit: "µs", limit: 1.0, peers: []string{"haproxy"}},
	{measure: "routed by SNI: CPU per request, 64", scenario: nameScenario(64), metric: cpuPerRequest, unit: "µs", limit: 1.05, base: nameBase(64), than: "itself without"},
	{measure: "routed by SNI: CPU per request, 1000", scenario: nameScenario(1000), metric: cpuPerRequest, unit: "µs", limit: 1.05, base: nameBase(1000), than: "itself without"},
	{measure: "routed by SNI: CPU per connection", scenario: nameConnectScenario, metric: cpuPerRequest, unit: "µs", limit: 1.15, base: nameConnectBase, than: "itself without"},

	{measure: "memory per idle UDP session", scenario: datagramMemoryScenario, metric: kilobytes, unit: "KB", limit: 1},
	{measure: "descriptors per idle UDP session", scenario: datagramMemoryScenario, metric: descriptors, limit: 1},
	{measure: "CPU per UDP round trip, 64 clients", scenario: roundTripScenario(64), metric: cpuPerRequest, unit: "µs", limit: 0.65, peers: []string{"nginx"}},
	{measure: "CPU per UDP round trip, 10 000 clients", scenario: roundTripScenario(10_000), metric: cpuPerRequest, unit: "µs", limit: 0.65, peers: []string{"nginx"}},
	{measure: "p99 of a UDP round trip, 64 clients", scenario: pacedTripScenario(64), metric: p99, unit: "µs", limit: 1.0, peers: []string{"nginx"}},
	{measure: "p99 of a UDP round trip, 10 000 clients", scenario: pacedTripScenario(10_000), metric: p99, unit: "µs", limit: 1.0, peers: []string{"nginx"}},
	{measure: "CPU per GB in trains to the server", scenario: trainScenario, metric: cpuPerGB, unit: "ms", limit: 0.35, peers: []string{"nginx"}},
	{measure: "CPU per GB in single datagrams to it", scenario: singlyScenario, metric: cpuPerGB, unit: "ms", limit: 0.35, peers: []string{"nginx"}},
	{measure: "CPU per GB in trains from the server", scenario: trainDownScenario, metric: cpuPerGB, unit: "ms", limit: 0.35, peers: []string{"nginx"}},
	{measure: "CPU per GB over QUIC", scenario: quicScenario, metric: cpuPerGB, unit: "ms", limit: 0.35, peers: []string{"nginx"}},
	{measure: "UDP loss at the highest common rate", scenario: lossScenario, metric: lossPercent, unit: "%", limit: 1.0, peers: []string{"nginx"}},
}

// Above this share of the CPUs in other hands the report warns.
const tooNoisy = 0.05

var established = []string{"haproxy", "nginx"}

// verdict of one target.
type verdict struct {
	target, value, against, ratio, outcome string
}

// judge holds the subject against one target. What is judged is the median; when
// the limit lies within the range of the rounds, the verdict says so.
func (r *results) judge(t target) verdict {
	own := r.series(t.scenario, r.Subject, t.metric)
	value := spreadOf(own)
	v := verdict{value: "–", against: "–", ratio: "–", outcome: "not measured"}
	if value.n > 0 {
		v.value = quantity(value.median, t.unit)
	}
	judged := value
	switch {
	case t.base != "":
		v.target = fmt.Sprintf("≤ %.2f × %s", t.limit, t.than)
		base := r.series(t.base, r.Subject, t.metric)
		judged = spreadOf(ratios(own, base))
		if b := spreadOf(base); b.n > 0 {
			v.against = quantity(b.median, t.unit)
		}
	case len(t.peers) > 0:
		v.target = fmt.Sprintf("≤ %.2f × %s", t.limit, orBetter(t.peers))
		name, best := r.best(t)
		judged = spread{}
		if best != nil {
			v.against = name + " " + quantity(spreadOf(best).median, t.unit)
			judged = spreadOf(ratios(own, best))
		}
	default:
		v.target = "≤ " + quantity(t.limit, t.unit)
	}
	if value.n == 0 || judged.n == 0 {
		return v
	}
	if t.base != "" || len(t.peers) > 0 {
		v.ratio = fmt.Sprintf("%.2f (%.2f–%.2f)", judged.median, judged.min, judged.max)
	} else {
		v.ratio = fmt.Sprintf("(%s–%s)", number(judged.min), number(judged.max))
	}
	const rounding = 1.0005
	v.outcome = "met"
	if judged.median > t.limit*rounding {
		v.outcome = "missed"
	}
	if judged.min <= t.limit*rounding && judged.max > t.limit*rounding {
		v.outcome += ", within the spread"
	}
	return v
}

// best is the peer with the smallest median, not the smallest of each round:
// that would pick the lucky one every time.
func (r *results) best(t target) (name string, series []float64) {
	least := math.Inf(1)
	for _, p := range t.peers {
		s := r.series(t.scenario, p, t.metric)
		if m := spreadOf(s); m.n > 0 && m.median < least && p != r.Subject {
			least, name, series = m.median, p, s
		}
	}
	return name, series
}

func orBetter(peers []string) string {
	if len(peers) == 1 {
		return peers[0]
	}
	return "better of " + strings.Join(peers, ", ")
}

// writeTable prints the whole report as Markdown that also reads well in a
// terminal.
func (r *results) writeTable(w io.Writer) error {
	var b strings.Builder
	r.writeTargets(&b)
	r.writePeers(&b)
	r.writeNotes(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

// writeTargets writes where the numbers come from, and the subject's targets.
func (r *results) writeTargets(b *strings.Builder) {
	fmt.Fprintf(b, "%s, %d CPUs (%s), Linux %s, TCP %s. %d rounds in %.0f s, %d threads each proxy.\n",
		r.Started.Format("2006-01-02"), r.Machine.CPUs, r.Machine.Model, r.Machine.Kernel, r.Machine.Congestion, r.Rounds, r.Seconds, r.Workers)
	for _, p := range r.Peers {
		if p.Version != "" {
			fmt.Fprintf(b, "%s: %s. ", p.Name, strings.TrimRight(p.Version, " ."))
		}
	}
	others := spreadOf(r.others())
	fmt.Fprintf(b, "\nOther processes and the hypervisor took %.0f %% of the CPUs in the median measurement, %.0f %% at most.\n",
		100*others.median, 100*others.max)
	if others.median > tooNoisy {
		b.WriteString("**The machine was busy with other things: measure again before believing a ratio near its target.**\n")
	}
	b.WriteString("\n")

	rows := [][]string{{"measure", "target", r.Subject, "compared with", "ratio or range", "verdict"}}
	ran := r.scenarioNames()
	for _, t := range targets {
		if !slices.Contains(ran, t.scenario) {
			continue // not asked for
		}
		v := r.judge(t)
		rows = append(rows, []string{t.measure, v.target, v.value, v.against, v.ratio, v.outcome})
	}
	writeRows(b, rows)
}

// writePeers writes what was measured on every peer.
func (r *results) writePeers(b *strings.Builder) {
	fmt.Fprintf(b, "\nAll peers: medians; × is %s's CPU as a ratio of that peer's, with its range over the rounds.\n"+
		"Without a proxy CPU is that of client and backend: what the kernel costs on both sides.\n\n", r.Subject)
	rows := [][]string{{"scenario", "peer", "rate", "CPU", "×", "p50", "p99", "p99.9"}}
	for _, s := range r.scenarioNames() {
		for _, p := range r.Peers {
			if row := r.trafficRow(s, p.Name); row != nil {
				rows = append(rows, row)
			}
		}
	}
	writeRows(b, rows)

	rows = [][]string{{"scenario", "peer", "what", "median", "range"}}
	for _, s := range r.scenarioNames() {
		for _, p := range r.Peers {
			if slices.Contains([]string{lossScenario, spoofedScenario, unspoofedScenario}, s) {
				if v := spreadOf(r.series(s, p.Name, lossPercent)); v.n > 0 {
					rows = append(rows, []string{s, p.Name, "lost", quantity(v.median, "%"), number(v.min) + "–" + number(v.max)})
				}
			}
			for _, m := range []struct {
				metric     metric
				what, unit string
			}{
				{atOnce, "memory at once", "KB"}, {kilobytes, "memory", "KB"}, {descriptors, "descriptors", ""},
				{millis, "time", "ms"}, {flooded, "flood", "/s"},
				{growth, "memory grown", "MB"}, {held, "descriptors more", ""}, {used, "CPUs used", ""},
			} {
				if v := spreadOf(r.series(s, p.Name, m.metric)); v.n > 0 {
					rows = append(rows, []string{s, p.Name, m.what, quantity(v.median, m.unit), number(v.min) + "–" + number(v.max)})
				}
			}
		}
	}
	if len(rows) > 1 {
		b.WriteString("\n")
		writeRows(b, rows)
	}
}

// trafficRow is one line of the table of all peers; nil where there is nothing.
func (r *results) trafficRow(scenario, peer string) []string {
	cpu, ends, rate, unit, perUnit := cpuPerRequest, endsPerRequest, perSecond, "µs", "/s"
	switch scenario {
	case bulkScenario, pacedBulkScenario, tlsBulkScenario, tlsPacedBulkScenario,
		trainScenario, singlyScenario, trainDownScenario, quicScenario:
		cpu, ends, rate, unit, perUnit = cpuPerGB, endsPerGB, gbPerSecond, "ms/GB", "GB/s"
	}
	speed := spreadOf(r.series(scenario, peer, rate))
	if speed.n == 0 {
		return nil
	}
	row := []string{scenario, peer, quantity(speed.median, perUnit), "–", "–"}
	theirs := r.series(scenario, peer, cpu)
	if c := spreadOf(theirs); c.n > 0 {
		row[3] = quantity(c.median, unit)
		if q := spreadOf(ratios(r.series(scenario, r.Subject, cpu), theirs)); q.n > 0 && peer != r.Subject {
			row[4] = fmt.Sprintf("%.2f (%.2f–%.2f)", q.median, q.min, q.max)
		}
	}
	if row[3] == "–" && scenario != floodScenario && scenario != spoofedScenario { // no proxy
		row[3] = "ends " + quantity(spreadOf(r.series(scenario, peer, ends)).median, unit)
	}
	for _, m := range []metric{p50, p99, p999} {
		row = append(row, quantity(spreadOf(r.series(scenario, peer, m)).median, "µs"))
	}
	return row
}

func (r *results) writeNotes(b *strings.Builder) {
	var lines []string
	rounds := map[string][]string{} // by line
	for _, m := range r.Measurements {
		for _, text := range []string{m.Error, m.Note} {
			if text == "" {
				continue
			}
			line := fmt.Sprintf("%s, %s: %s", m.Scenario, m.Peer, text)
			if rounds[line] == nil {
				lines = append(lines, line)
			}
			rounds[line] = append(rounds[line], fmt.Sprint(m.Round+1))
		}
	}
	if len(lines) > 0 {
		b.WriteString("\nFailures and remarks:\n\n")
	}
	for _, line := range lines {
		fmt.Fprintf(b, "- %s (round %s)\n", line, strings.Join(rounds[line], ", "))
	}
}

func (r *results) scenarioNames() []string {
	var names []string
	for _, m := range r.Measurements {
		if !slices.Contains(names, m.Scenario) {
			names = append(names, m.Scenario)
		}
	}
	return names
}

func (r *results) others() []float64 {
	var shares []float64
	for _, m := range r.Measurements {
		if m.Seconds > 0 && m.Error == "" && m.Requests > 0 {
			shares = append(shares, m.OthersCPU)
		}
	}
	return shares
}

// number has three significant digits.
func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// quantity is a number with its unit; long microseconds become milliseconds.
func quantity(v float64, unit string) string {
	switch {
	case unit == "µs" && v >= 10_000:
		return number(v/1e3) + " ms"
	case unit == "":
		return number(v)
	case strings.HasPrefix(unit, "/"):
		return number(v) + unit
	}
	return number(v) + " " + unit
}

// writeRows writes a Markdown table with aligned columns. The first row is the
// head.
func writeRows(b *strings.Builder, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	line := func(row []string) {
		for i, cell := range row {
			fmt.Fprintf(b, "| %s%s ", cell, strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)))
		}
		b.WriteString("|\n")
	}
	line(rows[0])
	for _, w := range widths {
		fmt.Fprintf(b, "|%s", strings.Repeat("-", w+2))
	}
	b.WriteString("|\n")
	for _, row := range rows[1:] {
		line(row)
	}
}
