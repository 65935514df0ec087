package main

import (
	"strings"
	"testing"
)

const metricsPage = `# HELP edgeproxy_server_up Whether the server takes sessions.
# TYPE edgeproxy_server_up gauge
edgeproxy_server_up{server="web-b",upstream="web"} 0
edgeproxy_server_up{server="web-a",upstream="web"} 1
edgeproxy_server_up{server="echo-a",upstream="echo"} 0
edgeproxy_sessions_active{listener="http",protocol="tcp"} 3
edgeproxy_sessions_active{listener="echo",protocol="tcp"} 4
edgeproxy_sessions_total{listener="http",protocol="tcp"} 1.2e+06
edgeproxy_bytes_total{direction="in",listener="http"} 1500
edgeproxy_bytes_total{direction="out",listener="http"} 2.5e+09
edgeproxy_spliced_bytes_total{listener="http"} 2e+09
edgeproxy_session_seconds_bucket{listener="http",le="+Inf"} 12

edgeproxy_sessions_active{listener="nonsense"} many
process_cpu_seconds_total 0.1
`

func TestReadCounts(t *testing.T) {
	t.Parallel()
	c, err := readCounts(strings.NewReader(metricsPage))
	if err != nil {
		t.Fatal(err)
	}
	want := "sessions 7 active, 1200000 in all | in 1.5 kB, out 2.5 GB, 80% spliced | 1 of 3 servers up, down: echo-a web-b"
	if got := c.String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestCountsOfNothing(t *testing.T) {
	t.Parallel()
	c, err := readCounts(strings.NewReader(""))
	if want := "sessions 0 active, 0 in all | in 0 B, out 0 B | 0 of 0 servers up"; err != nil || c.String() != want {
		t.Errorf("got %q, %v", c.String(), err)
	}
}

func TestByteSize(t *testing.T) {
	t.Parallel()
	for n, want := range map[float64]string{
		0: "0 B", 999: "999 B", 1000: "1 kB", 1234: "1.23 kB", 999_499: "999 kB", 999_500: "1 MB",
		1e9: "1 GB", 1.5e12: "1.5 TB", 12e15: "1.2e+04 TB",
	} {
		if got := byteSize(n); got != want {
			t.Errorf("%v: got %q, want %q", n, got, want)
		}
	}
}

func TestClip(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		s    string
		n    int
		want string
	}{{"abc", 3, "abc"}, {"abcd", 3, "ab…"}, {"äöü", 3, "äöü"}, {"abc", 1, "…"}, {"abc", 0, "…"}, {"", 0, ""}} {
		if got := clip(tt.s, tt.n); got != tt.want {
			t.Errorf("clip(%q, %d) = %q, want %q", tt.s, tt.n, got, tt.want)
		}
	}
}
