package listener

import (
	"net/netip"
	"time"

	"edgeproxy/internal/sniff"
)

// Defaults of [Options].
const (
	DefaultHandshake = 10 * time.Second
	DefaultIdle      = time.Hour
	DefaultHalfClose = time.Minute
	DefaultBacklog   = 65535
	DefaultKeepalive = 5 * time.Minute

	DefaultUDPIdle       = 30 * time.Second
	DefaultReceiveBuffer = 4 << 20
	DefaultSendBuffer    = 4 << 20
)

// Network is what a listener listens for.
type Network uint8

const (
	TCP Network = iota // connections; unix stream sockets as well
	UDP                // datagrams
)

func (n Network) String() string {
	if n == UDP {
		return "udp"
	}
	return "tcp"
}

// Limits bound what one listener takes. Zero: no limit. Those of TLS
// handshakes do not apply to UDP.
type Limits struct {
	Connections          int     // sessions at one time
	ConnectionsPerSource int     // … of one source address (IPv6: of one /64)
	Rate                 float64 // new sessions per second
	RatePerSource        float64 // … of one source address (IPv6: of one /64)
	BandwidthIn          int64   // bytes per second of one session, client to server
	BandwidthOut         int64   // bytes per second of one session, server to client
	Handshakes           int     // TLS handshakes under way at one time
	HandshakeRate        float64 // TLS handshakes begun per second
}

// Timeouts of a session. Zero: the default; negative: off. Sniff and HalfClose
// do not apply to UDP.
type Timeouts struct {
	Handshake time.Duration // from accept until a server is connected to; UDP: until a QUIC client's hello is whole; DefaultHandshake
	Sniff     time.Duration // a client silent for so long is routed as one whose first bytes are unknown; default: off
	Idle      time.Duration // no byte in either direction; DefaultIdle, DefaultUDPIdle
	HalfClose time.Duration // no byte, after one side has finished sending; DefaultHalfClose
	Lifetime  time.Duration // from accept to the end; default: off
}

// TCPOptions tune the sockets to the clients.
type TCPOptions struct {
	Backlog     int           // of a listening socket, 1–65535, the kernel caps it at net.core.somaxconn; 0: DefaultBacklog
	Keepalive   time.Duration // idle time before the first probe, ≥ 1 s; 0: DefaultKeepalive; negative: off
	UserTimeout time.Duration // TCP_USER_TIMEOUT (RFC 5482): unacknowledged data; 0: the kernel's; ≥ 1 ms
	Delay       bool          // true: Nagle's algorithm on (TCP_NODELAY off)
}

// UDPOptions tune what only datagrams have.
type UDPOptions struct {
	// Responses ends a session with `responses_done` once each datagram of the
	// client has been answered by so many of the server. 0: sessions end by time.
	Responses int
	// Requests is how many datagrams of the client make a session: the next one
	// begins another, perhaps with another server. 0: no limit.
	Requests int
	// ReceiveBuffer and SendBuffer are asked for on each loop's listening
	// socket, in bytes of payload and bookkeeping as the kernel counts them
	// (SO_RCVBUF, SO_SNDBUF); without CAP_NET_ADMIN the kernel caps them at
	// net.core.rmem_max and wmem_max. 0: DefaultReceiveBuffer, DefaultSendBuffer.
	ReceiveBuffer int
	SendBuffer    int
	// NoOffload leaves UDP_GRO and UDP_SEGMENT alone.
	NoOffload bool
	// QUICServerID is the length in bytes, 1–15, of the server id that servers
	// put behind the first byte of their connection ids (QUIC-LB, plaintext
	// algorithm). 0: they do not.
	QUICServerID int
}

// Match is a set of conditions, all of which must hold. An empty one holds always.
type Match struct {
	Source []netip.Prefix // client address
	Port   []PortRange    // local port the client connected to
	// SNI holds host names in lower case without a trailing dot; "*.example.com"
	// stands for every name below example.com, at any depth. Host is the same
	// for the Host header of HTTP/1 requests.
	SNI      []string
	Host     []string
	Path     []string         // HTTP/1 request targets that begin with one of these
	ALPN     []string         // protocols, one of which the ClientHello offers
	Protocol []sniff.Protocol // what the first bytes look like
	// ClientName holds names that the client's verified certificate bears: a
	// DNS, e-mail or URI subject alternative name, or the common name; in the
	// form of SNI. Only for routes with TLS.
	ClientName []string
}

// PortRange is inclusive.
type PortRange struct{ From, To uint16 }

// Split sends a share of a route's sessions to one upstream.
type Split struct {
	Upstream string
	Weight   int // 1–1 000 000; 0 sends nothing
}

// RouteOptions describe one route. Exactly one of Splits and Reject is set.
type RouteOptions struct {
	Name   string
	Match  []Match // any of them; none: every session
	Splits []Split // one element: all of it to one upstream
	Reject bool    // close with `denied`
	TLS    string  // name of the `tls` block that terminates the session here; "": it is passed through
}

// Options describe a listener.
type Options struct {
	Name      string // one of a kind among all listeners, whatever their networks
	Network   Network
	Addresses []Address
	Allow     []netip.Prefix // empty: all
	Deny      []netip.Prefix // wins over Allow
	// AcceptProxy is where sessions come from that begin with a PROXY header;
	// from there each must. A header from elsewhere is an error. Empty: none.
	AcceptProxy []netip.Prefix
	Limits      Limits
	Timeouts    Timeouts
	TCP         TCPOptions // of a TCP listener
	UDP         UDPOptions // of a UDP listener
	// Routes are tried in order, the first match wins. A listener without
	// routes in the file has a single one here, with an empty name.
	Routes []RouteOptions
}
