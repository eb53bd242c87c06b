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
//  3. Otherwise the machine lost power, or somebody moved files: compare.
//
// The map file is complete before the saved map loses its clean flag, and the flag is
// off, durably, before recover returns and thus before the first write. A crash
// anywhere in between begins again from the same files.
func (t *Tracker) recover(l layout) error {
	saved, h, err := openSaved(t.opts.SavePath)
	if saved != nil {
		defer saved.Close()
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return t.recoverUnsaved(l)
	case err != nil && !errors.Is(err, errHeader) && !errors.Is(err, errNotWritten):
		return fmt.Errorf("open saved map: %w", err)
	case err != nil:
		return t.begin(l, header{}, "the saved map is damaged: "+err.Error(), nil)
	case h.diskID != t.opts.DiskID:
		return t.begin(l, header{}, fmt.Sprintf("the saved map is that of disk %q", h.diskID), nil)
	case h.sizeBytes != t.size:
		return t.begin(l, h, fmt.Sprintf("the size changed from %d to %d bytes", h.sizeBytes, t.size), nil)
	case h.flags&flagClean != 0:
		if reason := t.witnessed(h); reason != "" {
			return t.begin(l, h, reason, nil)
		}
		return t.begin(l, h, "", saved)
	}
	return t.recoverKilled(l, h)
}

// recoverUnsaved: no map was ever saved. That is a new disk, unless a map file is there.
func (t *Tracker) recoverUnsaved(l layout) error {
	h, _, err := readMapHeader(t.opts.MapPath)
	if errors.Is(err, fs.ErrNotExist) || err == nil && h.diskID != t.opts.DiskID || errors.Is(err, errNotWritten) {
		return t.begin(l, header{}, "", nil)
	}
	return t.begin(l, h, "the saved map is missing", nil)
}

// witnessed returns why a clean saved map cannot be believed, or nothing.
func (t *Tracker) witnessed(h header) string {
	if h.state == TrackingNone {
		return "" // nothing to believe
	}
	now, ok := t.opts.Witness()
	switch {
	case h.flags&flagWitness == 0 || !ok:
		return "nothing shows whether the disk was written while it was not served"
	case now != h.witness:
		return "the disk was changed while it was not served"
	}
	return ""
}

// recoverKilled: the last run did not end by itself.
func (t *Tracker) recoverKilled(l layout, saved header) error {
	h, onTmpfs, err := readMapHeader(t.opts.MapPath)
	reason := ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		reason = "power loss or kernel crash: the map is gone"
	case err != nil:
		reason = "the map file is damaged: " + err.Error()
	case !onTmpfs:
		reason = "unclean stop, and the map file is not on tmpfs"
	case h.bootID != t.opts.BootID:
		reason = "power loss or kernel crash: the map is of an earlier boot"
	case h.diskID != t.opts.DiskID:
		reason = fmt.Sprintf("the map file is that of disk %q", h.diskID)
	case h.serial != saved.serial || h.session != saved.session:
		reason = fmt.Sprintf("the map serial is %d, the disk's is %d", h.serial, saved.serial)
	case h.sizeBytes != t.size:
		reason = fmt.Sprintf("the size changed from %d to %d bytes", h.sizeBytes, t.size)
	}
	if reason != "" {
		return t.begin(l, saved, reason, nil)
	}
	file, err := openMapFile(t.opts.MapPath, l)
	if err != nil {
		return t.begin(l, saved, "the map file is damaged: "+err.Error(), nil)
	}
	t.file, t.header = file, h
	file.attach(&t.maps)
	if err := file.recover(&t.maps, 0); err != nil {
		return err
	}
	if t.maps[0].incomplete.Load() {
		t.doubt("no room on tmpfs for the map")
	}
	if h.state == TrackingCompare {
		t.doubts++
	}
	return nil
}

// begin starts a new map: the saved bits if saved is given, else empty. A reason
// makes it a compare; without reason and saved map the disk is new. h is the header
// of before, as far as it is known.
func (t *Tracker) begin(l layout, h header, reason string, saved *os.File) error {
	file, named, err := createMapFile(t.opts.MapPath, l)
	if err != nil {
		return err
	}
	t.file = file
	file.attach(&t.maps)
	if saved != nil {
		err := loadBody(saved, h, &t.maps[0], (t.size+blockdev.GrainSize-1)>>grainShift)
		if err != nil {
			reason = err.Error()
			t.maps[0].clear()
		}
	}
	t.header = header{state: h.state, sequence: 0, serial: h.serial + 1, session: newSession(), sizeBytes: t.size,
		base: h.base, candidate: h.candidate, diskID: t.opts.DiskID, bootID: t.opts.BootID, reason: h.reason}
	if reason != "" {
		t.header.state, t.header.reason = TrackingCompare, reason
	}
	if t.header.state == TrackingCompare {
		t.doubts++
	}
	t.store()
	if err := file.publish(); err != nil {
		return err
	}
	if !named {
		t.log.Warn("no room on tmpfs for the map: after a kill the next backup compares", "map", t.opts.MapPath)
	}
	unclean := t.header
	unclean.flags, unclean.bootID = 0, ""
	return writeSaved(t.opts.SavePath, unclean, nil)
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
	h.flags, h.bootID = flagClean, ""
	var ok bool
	if h.witness, ok = t.opts.Witness(); ok {
		h.flags |= flagWitness
	}
	if err := writeSaved(t.opts.SavePath, h, &t.maps); err != nil {
		return fmt.Errorf("close disk %q: %w", t.opts.DiskID, err)
	}
	return nil
}
