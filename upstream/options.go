package upstream

import (
	"net/netip"
	"time"

	"edgeproxy/balance"
	"edgeproxy/health"
	"edgeproxy/tlsterm"
)

// Defaults of [Options].
const (
	DefaultConnectTimeout = 3 * time.Second
	DefaultRetries        = 2
	DefaultWeight         = 1
	DefaultResolve        = 10 * time.Second
	DefaultKeepalive      = 5 * time.Minute
)

// OnDown says what happens to the live sessions of a server that goes down.
type OnDown uint8

const (
	OnDownDefault OnDown = iota // TCP: KeepSessions; UDP: each goes on with another server from its next datagram on
	KeepSessions                // they go on until they end by themselves
	CloseSessions               // they are closed with `server_down`
)

// HashOn is what the policies maglev and ring_hash choose by.
type HashOn uint8

const (
	HashSource      HashOn = iota // the client's address
	HashSourcePort                // … and its port
	HashSNI                       // the server name that the client asks for; without one, the client's address
	HashDestination               // the address and port the client sends to
)

// HashOns holds the names used in configuration files, indexed by HashOn.
var HashOns = []string{HashSource: "source", HashSourcePort: "source_port", HashSNI: "sni", HashDestination: "destination"}

// ProxyProtocol is the version of the PROXY header sent to servers.
type ProxyProtocol uint8

const (
	ProxyNone ProxyProtocol = iota
	ProxyV1
	ProxyV2
)

// TCPOptions tune the sockets to the servers.
type TCPOptions struct {
	Keepalive   time.Duration // idle time before the first probe, ≥ 1 s; 0: 5m; negative: off
	UserTimeout time.Duration // TCP_USER_TIMEOUT (RFC 5482): unacknowledged data; 0: the kernel's; ≥ 1 ms
	Delay       bool          // true: Nagle's algorithm on (TCP_NODELAY off)
}

// ServerOptions describe one server.
type ServerOptions struct {
	Name           string
	Address        Address
	Weight         int // 1–256; 0: DefaultWeight; negative: takes no new sessions
	MaxConnections int // sessions at one time; 0: no limit
	Tier           int // 0–255: used when no server of a lower tier is usable
	// QUICServerID is what the server puts behind the first byte of its QUIC
	// connection ids (QUIC-LB, plaintext), 1–15 bytes; "": not known beforehand.
	QUICServerID string
}

// Options describe an upstream: a group of servers and how to use it.
type Options struct {
	Name           string
	Balance        balance.Policy
	HashOn         HashOn // with balance.Maglev and balance.RingHash
	Servers        []ServerOptions
	Health         []health.Options // all must pass; none: servers count as up
	PanicThreshold float64          // 0–1: below this usable share health is ignored; 0: never
	ConnectTimeout time.Duration    // of one attempt; 0: DefaultConnectTimeout
	Retries        int              // further attempts, on other servers where there are any; 0: DefaultRetries; negative: none
	Source         []netip.Addr     // local addresses to connect from, taken in turn; empty: the kernel's choice
	ProxyProtocol  ProxyProtocol
	OnDown         OnDown
	Resolve        time.Duration // host names are looked up this often; 0: DefaultResolve
	TCP            TCPOptions
	TLS            *tlsterm.ClientOptions // re-encryption; nil: none
}
