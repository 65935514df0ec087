// Package config turns HCL files into the options of the other packages. It
// opens no sockets.
//
// A load goes through these steps, and collects every error on its way:
//
//  1. read: bounded, UTF-8, nesting bounded, parsed ([Load], [Parse])
//  2. locals are evaluated in the order of their references
//  3. dynamic blocks are expanded, the names of upstreams and tls blocks become known
//  4. blocks are decoded by the schema table (schema_*.go), which the
//     messages and docs/configuration.md are made from as well
//  5. what no single block can tell is checked: references, overlapping
//     addresses, unreachable routes (check.go)
package config

import (
	"time"

	"edgeproxy/listener"
	"edgeproxy/tlsterm"
	"edgeproxy/upstream"
)

// Defaults of [Process].
const DefaultShutdownTimeout = 30 * time.Second

// Process describes the daemon itself.
type Process struct {
	Workers         int           // event loops; 0: the CPUs this process may use
	PinCPUs         bool          // each loop stays on one CPU
	MaxConnections  int           // sessions at one time; 0: what the descriptor limit allows
	User            string        // privileges are dropped to this user after binding; "": none are
	Steering        string        // auto, off; "": auto
	KernelTLS       string        // off, auto; "": off
	ShutdownTimeout time.Duration // SIGTERM to the end of the last session; 0: DefaultShutdownTimeout
}

// Log describes where the program's own messages go.
type Log struct {
	Level  string // debug, info, warn, error; "": info
	Format string // json, console; "": json
	Output string // stderr, stdout, or a file's path; "": stderr
}

// AccessLog describes the line each session leaves at its end. An empty
// Output means there is none.
type AccessLog struct {
	Output string // a file's path, stderr or stdout
	Format string // json, console; "": json
}

// Admin describes the admin server. An empty Address means there is none.
type Admin struct {
	Address string // "127.0.0.1:9901" or "unix:/run/edgeproxy/admin.sock"
}

// Config is one whole, valid configuration.
type Config struct {
	Process   Process
	Log       Log
	AccessLog AccessLog
	Admin     Admin
	TLS       []tlsterm.Options
	Listeners []listener.Options
	Upstreams []upstream.Options
}
