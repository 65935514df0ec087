// Package sniff tells from the first bytes of a client's stream what it
// speaks and whom it wants: the protocol, the server name and ALPN offers of a
// TLS ClientHello, the host and path of an HTTP/1 request. It is a pure codec:
// the bytes are looked at, never consumed.
package sniff

// Protocol is what a client's first bytes look like.
type Protocol uint8

const (
	Unknown Protocol = iota
	TLS
	HTTP     // HTTP/1 request line, or the HTTP/2 preface
	SSH      // RFC 4253, section 4.2
	Postgres // startup, cancel, GSSENCRequest and SSLRequest packets
	Redis    // RESP arrays
	MQTT     // CONNECT
	RDP      // TPKT with an X.224 connection request
	SOCKS5   // RFC 1928
	Proxy    // a PROXY protocol header
	protocolCount
)
