package cbt

import (
	"hash/maphash"
	"slices"
)

// search visits every reachable state once, depth first, and returns the number of
// states and the first violation with the steps that lead to it.
func (m *model) search() (states int, violation string, trace []string) {
	type visit struct {
		s     modelState
		step  string
		depth int
	}
	seed := maphash.MakeSeed()
	seen := make(map[uint64]struct{}, 1<<20)
	stack := []visit{{s: m.initial()}}
	var path []string
	for len(stack) > 0 {
		v := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		path = append(path[:v.depth], v.step)
		if bad := m.check(&v.s); bad != "" {
			return len(seen), bad, slices.Clone(path)
		}
		going := false
		m.emit = func(n modelState, step string) {
			going = true
			m.canonical(&n)
			h := maphash.Comparable(seed, n)
			if _, ok := seen[h]; !ok {
				seen[h] = struct{}{}
				stack = append(stack, visit{n, step, v.depth + 1})
			}
		}
		for i := range 2 {
			m.stepWriter(v.s, i)
			m.stepCut(v.s, i)
		}
		m.stepRecovery(v.s)
		if !going && v.s.busy() {
			return len(seen), "stuck", slices.Clone(path)
		}
		m.kill(v.s)
		m.power(v.s)
		if m.fail != "" {
			return len(seen), m.fail, slices.Clone(path)
		}
	}
	return len(seen), "", nil
}

// canonical makes states equal that differ only in what nobody will look at again, or
// in which of two like writers is which.
func (m *model) canonical(s *modelState) {
	for i := range s.writer {
		switch w := &s.writer[i]; w.pc {
		case wLoadWord, wLockExclusive, wActivate, wActivateFile, wActivateSync, wActivateSet:
			w.wcut, w.wlive, w.wphase, w.e, w.m = 0, 0, 0, 0, 0
		case wData, wDataEnd, wLeave:
			if m.bug == noBug {
				w.wcut, w.wlive, w.wphase = 0, 0, 0
			}
			if s.disk[m.diskOf(w.block)].owner == 0 || w.pc == wLeave {
				w.e = 0
			}
		}
	}
	for b := range s.data {
		d := &s.disk[m.diskOf(uint8(b))]
		if d.preserved&(1<<b) == 0 {
			s.spill[b] = 0
		}
		if d.owner == 0 || s.cut[d.owner-1].pc >= sEnd {
			s.want[b], s.got[b] = 0, 0
		}
	}
	m.renumber(s)
	if m.sequence {
		return
	}
	a, b := &s.writer[0], &s.writer[1]
	if a.pc > b.pc || a.pc == b.pc && a.value > b.value {
		*a, *b = *b, *a
		s.writes[0], s.writes[1] = s.writes[1], s.writes[0]
		for d := range s.disk {
			if u := &s.disk[d].mutex; *u == 1 || *u == 2 {
				*u = 3 - *u
			}
		}
	}
}

// busy: somebody has begun.
func (s *modelState) busy() bool {
	for i := range s.writer {
		if s.writer[i].pc != wIdle || s.cut[i].pc != sIdle {
			return true
		}
	}
	return false
}

// renumber names contents in the order in which they are met: only equality matters.
// 0 is a field without content.
func (m *model) renumber(s *modelState) {
	var names [16]uint8
	next := uint8(1)
	name := func(v *uint8) {
		if n := *v &^ torn; n != 0 {
			if names[n] == 0 {
				names[n] = next
				next++
			}
			*v = *v&torn | names[n]
		}
	}
	for _, f := range []*[2]uint8{&s.data, &s.base, &s.candidate, &s.spill, &s.want, &s.got, &s.platter, &s.durableBase} {
		name(&f[0])
		name(&f[1])
	}
	for i := range s.writer {
		name(&s.writer[i].value)
		name(&s.cut[i].read)
	}
	s.value = next
}
