package cursor

import (
	"testing"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/cbt"
)

// moving is a tracker whose state changes while it is read: before the call of Changed or
// after it, as often as there are states.
type moving struct {
	states []state
	before bool
}

type state struct {
	tracking cbt.Tracking
	base     byte
	listed   int64 // the one grain that the map lists
}

func (m *moving) now() state                       { return m.states[0] }
func (m *moving) Tracking() (cbt.Tracking, string) { return m.now().tracking, "" }
func (m *moving) Bases() (base, candidate cbt.PointID) {
	return cbt.PointID{m.now().base}, cbt.PointID{}
}
func (m *moving) Size() int64                         { return 1 << 20 }
func (m *moving) Doubtful(func(blockdev.Extent) bool) {}
func (m *moving) Changed(f func(blockdev.Extent) bool) {
	if m.before {
		m.next()
	}
	f(blockdev.Extent{Offset: m.now().listed, Length: blockdev.GrainSize})
	if !m.before {
		m.next()
	}
}

func (m *moving) next() {
	if len(m.states) > 1 {
		m.states = m.states[1:]
	}
}

// A backup that commits while the map is read moves the base and empties the map: base
// and list of different moments would lose what changed between the two points.
func TestListAndBaseAreOfOneMoment(t *testing.T) {
	for name, states := range map[string][]state{
		"still":           {{cbt.TrackingEnabled, 1, 4096}},
		"one commit":      {{cbt.TrackingEnabled, 1, 4096}, {cbt.TrackingEnabled, 2, 8192}},
		"several commits": {{cbt.TrackingEnabled, 1, 4096}, {cbt.TrackingEnabled, 2, 8192}, {cbt.TrackingEnabled, 3, 12288}, {cbt.TrackingEnabled, 4, 16384}},
		"a full read":     {{cbt.TrackingEnabled, 1, 4096}, {cbt.TrackingCompare, 1, 8192}},
	} {
		for _, before := range []bool{true, false} {
			last := states[len(states)-1]
			l := readLive(&moving{states: states, before: before})
			if l.tracking != last.tracking || l.base[0] != last.base || !l.set.Contains(last.listed) || l.set.Bytes() != blockdev.GrainSize {
				t.Errorf("%s, moving before the list is read %v: base %d, %v, %d bytes listed", name, before, l.base[0], l.tracking, l.set.Bytes())
			}
		}
	}
	endless := &restless{}
	if l := readLive(endless); l.tracking != cbt.TrackingNone {
		t.Errorf("a base that never rests: %v", l)
	}
}

// restless commits all the time.
type restless struct {
	moving
	n byte
}

func (r *restless) Tracking() (cbt.Tracking, string) { return cbt.TrackingEnabled, "" }
func (r *restless) Bases() (base, candidate cbt.PointID) {
	r.n++
	return cbt.PointID{r.n}, cbt.PointID{}
}
func (r *restless) Changed(func(blockdev.Extent) bool) {}
