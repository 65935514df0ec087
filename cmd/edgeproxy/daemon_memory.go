package main

import (
	"runtime/debug"
	"time"

	"edgeproxy/tlsterm"
)

const (
	memoryEvery = 5 * time.Second
	// A burst of handshakes leaves tens of kilobytes of garbage each. Once it
	// has been over for so many rounds, and sessions have shed their ciphers,
	// the memory goes back to the system: the collector alone would keep it
	// for the next burst, which for a process of idle sessions may never come.
	quietRounds = 3
	quietBelow  = 50  // handshakes in a round
	worthIt     = 200 // handshakes since the last time
)

// keepMemory gives memory back after bursts of handshakes, until stop is
// called.
func keepMemory(pool *tlsterm.Pool) (stop func()) {
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(memoryEvery)
		defer tick.Stop()
		var last, freed uint64
		quiet := 0
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			n := pool.Handshakes()
			if n-last >= quietBelow {
				quiet = 0
			} else {
				quiet++
			}
			last = n
			if quiet >= quietRounds && n-freed >= worthIt {
				freed = n
				debug.FreeOSMemory()
			}
		}
	}()
	return func() { close(done); <-ended }
}
