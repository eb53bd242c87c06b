package filerestore

import (
	"strings"
	"time"
)

// unique gives a point whose name another point has already (the clock was set back,
// or two machines were merged) the beginning of its id too, so that each is reachable.
func unique(points []Point) {
	seen := make(map[string]bool)
	for i, p := range points {
		if p.Name == "" {
			p.Name = p.FrozenAt.UTC().Format("2006-01-02T15:04:05Z")
		}
		if seen[p.Name] {
			p.Name += "-" + p.ID[:min(8, len(p.ID))]
		}
		seen[p.Name] = true
		points[i].Name = p.Name
	}
}

// minPrefix is the shortest beginning of an id that is a name, in hex digits. Programs
// look for many short names that nobody means.
const minPrefix = 4

// findPoint finds a point by the name that it has, by its id or a beginning of it, or by
// another form of its time, all of which no other point may share: a point's name gets
// more digits when a neighbour appears, and the shorter name must not come to mean the
// neighbour.
func findPoint(points []Point, name string) (Point, bool) {
	var found []Point
	for _, p := range points {
		switch {
		case p.Name == name:
			return p, true
		case len(name) >= minPrefix && strings.HasPrefix(p.ID, name), isTimeOf(name, p.FrozenAt):
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		return Point{}, false
	}
	return found[0], true
}

// isTimeOf says whether name is t in UTC, cut off to the digits that name has.
func isTimeOf(name string, t time.Time) bool {
	const seconds = "2006-01-02T15:04:05"
	if len(name) < len(seconds) {
		return false
	}
	fraction := strings.TrimSuffix(name[len(seconds):], "Z")
	layout := seconds + "Z"
	if fraction != "" {
		layout = seconds + "." + strings.Repeat("0", min(len(fraction)-1, 9)) + "Z"
	}
	return t.UTC().Format(layout) == name
}
