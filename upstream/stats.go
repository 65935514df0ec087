package upstream

import "edgeproxy/internal/histogram"

// ServerStats is what one server has counted since it was first configured.
// It survives reloads.
type ServerStats struct {
	Name     string
	Address  string // as configured
	Resolved string // the address in use, where a host name is configured
	Weight   int
	Tier     int
	Up       bool
	LastErr  string // of the last health check, "" if it passed
	Active   int64
	Sessions uint64
	Failures map[string]uint64 // connect failures by reason: refused, timeout, unreachable, reset, no_ports, tls, other
	Checks   CheckStats
}

// CheckStats counts health checks by result.
type CheckStats struct{ Passed, Failed uint64 }

// Stats is what one upstream has counted.
type Stats struct {
	Name    string
	Servers []ServerStats
	Connect histogram.Data // seconds from connect(2) to an established connection
}
