package main

import (
	"fmt"
	"slices"
	"time"
)

// shape is one kind of load.
type shape struct {
	name  string
	write bool
	bytes int  // per request
	depth int  // requests under way on each connection
	cold  bool // the page cache is emptied before each slice
}

var (
	small = []shape{
		{name: "read-4k-qd1", bytes: 4 << 10, depth: 1},
		{name: "write-4k-qd1", write: true, bytes: 4 << 10, depth: 1},
		{name: "read-4k-qd32", bytes: 4 << 10, depth: 32},
		{name: "write-4k-qd32", write: true, bytes: 4 << 10, depth: 32},
	}
	large = []shape{
		{name: "read-1m", bytes: 1 << 20, depth: 4},
		{name: "write-1m", write: true, bytes: 1 << 20, depth: 4},
	}
	every = slices.Concat(small, large)
)

// stage is a way to reach servers, with the loads that are measured there.
type stage struct {
	prefix  string // of the rows: nbd-PREFIXread-…
	onDisk  bool   // the files lie on a disk's file system; else on tmpfs
	network string
	tls     bool
	conns   int
	shapes  []shape
}

var stages = []stage{
	{network: "unix", conns: 1, shapes: every},
	{prefix: "4conn-", network: "unix", conns: 4, shapes: []shape{
		{name: "read-4k-qd8", bytes: 4 << 10, depth: 8},
		{name: "write-4k-qd8", write: true, bytes: 4 << 10, depth: 8},
		{name: "read-1m", bytes: 1 << 20, depth: 1},
		{name: "write-1m", write: true, bytes: 1 << 20, depth: 1},
	}},
	{prefix: "tcp-", network: "tcp", conns: 1, shapes: every},
	{prefix: "tls-", network: "tcp", tls: true, conns: 1, shapes: every},
	{prefix: "disk-", onDisk: true, network: "unix", conns: 1, shapes: append(slices.Clone(every),
		shape{name: "read-4k-qd32-cold", bytes: 4 << 10, depth: 32, cold: true})},
}

// comparisons are the rows of each shape, by their first word.
var comparisons = []struct {
	group      string
	ours, peer int
	goal       func(s shape) float64
}{
	{"nbd", tracked, nbdkit, shape.nbdkitGoal},
	{"tracked", tracked, raw, func(shape) float64 { return 0.98 }},
	{"control", control, raw, func(shape) float64 { return 0 }},
}

// nbdkitGoal is what the tracked disk has to reach against nbdkit.
func (s shape) nbdkitGoal() float64 {
	if s.depth == 1 && s.bytes < 1<<20 {
		return 0.9
	}
	return 1
}

func (st stage) row(group string, s shape) string { return group + "-" + st.prefix + s.name }

// print prints one row: name, ours, the peer, ratio, goal, verdict. A ratio above 1
// means that ours is better. A goal of 0 is none.
func print(name, ours, peer string, ratio, goal float64) {
	verdict, goalText := "ok", fmt.Sprintf("%.2f", goal)
	switch {
	case goal == 0:
		verdict, goalText = "-", "-"
	case ratio < goal:
		verdict = "missed"
	}
	fmt.Printf("%-30s %12s %12s %7.2f %5s %s\n", name, ours, peer, ratio, goalText, verdict)
}

// rate formats requests per second of s.
func (s shape) rate(perSecond float64) string {
	if s.bytes >= 1<<20 {
		return fmt.Sprintf("%.0fMiB/s", perSecond*float64(s.bytes>>20))
	}
	return fmt.Sprintf("%.0f/s", perSecond)
}

// microseconds formats a latency.
func microseconds(d time.Duration) string {
	return fmt.Sprintf("%.0fus", float64(d)/float64(time.Microsecond))
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	if n := len(list); n%2 == 0 {
		return (list[n/2-1] + list[n/2]) / 2
	}
	return list[len(list)/2]
}

// ratios are a[i]/b[i].
func ratios(a, b []float64) []float64 {
	list := make([]float64, len(a))
	for i := range a {
		list[i] = a[i] / b[i]
	}
	return list
}
