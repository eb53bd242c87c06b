package clock

import "time"

// Reading is what the host's clocks show at one instant.
type Reading struct {
	Wall time.Time
	// Boot is the time since boot, suspended time included; nobody can set it.
	Boot   time.Duration
	BootID string
}

// state is the witness: the last reading and what was made of it. Its zero value has
// seen nothing.
type state struct {
	BootID string        `json:"bootId"`
	Boot   time.Duration `json:"bootNanoseconds"`
	Wall   time.Time     `json:"wall"`
	At     time.Time     `json:"at"`     // trusted time
	Proven time.Time     `json:"proven"` // what surely passed

	// Settled: since this boot was believed the wall clock must go as BaseWall + (Boot - BaseBoot).
	Settled  bool          `json:"settled"`
	BaseWall time.Time     `json:"baseWall"`
	BaseBoot time.Duration `json:"baseBootNanoseconds"`

	// While not settled: trusted time and proven time at the first reading of this boot, to
	// which OpenBoot belongs.
	OpenAt     time.Time     `json:"openAt"`
	OpenProven time.Time     `json:"openProven"`
	OpenBoot   time.Duration `json:"openBootNanoseconds"`

	InDoubt bool `json:"inDoubt"`
	// Ahead is the last wall clock that was disbelieved for being ahead; zero: none.
	Ahead time.Time `json:"ahead"`
}

// rules are the limits of next.
type rules struct {
	tolerance time.Duration // of steps within a boot, in sum
	drift     int64         // and one part in drift of the time since
	leap      time.Duration // across boots
	settle    time.Duration // how long a new boot may be corrected
}

// next is the state after a reading. It is all the judgement there is.
func (s state) next(r Reading, o rules) state {
	n := s
	n.BootID, n.Boot, n.Wall = r.BootID, r.Boot, r.Wall
	if s.BootID == "" { // the first reading ever
		n.At, n.Proven = r.Wall, r.Wall
		return n.settled(r)
	}
	elapsed := r.Boot - s.Boot
	if r.BootID != s.BootID || elapsed < 0 {
		// Another boot, or a snapshot of a virtual machine from before the witness.
		elapsed = 0
		if r.BootID != s.BootID {
			elapsed = r.Boot // the least that passed
		}
		n.Settled, n.OpenAt, n.OpenProven, n.OpenBoot = false, s.At.Add(elapsed), s.Proven.Add(elapsed), r.Boot
	}
	n.At, n.Proven = s.At.Add(elapsed), s.Proven.Add(elapsed)
	if n.Settled {
		return n.within(s, r, o)
	}
	return n.across(s, r, o)
}

func (s state) settled(r Reading) state {
	s.Settled, s.BaseWall, s.BaseBoot, s.InDoubt, s.Ahead = true, r.Wall, r.Boot, false, time.Time{}
	return s
}

// within judges a wall clock by the time since boot. At and Proven of s have been moved
// on by it already.
func (s state) within(before state, r Reading, o rules) state {
	since := r.Boot - s.BaseBoot
	allowed := o.tolerance + since/time.Duration(o.drift)
	off := r.Wall.Sub(s.BaseWall.Add(since))
	if off.Abs() > allowed {
		return s.doubt(off > 0, r)
	}
	s.InDoubt, s.Ahead = false, time.Time{}
	s.At = later(before.At, r.Wall)
	if ahead := r.Wall.Sub(s.Proven); ahead > 0 && ahead <= allowed {
		s.Proven = r.Wall
	}
	s.Proven = earlier(s.Proven, s.At)
	return s
}

// across judges the wall clock of a boot that is not settled yet.
func (s state) across(before state, r Reading, o rules) state {
	since := r.Boot - s.OpenBoot
	least := s.OpenAt.Add(since)
	most := least.Add(o.leap)
	if !s.Ahead.IsZero() && s.Ahead.Add(-o.tolerance).Before(most) {
		most = s.Ahead.Add(-o.tolerance)
	}
	if r.Wall.Before(least.Add(-o.tolerance)) || r.Wall.After(most) {
		return s.doubt(r.Wall.After(most), r)
	}
	s.InDoubt = false
	s.At = later(before.At, r.Wall)
	s.Proven = later(before.Proven, later(s.OpenProven.Add(since), s.OpenProven.Add(r.Wall.Sub(s.OpenAt))))
	s.Proven = earlier(s.Proven, s.At)
	if since >= o.settle {
		return s.settled(r)
	}
	return s
}

func (s state) doubt(ahead bool, r Reading) state {
	s.InDoubt = true
	if ahead {
		s.Ahead = r.Wall
	} else {
		s.Ahead = time.Time{}
	}
	return s
}

// accept takes the wall clock for right. Proven time is never moved forward by it.
func (s state) accept(r Reading) state {
	s.BootID, s.Boot, s.Wall, s.At = r.BootID, r.Boot, r.Wall, r.Wall
	s.Proven = earlier(s.Proven, r.Wall)
	return s.settled(r)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
