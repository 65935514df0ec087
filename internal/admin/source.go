package admin

import (
	"context"
	"time"

	"edgeproxy/internal/reactor"
	"edgeproxy/listener"
	"edgeproxy/upstream"
)

// Source is what the admin server shows, and the little it can ask for. All
// methods may be called at any time and from several goroutines. The snapshots
// belong to the caller; what they count never goes down.
type Source interface {
	// State says what the daemon is doing.
	State() State
	// Listeners, one element per name.
	Listeners() []listener.Stats
	// Certificates in use by `tls` blocks.
	Certificates() []Certificate
	// Upstreams, one element per name, its servers one per name.
	Upstreams() []upstream.Stats
	// Loops, by their number.
	Loops() []reactor.Stats
	// LastReload says whether the last load of the configuration, the first
	// one included, succeeded, and when one last did.
	LastReload() (ok bool, success time.Time)
	// AccessLogDropped counts lines of the access log that were lost.
	AccessLogDropped() uint64
	// Reload loads the configuration anew and returns when that is done.
	// The message says what has changed; the error holds all diagnostics.
	Reload(ctx context.Context) (message string, err error)
}

// Phase is where the daemon stands in its life:
//
//	Starting → Running → Draining
type Phase uint8

const (
	Starting Phase = iota // the sockets are not all open yet
	Running
	Draining // live sessions go on, new ones are not taken
)

func (p Phase) String() string { return [...]string{"starting", "running", "draining"}[p] }

// State is a phase, and in it whether new sessions should be sent here.
type State struct {
	Phase Phase
	// NotReady says why they should not although the daemon runs, as in
	// "listener \"edge\" does not accept: out of descriptors".
	NotReady string
}

// unready returns why new sessions should go elsewhere, "" if they need not.
func (s State) unready() string {
	if s.Phase != Running {
		return s.Phase.String()
	}
	return s.NotReady
}
