package cbt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/keelblock/keelblock/blockdev"
)

// recover finds the map of the last run and makes it the live map. In this order:
//
//  1. The saved map says that it is clean: nothing was served since it was written,
//     so it is exact, or it is nothing (checksum, size, disk, witness).
//  2. It says that it is not, so the daemon did not stop by itself. The map file is
//     exact if it is that of this very run (serial, session), written under this
//     very kernel (boot id) and on tmpfs. Live OR frozen is then the list.
//  3. The map file went with the kernel. The intent file is believed if it belongs to
//     the saved map (session): its header names the base, and only the active
//     regions are in doubt.
//  4. Otherwise somebody moved or damaged files: compare the whole disk.
//
// After a power cut the times of the disk's file prove nothing, since the kernel makes
// them durable when it likes. So case 3 rests on an assumption: that nobody but this
// program wrote the disk between the cut and this start. The audit of the next backup
// looks for those who did.
//
// The map file and the intent file are complete before the saved map loses its clean
// flag, and the flag is off, durably, before recover returns and thus before the
// first write. A crash anywhere in between begins again from the same files: the
// intent file keeps the session of the saved map that it was opened with (before)
// beside the new one, until that is in the saved map too, and recovery takes no
// region out of it.
func (t *Tracker) recover(l layout) error {
	saved, h, err := openSaved(t.opts.SavePath)
	if saved != nil {
		defer saved.Close()
	}
	img := t.readIntents(h)
	defer func() {
		if img != nil && (t.intents == nil || t.intents.img != img) {
			img.io.Close()
		}
	}()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return t.recoverUnsaved(l)
	case err != nil && !errors.Is(err, errHeader) && !errors.Is(err, errNotWritten):
		return fmt.Errorf("open saved map: %w", err)
	case err != nil:
		return t.begin(l, start{reason: "the saved map is damaged: " + err.Error()})
	case h.diskID != t.opts.DiskID:
		return t.begin(l, start{reason: fmt.Sprintf("the saved map is that of disk %q", h.diskID)})
	case h.flags&flagClean != 0:
		reason := t.witnessed(&h)
		switch {
		case h.sizeBytes != t.Size():
			reason = fmt.Sprintf("the size changed from %d to %d bytes", h.sizeBytes, t.Size())
		case reason == "" && h.flags&flagNarrow != 0 && img == nil:
			reason = "the intent map is not to be believed"
		}
		return t.begin(l, start{h: h, reason: reason, saved: saved, img: img})
	}
	return t.recoverKilled(l, h, img)
}

// readIntents reads the intent file; nil when there is none that belongs to the saved
// map.
func (t *Tracker) readIntents(saved header) *intentImage {
	if t.opts.IntentPath == "" {
		return nil
	}
	img, err := openIntents(t.opts.IntentPath, t.opts.openIntent)
	if err == nil && (img.h.diskID != t.opts.DiskID || img.h.session != saved.session && img.h.before != saved.session) {
		img.io.Close()
		err = errors.New("it belongs to another map")
	}
	if err == nil {
		return img
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.log.Warn("the intent map is not believed", "intents", t.opts.IntentPath, "error", err)
	}
	return nil
}

// recoverUnsaved: no map was ever saved. That is a new disk, unless a map file is there.
func (t *Tracker) recoverUnsaved(l layout) error {
	h, _, err := readMapHeader(t.opts.MapPath)
	if errors.Is(err, fs.ErrNotExist) || err == nil && h.diskID != t.opts.DiskID || errors.Is(err, errNotWritten) {
		return t.begin(l, start{})
	}
	return t.begin(l, start{h: h, reason: "the saved map is missing"})
}

// witnessed returns why a clean saved map cannot be believed, or nothing.
func (t *Tracker) witnessed(h *header) string {
	if h.state == TrackingNone {
		return "" // nothing to believe
	}
	now, ok := t.opts.Witness()
	switch {
	case h.flags&flagWitness == 0 && !ok && t.opts.AuditUnwitnessed:
		h.flags |= flagUnwitnessed
	case h.flags&flagWitness == 0 || !ok:
		return "nothing shows whether the disk was written while it was not served"
	case now != h.witness:
		return "the disk was changed while it was not served"
	}
	return ""
}

// recoverKilled: the last run did not end by itself.
func (t *Tracker) recoverKilled(l layout, saved header, img *intentImage) error {
	h, onTmpfs, err := readMapHeader(t.opts.MapPath)
	reason, powerCut := "", true
	switch {
	case errors.Is(err, fs.ErrNotExist):
		reason = "power loss or kernel crash: the map is gone"
	case err == nil && !onTmpfs:
		reason = "unclean stop, and the map file is not on tmpfs"
	case err == nil && h.bootID != t.opts.BootID:
		reason = "power loss or kernel crash: the map is of an earlier boot"
	case err == nil && h.session != saved.session && img != nil && img.h.session == h.session:
		reason = "the recovery after a power cut did not finish"
	case err != nil:
		reason, powerCut = "the map file is damaged: "+err.Error(), false
	case h.diskID != t.opts.DiskID:
		reason, powerCut = fmt.Sprintf("the map file is that of disk %q", h.diskID), false
	case h.serial != saved.serial || h.session != saved.session:
		reason, powerCut = fmt.Sprintf("the map serial is %d, the disk's is %d", h.serial, saved.serial), false
	case !h.fits(t.Size()):
		reason, powerCut = fmt.Sprintf("the size changed from %d to %d bytes", h.sizeBytes, t.Size()), false
	}
	if reason != "" {
		return t.begin(l, t.afterPowerCut(start{h: saved, reason: reason, img: img}, powerCut))
	}
	if h.flags&flagNarrow != 0 && img == nil {
		h.flags &^= flagNarrow
		h.reason = "the intent map is not to be believed"
	}
	file, err := openMapFile(t.opts.MapPath, layoutOf(h.sizeBytes))
	if err != nil {
		return t.begin(l, start{h: saved, reason: "the map file is damaged: " + err.Error(), img: img})
	}
	t.file, t.header = file, h
	file.attach(&t.maps)
	if err := file.recover(&t.maps, 0); err != nil {
		return err
	}
	if h.resizeTo != 0 {
		if err := t.settleResize(h.sizeBytes, h.resizeTo); err != nil {
			return err
		}
		t.header.sizeBytes, t.header.resizeTo = t.Size(), 0
		if err := t.remap(changedBy(h.sizeBytes, h.resizeTo)); err != nil {
			return err
		}
	}
	if t.maps[0].incomplete.Load() {
		t.doubt("no room on tmpfs for the map")
	}
	if h.state == TrackingCompare {
		t.doubts++
	}
	return t.startIntents(saved.session, img)
}

// afterPowerCut completes a start for which only the intent file can speak.
func (t *Tracker) afterPowerCut(s start, powerCut bool) start {
	if s.img == nil {
		return s
	}
	h := s.img.h
	s.h.base, s.h.candidate = h.base, h.candidate // newer hints than the saved map's
	if !h.fits(t.Size()) {
		return s
	}
	s.h.sizeBytes, s.h.resizeTo = h.sizeBytes, h.resizeTo
	if powerCut && h.trusted() {
		s.h.flags = flagNarrow | h.flags&flagUnwitnessed
		s.reason = fmt.Sprintf("after a power cut %d regions of 16 MiB are compared", s.img.count(t.Size()))
		s.narrow = true
	}
	return s
}

// start says with what a new map begins.
type start struct {
	h header // of before, as far as it is known
	// reason makes it a compare; without reason and saved map the disk is new.
	reason string
	narrow bool         // only the active regions of img are in doubt
	saved  *os.File     // the saved bits, of a clean stop
	img    *intentImage // of before, if it belongs to h
}

// begin starts a new map: the saved bits if they are given, else empty.
func (t *Tracker) begin(l layout, s start) error {
	file, named, err := createMapFile(t.opts.MapPath, l)
	if err != nil {
		return err
	}
	t.file = file
	file.attach(&t.maps)
	if s.saved != nil && s.reason == "" {
		err := loadBody(s.saved, s.h, &t.maps[0], (t.Size()+blockdev.GrainSize-1)>>grainShift)
		if err != nil {
			s.reason = err.Error()
			t.maps[0].clear()
		}
	}
	t.header = header{state: s.h.state, flags: s.h.flags & (flagNarrow | flagUnwitnessed), serial: s.h.serial + 1, session: newSession(),
		sizeBytes: t.Size(), base: s.h.base, candidate: s.h.candidate, diskID: t.opts.DiskID, bootID: t.opts.BootID, reason: s.h.reason}
	if s.reason != "" {
		t.header.state, t.header.reason = TrackingCompare, s.reason
		if !s.narrow {
			t.header.flags = 0
		}
	}
	if t.header.state == TrackingCompare {
		t.doubts++
	}
	if s.h.resizeTo != 0 {
		if err := t.settleResize(s.h.sizeBytes, s.h.resizeTo); err != nil {
			return err
		}
	}
	t.file.writeHeader(&t.header)
	// Before the map has its name: a kill in between finds the older map, or one that
	// is the intent file's.
	if err := t.startIntents(s.h.session, s.img); err != nil {
		return err
	}
	if err := file.publish(); err != nil {
		return err
	}
	if !named {
		t.log.Warn("no room on tmpfs for the map: after a kill the next backup compares", "map", t.opts.MapPath)
	}
	unclean := t.header
	unclean.bootID = ""
	return writeSaved(t.opts.SavePath, unclean, nil)
}

// startIntents opens the intent file for this run: the old one goes on if it is
// believed, else a new one begins. Either way the regions of all grains that are
// listed are active in it. before is the session of the saved map.
//
// A file that cannot be made is no reason not to serve the disk, as long as none is
// there that a later start would believe.
func (t *Tracker) startIntents(before [16]byte, img *intentImage) error {
	if t.opts.IntentPath == "" {
		return nil
	}
	h := t.header
	h.before, h.bootID = before, ""
	sectors := sectorsOf(t.Size())
	var err error
	if img == nil || img.sectors() < sectors {
		bits := make([]uint64, sectors*sectorWords)
		if img != nil {
			copy(bits, img.bits)
		}
		t.addListed(bits)
		img, err = createIntents(t.opts.IntentPath, t.opts.openIntent, h, bits)
	} else {
		t.addListed(img.bits)
		if err = img.write(0, img.sectors()-1); err == nil {
			err = img.io.Sync()
		}
		if err == nil {
			err = img.writeHeader(h)
		}
	}
	if err == nil {
		t.intents = newIntents(t.opts.IntentPath, t.opts.SavePath, img)
		t.intents.hook = t.opts.intentHook
		return nil
	}
	t.log.Warn("no intent map: after a power cut the next backup compares the whole disk", "intents", t.opts.IntentPath, "error", err)
	if t.header.flags&flagNarrow != 0 {
		t.doubt("the intent map cannot be written")
	}
	if gone := os.Remove(t.opts.IntentPath); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
		return fmt.Errorf("begin intent map: %w", errors.Join(err, gone))
	}
	return syncDir(t.opts.IntentPath)
}

// addListed sets the region of each listed grain.
func (t *Tracker) addListed(bits []uint64) {
	t.Changed(func(e blockdev.Extent) bool {
		r := regionsIn(e.Offset, e.Length)
		for i := r.first >> 6; i <= r.last>>6; i++ {
			bits[i] |= wordMask(i, r.first, r.last)
		}
		return true
	})
}

// Close is the clean stop. It makes the disk durable, saves the map beside it, and
// closes the disk below. A snapshot that is still open is aborted. After an error the
// saved map stays marked as unclean and the map file stays where it is, as after a
// kill; after a flush that failed it says that it is in doubt. A second Close
// returns nil.
func (t *Tracker) Close() error {
	t.life.Lock()
	if t.closed {
		t.life.Unlock()
		return nil
	}
	t.closed = true
	t.word.Store(uint64(word(t.word.Load()).withPhase(phaseClosed)))
	t.life.Unlock()
	if f := t.frozen.Load(); f != nil {
		f.freeze.Fail(fmt.Errorf("disk %q: %w", t.opts.DiskID, blockdev.ErrClosed))
		f.use.Lock() // its capture ends at the next piece
		defer f.use.Unlock()
	}
	for i := range t.maps {
		t.maps[i].drained(nil)
	}
	for spin := 0; t.preserving.Load() != 0; spin++ {
		pause(spin, nil)
	}
	t.whole.Lock()
	defer t.whole.Unlock()
	t.frozen.Store(nil)
	err := t.save()
	t.mu.Lock()
	err = errors.Join(err, t.spill.close(), t.release(err == nil))
	t.file = nil
	t.mu.Unlock()
	return errors.Join(err, t.dev.Close())
}

func (t *Tracker) save() error {
	if err := t.Flush(); err != nil {
		return fmt.Errorf("close disk %q: %w", t.opts.DiskID, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.header
	h.flags, h.bootID = h.flags|flagClean, ""
	var ok bool
	if h.witness, ok = t.opts.Witness(); ok {
		h.flags |= flagWitness
	}
	if err := writeSaved(t.opts.SavePath, h, &t.maps); err != nil {
		return fmt.Errorf("close disk %q: %w", t.opts.DiskID, err)
	}
	return nil
}
