package filerestore

// The forms of a point's time, from short to long.
var timeForms = []string{
	"2006-01-02T15:04:05Z",
	"2006-01-02T15:04:05.000Z",
	"2006-01-02T15:04:05.000000Z",
	"2006-01-02T15:04:05.000000000Z",
}

// unique gives a point whose name another point has already (the clock was set back,
// or two machines were merged) the beginning of its id too, so that each is reachable.
func unique(points []Point) {
	seen := make(map[string]bool)
	for i, p := range points {
		if p.Name == "" {
			p.Name = p.FrozenAt.UTC().Format(timeForms[0])
		}
		if seen[p.Name] {
			p.Name += "-" + p.ID[:min(8, len(p.ID))]
		}
		seen[p.Name] = true
		points[i].Name = p.Name
	}
}

// findPoint finds a point by the name that it has, or by another form of its time that
// no other point shares: a point's name gets more digits when a neighbour appears, and
// the shorter name must not come to mean the neighbour.
func findPoint(points []Point, name string) (Point, bool) {
	found := -1
	for i, p := range points {
		if p.Name == name {
			return p, true
		}
		for _, f := range timeForms {
			if p.FrozenAt.UTC().Format(f) == name {
				if found >= 0 && found != i {
					return Point{}, false
				}
				found = i
				break
			}
		}
	}
	if found < 0 {
		return Point{}, false
	}
	return points[found], true
}
