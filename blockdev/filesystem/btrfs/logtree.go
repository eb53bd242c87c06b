package btrfs

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// What fsync has written since the last commit stands in log trees, one for each
// subvolume that has some. At the next mount the kernel replays them: it makes of the
// subvolume what the log says of the files in it (fs/btrfs/tree-log.c). Here the same
// is done to changes in memory.
//
// A log does not hold a whole file or directory. Items of an inode are to replace
// what the subvolume has; of a directory it has new entries, and the ranges of
// positions in which there are no others (deletions). Names are in the references of
// the inodes, too. So replay takes three rounds over all items: inodes, with what is
// deleted in them; entries whose inodes are there already; then references,
// attributes and extents. Last, the links of each inode are counted anew.
//
// What the kernel would stop at stops replay here as well: no change is shown then,
// and the state of the volume says why.

// maxLogs bounds how many log trees are read.
const maxLogs = 1 << 14

// replayLog replays the log, if there is one, and tells the state of the volume.
func (f *FS) replayLog() filesystem.State {
	if f.super.logRoot.logical == 0 {
		return filesystem.State{Clean: true}
	}
	n, err := f.replayLogs()
	if err != nil {
		f.logs, f.changed = nil, nil
		return filesystem.State{Reason: fmt.Sprintf("its log, which has what was synced since the last commit, could not be replayed (%s); what is shown is the state as of that commit",
			strings.TrimSuffix(err.Error(), ": "+filesystem.ErrCorrupt.Error()))}
	}
	return filesystem.State{Clean: true, Reason: fmt.Sprintf("its log of %d items was replayed", n)}
}

// replayLogs tells how many items were replayed.
func (f *FS) replayLogs() (int, error) {
	replays, err := f.openLogs()
	if err != nil {
		return 0, err
	}
	left, items := maxReplaySteps, 0
	for stage := stageInodes; stage <= stageAll; stage++ {
		for _, r := range replays {
			r.left = &left
			n, err := r.walk(stage)
			if err != nil {
				return 0, fmt.Errorf("subvolume %d: %w", r.root.id, err)
			}
			items += n
			if stage == stageAll {
				if err := r.fixupLinks(); err != nil {
					return 0, fmt.Errorf("subvolume %d: %w", r.root.id, err)
				}
			}
		}
	}
	f.changed = make(map[uint64]*changes)
	for _, r := range replays {
		f.changed[r.root.id] = r.root.changes
		f.logs = append(f.logs, r.log)
	}
	return items / int(stageAll), nil
}

// openLogs finds the log trees in the log's root tree. That of a subvolume that was
// deleted is left out.
func (f *FS) openLogs() ([]*replay, error) {
	logs := &tree{id: treeLog, root: f.super.logRoot}
	var out []*replay
	err := f.scan(logs, key{treeLog, typeRoot, 0}, func(it item) (bool, error) {
		if it.key.object != treeLog || it.key.kind != typeRoot {
			return false, nil
		}
		if len(it.data) < rootItemSize {
			return false, corruptf("root item of %d bytes", len(it.data))
		}
		if len(out) == maxLogs {
			return false, unsupportedf("over %d log trees", maxLogs)
		}
		id := it.key.offset
		data, err := f.rootItem(id)
		if isNotExist(err) || (err == nil && binary.LittleEndian.Uint32(data[216:]) == 0) {
			return true, nil
		}
		if err == nil && !isSubvolume(id) {
			err = corruptf("log of tree %d", id)
		}
		if err != nil {
			return false, err
		}
		out = append(out, &replay{
			f:     f,
			log:   &tree{id: treeLog, root: parseRootItem(it.data)},
			root:  &tree{id: id, root: parseRootItem(data), changes: new(changes)},
			fixup: newFixups(),
		})
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("log root tree: %w", err)
	}
	return out, nil
}
