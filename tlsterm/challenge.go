package tlsterm

import "slices"

// Challenges reports whether a handshake for name that offers nothing but
// [ChallengeProtocol] is this block's to answer, whatever the routes say.
func (c *Context) Challenges(name string) bool {
	return slices.ContainsFunc(c.certs.dynamic, func(d dynamicCerts) bool {
		if d, ok := d.(managed); ok {
			return d.Challenge(name) // not if tls-alpn-01 is switched off
		}
		return slices.Contains(d.Domains(), name)
	})
}
