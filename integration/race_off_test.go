//go:build !race

package integration

const (
	raceEnabled = false
	raceFactor  = 1 // how much more time and memory a program may take
)
