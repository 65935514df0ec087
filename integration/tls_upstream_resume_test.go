package integration

import (
	"crypto/tls"
	"fmt"
	"sync"
	"testing"
)

// Sessions to a server are resumed in both versions. The ticket of TLS 1.3
// comes after the handshake, when the record layer has the connection.
func TestTLSUpstreamResumes(t *testing.T) {
	t.Parallel()
	for version, name := range map[uint16]string{tls.VersionTLS12: "1.2", tls.VersionTLS13: "1.3"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newTLSLab(t)
			cfg := l.server()
			cfg.MinVersion, cfg.MaxVersion = version, version
			var mu sync.Mutex
			full, resumed := 0, 0
			s := serveTLS(t, cfg, func(c *tls.Conn) {
				mu.Lock()
				if c.ConnectionState().DidResume {
					resumed++
				} else {
					full++
				}
				mu.Unlock()
				echoTLS(c)
			})
			p := Start(t, oneUpstream("", l.encrypted(""), s.Addr()))
			for i := 1; ; i++ {
				c := Dial(t, p.Addr("edge"))
				for j := range 3 {
					RoundTrip(t, c, fmt.Sprintf("session %d, line %d", i, j))
				}
				c.CloseWrite()
				ExpectEOF(t, c)
				p.LastEnd(i, "client_closed", "relay")
				mu.Lock()
				f, r := full, resumed
				mu.Unlock()
				if r >= 10 {
					break
				}
				// The ticket is taken beside the session: the next few may
				// be too early for it. With kernel TLS none of 1.3 is taken.
				if i > 100 {
					if wantEngine(t) == "" && version == tls.VersionTLS13 {
						break
					}
					t.Fatalf("%d full handshakes, %d resumed", f, r)
				}
			}
		})
	}
}
