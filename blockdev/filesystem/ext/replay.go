package ext

import (
	"encoding/binary"
	"fmt"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// needsReplay: a kernel that mounts this file system would look into its journal. It
// does so by the flag needs_recovery alone.
func (f *FS) needsReplay() bool {
	return f.super.has(incompatRecover) && f.super.compat&compatHasJournal != 0
}

// replayed is the file system of f, whose superblock is all that was read of it, with
// its journal replayed, and its state.
func (f *FS) replayed(size int64) (*FS, filesystem.State, error) {
	if f.super.journalInode == 0 {
		return f, filesystem.State{Reason: fmt.Sprintf("state as of the last commit; the journal is on another device (UUID %s) "+
			"and has not been replayed, so the newest changes are missing and some of what is shown may be older than its directory says",
			uuidString(f.super.journalUUID))}, nil
	}
	j, err := f.openJournal()
	if err != nil {
		return nil, filesystem.State{}, err
	}
	before, done, clean := f.super, "", true
	if j.start != 0 {
		// A running guest that has just written everything home leaves an empty
		// journal, and the flag set.
		r, err := j.replay(uint64(size) >> f.super.blockBits)
		if err != nil {
			return nil, filesystem.State{}, err
		}
		if f, err = openSuper(r.overlay(), size); err != nil {
			return nil, filesystem.State{}, fmt.Errorf("after its replay: %w", err)
		}
		done = fmt.Sprintf("its journal was replayed in memory (%d transactions, %d blocks)", r.end-j.sequence, r.replaced)
		fast, err := f.replayFast(j, r.end)
		if err != nil {
			done = fmt.Sprintf("state as of the last full commit; the fast commits behind it have not been replayed (%v), "+
				"so the newest changes are missing", err)
			clean = false
		}
		done += fast
	}
	f.keepErrors(before, j.errno)
	f.countFree()
	state := f.state()
	if state.Clean {
		state = filesystem.State{Clean: clean, Reason: done}
	}
	return f, state, nil
}

// replayFast replays the fast commits behind the log and tells how many there were.
func (f *FS) replayFast(j *journal, end uint32) (string, error) {
	if !j.has(journalIncompatFastCommit) {
		return "", nil
	}
	count, err := j.scanFastCommits(end)
	if err != nil || count.tags == 0 {
		return "", err
	}
	if err := f.replayFastCommits(j, count); err != nil {
		return "", err
	}
	return fmt.Sprintf(" and %d fast commits; directories that those changed keep the times of the last full commit", count.commits), nil
}

// keepErrors adds what the superblock said before the replay, and the journal's own
// record, to the errors of f: a replay does not undo them (ext4_load_journal,
// ext4_clear_journal_err).
func (f *FS) keepErrors(before *superblock, errno int32) {
	s := f.super
	s.state |= before.state & stateError
	s.errorCount = max(s.errorCount, before.errorCount)
	if errno != 0 {
		s.state |= stateError
	}
}

// maxCountedGroups bounds countFree: 16 TiB of blocks of 4 KiB.
const maxCountedGroups = 1 << 17

// countFree takes the numbers of free blocks and inodes from the group descriptors,
// as a mount does: those of the superblock are written at an unmount only. Where a
// descriptor cannot be read they stay as they are.
func (f *FS) countFree() {
	s := f.super
	if s.groups > maxCountedGroups {
		return
	}
	le := binary.LittleEndian
	var blocks, inodes uint64
	for g := range s.groups {
		d, err := f.descriptor(g)
		if err != nil {
			return
		}
		blocks += uint64(le.Uint16(d[0xC:]))
		inodes += uint64(le.Uint16(d[0xE:]))
		if s.descSize >= 64 {
			blocks += uint64(le.Uint16(d[0x2C:])) << 16
			inodes += uint64(le.Uint16(d[0x2E:])) << 16
		}
	}
	s.freeBlocks = blocks * s.clusterRatio
	s.freeInodes = uint32(min(inodes, uint64(s.inodes)))
}
