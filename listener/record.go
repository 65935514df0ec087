package listener

import (
	"net/netip"
	"time"

	"edgeproxy/internal/sniff"
)

// Record is what is known of a session when it ends: the access log line.
// Strings are shared, the record itself is reused once Log returns.
type Record struct {
	Time          time.Time // of the end
	ID            uint64
	Loop          int // number of the loop the session lived on: lets a logger keep loops apart
	Listener      string
	Network       Network
	Route         string         // "" for a listener without routes
	Upstream      string         // "" when none was chosen
	Server        string         // "" when none was chosen
	Source        netip.AddrPort // invalid for a unix socket client
	Destination   netip.AddrPort // invalid for a unix socket listener
	DestUnix      string         // the unix socket's path instead
	ServerAddress string         // "" when none was chosen
	BytesIn       uint64         // client to server
	BytesOut      uint64         // server to client
	DatagramsIn   uint64         // UDP: client to server
	DatagramsOut  uint64
	Duration      time.Duration
	Connect       time.Duration // from the choice of a server until it was connected to; 0 if it never was
	Retries       int
	Protocol      sniff.Protocol // by the first bytes; Unknown where nobody has looked at them
	SNI           string         // "" where none was seen
	ALPN          string         // agreed on; "" if none was
	TLSVersion    uint16         // of TLS terminated here; 0: none was
	TLSCipher     uint16
	TLS           time.Duration // the handshake
	ClientName    string        // subject of the client's verified certificate (RFC 4514)
	End           End
	Phase         Phase
	Err           error // nil: nothing to add
}

// AccessLogger takes a record of every session's end. Log is called on the
// loops, from several at a time, and must neither block nor keep r.
type AccessLogger interface {
	Log(r *Record)
}
