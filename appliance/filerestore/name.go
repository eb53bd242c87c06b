package filerestore

import "time"

// The forms of a point's time, from short to long.
var timeForms = []string{
	"2006-01-02T15:04:05Z",
	"2006-01-02T15:04:05.000Z",
	"2006-01-02T15:04:05.000000Z",
	"2006-01-02T15:04:05.000000000Z",
}

// pointNames gives each point of one machine its name: the time in seconds, or in
// milliseconds when another point is less than a second away. Points that are closer
// still get more digits. The points are in the order of their times.
func pointNames(points []Point) []string {
	out := make([]string, len(points))
	form := make([]int, len(points))
	near := func(i, j int) bool {
		d := points[j].FrozenAt.Sub(points[i].FrozenAt)
		return d < time.Second && d > -time.Second
	}
	for i := range points {
		if i > 0 && near(i-1, i) || i+1 < len(points) && near(i, i+1) {
			form[i] = 1
		}
	}
	for i := range points {
		for {
			out[i] = points[i].FrozenAt.UTC().Format(timeForms[form[i]])
			if i == 0 || out[i] != out[i-1] || form[i] == len(timeForms)-1 {
				break
			}
			form[i]++
			form[i-1] = max(form[i-1], form[i])
			out[i-1] = points[i-1].FrozenAt.UTC().Format(timeForms[form[i-1]])
		}
		if i > 0 && out[i] == out[i-1] { // the same instant: two clocks, or one set back
			out[i] += "-" + points[i].ID[:min(8, len(points[i].ID))]
		}
	}
	return out
}

// findPoint finds a point by the name that it has, or by another form of its time that
// no other point shares. A name that a point had before its neighbour appeared finds
// it only while it cannot mean the neighbour.
func findPoint(points []Point, names []string, name string) (Point, bool) {
	for i, n := range names {
		if n == name {
			return points[i], true
		}
	}
	found := -1
	for i, p := range points {
		for _, f := range timeForms {
			if p.FrozenAt.UTC().Format(f) == name {
				if found >= 0 && found != i {
					return Point{}, false
				}
				found = i
			}
		}
	}
	if found < 0 {
		return Point{}, false
	}
	return points[found], true
}
