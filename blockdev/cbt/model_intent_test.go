package cbt

// The part of the model that a power cut needs. A disk has a platter: what a power cut
// leaves of a block is its platter's content or that of any later write, and only a
// flush brings the two together. The intent file has three forms: in memory (active),
// in the page cache, which a kill leaves (file), and on the platter (durable). A set
// bit becomes durable by the sync, one that is taken away at once: whichever is worse.

// modelIntents is the rest of a disk's memory.
type modelIntents struct {
	active, file, durable uint8 // by region
	mutex                 uint8 // who writes the intent file: writers are 1 and 2, snapshotters 3 and 4
	whole                 bool  // the lock over whole maps is held: by a clearer that looks, or by end
	narrow                bool  // only the active regions are in doubt, and the bits
	prepared              bool  // the intent file names the candidate
	lost                  bool  // the map went with the power, and the new one does not count yet
	recovery              uint8
}

// Steps of a recovery. No disk is served before the last one.
const (
	rServed uint8 = iota
	rListed
	rSync
	rHeader
	rOpen
)

// region is the bit of the region of a block.
func (m *model) region(block uint8) uint8 {
	if m.oneRegion {
		block = uint8(m.diskOf(block)) * uint8(m.perDisk)
	}
	return 1 << block
}

// stepActivate is what apply and activate do between the grain's bit and the data; false:
// the writer waits.
func (m *model) stepActivate(d *modelDisk, w *modelWriter, i int) bool {
	r := m.region(w.block)
	switch w.pc {
	case wIntent:
		if d.active&r != 0 || m.bug == bugNoIntent {
			w.pc = wDecide
			break
		}
		d.leave(w)
		if w.exclusive {
			d.exclusive, w.exclusive = 0, false
		}
		w.pc = wActivate
	case wActivate:
		if d.mutex != 0 {
			return false
		}
		if d.active&r != 0 {
			w.pc = wLoadWord
			break
		}
		d.mutex, w.pc = uint8(i)+1, wActivateFile
	case wActivateFile:
		d.file |= r
		w.pc = wActivateSync
	case wActivateSync:
		if m.bug != bugIntentNotSynced {
			d.durable = d.file
		}
		w.pc = wActivateSet
	case wActivateSet:
		d.active |= r
		d.mutex, w.pc = 0, wLoadWord
	}
	return true
}

// stepIntents is what a cut has to do with the intent map; false: it waits.
func (m *model) stepIntents(s *modelState, i int) bool {
	c := &s.cut[i]
	d := &s.disk[c.at]
	switch c.pc {
	case sFlush:
		if m.bug != bugClearWithoutDataSync && m.bug != bugFlushBeforeDrain {
			m.flush(s, int(c.at))
		}
		m.advance(s, i, sPrepare)
	case sPrepare:
		if d.mutex != 0 {
			return false
		}
		d.prepared = true
		m.advance(s, i, sVault)
		if m.bug == bugIntentClearBeforeCommit && c.pc == sVault {
			for k := range s.disk {
				if m.masks[i]&(1<<k) != 0 {
					// Captured and synced, so why not? Only what is written again is listed
					// in the live map.
					n := &s.disk[k]
					n.active &= m.regionsOf(n.bits[n.live])
					n.file, n.durable = n.active, n.active
				}
			}
		}
	case sDurableHeader:
		if d.mutex != 0 {
			return false
		}
		m.durableHeader(s, int(c.at))
		if c.pc = sPhase; m.bug == bugIntentClearBeforeBase {
			m.nextEnd(s, i)
		}
	case sClearTake:
		if d.mutex != 0 || d.whole {
			return false
		}
		d.mutex, d.whole, c.which = uint8(i)+3, true, d.file
		if m.bug == bugClearWithoutHandshake {
			c.which &^= m.regionsOf(d.bits[0] | d.bits[1])
			d.whole = false
		} else {
			d.active &^= c.which
		}
		c.pc = sClearLook
	case sClearLook:
		listed := m.regionsOf(d.bits[0] | d.bits[1])
		switch m.bug {
		case bugClearWhatTheNewEpochWrote:
			listed = m.regionsOf(d.frozen())
		case bugClearWhatIsFrozen:
			listed = m.regionsOf(d.bits[d.live])
		case bugClearWithoutHandshake:
			d.active &^= c.which
			listed = 0
		}
		d.active |= c.which & listed
		c.which &^= listed
		d.whole, c.pc = false, sClearFile
	case sClearFile:
		d.file &^= c.which
		d.durable &^= c.which
		d.mutex, c.which = 0, 0
		if m.bug == bugIntentClearBeforeBase {
			c.pc = sDurableHeader
			break
		}
		m.nextEnd(s, i)
	}
	return true
}

// regionsOf are the regions of blocks.
func (m *model) regionsOf(blocks uint8) (r uint8) {
	for b := range uint8(2) {
		if blocks&(1<<b) != 0 {
			r |= m.region(b)
		}
	}
	return r
}

func (m *model) flush(s *modelState, d int) {
	for b := range s.data {
		if m.diskOf(uint8(b)) == d {
			s.platter[b] = s.data[b]
		}
	}
}

func (m *model) durableHeader(s *modelState, d int) {
	for b := range s.data {
		if m.diskOf(uint8(b)) == d {
			s.durableBase[b] = s.base[b]
		}
	}
	s.disk[d].prepared = false
}

// nextNarrow is the first disk of cut i from at on that has to be compared, or 2.
func (m *model) nextNarrow(s *modelState, i int, at uint8) uint8 {
	for at = m.nextDisk(i, at); at < 2 && !s.disk[at].narrow; at = m.nextDisk(i, at+1) {
	}
	return at
}

// doubtful is Tracker.Doubtful of the disks to compare.
func (m *model) doubtful(s *modelState, i int) {
	c := &s.cut[i]
	c.doubt = 0
	for b := range uint8(2) {
		if d := &s.disk[m.diskOf(b)]; m.masks[i]&(1<<m.diskOf(b)) != 0 && d.narrow && d.file&m.region(b) != 0 {
			c.doubt |= 1 << b
		}
	}
}

// stepBaseline is Baseline, and the read of the regions in doubt while guests write.
func (m *model) stepBaseline(s *modelState, i int) bool {
	c := &s.cut[i]
	next := func(pc uint8) {
		if c.at = m.nextNarrow(s, i, c.at+1); c.at == 2 {
			c.pc, c.at = pc, m.nextNarrow(s, i, 0)
		}
	}
	d := &s.disk[c.at&1]
	switch c.pc {
	case sBaseWord:
		d.cut, d.live, d.phase = s.epoch+1, 1-d.live, 0
		next(sBaseEpoch)
	case sBaseEpoch:
		s.epoch++
		s.cutLock = 0
		c.pc = sBaseDrain
	case sBaseDrain:
		if d.inflight[1-d.live] != 0 {
			return false
		}
		c.pc = sBaseForget
	case sBaseForget:
		if d.whole {
			return false
		}
		d.bits[1-d.live] = 0
		c.pc = sBaseDrain
		next(sDoubtful)
	case sDoubtful:
		if m.bug != bugDoubtfulBeforeBaseline {
			m.doubtful(s, i)
		}
		c.pc, c.at = sCompare, 0
	case sCompare:
		for c.at < 2 && c.doubt&(1<<c.at) == 0 {
			c.at++
		}
		if c.at < 2 {
			s.got[c.at] = s.data[c.at]
			c.at++
			break
		}
		if s.cutLock != 0 {
			return false
		}
		s.cutLock = uint8(i) + 1
		c.pc, c.at = sWord, m.nextDisk(i, 0)
	}
	return true
}

// recovers begins the recovery of a disk, if the model has one.
func (m *model) recovers(d *modelDisk, i int) {
	if !m.intents || (m.masks[0]|m.masks[1])&(1<<i) == 0 {
		return
	}
	if d.recovery = rListed; d.lost {
		d.bits, d.narrow = [2]uint8{}, true
	}
}

// stepRecovery emits what the recoveries may do next: startIntents.
func (m *model) stepRecovery(s modelState) {
	for i := range s.disk {
		n := s
		d := &n.disk[i]
		switch d.recovery {
		case rServed:
			continue
		case rListed:
			d.file |= m.regionsOf(d.bits[0])
			if m.bug == bugRecoveryEmptiesIntents {
				d.file = m.regionsOf(d.bits[0])
				d.durable &= d.file
			}
			d.recovery = rSync
		case rSync:
			if m.bug != bugRecoveryTrustsPageCache {
				d.durable = d.file
			}
			d.recovery = rHeader
		case rHeader:
			m.durableHeader(&n, i)
			d.recovery = rOpen
		case rOpen:
			d.active, d.lost, d.recovery = d.file, false, rServed
		}
		m.emit(n, "recovery")
	}
}

// power emits the states after a power cut. Each block is what its platter holds or what
// was written since; the map is gone.
func (m *model) power(s modelState) {
	if s.powerCuts == 0 {
		return
	}
	for survived := range uint8(4) {
		for _, taken := range []bool{false, true} {
			n := s
			n.powerCuts--
			different, takes := uint8(0), false
			for b := range n.data {
				if n.platter[b] != n.data[b] {
					different |= 1 << b
				}
				if survived&(1<<b) == 0 {
					n.data[b] = n.platter[b]
				}
				n.platter[b] = n.data[b]
				d := &s.disk[m.diskOf(uint8(b))]
				n.base[b] = n.durableBase[b]
				if taken && d.committing && d.prepared {
					n.base[b], takes = s.candidate[b], true
				}
			}
			if survived&^different != 0 || taken && !takes {
				continue
			}
			for d := range n.disk {
				from := &s.disk[d]
				n.disk[d] = modelDisk{modelIntents: modelIntents{file: from.durable, durable: from.durable, lost: true}}
				m.recovers(&n.disk[d], d)
			}
			n.durableBase = n.base
			m.restart(&n)
			m.emit(n, "power cut")
		}
	}
}

// cutSteps name the steps of a cut in traces.
var cutSteps = map[uint8]string{
	sBaseWord: "baseline: word", sBaseEpoch: "baseline: epoch", sBaseDrain: "baseline: drain", sBaseForget: "baseline: forget",
	sDoubtful: "doubtful", sCompare: "compare", sWord: "cut: word", sEpoch: "cut: epoch", sDrain: "drain", sFlush: "flush",
	sPrepare: "prepare", sVault: "vault", sEnd: "end", sDurableHeader: "header in the intent file", sMerge: "merge", sPhase: "phase",
	sPreservers: "preservers", sClearFrozen: "clear frozen", sClearClaimed: "clear claimed", sHeaderLate: "slot given back",
	sClearTake: "clear: take", sClearLook: "clear: look", sClearFile: "clear: file",
}
