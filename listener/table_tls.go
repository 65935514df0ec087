package listener

import "edgeproxy/tlsterm"

// secure gives the routes their `tls` blocks, and prepares for all that comes
// before a server is connected to.
func (t *table) secure(contexts func(name string) *tlsterm.Context) {
	t.opening = len(t.opts.AcceptProxy) > 0 || t.want != 0
	for i := range t.routes {
		r := &t.routes[i]
		if r.opts.TLS != "" {
			r.tls = contexts(r.opts.TLS)
			t.opening, t.terminates = true, true
		}
	}
	t.sniffTimeout = timeout(t.opts.Timeouts.Sniff, 0)
	t.handshakeRate = newRule(t.opts.Limits.HandshakeRate)
}

// challenged returns the `tls` block that a certificate authority means which
// wants to see whether we control a name; nil if there is none.
func (t *table) challenged(name string) *tlsterm.Context {
	for i := range t.routes {
		if c := t.routes[i].tls; c != nil && c.Challenges(name) {
			return c
		}
	}
	return nil
}
