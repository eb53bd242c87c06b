package cbt

const (
	sIdle     uint8 = iota
	sBaseWord       // of a disk that only the intent file speaks for
	sBaseEpoch
	sBaseDrain
	sBaseForget
	sDoubtful
	sCompare
	sWord
	sEpoch
	sDrain
	sRead
	sClaim
	sAwait
	sFlush
	sPrepare
	sVault
	sEnd // per disk: header, or drain and merge
	sDurableHeader
	sMerge
	sPhase
	sPreservers
	sClearFrozen
	sClearClaimed
	sHeaderLate
	sClearTake // per disk, after its slot was given back
	sClearLook
	sClearFile
)

// next is the first disk (or block) from at on that belongs to cut c, or 2.
func (m *model) nextDisk(c int, at uint8) uint8 {
	for at < 2 && m.masks[c]&(1<<at) == 0 {
		at++
	}
	return at
}

func (m *model) nextBlock(c int, at uint8) uint8 {
	for at < 2 && m.masks[c]&(1<<m.diskOf(at)) == 0 {
		at++
	}
	return at
}

// advance goes on with the next disk in the same step, or with the first in step pc.
func (m *model) advance(s *modelState, i int, pc uint8) {
	c := &s.cut[i]
	if c.at = m.nextDisk(i, c.at+1); c.at == 2 {
		c.at, c.pc = m.nextDisk(i, 0), pc
	}
}

// stepCut emits what snapshotter i may do next.
func (m *model) stepCut(s modelState, i int) {
	c := &s.cut[i]
	if c.pc == sIdle {
		m.startCut(s, i)
		return
	}
	// The owner may give up at any time between the cut and the commit.
	if c.pc >= sDrain && c.pc <= sVault && (!m.coarse || c.pc == sDrain || c.pc == sVault) {
		n := s
		n.cut[i].aborted = true
		m.abort(&n, i)
		m.emit(n, "cut aborted by its owner")
	}
	if c.pc >= sRead && c.pc <= sAwait {
		m.stepCapture(s, i)
		return
	}
	before := c.pc
	if c.pc >= sBaseWord && c.pc <= sCompare {
		if m.stepBaseline(&s, i) {
			m.emit(s, cutSteps[before])
		}
		return
	}
	d := &s.disk[c.at]
	switch c.pc {
	case sFlush, sPrepare, sDurableHeader, sClearTake, sClearLook, sClearFile:
		if !m.stepIntents(&s, i) {
			return
		}
	case sWord:
		if m.bug == bugEpochBeforeWords && c.at == m.nextDisk(i, 0) {
			m.instant(&s, i)
		}
		d.cut, d.live, d.phase = s.epoch+1, 1-d.live, 1
		if m.bug == bugEpochBeforeWords {
			d.cut = s.epoch
		}
		if m.bug == bugDiskAfterDisk {
			m.instantOf(&s, i, int(c.at))
			s.epoch++
		}
		m.advance(&s, i, sEpoch)
	case sEpoch:
		if m.bug != bugEpochBeforeWords && m.bug != bugDiskAfterDisk {
			m.instant(&s, i)
		}
		if m.bug == bugFlushBeforeDrain {
			m.flush(&s, 0)
			m.flush(&s, 1)
		}
		s.cutLock = 0
		c.pc = sDrain
	case sDrain:
		if d.inflight[1-d.live] != 0 {
			return
		}
		d.phase = 2
		m.advance(&s, i, sRead)
		if c.pc == sRead {
			c.at = m.nextBlock(i, 0)
		}
	case sVault:
		if c.aborted && m.bug != bugAbortedCutCommits {
			m.abort(&s, i)
			break
		}
		m.vault(&s, i)
		c.pc, c.at = sEnd, m.nextDisk(i, 0)
	case sEnd:
		if d.whole {
			return
		}
		switch {
		case c.merge:
			if d.inflight[1-d.live] != 0 && m.bug != bugMergeBeforeDrain {
				return
			}
			c.pc = sMerge
		case m.bug == bugClearBeforeHeader:
			c.pc = sPhase
		default:
			m.header(&s, int(c.at))
			d.narrow = false
			if c.pc = sPhase; m.intents && m.bug != bugIntentClearBeforeBase {
				c.pc = sDurableHeader
			}
		}
		d.whole = m.intents
	case sMerge:
		if m.bug != bugNotMerged {
			d.bits[d.live] |= d.frozen()
		}
		c.pc = sPhase
	case sPhase:
		d.phase, c.pc = 0, sPreservers
	case sPreservers:
		if d.preserving != 0 && m.bug != bugNoWaitForPreservers {
			return
		}
		c.pc = sClearFrozen
	case sClearFrozen:
		d.bits[1-d.live] = 0
		if c.pc = sClearClaimed; !m.coarse {
			break
		}
		fallthrough
	case sClearClaimed:
		d.claimed, d.preserved = 0, 0
		if c.pc = sHeaderLate; !m.coarse {
			break
		}
		fallthrough
	case sHeaderLate:
		if m.bug == bugClearBeforeHeader && !c.merge {
			m.header(&s, int(c.at))
		}
		d.owner, d.whole = 0, false
		if c.pc = sEnd; m.intents && !c.merge && m.bug != bugIntentClearBeforeCommit {
			c.pc = sClearTake
			break
		}
		m.nextEnd(&s, i)
	}
	m.emit(s, cutSteps[before])
}

// nextEnd ends the cut of the next disk, or the cut.
func (m *model) nextEnd(s *modelState, i int) {
	c := &s.cut[i]
	c.pc = sEnd
	m.advance(s, i, sIdle)
	if c.pc == sIdle {
		*c = modelCut{left: c.left}
	}
}

func (m *model) startCut(s modelState, i int) {
	c := &s.cut[i]
	if c.left == 0 || s.cutLock != 0 {
		return
	}
	for d := range s.disk {
		if m.masks[i]&(1<<d) != 0 {
			if s.disk[d].owner != 0 || s.disk[d].recovery != rServed {
				return
			}
			s.disk[d].owner = uint8(i) + 1
		}
	}
	c.left--
	s.cutLock = uint8(i) + 1
	c.pc, c.at = sWord, m.nextDisk(i, 0)
	if m.nextNarrow(&s, i, 0) < 2 {
		c.pc, c.at = sBaseWord, m.nextNarrow(&s, i, 0)
		if m.bug == bugDoubtfulBeforeBaseline {
			m.doubtful(&s, i)
		}
	}
	m.emit(s, "cut starts")
}

func (m *model) stepCapture(s modelState, i int) {
	c := &s.cut[i]
	if c.at == 2 {
		c.pc, c.at = sVault, m.nextDisk(i, 0)
		if m.intents {
			c.pc = sFlush
		}
		if m.bug == bugClearBeforeCommit {
			for d := range s.disk {
				if m.masks[i]&(1<<d) != 0 {
					s.disk[d].bits[1-s.disk[d].live] = 0
				}
			}
		}
		m.emit(s, "captured")
		return
	}
	d, bit := &s.disk[m.diskOf(c.at)], uint8(1)<<c.at
	done := func(content uint8) {
		s.got[c.at] = content
		c.at, c.pc, c.read = m.nextBlock(i, c.at+1), sRead, 0
		if c.aborted && m.bug != bugAbortedCutCommits {
			m.abort(&s, i)
		}
	}
	switch c.pc {
	case sRead:
		if d.frozen()&bit == 0 {
			if c.doubt&bit != 0 {
				done(s.got[c.at]) // it was read before the cut, and not written since
				break
			}
			done(s.base[c.at])
			break
		}
		if m.bug == bugClaimBeforeRead && d.claimed&bit == 0 {
			d.claimed |= bit
			c.pc = sClaim
			break
		}
		c.read, c.pc = s.data[c.at], sClaim
	case sClaim:
		switch {
		case m.bug == bugClaimBeforeRead && c.read == 0:
			done(s.data[c.at])
		case d.claimed&bit != 0:
			c.pc = sAwait
		default:
			d.claimed |= bit
			done(c.read)
		}
	case sAwait:
		switch {
		case d.preserved&bit != 0 || m.bug == bugLoserDoesNotWait:
			done(s.spill[c.at])
		case c.aborted && m.bug == bugAbortedCutCommits:
			done(c.read)
		case c.aborted:
			m.abort(&s, i)
		default:
			return
		}
	}
	m.emit(s, "capture")
}

func (m *model) abort(s *modelState, i int) {
	c := &s.cut[i]
	c.merge, c.pc, c.at, c.read, c.doubt = true, sEnd, m.nextDisk(i, 0), 0, 0
	for d := range s.disk {
		if m.masks[i]&(1<<d) != 0 {
			s.disk[d].prepared = false
		}
	}
}

func (m *model) instant(s *modelState, i int) {
	for d := range 2 {
		if m.masks[i]&(1<<d) != 0 {
			m.instantOf(s, i, d)
		}
	}
	s.epoch++
}

// instantOf notes what the snapshot of disk d has to be.
func (m *model) instantOf(s *modelState, i, d int) {
	if d == 0 {
		s.cut[i].epoch0 = s.epoch + 1
	} else {
		s.cut[i].epoch1 = s.epoch + 1
	}
	for b := range s.data {
		if m.diskOf(uint8(b)) == d {
			s.want[b] = s.data[b]
		}
	}
}

// vault is the durable commit of the point, where V4 and V5 are checked.
func (m *model) vault(s *modelState, i int) {
	c := &s.cut[i]
	for b := range s.data {
		d := m.diskOf(uint8(b))
		if m.masks[i]&(1<<d) == 0 {
			continue
		}
		if s.got[b] != s.want[b] {
			m.fail = "V4: the point is not the disk at the cut"
		}
		s.candidate[b], s.disk[d].committing = s.got[b], true
	}
	if m.masks[i] == 3 && m.sequence && s.eB != 0 && s.eB < c.epoch1 && s.eA >= c.epoch0 {
		m.fail = "V5: the cut holds a write and not the one before it"
	}
}

func (m *model) header(s *modelState, d int) {
	for b := range s.data {
		if m.diskOf(uint8(b)) == d && s.disk[d].committing {
			s.base[b], s.candidate[b] = s.candidate[b], 0
		}
	}
	s.disk[d].committing = false
}

// check is V1, for a kill and for a power cut in this very state.
func (m *model) check(s *modelState) string {
	for b := range s.data {
		d := &s.disk[m.diskOf(uint8(b))]
		listed := (d.bits[0]|d.bits[1])&(1<<b) != 0
		listed = listed || d.narrow && d.file&m.region(uint8(b)) != 0
		if !listed && (s.data[b] != s.base[b] || d.committing && s.data[b] != s.candidate[b]) {
			return "V1: a block differs and is not listed"
		}
		if m.intents && d.durable&m.region(uint8(b)) == 0 {
			for _, v := range []uint8{s.data[b], s.platter[b]} {
				if v != s.durableBase[b] || d.committing && d.prepared && v != s.candidate[b] {
					return "V1: after a power cut a block may differ whose region is not active"
				}
			}
		}
	}
	return ""
}

// kill emits the states in which the next process begins.
func (m *model) kill(s modelState) {
	if s.kills == 0 {
		return
	}
	for _, takeCandidate := range []bool{false, true} {
		n := s
		n.kills--
		for d := range n.disk {
			if takeCandidate {
				m.header(&n, d)
			}
			from, to := &s.disk[d], &n.disk[d]
			bits := from.bits[0] | from.bits[1]
			if m.bug == bugRecoveryForgetsFrozen {
				bits = from.bits[from.live]
			}
			// A map whose recovery did not finish is not believed.
			*to = modelDisk{bits: [2]uint8{bits, 0}, modelIntents: modelIntents{file: from.file, durable: from.durable,
				narrow: from.narrow && m.bug != bugRecoveryForgetsDoubt, prepared: from.prepared, lost: from.lost}}
			m.recovers(to, d)
		}
		m.restart(&n)
		m.emit(n, "kill")
	}
}

// restart forgets what no process remembers.
func (m *model) restart(n *modelState) {
	n.epoch, n.cutLock = 1, 0
	n.candidate, n.spill, n.want, n.got = [2]uint8{}, [2]uint8{}, [2]uint8{}, [2]uint8{}
	n.writer = [2]modelWriter{}
	for i := range n.cut {
		n.cut[i] = modelCut{left: n.cut[i].left}
	}
}
