//go:build race

package cbt

// raceEnabled: the race detector is on.
const raceEnabled = true
