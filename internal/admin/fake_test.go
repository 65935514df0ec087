package admin

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"edgeproxy/internal/histogram"
	"edgeproxy/internal/reactor"
	"edgeproxy/listener"
	"edgeproxy/upstream"
)

// fake is a daemon that does nothing. Its functions may be replaced before it
// is in use.
type fake struct {
	certificates []Certificate
	state        State
	reload       func(context.Context) (string, error)
	servers      int
}

func (f *fake) State() State { return f.state }

func (f *fake) Listeners() []listener.Stats {
	if f.servers < 0 {
		panic("no listeners today")
	}
	a := listener.Stats{
		Name: "edge", Addresses: []string{"127.0.0.1:443", "[::1]:443"}, Sessions: 12, Active: 2,
		BytesIn: 100, BytesOut: 2000, Spliced: 1500, AcceptErrors: 1, AcceptPauses: 3, Seconds: data(1, 2, 3),
	}
	a.Ends[listener.ClientClosed], a.Ends[listener.Denied], a.Ends[listener.Killed] = 7, 2, 1
	dns := listener.Stats{
		Name: "dns", Network: listener.UDP, Addresses: []string{"127.0.0.1:53"}, Sessions: 9, Active: 1,
		BytesIn: 30, BytesOut: 300, DatagramsIn: 10, DatagramsOut: 11, AcceptErrors: 4, Seconds: data(1, 2, 3),
	}
	dns.Ends[listener.ResponsesDone], dns.Ends[listener.Killed] = 7, 1
	dns.Dropped[listener.DropLimited], dns.Dropped[listener.DropDenied] = 5, 2
	return []listener.Stats{a, {Name: "quiet \"one\""}, dns}
}

func (f *fake) Certificates() []Certificate { return f.certificates }

func (f *fake) Upstreams() []upstream.Stats {
	web := upstream.Stats{Name: "web", Connect: data(5, 0, 1)}
	for i := range max(f.servers, 2) {
		web.Servers = append(web.Servers, upstream.ServerStats{
			Name: fmt.Sprint("s", i), Address: "app.example:80", Resolved: "10.0.0.1:80", Weight: 10, Tier: 1,
			Up: i > 0, Active: int64(i), Sessions: uint64(100 + i),
			Failures: map[string]uint64{"refused": 4, "timeout": 0, "unreachable": 0, "reset": 0, "no_ports": 0, "other": 0},
			Checks:   upstream.CheckStats{Passed: 20, Failed: 5},
		})
	}
	web.Servers[0].LastErr = "connecting to 10.0.0.1:80: refused <\xff>"
	return []upstream.Stats{web, {Name: "empty"}}
}

func (f *fake) Loops() []reactor.Stats {
	return []reactor.Stats{{Sessions: 1, Busy: 0.25, Delay: data(9, 1, 0)}, {Sessions: 1}}
}

func (f *fake) LastReload() (bool, time.Time) { return true, time.UnixMilli(1_700_000_000_500) }
func (f *fake) AccessLogDropped() uint64      { return 8 }

func (f *fake) Reload(ctx context.Context) (string, error) { return f.reload(ctx) }

func data(counts ...uint64) histogram.Data {
	return histogram.Data{Bounds: []float64{0.001, 1}, Counts: counts, Sum: 2.5}
}

// start serves f on an address, and returns what it logs.
func start(t *testing.T, f Source, address string) (*Server, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	s := New(f, zap.New(core))
	move(t, s, address)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		s.Close(ctx)
	})
	return s, logs
}

func move(t *testing.T, s *Server, address string) {
	t.Helper()
	c, err := s.Prepare(address)
	if err != nil {
		t.Fatal(err)
	}
	c.Commit()
}

// client connects to an address as [Server.Addr] gives it, anew each time.
func client(address string) *http.Client {
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			if path, ok := strings.CutPrefix(address, "unix:"); ok {
				return new(net.Dialer).DialContext(ctx, "unix", path)
			}
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		},
	}}
}

func do(t *testing.T, address, method, path string, body io.Reader) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://admin"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	res, err := client(address).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

func socketPath(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "s")
}
