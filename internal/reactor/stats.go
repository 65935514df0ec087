package reactor

// Stats is what one loop has counted since it started.
type Stats struct {
	Sessions int64         // descriptors owned by sessions, halved: live sessions
	Busy     float64       // share of the last seconds spent working, 0–1
	Delay    HistogramData // how long ready events waited for the loop
}

// HistogramData has upper bounds in seconds; Counts has one more element than
// Bounds, for what lies above the last.
type HistogramData struct {
	Bounds []float64
	Counts []uint64 // per bucket, not cumulative
	Sum    float64  // seconds
}
