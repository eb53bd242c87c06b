package cbt

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"github.com/keelblock/keelblock/blockdev"
)

// Tracking says how far the list of changes may be trusted.
type Tracking uint8

const (
	// TrackingNone: there is no recovery point that the map could be relative to.
	TrackingNone Tracking = iota
	// TrackingEnabled: every grain that differs from the base is listed.
	TrackingEnabled
	// TrackingCompare: something was in doubt. The next backup calls Baseline,
	// reads the whole disk and compares digests.
	TrackingCompare
)

// String is the word that users see.
func (s Tracking) String() string {
	switch s {
	case TrackingEnabled:
		return "enabled"
	case TrackingCompare:
		return "compare"
	}
	return "none"
}

// Options of a Tracker.
type Options struct {
	// DiskID names the disk for ever, in 1 .. 96 bytes. Required.
	DiskID string
	// MapPath is the file of the changed map, on tmpfs. On another file system the
	// tracker works, but after every unclean stop it says TrackingCompare. Required.
	MapPath string
	// SavePath is where a clean stop saves the map, beside the data. Required.
	SavePath string
	// IntentPath is the file of the intent map, beside the data and on storage that
	// keeps what is synced; see intent.go. "": none, so that a power cut puts the whole
	// disk in doubt.
	IntentPath string
	// SpillPath is the file that takes grains that the guest overwrites before a
	// backup has captured them. It exists while the tracker is open. Default:
	// SavePath with ".spill" added.
	SpillPath string
	// SpillBytes is the most that the spill holds. Default: a tenth of the disk, at
	// least 1 GiB.
	SpillBytes int64
	// SpillReserveBytes is what the spill leaves free on its file system, since the
	// guest's disk may lie there too. Default: 64 MiB.
	SpillReserveBytes int64
	// Witness tells what the backing file looks like, or false when there is no file
	// (a block device). Without a witness nothing shows whether somebody else wrote
	// the disk while it was not served, so a clean stop is then followed by a compare,
	// unless AuditUnwitnessed is set.
	Witness func() (Witness, bool)
	// AuditUnwitnessed: the caller looks itself at a sample of the disk before it trusts
	// the list of a disk without a witness; Tracker.Unwitnessed tells when.
	AuditUnwitnessed bool
	// BootID overrides the kernel's boot id, for tests of a power cut.
	BootID string
	// Logger gets what an operator wants to know. Default: nothing is logged.
	Logger *slog.Logger

	hooks      hooks
	intentHook func(intentHook)
	// openIntent stands a test in for the intent file.
	openIntent func(*os.File) intentIO
}

func (o Options) withDefaults(size int64) (Options, error) {
	switch {
	case o.DiskID == "" || len(o.DiskID) > maxDiskID:
		return o, fmt.Errorf("disk id has %d bytes, want 1 .. %d", len(o.DiskID), maxDiskID)
	case o.MapPath == "" || o.SavePath == "":
		return o, errors.New("MapPath and SavePath are required")
	case o.SpillBytes < 0 || o.SpillReserveBytes < 0:
		return o, errors.New("SpillBytes and SpillReserveBytes may not be negative")
	}
	if o.SpillPath == "" {
		o.SpillPath = o.SavePath + ".spill"
	}
	if o.SpillBytes == 0 {
		o.SpillBytes = max(size/10, 1<<30)
	}
	if o.SpillReserveBytes == 0 {
		o.SpillReserveBytes = 64 << 20
	}
	if o.Witness == nil {
		o.Witness = func() (Witness, bool) { return Witness{}, false }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.openIntent == nil {
		o.openIntent = func(f *os.File) intentIO { return dataFile{f} }
	}
	if o.BootID == "" {
		id, err := bootID()
		if err != nil {
			return o, err
		}
		o.BootID = id
	}
	if len(o.BootID) > maxBootID {
		return o, fmt.Errorf("boot id has %d bytes, at most %d", len(o.BootID), maxBootID)
	}
	return o, nil
}

// Tracker is a Device that lists what changed on the Device below it. All methods
// may be called from any goroutine; Close once every other call has returned.
type Tracker struct {
	dev   blockdev.Device
	below abilities
	clock *Clock
	opts  Options
	log   *slog.Logger
	hooks hooks
	// size changes only with all stripes held.
	size atomic.Int64
	// intents is nil when there is no intent map.
	intents *intents

	word    atomic.Uint64
	maps    [2]fineMap
	stripes stripes

	// preserving counts the writes that are busy with a frozen snapshot; see freeze.go.
	preserving atomic.Int64
	frozen     atomic.Pointer[Frozen]
	// reading counts the guest's reads that may wait for the disk; pacing changes the
	// pacer of a capture, in tests.
	reading   atomic.Int64
	pacing    func(*pacer)
	claimed   scratch
	preserved scratch
	spill     *spill
	counts    counts

	// life guards changes of word and frozen.
	life   sync.Mutex
	closed bool
	// whole is held for reading over a look at whole maps, for writing over their
	// merge and clearing.
	whole sync.RWMutex

	// mu guards the header and what follows it.
	mu     sync.Mutex
	header header
	file   *mapFile
	// doubts counts the reasons for a compare; verified is the count that a Baseline
	// saw. A commit restores trust only if no doubt came after its Baseline.
	doubts    uint64
	verified  uint64
	baselined bool
	lastDoubt string

	flushErr atomic.Pointer[error] // the first one; it never goes away
}

var (
	_ blockdev.Device       = (*Tracker)(nil)
	_ blockdev.Trimmer      = (*Tracker)(nil)
	_ blockdev.Zeroer       = (*Tracker)(nil)
	_ blockdev.ExtentLister = (*Tracker)(nil)
	_ blockdev.NowaitReader = (*Tracker)(nil)
	_ blockdev.NowaitWriter = (*Tracker)(nil)
	_ blockdev.FileBacked   = (*Tracker)(nil)
	_ blockdev.PipeWriter   = (*Tracker)(nil)
)

// counts are the numbers behind Stats.
type counts struct {
	exclusive, copies, copiedBytes, freezes, aborts atomic.Uint64
}

// Stats are counters since Open and the present size of the list.
type Stats struct {
	Tracking       Tracking
	ChangedBytes   int64  // listed now, whole grains
	ExclusiveLocks uint64 // chunks that took their stripes exclusively
	Copies         uint64 // copy-before-write operations
	CopiedBytes    uint64 // and their bytes
	SpillBytes     int64  // in the spill now
	Freezes        uint64
	Aborts         uint64 // freezes whose map was merged back
	IntentSyncs    uint64 // syncs of the intent map for regions, headers excepted
	IntentsCleared uint64 // regions
	// SpillLimitBytes is Options.SpillBytes with its default.
	SpillLimitBytes int64
}

// Open puts a tracker around dev. It recovers the map of the last run, or finds out
// that it cannot be trusted: that is not an error, Tracking tells. Errors are those
// of a wrong configuration and of a data directory that cannot be written. The
// tracker owns dev only if Open succeeds.
func Open(dev blockdev.Device, c *Clock, o Options) (*Tracker, error) {
	size := dev.Size()
	o, err := o.withDefaults(size)
	if err != nil {
		return nil, fmt.Errorf("track disk %q: %w", o.DiskID, err)
	}
	t := &Tracker{dev: dev, below: abilitiesOf(dev), clock: c, opts: o, hooks: o.hooks,
		log: o.Logger.With("disk", o.DiskID)}
	t.size.Store(size)
	t.stripes.init(&t.maps)
	l := layoutOf(size)
	if t.claimed, err = newScratch(l.words); err == nil {
		t.preserved, err = newScratch(l.words)
	}
	if err == nil {
		err = t.recover(l)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("track disk %q: %w", o.DiskID, err), t.release(false))
	}
	t.spill = newSpill(o.SpillPath, o.SpillBytes, o.SpillReserveBytes, size)
	t.word.Store(uint64(newWord(0, 0, phaseIdle)))
	state, reason := t.Tracking()
	t.log.Info("changed-block tracking", "state", state.String(), "reason", reason)
	return t, nil
}

// release frees what Open acquired, apart from the device.
func (t *Tracker) release(removeMap bool) error {
	errs := []error{t.claimed.free(), t.preserved.free()}
	if t.file != nil {
		errs = append(errs, t.file.close(removeMap))
	}
	if t.intents != nil {
		errs = append(errs, t.intents.close())
	}
	return errors.Join(errs...)
}

// DiskID is Options.DiskID.
func (t *Tracker) DiskID() string { return t.opts.DiskID }

// Tracking tells whether Changed may be trusted, and if not, why.
func (t *Tracker) Tracking() (state Tracking, reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.header.state, t.header.reason
}

// Bases returns the recovery point that the list is relative to and, if a commit was
// under way when the process died, the point that it was committing: whichever of
// the two is committed and newer may serve as the base. With TrackingCompare they
// are hints.
func (t *Tracker) Bases() (base, candidate PointID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.header.base, t.header.candidate
}

// SetBase empties the map and names p as the base. The caller vouches that the disk
// equals point p at this moment and that nobody writes it (a restored disk). What was
// written to the disk is durable when it returns.
func (t *Tracker) SetBase(p PointID) error {
	if err := t.Flush(); err != nil {
		return fmt.Errorf("set base of disk %q: %w", t.opts.DiskID, err)
	}
	if err := t.setBase(p); err != nil {
		return err
	}
	return t.clearIntents(t.quietRegions(nil))
}

func (t *Tracker) setBase(p PointID) error {
	t.life.Lock()
	defer t.life.Unlock()
	if t.closed {
		return fmt.Errorf("set base of disk %q: %w", t.opts.DiskID, blockdev.ErrClosed)
	}
	if t.frozen.Load() != nil {
		return fmt.Errorf("set base of disk %q: %w", t.opts.DiskID, ErrFrozen)
	}
	t.whole.Lock()
	defer t.whole.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	// A kill between the two lists too much, never too little.
	t.header.base, t.header.candidate = p, PointID{}
	t.header.state, t.header.flags, t.header.reason = TrackingEnabled, 0, ""
	t.verified, t.baselined = t.doubts, false
	if err := t.store(); err != nil {
		return fmt.Errorf("set base of disk %q: %w", t.opts.DiskID, err)
	}
	for i := range t.maps {
		t.maps[i].clear()
	}
	return nil
}

// Distrust makes the next backup compare. It may be called at any time; a backup
// whose Baseline came earlier does not lift it.
func (t *Tracker) Distrust(reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.doubt(reason)
}

// doubt is Distrust with t.mu held.
func (t *Tracker) doubt(reason string) {
	t.doubts++
	t.lastDoubt = reason
	if t.header.state == TrackingEnabled || t.header.flags&flagNarrow != 0 {
		t.header.state, t.header.reason = TrackingCompare, reason
		t.header.flags = 0
		t.log.Warn("changed blocks are in doubt: the next backup compares", "reason", reason)
	}
	if err := t.store(); err != nil {
		t.log.Error("the doubt is not durable: after a power cut it is forgotten", "error", err)
	}
}

// store writes the header to the map file, and durably to the intent file if what it
// says of the base has changed; t.mu is held. An error means that the intent file
// still says what it said before.
func (t *Tracker) store() error {
	if t.file != nil {
		t.file.writeHeader(&t.header)
	}
	if t.intents == nil {
		return nil
	}
	lost, err := t.intents.setHeader(t.header)
	if lost {
		t.doubt(intentsLost)
	}
	return err
}

// Changed yields what is listed now, live OR frozen, as merged extents in ascending
// order, clipped to the disk. Unless Tracking is TrackingEnabled the list says only
// what was written since the last Baseline. Writes may go on; a commit or abort
// waits until Changed returns.
func (t *Tracker) Changed(yield func(blockdev.Extent) bool) {
	t.whole.RLock()
	defer t.whole.RUnlock()
	if t.file == nil {
		return
	}
	a, b := &t.maps[0], &t.maps[1]
	runs(int64(len(a.words)), t.Size(),
		func(leaf int64) bool { return a.hasLeaf(leaf) || b.hasLeaf(leaf) },
		func(i int64) uint64 { return a.load(i) | b.load(i) }, yield)
}

// Stats returns the counters. It walks the map.
func (t *Tracker) Stats() Stats {
	s := Stats{
		ExclusiveLocks:  t.counts.exclusive.Load(),
		Copies:          t.counts.copies.Load(),
		CopiedBytes:     t.counts.copiedBytes.Load(),
		SpillBytes:      t.spill.used.Load(),
		SpillLimitBytes: t.opts.SpillBytes,
		Freezes:         t.counts.freezes.Load(),
		Aborts:          t.counts.aborts.Load(),
	}
	if t.intents != nil {
		s.IntentSyncs, s.IntentsCleared = t.intents.stats.syncs.Load(), t.intents.stats.cleared.Load()
	}
	s.Tracking, _ = t.Tracking()
	t.Changed(func(e blockdev.Extent) bool {
		s.ChangedBytes += e.Length
		return true
	})
	return s
}

// newSession draws the identity of a new map.
func newSession() (id [16]byte) {
	rand.Read(id[:]) // never fails
	return id
}
