package listener

import "edgeproxy/internal/histogram"

// Stats is what one listener has counted since the process started, summed
// over its loops. It survives reloads.
type Stats struct {
	Name         string
	Network      Network
	Addresses    []string // really bound ("127.0.0.1:41233" for a configured port 0)
	Sessions     uint64   // accepted
	Active       int64
	Ends         [endCount]uint64
	BytesIn      uint64 // client to server
	BytesOut     uint64
	Spliced      uint64 // bytes of both directions that never entered user space
	AcceptErrors uint64 // accept(2) failures; EMFILE and ENFILE among them
	AcceptPauses uint64 // times accepting was paused: descriptors or max_connections
	Seconds      histogram.Data
	TLS          TLSStats

	// Of a UDP listener. What is dropped counts as neither in nor out.
	DatagramsIn  uint64 // clients to servers
	DatagramsOut uint64
	Dropped      [dropCount]uint64
}
