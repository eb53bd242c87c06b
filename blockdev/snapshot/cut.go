package snapshot

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/cbt"
)

// ErrAborted: the cut was aborted, by its owner or by itself. Cut.Err has the reason.
var ErrAborted = cbt.ErrAborted

// Cut is a set of disks frozen at one instant. It ends in Commit or in Abort.
type Cut struct {
	// FrozenAt is the instant: every write that was acknowledged before it is in, no
	// write that was issued after it is.
	FrozenAt time.Time
	// FreezeDuration is what the freeze itself took.
	FreezeDuration time.Duration
	// Disks are the snapshots, in the order of Coordinator.Acquire.
	Disks []*Snapshot

	freeze *cbt.Freeze

	mu       sync.Mutex
	prepared bool
	finished bool
}

func (c *Cut) ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.finished
}

// Err says why the cut was aborted; nil while it stands and after Commit.
func (c *Cut) Err() error { return c.freeze.Err() }

// Prepare notes the points, one per disk, that are about to be committed. All disks
// are captured by now. A kill between the vault's commit and Commit then finds a map
// that holds for the old base and for the new one.
func (c *Cut) Prepare(candidates []cbt.PointID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.finished || len(candidates) != len(c.Disks) {
		return fmt.Errorf("prepare cut: %d points for %d disks, ended: %t", len(candidates), len(c.Disks), c.finished)
	}
	for i, s := range c.Disks {
		if candidates[i].IsZero() {
			return fmt.Errorf("prepare cut: the point of disk %d is zero", i)
		}
		if err := s.frozen.Prepare(candidates[i]); err != nil {
			return fmt.Errorf("prepare cut: %w", err)
		}
	}
	c.prepared = true
	return nil
}

// Commit retires the frozen maps: the prepared points, durable in the vault by now,
// are the bases. If the cut aborted itself meanwhile, or a disk was closed, Commit
// returns the reason; the points are good all the same, the next backup only reads
// more than it had to.
func (c *Cut) Commit() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.finished || !c.prepared {
		return fmt.Errorf("commit cut: prepared: %t, ended: %t", c.prepared, c.finished)
	}
	c.finished = true
	var errs []error
	for _, s := range c.Disks {
		errs = append(errs, s.frozen.Commit())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("commit cut: %w", err)
	}
	return nil
}

// Abort lists the changes of the cut again. Captures that run end with ErrAborted,
// and Abort waits for them. Harmless after Commit and after another Abort.
func (c *Cut) Abort() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.finished {
		return nil
	}
	c.finished = true
	var errs []error
	for _, s := range c.Disks {
		errs = append(errs, s.frozen.Abort())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("abort cut: %w", err)
	}
	return nil
}

// Snapshot is one disk of a Cut.
type Snapshot struct {
	frozen *cbt.Frozen
}

// Size is the size of the disk in bytes.
func (s *Snapshot) Size() int64 { return s.frozen.Size() }

// Changed yields what changed before the cut, since the last commit or Baseline:
// whole grains, merged, ascending, clipped to the disk. After the cut ended it yields
// nothing.
func (s *Snapshot) Changed(yield func(blockdev.Extent) bool) { s.frozen.Changed(yield) }

// ChangedBytes is the sum of Changed.
func (s *Snapshot) ChangedBytes() int64 { return s.frozen.ChangedBytes() }

// Capture gives the sink the changed grains as they were at the cut: ascending, each
// once; see cbt.Sink. The sink must not end the cut. Capture runs once; after an error
// the cut can only be aborted.
func (s *Snapshot) Capture(ctx context.Context, sink cbt.Sink) error {
	return s.frozen.Capture(ctx, sink)
}
