package listener

// Drop says why a datagram went nowhere. The list is closed; names that [End]
// has, too, mean the same here.
type Drop uint8

const (
	DropNoRoute    Drop = iota
	DropLimited         // a limit of the listener or of the process
	DropNoServer        // nobody to send it to
	DropTooBig          // larger than the path to its receiver takes (EMSGSIZE), or than a datagram can be
	DropSocketFull      // the socket to its receiver, or the kernel, had no room
	DropMalformed       // a PROXY header that is wrong or missing
	DropDenied          // allow, deny, a route with reject, or a source that is the listener itself
	dropCount
)

// Drops holds the names, indexed by Drop.
var Drops = [...]string{
	DropNoRoute: "no_route", DropLimited: "limited", DropNoServer: "no_server", DropTooBig: "too_big",
	DropSocketFull: "socket_full", DropMalformed: "malformed", DropDenied: "denied",
}

func (d Drop) String() string { return Drops[d] }
