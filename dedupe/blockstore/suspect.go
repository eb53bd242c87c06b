package blockstore

import "sync"

// maxSuspects bounds the memory of suspects; above it every record is one.
const maxSuspects = 1 << 16

// suspects are the records that did not verify when they were last read. An entry of
// the index is believed when its record was verified since the last unclean stop or
// written since (B2); a suspect is not, until it reads back well. The zero value has
// none.
type suspects struct {
	mu  sync.Mutex
	all bool // there were too many to remember
	m   map[entry]struct{}
}

func (s *suspects) add(e entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.m) >= maxSuspects {
		s.all, s.m = true, nil
	}
	if s.all {
		return
	}
	if s.m == nil {
		s.m = make(map[entry]struct{})
	}
	s.m[e] = struct{}{}
}

func (s *suspects) has(e entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.m[e]
	return ok || s.all
}

func (s *suspects) clear(e entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, e)
}

// some reports whether there may be suspects.
func (s *suspects) some() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all || len(s.m) > 0
}

// known reports whether an entry was added and not cleared; when there were too many to
// remember, any may have been.
func (s *suspects) known(e entry) bool { return s.has(e) }
