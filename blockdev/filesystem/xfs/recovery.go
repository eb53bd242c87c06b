package xfs

import (
	"encoding/binary"
	"fmt"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// Log recovery, in memory. XFS writes to the log first and to the place much later,
// so that after a crash nearly all recent work is in the log only. What the kernel
// would write when it mounts the volume, the reader keeps in an overlay:
//
//	log records from tail to head → transactions → items, in the order of the commits
//	  pass 1: which buffers were cancelled (freed, perhaps used for data since)
//	  pass 2: buffers, inodes and inode chunks into the overlay, where the
//	          place does not have a newer state already (its LSN says so)
//	intents without their done items: what the kernel would finish, as far as it shows
//
// Nothing is applied unless all of the log between tail and head is whole, of known
// items, and fits into maxOverlayBytes. Otherwise the volume is shown without the
// log, and State.Reason says so and why.
//
// The kernel computes checksums anew for what it recovers. The reader does so for
// inodes; of other blocks it knows that they come out of the log (see recovered).
type recovery struct {
	f         *FS
	j         *journal
	over      *overlay
	base      map[int64][]byte // chunks of the volume as it is, a few
	cancelled map[place]int
	at        map[int64]int // the same by their first sector only
	intents   map[intentID]intent
	sequence  int
	done      replayed
}

// replayed is what recovery knows of inodes beside the overlay.
type replayed struct {
	foreign map[uint64]bool    // blocks of the map may carry another owner
	remaps  map[uint64][]remap // unfinished changes of the map of data
	refused map[uint64]string  // why data or attributes cannot be known
}

// place is a buffer: sector and number of sectors.
type place struct {
	sector int64
	length uint32
}

const (
	maxOverlayBytes = 96 << 20
	baseChunk       = 64 << 10
	maxBaseChunks   = 128
	// maxNotes bounds what is remembered of buffers and inodes. A log of 2 GiB has
	// room for some 100 000 freed buffers.
	maxNotes = 1 << 18
)

// Types of log items (XFS_LI_*).
const (
	itemEFI      = 0x1236
	itemEFD      = 0x1237
	itemIUnlink  = 0x1238
	itemInode    = 0x123B
	itemBuffer   = 0x123C
	itemDquot    = 0x123D
	itemQuotaOff = 0x123E
	itemICreate  = 0x123F
	itemRUI      = 0x1240
	itemRUD      = 0x1241
	itemCUI      = 0x1242
	itemCUD      = 0x1243
	itemBUI      = 0x1244
	itemBUD      = 0x1245
	itemATTRI    = 0x1246
	itemATTRD    = 0x1247
	itemXMI      = 0x1248
	itemXMD      = 0x1249
)

// recover replays the log into f.log.
func (f *FS) recover(j *journal) error {
	rc := &recovery{
		f: f, j: j, over: newOverlay(maxOverlayBytes), base: make(map[int64][]byte),
		cancelled: make(map[place]int), at: make(map[int64]int), intents: make(map[intentID]intent),
		done: replayed{foreign: make(map[uint64]bool), remaps: make(map[uint64][]remap), refused: make(map[uint64]string)},
	}
	if err := rc.walk(rc.collect); err != nil {
		return err
	}
	if err := rc.walk(rc.apply); err != nil {
		return err
	}
	if err := rc.unfinished(); err != nil {
		return err
	}
	rc.over.close()
	f.log, f.replayed = rc.over, rc.done
	return nil
}

// walk gives the committed transactions of the log to use.
func (rc *recovery) walk(use func(*transaction) error) error {
	a := &assembler{open: make(map[uint32]*transaction), use: use}
	for at := rc.j.tail; at != rc.j.head; {
		r, data, err := rc.j.record(at)
		if err != nil {
			return err
		}
		if r == nil || at > rc.j.head {
			return corruptf("log has no whole record at sector %d, cycle %d", at.sector(), at.cycle())
		}
		if err := r.unpack(data); err != nil {
			return err
		}
		if err := a.record(r, data); err != nil {
			return err
		}
		at = rc.j.behind(r)
	}
	return nil
}

// collect is pass 1. It also refuses items that are not known or cut short.
func (rc *recovery) collect(t *transaction) error {
	for _, it := range t.items {
		if len(it.regions) != it.total {
			return corruptf("log item %#x has %d of %d regions", it.kind(), len(it.regions), it.total)
		}
		switch it.kind() {
		case itemBuffer:
			b, err := parseBuffer(it.regions[0])
			if err != nil {
				return err
			}
			if b.flags&bufferCancel != 0 {
				rc.cancelled[b.place]++
				rc.at[b.sector]++
				if len(rc.cancelled) > maxNotes {
					return unsupportedf("log with over %d freed buffers", maxNotes)
				}
			}
		case itemEFI, itemEFD, itemIUnlink, itemInode, itemDquot, itemQuotaOff, itemICreate, itemRUI, itemRUD, itemCUI, itemCUD,
			itemBUI, itemBUD, itemATTRI, itemATTRD, itemXMI, itemXMD:
		default:
			return unsupportedf("log item %#x", it.kind())
		}
	}
	return nil
}

// apply is pass 2 of one transaction, in the kernel's order
// (xlog_recover_reorder_trans): buffers and new inode chunks, everything else, then
// cancellations.
func (rc *recovery) apply(t *transaction) error {
	var rest, cancels []*item
	for _, it := range t.items {
		var err error
		switch it.kind() {
		case itemBuffer:
			if binary.LittleEndian.Uint16(it.regions[0][4:])&bufferCancel != 0 {
				cancels = append(cancels, it)
			} else {
				err = rc.buffer(t, it)
			}
		case itemICreate:
			err = rc.newInodes(it)
		default:
			rest = append(rest, it)
		}
		if err != nil {
			return err
		}
	}
	for _, it := range rest {
		var err error
		if it.kind() == itemInode {
			err = rc.inode(t, it)
		} else {
			err = rc.note(it)
		}
		if err != nil {
			return err
		}
	}
	for _, it := range cancels {
		rc.uncancel(it)
	}
	return nil
}

// isCancelled: a later transaction of the log freed the buffer.
func (rc *recovery) isCancelled(p place) bool { return rc.cancelled[p] > 0 }

func (rc *recovery) uncancel(it *item) {
	b, err := parseBuffer(it.regions[0])
	if err != nil || rc.cancelled[b.place] == 0 {
		return
	}
	rc.cancelled[b.place]--
	rc.at[b.sector]--
}

// content is n bytes of the volume from off, as recovered so far. They are inside
// one chunk of the volume or copied.
func (rc *recovery) content(off int64, n int) ([]byte, error) {
	p := make([]byte, n)
	for done := 0; done < n; {
		chunk, err := rc.chunk((off + int64(done)) / baseChunk)
		if err != nil {
			return nil, err
		}
		within := (off + int64(done)) % baseChunk
		if within >= int64(len(chunk)) {
			return nil, corruptf("log speaks of byte %d, behind the end of the volume", off)
		}
		done += copy(p[done:], chunk[within:])
	}
	for s := off / sectorSize; s*sectorSize < off+int64(n); s++ {
		if content := rc.over.at(s); content != nil {
			at := s * sectorSize
			if at < off {
				content, at = content[off-at:], off
			}
			copy(p[at-off:], content)
		}
	}
	return p, nil
}

// chunk is a part of the volume as it is.
func (rc *recovery) chunk(i int64) ([]byte, error) {
	if p, ok := rc.base[i]; ok {
		return p, nil
	}
	size := int64(rc.f.super.blocks) << rc.f.super.blockBits
	if i < 0 || i > size/baseChunk {
		return nil, corruptf("log speaks of byte %d, behind the end of the volume", i*baseChunk)
	}
	p := make([]byte, min(baseChunk, size-i*baseChunk))
	if err := rc.f.readFull(p, i*baseChunk); err != nil {
		return nil, err
	}
	for old := range rc.base {
		if len(rc.base) < maxBaseChunks {
			break
		}
		delete(rc.base, old)
	}
	rc.base[i] = p
	return p, nil
}

// write puts p at off of the volume, into the overlay.
func (rc *recovery) write(p []byte, off int64) error {
	for len(p) > 0 {
		sector, within := off/sectorSize, off%sectorSize
		n := min(int64(len(p)), sectorSize-within)
		target := rc.over.at(sector)
		if target == nil {
			before, err := rc.content(sector*sectorSize, sectorSize)
			if err != nil {
				return err
			}
			if target = rc.over.add(sector); target == nil {
				return unsupportedf("changes in the log of over %d MiB", maxOverlayBytes>>20)
			}
			copy(target, before)
		}
		copy(target[within:], p[:n])
		p, off = p[n:], off+n
	}
	return nil
}

// replayLog makes f show what the log holds. The state says what is shown.
func (f *FS) replayLog() filesystem.State {
	j, err := f.openJournal()
	if err == nil && j.clean {
		return filesystem.State{Clean: true}
	}
	if err == nil {
		err = f.recover(j)
	}
	if err != nil {
		return filesystem.State{Reason: fmt.Sprintf("the log could not be replayed (%v); "+
			"what is shown is what had been written to its place, so recent work is missing and some files may be damaged", err)}
	}
	if n := len(f.replayed.refused); n > 0 {
		return filesystem.State{Reason: fmt.Sprintf("the file system was not unmounted; its log has been replayed in memory, "+
			"but the guest has to finish work on %d files, which cannot be read before", n)}
	}
	return filesystem.State{Clean: true, Reason: fmt.Sprintf("its log was replayed in memory (%d sectors changed)", f.log.count)}
}
