package admin

import (
	"strings"
	"testing"
	"time"

	"edgeproxy/listener"
	"edgeproxy/tlsterm"
)

// secure is a source with a listener that terminates TLS.
type secure struct{ fake }

func (s *secure) Listeners() []listener.Stats {
	l := listener.Stats{Name: "web", TLS: listener.TLSStats{Configured: true, Seconds: data(4, 5, 6)}}
	l.TLS.Sessions[listener.EngineRecords] = 7
	l.TLS.Handshakes[3][listener.HandshakeResumed] = 2
	l.TLS.Handshakes[4][listener.HandshakeFull] = 5
	return []listener.Stats{l, {Name: "plain"}}
}

func TestTLSMetrics(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	f := &secure{fake{state: State{Phase: Running}}}
	f.certificates = []Certificate{
		{"public", tlsterm.CertificateStatus{Subject: "example.com", NotAfter: at.Add(time.Hour)}},
		{"public", tlsterm.CertificateStatus{Subject: "example.com", NotAfter: at}}, // RSA beside ECDSA
		{"public", tlsterm.CertificateStatus{Subject: "example.org", NotAfter: at}},
		{"other", tlsterm.CertificateStatus{Subject: "example.com", NotAfter: at.Add(time.Minute)}},
	}
	s, _ := start(t, f, "127.0.0.1:0")
	_, body := do(t, s.Addr(), "GET", "/metrics", nil)
	var ours []string
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "edgeproxy_tls") && !strings.Contains(line, "bucket") || strings.HasPrefix(line, "edgeproxy_cert") {
			ours = append(ours, line)
		}
	}
	const want = `edgeproxy_certificate_expiry_timestamp_seconds{tls="public",subject="example.com"} 1.8e+09
edgeproxy_certificate_expiry_timestamp_seconds{tls="public",subject="example.org"} 1.8e+09
edgeproxy_certificate_expiry_timestamp_seconds{tls="other",subject="example.com"} 1.80000006e+09
edgeproxy_tls_handshake_seconds_sum{listener="web"} 2.5
edgeproxy_tls_handshake_seconds_count{listener="web"} 15
edgeproxy_tls_handshakes_total{listener="web",version="none",result="failed"} 0
edgeproxy_tls_handshakes_total{listener="web",version="1.2",result="resumed"} 2
edgeproxy_tls_handshakes_total{listener="web",version="1.3",result="full"} 5
edgeproxy_tls_handshakes_total{listener="web",version="1.3",result="resumed"} 0
edgeproxy_tls_handshakes_total{listener="web",version="1.3",result="failed"} 0
edgeproxy_tls_sessions{listener="web",engine="records"} 7
edgeproxy_tls_sessions{listener="web",engine="kernel"} 0
edgeproxy_tls_sessions{listener="web",engine="goroutine"} 0
`
	if got := strings.Join(ours, ""); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
