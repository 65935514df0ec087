package reactor

import "edgeproxy/internal/histogram"

// Stats is what one loop has counted since it started.
type Stats struct {
	Sessions int64          // descriptors owned by sessions, halved: live sessions
	Busy     float64        // share of the last seconds spent working, 0–1
	Delay    histogram.Data // how long ready events waited for the loop
}
