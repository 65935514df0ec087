package admin

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

	"edgeproxy/internal/version"
)

func TestMetrics(t *testing.T) {
	s, _ := start(t, &fake{state: State{Phase: Running}}, "127.0.0.1:0")
	_, body := do(t, s.Addr(), "GET", "/metrics", nil)
	var ours []string
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "edgeproxy_") {
			ours = append(ours, line)
		}
	}
	var quiet strings.Builder
	for _, e := range tcpEnds {
		fmt.Fprintf(&quiet, "edgeproxy_session_ends_total{listener=\"quiet \\\"one\\\"\",reason=%q} 0\n", e.String())
	}
	want := fmt.Sprintf(`edgeproxy_accept_errors_total{listener="edge"} 1
edgeproxy_accept_errors_total{listener="quiet \"one\""} 0
edgeproxy_accept_errors_total{listener="dns"} 4
edgeproxy_accept_pauses_total{listener="edge"} 3
edgeproxy_accept_pauses_total{listener="quiet \"one\""} 0
edgeproxy_access_log_dropped_total 8
edgeproxy_build_info{version=%q,goversion=%q} 1
edgeproxy_bytes_total{listener="edge",direction="in"} 100
edgeproxy_bytes_total{listener="edge",direction="out"} 2000
edgeproxy_bytes_total{listener="quiet \"one\"",direction="in"} 0
edgeproxy_bytes_total{listener="quiet \"one\"",direction="out"} 0
edgeproxy_bytes_total{listener="dns",direction="in"} 30
edgeproxy_bytes_total{listener="dns",direction="out"} 300
edgeproxy_config_last_reload_success_timestamp_seconds 1.7000000005e+09
edgeproxy_config_last_reload_successful 1
edgeproxy_connect_seconds_bucket{upstream="web",le="0.001"} 5
edgeproxy_connect_seconds_bucket{upstream="web",le="1"} 5
edgeproxy_connect_seconds_bucket{upstream="web",le="+Inf"} 6
edgeproxy_connect_seconds_sum{upstream="web"} 2.5
edgeproxy_connect_seconds_count{upstream="web"} 6
edgeproxy_connect_seconds_bucket{upstream="empty",le="+Inf"} 0
edgeproxy_connect_seconds_sum{upstream="empty"} 0
edgeproxy_connect_seconds_count{upstream="empty"} 0
edgeproxy_datagrams_dropped_total{listener="dns",reason="no_route"} 0
edgeproxy_datagrams_dropped_total{listener="dns",reason="limited"} 5
edgeproxy_datagrams_dropped_total{listener="dns",reason="no_server"} 0
edgeproxy_datagrams_dropped_total{listener="dns",reason="too_big"} 0
edgeproxy_datagrams_dropped_total{listener="dns",reason="socket_full"} 0
edgeproxy_datagrams_dropped_total{listener="dns",reason="malformed"} 0
edgeproxy_datagrams_dropped_total{listener="dns",reason="denied"} 2
edgeproxy_datagrams_total{listener="dns",direction="in"} 10
edgeproxy_datagrams_total{listener="dns",direction="out"} 11
edgeproxy_health_checks_total{upstream="web",server="s0",result="passed"} 20
edgeproxy_health_checks_total{upstream="web",server="s0",result="failed"} 5
edgeproxy_health_checks_total{upstream="web",server="s1",result="passed"} 20
edgeproxy_health_checks_total{upstream="web",server="s1",result="failed"} 5
edgeproxy_loop_busy_ratio{loop="0"} 0.25
edgeproxy_loop_busy_ratio{loop="1"} 0
edgeproxy_loop_delay_seconds_bucket{loop="0",le="0.001"} 9
edgeproxy_loop_delay_seconds_bucket{loop="0",le="1"} 10
edgeproxy_loop_delay_seconds_bucket{loop="0",le="+Inf"} 10
edgeproxy_loop_delay_seconds_sum{loop="0"} 2.5
edgeproxy_loop_delay_seconds_count{loop="0"} 10
edgeproxy_loop_delay_seconds_bucket{loop="1",le="+Inf"} 0
edgeproxy_loop_delay_seconds_sum{loop="1"} 0
edgeproxy_loop_delay_seconds_count{loop="1"} 0
edgeproxy_loop_sessions{loop="0"} 1
edgeproxy_loop_sessions{loop="1"} 1
edgeproxy_server_failures_total{upstream="web",server="s0",reason="no_ports"} 0
edgeproxy_server_failures_total{upstream="web",server="s0",reason="other"} 0
edgeproxy_server_failures_total{upstream="web",server="s0",reason="refused"} 4
edgeproxy_server_failures_total{upstream="web",server="s0",reason="reset"} 0
edgeproxy_server_failures_total{upstream="web",server="s0",reason="timeout"} 0
edgeproxy_server_failures_total{upstream="web",server="s0",reason="unreachable"} 0
edgeproxy_server_failures_total{upstream="web",server="s1",reason="no_ports"} 0
edgeproxy_server_failures_total{upstream="web",server="s1",reason="other"} 0
edgeproxy_server_failures_total{upstream="web",server="s1",reason="refused"} 4
edgeproxy_server_failures_total{upstream="web",server="s1",reason="reset"} 0
edgeproxy_server_failures_total{upstream="web",server="s1",reason="timeout"} 0
edgeproxy_server_failures_total{upstream="web",server="s1",reason="unreachable"} 0
edgeproxy_server_sessions_active{upstream="web",server="s0"} 0
edgeproxy_server_sessions_active{upstream="web",server="s1"} 1
edgeproxy_server_sessions_total{upstream="web",server="s0"} 100
edgeproxy_server_sessions_total{upstream="web",server="s1"} 101
edgeproxy_server_up{upstream="web",server="s0"} 0
edgeproxy_server_up{upstream="web",server="s1"} 1
edgeproxy_session_ends_total{listener="edge",reason="client_closed"} 7
edgeproxy_session_ends_total{listener="edge",reason="server_closed"} 0
edgeproxy_session_ends_total{listener="edge",reason="client_reset"} 0
edgeproxy_session_ends_total{listener="edge",reason="server_reset"} 0
edgeproxy_session_ends_total{listener="edge",reason="idle_timeout"} 0
edgeproxy_session_ends_total{listener="edge",reason="half_close_timeout"} 0
edgeproxy_session_ends_total{listener="edge",reason="lifetime"} 0
edgeproxy_session_ends_total{listener="edge",reason="handshake_timeout"} 0
edgeproxy_session_ends_total{listener="edge",reason="bad_proxy_header"} 0
edgeproxy_session_ends_total{listener="edge",reason="tls_failed"} 0
edgeproxy_session_ends_total{listener="edge",reason="no_route"} 0
edgeproxy_session_ends_total{listener="edge",reason="denied"} 2
edgeproxy_session_ends_total{listener="edge",reason="limited"} 0
edgeproxy_session_ends_total{listener="edge",reason="no_server"} 0
edgeproxy_session_ends_total{listener="edge",reason="connect_failed"} 0
edgeproxy_session_ends_total{listener="edge",reason="connect_timeout"} 0
edgeproxy_session_ends_total{listener="edge",reason="server_down"} 0
edgeproxy_session_ends_total{listener="edge",reason="killed"} 1
edgeproxy_session_ends_total{listener="edge",reason="drained"} 0
edgeproxy_session_ends_total{listener="edge",reason="overloaded"} 0
edgeproxy_session_ends_total{listener="edge",reason="internal_error"} 0
%sedgeproxy_session_ends_total{listener="dns",reason="idle_timeout"} 0
edgeproxy_session_ends_total{listener="dns",reason="lifetime"} 0
edgeproxy_session_ends_total{listener="dns",reason="handshake_timeout"} 0
edgeproxy_session_ends_total{listener="dns",reason="no_route"} 0
edgeproxy_session_ends_total{listener="dns",reason="denied"} 0
edgeproxy_session_ends_total{listener="dns",reason="limited"} 0
edgeproxy_session_ends_total{listener="dns",reason="no_server"} 0
edgeproxy_session_ends_total{listener="dns",reason="server_down"} 0
edgeproxy_session_ends_total{listener="dns",reason="killed"} 1
edgeproxy_session_ends_total{listener="dns",reason="drained"} 0
edgeproxy_session_ends_total{listener="dns",reason="responses_done"} 7
edgeproxy_session_ends_total{listener="dns",reason="overloaded"} 0
edgeproxy_session_seconds_bucket{listener="edge",le="0.001"} 1
edgeproxy_session_seconds_bucket{listener="edge",le="1"} 3
edgeproxy_session_seconds_bucket{listener="edge",le="+Inf"} 6
edgeproxy_session_seconds_sum{listener="edge"} 2.5
edgeproxy_session_seconds_count{listener="edge"} 6
edgeproxy_session_seconds_bucket{listener="quiet \"one\"",le="+Inf"} 0
edgeproxy_session_seconds_sum{listener="quiet \"one\""} 0
edgeproxy_session_seconds_count{listener="quiet \"one\""} 0
edgeproxy_session_seconds_bucket{listener="dns",le="0.001"} 1
edgeproxy_session_seconds_bucket{listener="dns",le="1"} 3
edgeproxy_session_seconds_bucket{listener="dns",le="+Inf"} 6
edgeproxy_session_seconds_sum{listener="dns"} 2.5
edgeproxy_session_seconds_count{listener="dns"} 6
edgeproxy_sessions_active{listener="edge",protocol="tcp"} 2
edgeproxy_sessions_active{listener="quiet \"one\"",protocol="tcp"} 0
edgeproxy_sessions_active{listener="dns",protocol="udp"} 1
edgeproxy_sessions_total{listener="edge",protocol="tcp"} 12
edgeproxy_sessions_total{listener="quiet \"one\"",protocol="tcp"} 0
edgeproxy_sessions_total{listener="dns",protocol="udp"} 9
edgeproxy_spliced_bytes_total{listener="edge"} 1500
edgeproxy_spliced_bytes_total{listener="quiet \"one\""} 0
`, version.String(), version.Go(), quiet.String())
	wanted := strings.SplitAfter(want, "\n")
	for i := range max(len(ours), len(wanted)-1) {
		if i >= len(ours) || ours[i] != wanted[i] {
			t.Fatalf("line %d: got %q, want %q", i, strings.Join(ours[i:min(i+1, len(ours))], ""), wanted[i])
		}
	}
	for _, name := range []string{"go_goroutines", "process_open_fds", "process_cpu_seconds_total", "process_resident_memory_bytes"} {
		if !strings.Contains(body, "\n"+name+" ") {
			t.Errorf("no %s", name)
		}
	}
}

func TestMetricsLint(t *testing.T) {
	problems, err := testutil.GatherAndLint(newGatherer(&fake{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// Prometheus' own checks (no metric twice, labels alike within a family,
// UTF-8), which the gatherer does without.
func TestMetricsAreConsistent(t *testing.T) {
	if _, err := (prometheus.Gatherers{newGatherer(&fake{servers: 10})}).Gather(); err != nil {
		t.Error(err)
	}
	// What is not UTF-8 does not spoil the rest.
	if got := pair("server", "a\xffb").GetValue(); got != "a\ufffdb" {
		t.Errorf("got %q", got)
	}
}

// A scrape of 10 000 servers has 110 000 lines.
func BenchmarkScrape(b *testing.B) {
	h := newHandler(&fake{servers: 10_000}, zap.NewNop(), time.Now())
	for _, encoding := range []string{"identity", "gzip"} {
		b.Run(encoding, func(b *testing.B) {
			r := httptest.NewRequest(http.MethodGet, "/metrics", nil)
			r.Header.Set("Accept-Encoding", encoding)
			b.ReportAllocs()
			for b.Loop() {
				w := &discard{header: http.Header{}}
				h.ServeHTTP(w, r)
				if w.n < 100_000 {
					b.Fatalf("%d bytes", w.n)
				}
				b.SetBytes(int64(w.n))
			}
		})
	}
}

type discard struct {
	header http.Header
	n      int
}

func (d *discard) Header() http.Header { return d.header }
func (d *discard) WriteHeader(int)     {}
func (d *discard) Write(b []byte) (int, error) {
	d.n += len(b)
	return io.Discard.Write(b)
}
