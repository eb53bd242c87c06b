package backup

import (
	"context"

	"github.com/keelblock/keelblock/blockdev/cbt"
)

// Resize changes the size of a tracked disk, in its slot: it waits for the backup that
// has the disk, and backups wait for it.
//
// The order for whoever keeps a list of disks, so that a crash at any step leaves a
// disk that can be opened:
//
//  1. the list says, durably, that the disk is being resized to newSize;
//  2. Resize;
//  3. the list says the size that the tracker has, and no resize.
//
// Who opens a disk whose entry is between 1 and 3 accepts a file of either size, lets
// the tracker see to what was begun (cbt.Open does), calls Resize again if that is
// still wanted, and does 3. All steps may be done twice.
func (e *Engine) Resize(ctx context.Context, t *cbt.Tracker, newSize int64) error {
	slots, err := e.slots.Acquire(ctx, []*cbt.Tracker{t})
	if err != nil {
		return err
	}
	defer slots.Release()
	return slots.Resize(ctx, t.DiskID(), newSize)
}
