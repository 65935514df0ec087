// Package tlsterm ends TLS: certificates and their renewal, session tickets,
// client certificates, handshakes, and what is left of a connection after its
// handshake. It knows neither loops nor upstreams.
//
// The life of a terminated connection:
//
//  1. a [Context], one `tls` block of the configuration, is chosen by a route
//  2. a [Pool] runs the handshake: crypto/tls reads from the socket exactly
//     one record at a time, so that nothing beyond the handshake is consumed
//  3. its traffic secrets come by tls.Config.KeyLogWriter and become the
//     record layer's state (package internal/tlsrecord); crypto/tls is left
//     behind, but for versions and suites that the record layer does not know
package tlsterm
