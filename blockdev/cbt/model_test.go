package cbt

// The exhaustive model: every interleaving of the protocol's steps, for few blocks,
// writers and freezes, with a kill and a power cut at every state, those of the
// recovery included. Each step below is one access to shared memory (or one call to the
// disk or to the intent file) of apply, register, preserve, activate, Freeze, Capture,
// Prepare, end, clear and recover, under the same names. A write to the disk is two
// steps, the first of which leaves the block torn. model_intent_test.go has what a power
// cut adds.
//
// What is checked:
//
//	V1  in every state, as a kill may happen in it: a block that differs from the
//	    committed point (from either, while both may be taken) is listed in a map, or,
//	    while only the intent file speaks for the disk, lies in an active region
//	V1  in every state, as the power may go in it: a block of which the disk may hold
//	    anything but the base that the intent file names (and its candidate, once that
//	    is committed) lies in a region that is active durably
//	V4  the committed point is the disk at the instant of the cut, with the writes
//	    of older epochs that landed later, and without any younger one
//	V5  a group's cut that holds a write holds what was acknowledged before it
//	    and no state is stuck: while somebody has begun, somebody can go on
//
// A protocol with a bug seeded into it must be found out; otherwise the model proves
// nothing.

type seededBug int

const (
	noBug seededBug = iota
	bugBitAfterData
	bugNoRecheck
	bugNotMerged
	bugMergeBeforeDrain
	bugLoserDoesNotWait
	bugPendingTrustedInTransition
	bugClearBeforeCommit
	bugClearBeforeHeader
	bugClaimBeforeRead
	bugCopyAfterData
	bugNoWaitForPreservers
	bugAbortedCutCommits
	bugRecoveryForgetsFrozen
	bugPreserveUnderSharedLock
	bugSharedPastExclusive
	bugEpochBeforeWords
	bugDiskAfterDisk
	bugNoIntent
	bugIntentNotSynced
	bugIntentClearBeforeCommit
	bugIntentClearBeforeBase
	bugClearWhatTheNewEpochWrote
	bugClearWhatIsFrozen
	bugClearWithoutDataSync
	bugFlushBeforeDrain
	bugClearWithoutHandshake
	bugRecoveryTrustsPageCache
	bugRecoveryForgetsDoubt
	bugRecoveryEmptiesIntents
	bugDoubtfulBeforeBaseline
)

// modelDisk is the shared memory of one disk.
type modelDisk struct {
	cut, live, phase   uint8 // the word
	inflight, bits     [2]uint8
	claimed, preserved uint8
	preserving         uint8
	shared, exclusive  uint8 // the stripe lock; all blocks of a disk lie in one stripe
	owner              uint8 // 1 + the snapshotter that holds the slot
	committing         bool  // the vault has the candidate, the header not yet
	modelIntents
}

type modelWriter struct {
	pc, block, value       uint8
	wcut, wlive, wphase, e uint8 // what it loaded
	m                      uint8
	exclusive, late        bool
}

type modelCut struct {
	pc, at, left, epoch0, epoch1, read uint8
	aborted, merge                     bool
	doubt, which                       uint8 // blocks to compare; regions to clear
}

type modelState struct {
	epoch, cutLock                   uint8
	disk                             [2]modelDisk
	data, base, candidate, spill     [2]uint8 // by block
	platter, durableBase             [2]uint8 // what a power cut cannot take; the base in the intent file
	want, got                        [2]uint8 // ghost: the cut's content; what was captured
	writer                           [2]modelWriter
	cut                              [2]modelCut
	writes                           [2]uint8
	value, kills, spillFails, eA, eB uint8
	powerCuts                        uint8
}

// model is one configuration.
type model struct {
	bug      seededBug
	perDisk  int      // blocks of a disk: 2 (one disk) or 1 (two disks)
	writes   [2]uint8 // writes of each writer
	masks    [2]uint8 // disks of each snapshotter, as bits
	freezes  [2]uint8 // freezes of each
	kills    uint8
	fails    uint8 // spill writes that may fail
	sequence bool  // writer 0 writes block 0, then block 1
	// intents adds the intent map, with a region for each block or, oneRegion, for each
	// disk, and powerCuts of them.
	intents, oneRegion bool
	powerCuts          uint8
	// coarse takes registering, and the end of a cut after the phase, as one step each:
	// the other configurations take them apart.
	coarse bool

	emit func(s modelState, step string)
	fail string
}

func (m *model) initial() modelState {
	s := modelState{epoch: 1, data: [2]uint8{1, 1}, base: [2]uint8{1, 1}, value: 2, writes: m.writes, kills: m.kills, powerCuts: m.powerCuts, spillFails: m.fails}
	if m.intents {
		s.platter, s.durableBase = s.data, s.base
	}
	for i := range s.cut {
		s.cut[i].left = m.freezes[i]
	}
	return s
}

func (m *model) diskOf(block uint8) int { return int(block) / m.perDisk }

func (d *modelDisk) frozen() uint8 { return d.bits[1-d.live] }

func (d *modelDisk) wordIs(w *modelWriter) bool {
	return d.cut == w.wcut && d.live == w.wlive && d.phase == w.wphase
}

// register is wLoadWord to wCheckEpoch at once.
func (m *model) register(s *modelState, w *modelWriter, i int) {
	d := &s.disk[m.diskOf(w.block)]
	w.wcut, w.wlive, w.wphase, w.e, w.m = d.cut, d.live, d.phase, s.epoch, d.live
	if w.e < w.wcut {
		w.m = 1 - w.wlive
	}
	d.inflight[w.m]++
	if !w.exclusive {
		d.shared++
	}
	if w.pc = wSetBit; m.sequence && i == 0 {
		if w.block == 0 {
			s.eA = w.e
		} else {
			s.eB = w.e
		}
	}
}

// leave takes the registration of w back, and with it a shared stripe.
func (d *modelDisk) leave(w *modelWriter) {
	d.inflight[w.m]--
	if !w.exclusive {
		d.shared--
	}
}

const torn = 0x80

const (
	wIdle uint8 = iota
	wLoadWord
	wLoadEpoch
	wEnter
	wCheckWord
	wCheckEpoch
	wSetBit
	wIntent
	wActivate
	wActivateFile
	wActivateSync
	wActivateSet
	wDecide
	wLockExclusive
	wGuard
	wGuardCheck
	wClaim
	wCopy
	wData
	wDataEnd
	wLeave
)

// stepWriter emits what writer i may do next.
func (m *model) stepWriter(s modelState, i int) {
	w := &s.writer[i]
	if w.pc == wIdle {
		m.startWrite(s, i)
		return
	}
	d := &s.disk[m.diskOf(w.block)]
	bit := uint8(1) << w.block
	isLive := func() bool { return w.m == w.wlive }
	pending := func() bool { return d.bits[1-w.wlive]&^d.claimed&bit != 0 }
	if m.coarse && w.pc == wLoadWord {
		if !w.exclusive && d.exclusive != 0 {
			return
		}
		m.register(&s, w, i)
		m.emit(s, "writer registers")
		return
	}
	switch w.pc {
	case wLoadWord:
		w.wcut, w.wlive, w.wphase, w.pc = d.cut, d.live, d.phase, wLoadEpoch
	case wLoadEpoch:
		w.e, w.pc = s.epoch, wEnter
		w.m = w.wlive
		if w.e < w.wcut {
			w.m = 1 - w.wlive
		}
	case wEnter: // takes the stripe shared with the registration, or gives way
		if !w.exclusive && m.bug != bugSharedPastExclusive && d.exclusive != 0 {
			return
		}
		if !w.exclusive {
			d.shared++
		}
		d.inflight[w.m]++
		w.pc = wCheckWord
		if m.bug == bugNoRecheck {
			w.pc = wSetBit
		}
	case wCheckWord:
		w.pc = wCheckEpoch
		if !d.wordIs(w) {
			d.leave(w)
			w.pc = wLoadWord
		}
	case wCheckEpoch:
		w.pc = wSetBit
		if s.epoch != w.e {
			d.leave(w)
			w.pc = wLoadWord
		} else if m.sequence && i == 0 {
			if w.block == 0 {
				s.eA = w.e
			} else {
				s.eB = w.e
			}
		}
	case wSetBit:
		if m.bug != bugBitAfterData {
			d.bits[w.m] |= bit
		}
		if w.pc = wDecide; m.intents {
			w.pc = wIntent
		}
	case wIntent, wActivate, wActivateFile, wActivateSync, wActivateSet:
		if !m.stepActivate(d, w, i) {
			return
		}
	case wDecide:
		transition := w.wphase == 1
		if m.bug == bugPendingTrustedInTransition {
			transition = false
		}
		need := isLive() && (transition || w.wphase != 0 && pending())
		switch {
		case !need:
			w.pc = wData
		case w.exclusive || m.bug == bugPreserveUnderSharedLock:
			w.pc = wGuard
		default:
			d.leave(w)
			w.pc = wLockExclusive
		}
	case wLockExclusive:
		if d.shared != 0 || d.exclusive != 0 {
			return
		}
		d.exclusive, w.exclusive, w.pc = 1, true, wLoadWord
	case wGuard:
		d.preserving++
		w.pc = wGuardCheck
	case wGuardCheck:
		w.pc = wClaim
		if !d.wordIs(w) {
			d.preserving--
			d.leave(w)
			w.pc = wLoadWord
		}
	case wClaim:
		if d.owner == 0 || s.cut[d.owner-1].aborted || !pending() {
			d.preserving--
			w.pc = wData
			break
		}
		d.claimed |= bit
		w.pc = wCopy
		if m.bug == bugCopyAfterData {
			w.pc, w.late = wData, true
		}
	case wCopy:
		if s.spillFails > 0 && d.owner > 0 {
			f := s
			f.spillFails--
			fw, fd := &f.writer[i], &f.disk[m.diskOf(w.block)]
			f.cut[fd.owner-1].aborted = true
			fd.preserving--
			fw.pc = wData
			m.emit(f, "copy fails")
		}
		s.spill[w.block] = s.data[w.block]
		d.preserved |= bit
		d.preserving--
		w.pc = wData
		if m.bug == bugCopyAfterData {
			w.pc = wLeave
		}
	case wData:
		s.data[w.block] = w.value | torn
		w.pc = wDataEnd
	case wDataEnd:
		m.land(&s, w)
		w.pc = wLeave
		if w.late && m.bug == bugCopyAfterData {
			w.late, w.pc = false, wCopy
		}
		if m.bug == bugBitAfterData {
			d.bits[w.m] |= bit
		}
	case wLeave:
		d.leave(w)
		if w.exclusive {
			d.exclusive = 0
		}
		*w = modelWriter{}
	}
	m.emit(s, "writer")
}

func (m *model) startWrite(s modelState, i int) {
	if s.writes[i] == 0 {
		return
	}
	for b := range uint8(2) {
		if m.sequence && i == 0 && b != m.writes[0]-s.writes[0] {
			continue
		}
		n := s
		d := &n.disk[m.diskOf(b)]
		if d.recovery != rServed || (m.masks[0]|m.masks[1])&(1<<m.diskOf(b)) == 0 {
			continue // nobody writes a disk that is never cut
		}
		n.writes[i]--
		// With the first load, wLoadWord: to begin touches nothing that is shared.
		n.writer[i] = modelWriter{pc: wLoadEpoch, block: b, value: n.value, wcut: d.cut, wlive: d.live, wphase: d.phase}
		if m.coarse {
			n.writer[i].pc = wLoadWord
		}
		m.emit(n, "writer starts")
	}
}

// land ends the write to the disk. A write of an older epoch is part of the open cut.
func (m *model) land(s *modelState, w *modelWriter) {
	s.data[w.block] = w.value
	d := m.diskOf(w.block)
	if o := s.disk[d].owner; o > 0 {
		if c := &s.cut[o-1]; c.pc > sEpoch && w.e < c.cutEpoch(d) {
			s.want[w.block] = w.value
		}
	}
}

func (c *modelCut) cutEpoch(d int) uint8 {
	if d == 0 {
		return c.epoch0
	}
	return c.epoch1
}
