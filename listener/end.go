package listener

// End says why a session ended. The list is closed, and one for the access
// log, the metrics and the admin API.
type End uint8

const (
	ClientClosed End = iota
	ServerClosed
	ClientReset
	ServerReset
	IdleTimeout
	HalfCloseTimeout
	Lifetime
	HandshakeTimeout
	BadProxyHeader
	TLSFailed
	NoRoute
	Denied
	Limited
	NoServer
	ConnectFailed
	ConnectTimeout
	QueueTimeout
	QueueFull
	ServerDown
	ServerRemoved
	Killed
	Drained
	ResponsesDone
	Overloaded
	InternalError
	endCount
)

// Ends holds the names, indexed by End.
var Ends = [...]string{
	ClientClosed: "client_closed", ServerClosed: "server_closed", ClientReset: "client_reset", ServerReset: "server_reset",
	IdleTimeout: "idle_timeout", HalfCloseTimeout: "half_close_timeout", Lifetime: "lifetime", HandshakeTimeout: "handshake_timeout",
	BadProxyHeader: "bad_proxy_header", TLSFailed: "tls_failed", NoRoute: "no_route", Denied: "denied", Limited: "limited",
	NoServer: "no_server", ConnectFailed: "connect_failed", ConnectTimeout: "connect_timeout", QueueTimeout: "queue_timeout",
	QueueFull: "queue_full", ServerDown: "server_down", ServerRemoved: "server_removed", Killed: "killed", Drained: "drained",
	ResponsesDone: "responses_done", Overloaded: "overloaded", InternalError: "internal_error",
}

func (e End) String() string { return Ends[e] }

// orderly reports whether the client is to see an ordinary close (FIN). After
// any other end it sees a reset: it must not take for whole what is not.
func (e End) orderly() bool {
	switch e {
	case ClientClosed, ServerClosed, NoRoute, Denied, Limited, ResponsesDone:
		return true
	}
	return false
}

// Phase says where a session stood when it ended.
type Phase uint8

const (
	PhaseAccept Phase = iota
	PhaseProxyHeader
	PhaseSniff
	PhaseTLS
	PhaseConnect
	PhaseRelay
)

var phases = [...]string{"accept", "proxy_header", "sniff", "tls", "connect", "relay"}

func (p Phase) String() string { return phases[p] }
