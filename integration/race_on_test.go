//go:build race

package integration

const (
	raceEnabled = true
	raceFactor  = 4 // how much more time and memory a program may take
)
