package admin

import (
	"time"

	"edgeproxy/listener"
	"edgeproxy/tlsterm"
)

// Certificate is one in use by a `tls` block.
type Certificate struct {
	TLS string // name of the block
	tlsterm.CertificateStatus
}

// tls adds what listeners and `tls` blocks have to tell of TLS. Listeners that
// terminate none are left out.
func (g *gatherer) tls(all *families) {
	handshakes := all.counter("tls_handshakes_total", "TLS handshakes with clients, by version and result: full, resumed or failed.")
	seconds := all.histogram("tls_handshake_seconds", "How long successful TLS handshakes with clients took, from the ClientHello to the end.")
	sessions := all.gauge("tls_sessions", "TLS connections that live now, to clients and to servers, by what seals and opens their records.")
	for _, s := range g.source.Listeners() {
		t := &s.TLS
		for e, n := range t.Sessions {
			if t.Configured || n > 0 {
				sessions.add(labels("listener", s.Name, "engine", listener.Engine(e).String()), float64(n))
			}
		}
		for v, results := range t.Handshakes {
			for r, n := range results {
				// Of what has not been yet, what is likely to be is shown, so
				// that rates and alerts see the first one.
				likely := t.Configured && (listener.TLSVersions[v] == "1.3" || v == 0 && listener.HandshakeResults[r] == "failed")
				if likely || n > 0 {
					handshakes.add(labels("listener", s.Name, "version", listener.TLSVersions[v], "result", listener.HandshakeResults[r]), float64(n))
				}
			}
		}
		if t.Configured {
			seconds.addHistogram(labels("listener", s.Name), t.Seconds)
		}
	}
	expiry := all.gauge("certificate_expiry_timestamp_seconds",
		"When a certificate expires, in Unix time; of several with the same subject (ECDSA and RSA), the one that expires first.")
	type key struct{ tls, subject string }
	first := map[key]time.Time{}
	var order []key
	for _, c := range g.source.Certificates() {
		k := key{c.TLS, c.Subject}
		t, known := first[k]
		if !known {
			order = append(order, k)
		}
		if !known || c.NotAfter.Before(t) {
			first[k] = c.NotAfter
		}
	}
	for _, k := range order {
		expiry.add(labels("tls", k.tls, "subject", k.subject), float64(first[k].Unix()))
	}
}
