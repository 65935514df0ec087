package upstream

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
	Failures map[string]uint64 // connect failures by reason: refused, timeout, unreachable, reset, no_ports, other
	Checks   CheckStats
}

// CheckStats counts health checks by result.
type CheckStats struct{ Passed, Failed uint64 }

// Stats is what one upstream has counted.
type Stats struct {
	Name    string
	Servers []ServerStats
	Connect ConnectHistogram // seconds from connect(2) to an established connection
}

// ConnectHistogram has upper bounds in seconds; Counts has one more element
// than Bounds, for what lies above the last.
type ConnectHistogram struct {
	Bounds []float64
	Counts []uint64 // per bucket, not cumulative
	Sum    float64  // seconds
}
