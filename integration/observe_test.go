package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Metrics is one scrape.
type Metrics []Sample

// Sample is one line of it.
type Sample struct {
	Name   string
	Labels map[string]string
	Value  float64
}

// parseMetrics reads Prometheus' text format, version 0.0.4.
func parseMetrics(text string) (Metrics, error) {
	var out Metrics
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if line == "" || line[0] == '#' {
			continue
		}
		s := Sample{Labels: map[string]string{}}
		i := strings.IndexAny(line, "{ ")
		if i <= 0 {
			return nil, fmt.Errorf("no value in %q", line)
		}
		s.Name = line[:i]
		rest := line[i:]
		if rest[0] == '{' {
			rest = rest[1:]
			for rest != "" && rest[0] != '}' {
				name, after, ok := strings.Cut(rest, "=")
				value, err := strconv.QuotedPrefix(after)
				if !ok || err != nil {
					return nil, fmt.Errorf("broken label in %q", line)
				}
				rest = strings.TrimPrefix(after[len(value):], ",")
				s.Labels[name], _ = strconv.Unquote(value)
			}
			rest = strings.TrimPrefix(rest, "}")
		}
		f := strings.Fields(rest)
		if len(f) == 0 {
			return nil, fmt.Errorf("no value in %q", line)
		}
		v, err := strconv.ParseFloat(f[0], 64)
		if err != nil {
			return nil, fmt.Errorf("%w in %q", err, line)
		}
		s.Value = v
		out = append(out, s)
	}
	return out, nil
}

// Sum adds up the samples of a metric that have all the given labels, written
// as name, value, name, value.
func (m Metrics) Sum(name string, labels ...string) (sum float64) {
	for _, s := range m {
		if s.Name == name && s.has(labels) {
			sum += s.Value
		}
	}
	return sum
}

// Has reports whether there is a sample of a metric with the given labels.
func (m Metrics) Has(name string, labels ...string) bool {
	return slices.ContainsFunc(m, func(s Sample) bool { return s.Name == name && s.has(labels) })
}

func (s Sample) has(labels []string) bool {
	for i := 0; i < len(labels); i += 2 {
		if s.Labels[labels[i]] != labels[i+1] {
			return false
		}
	}
	return true
}

// Ends are the sessions of a listener that have ended, by reason.
func (m Metrics) Ends(listener string) map[string]int {
	out := map[string]int{}
	for _, s := range m {
		if s.Name == "edgeproxy_session_ends_total" && s.Labels["listener"] == listener && s.Value > 0 {
			out[s.Labels["reason"]] += int(s.Value)
		}
	}
	return out
}

// Metrics scrapes the proxy.
func (p *Proxy) Metrics() Metrics {
	p.t.Helper()
	status, body, err := p.get("/metrics")
	if err != nil || status != http.StatusOK {
		p.t.Fatalf("GET /metrics: status %d, %v\n%s", status, err, p.Log())
	}
	m, err := parseMetrics(string(body))
	if err != nil {
		p.t.Fatal(err)
	}
	return m
}

// Await waits until a metric's sum has a value.
func (p *Proxy) Await(want float64, name string, labels ...string) {
	p.t.Helper()
	var got float64
	eventually(p.t, func() bool { got = p.Metrics().Sum(name, labels...); return got == want },
		func() string { return fmt.Sprintf("%s%v is %v, want %v", name, labels, got, want) })
}

// Entry is a line of the access log.
type Entry struct {
	Time          string
	ID            json.RawMessage
	Listener      string
	Route         string
	Upstream      string
	Server        string
	Source        string
	Destination   string
	ServerAddress string `json:"server_address"`
	Protocol      string
	SNI           string
	ALPN          string
	TLSVersion    string   `json:"tls_version"`
	TLSCipher     string   `json:"tls_cipher"`
	TLSMS         *float64 `json:"tls_ms"`
	ClientName    string   `json:"client_name"`
	BytesIn       int64    `json:"bytes_in"`
	BytesOut      int64    `json:"bytes_out"`
	DatagramsIn   int64    `json:"datagrams_in"`
	DatagramsOut  int64    `json:"datagrams_out"`
	DurationMS    float64  `json:"duration_ms"`
	ConnectMS     float64  `json:"connect_ms"`
	Retries       int
	End           string
	Phase         string
	Error         string
}

func parseAccessLog(path string) ([]Entry, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []Entry
	for s := bufio.NewScanner(f); s.Scan(); {
		var e Entry
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			return out, fmt.Errorf("%w in %q", err, s.Text())
		}
		out = append(out, e)
	}
	return out, nil
}

// AccessLog returns the sessions that have ended once there are at least n.
func (p *Proxy) AccessLog(n int) []Entry {
	p.t.Helper()
	var got []Entry
	var err error
	eventually(p.t, func() bool {
		// A line that is just being written is an error of the moment.
		got, err = parseAccessLog(p.path("access.log"))
		return err == nil && len(got) >= n
	}, func() string { return fmt.Sprintf("%d lines in the access log, want %d (%v)", len(got), n, err) })
	return got
}

// LastEnd waits for the n-th line of the access log and asserts how that
// session ended. An empty phase is not compared.
func (p *Proxy) LastEnd(n int, end, phase string) Entry {
	p.t.Helper()
	e := p.AccessLog(n)[n-1]
	if e.End != end || (phase != "" && e.Phase != phase) {
		p.t.Errorf("session %d ended with %q in phase %q (error %q), want %q in %q", n, e.End, e.Phase, e.Error, end, phase)
	}
	return e
}

func countBy(entries []Entry, key func(Entry) string) map[string]int {
	out := map[string]int{}
	for _, e := range entries {
		out[key(e)]++
	}
	return out
}

func TestMetricsParser(t *testing.T) {
	const text = "# HELP a x\n# TYPE a counter\na 1\na{b=\"c\",d=\"e \\\"}\\\\\"} 2.5e3\n" +
		"h_bucket{le=\"+Inf\"} 4 1700000000\nn NaN\n\n"
	m, err := parseMetrics(text)
	if err != nil || len(m) != 4 {
		t.Fatalf("%v %v", m, err)
	}
	if !maps.Equal(m[1].Labels, map[string]string{"b": "c", "d": `e "}\`}) {
		t.Errorf("labels %q", m[1].Labels)
	}
	if got := m.Sum("a"); got != 2501 {
		t.Errorf("sum %v", got)
	}
	if got := m.Sum("a", "b", "c"); got != 2500 {
		t.Errorf("sum of b=c %v", got)
	}
	if !m.Has("h_bucket", "le", "+Inf") || m.Has("h_bucket", "le", "1") {
		t.Error("Has")
	}
	for _, bad := range []string{"a", "a{", "a{b", "a{b=\"c\"}", "a{b=c} 1", "a x"} {
		if _, err := parseMetrics(bad + "\n"); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
