package admin

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"

	"edgeproxy/internal/histogram"
	"edgeproxy/internal/version"
	"edgeproxy/listener"
)

// gatherer turns snapshots of the source into metrics at each scrape.
//
// It stands where a registry with a collector would: that one makes, hashes,
// checks and sorts each metric by itself, which for ten thousand servers takes
// longer than all the rest of a scrape. Here the labels of a server are made
// once and shared by its metrics, and those come in the source's order. It
// also keeps the source's methods in the handler's goroutine, where a panic is
// caught: a registry calls collectors from its own.
type gatherer struct {
	source  Source
	runtime *prometheus.Registry // Go and process
}

func newGatherer(s Source) *gatherer {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return &gatherer{s, r}
}

// tcpEnds are the ends that a TCP session can have: they are shown even if no
// session has had them yet, so that rates and alerts see the first one. Others
// appear with their first session.
var tcpEnds = []listener.End{
	listener.ClientClosed, listener.ServerClosed, listener.ClientReset, listener.ServerReset,
	listener.IdleTimeout, listener.HalfCloseTimeout, listener.Lifetime, listener.HandshakeTimeout,
	listener.BadProxyHeader, listener.TLSFailed,
	listener.NoRoute, listener.Denied, listener.Limited, listener.NoServer,
	listener.ConnectFailed, listener.ConnectTimeout, listener.ServerDown, listener.Drained,
	listener.Overloaded, listener.InternalError,
}

// udpEnds are the same for UDP, where nobody closes and nothing is accepted.
// Some of them only a QUIC client can have, whose hello takes several datagrams.
var udpEnds = []listener.End{
	listener.IdleTimeout, listener.Lifetime, listener.HandshakeTimeout,
	listener.NoRoute, listener.Denied, listener.Limited, listener.NoServer,
	listener.ServerDown, listener.Drained, listener.ResponsesDone, listener.Overloaded,
}

// Gather implements [prometheus.Gatherer].
func (g *gatherer) Gather() ([]*dto.MetricFamily, error) {
	var all families
	g.process(&all)
	g.listeners(&all)
	g.tls(&all)
	g.upstreams(&all)
	g.loops(&all)
	rest, err := g.runtime.Gather()
	out := slices.DeleteFunc(append(all, rest...), func(f *dto.MetricFamily) bool { return len(f.Metric) == 0 })
	slices.SortFunc(out, func(a, b *dto.MetricFamily) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return out, err
}

func (g *gatherer) process(all *families) {
	all.gauge("build_info", "Which build is running; the value is always 1.").
		add(labels("version", version.String(), "goversion", version.Go()), 1)
	ok, success := g.source.LastReload()
	all.gauge("config_last_reload_successful", "Whether the last load of the configuration succeeded (1) or left the one before in use (0).").
		add(nil, boolean(ok))
	at := 0.0
	if !success.IsZero() {
		at = float64(success.UnixMilli()) / 1000
	}
	all.gauge("config_last_reload_success_timestamp_seconds", "When a configuration was last loaded successfully, in Unix time.").
		add(nil, at)
	all.counter("access_log_dropped_total", "Lines of the access log that were lost because its output did not take them.").
		add(nil, float64(g.source.AccessLogDropped()))
}

func (g *gatherer) listeners(all *families) {
	sessions := all.counter("sessions_total", "Sessions begun.")
	active := all.gauge("sessions_active", "Sessions that live now.")
	ends := all.counter("session_ends_total", "Sessions ended, by why they did.")
	seconds := all.histogram("session_seconds", "How long sessions lasted, from accept, or the first datagram, to their end.")
	bytes := all.counter("bytes_total", "Bytes relayed, from clients (in) and to clients (out).")
	spliced := all.counter("spliced_bytes_total", "Bytes relayed, in both directions, that never entered user space.")
	errors := all.counter("accept_errors_total", "Failures of accept(2), a lack of descriptors among them; of UDP: of receiving, and of opening sockets for new sessions.")
	pauses := all.counter("accept_pauses_total", "Times that accepting was paused for want of descriptors or because of max_connections.")
	datagrams := all.counter("datagrams_total", "UDP datagrams relayed, from clients (in) and to clients (out).")
	dropped := all.counter("datagrams_dropped_total", "UDP datagrams, of clients and to them, that went nowhere, by why they did.")
	for _, s := range g.source.Listeners() {
		name := labels("listener", s.Name)
		in, out := labels("listener", s.Name, "direction", "in"), labels("listener", s.Name, "direction", "out")
		protocol := labels("listener", s.Name, "protocol", s.Network.String())
		sessions.add(protocol, float64(s.Sessions))
		active.add(protocol, float64(s.Active))
		likely := tcpEnds
		if s.Network == listener.UDP {
			likely = udpEnds
		}
		for i, n := range s.Ends {
			if end := listener.End(i); n > 0 || slices.Contains(likely, end) {
				ends.add(labels("listener", s.Name, "reason", end.String()), float64(n))
			}
		}
		seconds.addHistogram(name, s.Seconds)
		bytes.add(in, float64(s.BytesIn))
		bytes.add(out, float64(s.BytesOut))
		errors.add(name, float64(s.AcceptErrors))
		if s.Network == listener.UDP {
			datagrams.add(in, float64(s.DatagramsIn))
			datagrams.add(out, float64(s.DatagramsOut))
			for i, n := range s.Dropped {
				dropped.add(labels("listener", s.Name, "reason", listener.Drop(i).String()), float64(n))
			}
			continue
		}
		spliced.add(name, float64(s.Spliced))
		pauses.add(name, float64(s.AcceptPauses))
	}
}

func (g *gatherer) upstreams(all *families) {
	up := all.gauge("server_up", "Whether health checks let the server have new sessions (1) or not (0).")
	active := all.gauge("server_sessions_active", "Sessions that live now.")
	sessions := all.counter("server_sessions_total", "Sessions connected to the server.")
	failures := all.counter("server_failures_total", "Failed attempts to connect to the server.")
	checks := all.counter("health_checks_total", "Health checks.")
	connect := all.histogram("connect_seconds", "From connect(2) to an established connection with a server.")
	passed, failed := pair("result", "passed"), pair("result", "failed")
	byReason := make(map[string]*dto.LabelPair)
	var reasons []string
	for _, u := range g.source.Upstreams() {
		connect.addHistogram(labels("upstream", u.Name), u.Connect)
		for _, s := range u.Servers {
			server := labels("upstream", u.Name, "server", s.Name)
			up.add(server, boolean(s.Up))
			active.add(server, float64(s.Active))
			sessions.add(server, float64(s.Sessions))
			reasons = reasons[:0]
			for r := range s.Failures {
				reasons = append(reasons, r)
				if byReason[r] == nil {
					byReason[r] = pair("reason", r)
				}
			}
			slices.Sort(reasons)
			for _, r := range reasons {
				failures.add(with(server, byReason[r]), float64(s.Failures[r]))
			}
			checks.add(with(server, passed), float64(s.Checks.Passed))
			checks.add(with(server, failed), float64(s.Checks.Failed))
		}
	}
}

func (g *gatherer) loops(all *families) {
	sessions := all.gauge("loop_sessions", "Sessions that live on the event loop now.")
	busy := all.gauge("loop_busy_ratio", "Share of the last seconds the event loop spent working, 0 to 1.")
	delay := all.histogram("loop_delay_seconds", "How long ready events waited for the event loop.")
	for i, s := range g.source.Loops() {
		loop := labels("loop", strconv.Itoa(i))
		sessions.add(loop, float64(s.Sessions))
		busy.add(loop, s.Busy)
		delay.addHistogram(loop, s.Delay)
	}
}

// families collects metric families of this program.
type families []*dto.MetricFamily

type family struct {
	*dto.MetricFamily
	slab []sample
}

// sample is a metric and what it points to, in one piece.
type sample struct {
	metric  dto.Metric
	counter dto.Counter
	gauge   dto.Gauge
	value   float64
}

func (f *families) counter(name, help string) *family {
	return f.add(name, help, dto.MetricType_COUNTER)
}
func (f *families) gauge(name, help string) *family { return f.add(name, help, dto.MetricType_GAUGE) }
func (f *families) histogram(name, help string) *family {
	return f.add(name, help, dto.MetricType_HISTOGRAM)
}

func (f *families) add(name, help string, t dto.MetricType) *family {
	m := &dto.MetricFamily{Name: new("edgeproxy_" + name), Help: &help, Type: &t}
	*f = append(*f, m)
	return &family{MetricFamily: m}
}

func (f *family) add(l []*dto.LabelPair, v float64) {
	if len(f.slab) == 0 {
		f.slab = make([]sample, min(max(len(f.Metric), 4), 1024))
	}
	s := &f.slab[0]
	f.slab = f.slab[1:]
	s.value, s.metric.Label = v, l
	if f.GetType() == dto.MetricType_COUNTER {
		s.counter.Value = &s.value
		s.metric.Counter = &s.counter
	} else {
		s.gauge.Value = &s.value
		s.metric.Gauge = &s.gauge
	}
	f.Metric = append(f.Metric, &s.metric)
}

func (f *family) addHistogram(l []*dto.LabelPair, d histogram.Data) {
	h := &dto.Histogram{SampleSum: new(d.Sum)}
	var n uint64
	for i, c := range d.Counts {
		n += c
		if i < len(d.Bounds) {
			h.Bucket = append(h.Bucket, &dto.Bucket{UpperBound: new(d.Bounds[i]), CumulativeCount: new(n)})
		}
	}
	h.SampleCount = new(n)
	f.Metric = append(f.Metric, &dto.Metric{Label: l, Histogram: h})
}

// labels makes label pairs of alternating names and values.
func labels(pairs ...string) []*dto.LabelPair {
	out := make([]*dto.LabelPair, 0, len(pairs)/2)
	for p := range slices.Chunk(pairs, 2) {
		out = append(out, pair(p[0], p[1]))
	}
	return out
}

// pair makes one label. One value that is not UTF-8 would spoil the whole
// scrape.
func pair(name, value string) *dto.LabelPair {
	return &dto.LabelPair{Name: &name, Value: new(strings.ToValidUTF8(value, "\ufffd"))}
}

// with returns l and one more label; l stays as it is.
func with(l []*dto.LabelPair, p *dto.LabelPair) []*dto.LabelPair {
	out := make([]*dto.LabelPair, len(l)+1)
	copy(out, l)
	out[len(l)] = p
	return out
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
