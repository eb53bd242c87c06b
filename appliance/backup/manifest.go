package backup

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/snapshot"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// manifest describes the point, and says what it cost.
func (a *attemptState) manifest(ctx context.Context, cut *snapshot.Cut) (*recoverypoint.Manifest, recoverypoint.Accounting, error) {
	var acc recoverypoint.Accounting
	ids, err := a.ids()
	if err != nil {
		return nil, acc, err
	}
	m := &recoverypoint.Manifest{
		Domain:      a.h.Store.Domain(),
		Site:        ids.site,
		MachineID:   ids.machine,
		MachineName: a.machine.Name,
		CutID:       ids.cut,
		CutMachines: []recoverypoint.ID{ids.machine},
		Generation:  recoverypoint.Generation{Number: a.machine.Generation, ID: ids.generation},
		Sequence:    a.h.Points.NextSequence(ids.machine, ids.generation),
		Excluded:    a.members.excluded,

		FrozenAt:        cut.FrozenAt.UTC().Round(0),
		FrozenMonotonic: monotonic() - since(cut.FrozenAt),
		BootID:          bootID(),
		FreezeMicros:    microseconds(cut.FreezeDuration),

		Consistency: recoverypoint.Crash,
		Reason:      a.label(),
		Tracking:    dearest(a.plans),
		Note:        a.req.Note,
	}
	if p := a.h.Points.Newest(a.machine.ID); p != nil {
		m.Parent = p.ID
	}
	b := &countingBatch{Batch: a.batch}
	for i, p := range a.plans {
		d := recoverypoint.Disk{ID: p.id, Name: p.disk.Name(), Root: a.roots[i], Base: p.point, Tracking: p.tracking,
			ChangedBytes: changedBytes(a.sets[i], a.roots[i].SizeBytes)}
		if p.tracking != recoverypoint.TrackingFull {
			if d.ChangeSet, err = recoverypoint.EncodeChangeSet(ctx, b, a.h.Store.BlockSize(), a.sets[i]); err != nil {
				return nil, acc, fmt.Errorf("disk %q: %w", d.Name, err)
			}
		}
		m.Disks = append(m.Disks, d)
		m.ChangedBytes += d.ChangedBytes
	}
	if a.machine.Definition != "" {
		if m.Definition, err = recoverypoint.PutContent(ctx, b, a.h.Store.BlockSize(), []byte(a.machine.Definition)); err != nil {
			return nil, acc, fmt.Errorf("definition: %w", err)
		}
	}
	acc = a.cost
	acc.ChangedBytes = m.ChangedBytes
	acc.StoredBytes += b.stored
	return m, acc, m.Validate()
}

// changedBytes is the sum of a set's extents on a disk of sizeBytes.
func changedBytes(s *recoverypoint.ChangeSet, sizeBytes int64) (n int64) {
	s.Extents(sizeBytes, func(x blockdev.Extent) bool { n += x.Length; return true })
	return n
}

// label says why the point is crash-consistent, "" when that was asked for. A label
// that is lower than one asked for is a warning of the job.
func (a *attemptState) label() string {
	switch recoverypoint.Consistency(a.req.Consistency) {
	case recoverypoint.Crash:
		return ""
	case recoverypoint.Application, recoverypoint.Filesystem:
		why := fmt.Sprintf("asked for %s: the machine has no guest agent", a.req.Consistency)
		a.t.Warn(fmt.Sprintf("the point is crash-consistent, not %s: the machine has no guest agent", a.req.Consistency))
		return why
	}
	return "the machine has no guest agent"
}

type pointIDs struct {
	site, machine, generation, cut recoverypoint.ID
}

func (a *attemptState) ids() (ids pointIDs, err error) {
	for _, f := range []struct {
		to   *recoverypoint.ID
		from string
	}{{&ids.site, a.h.Site.ID}, {&ids.machine, a.machine.ID}, {&ids.generation, a.machine.GenerationID}, {&ids.cut, disks.NewID()}} {
		if *f.to, err = recoverypoint.ParseID(f.from); err != nil {
			return ids, err
		}
	}
	return ids, nil
}

// countingBatch counts what is stored through it.
type countingBatch struct {
	dedupe.Batch
	stored int64
}

// PutBlock is dedupe.Batch.PutBlock.
func (b *countingBatch) PutBlock(ctx context.Context, p []byte) (dedupe.Put, error) {
	put, err := b.Batch.PutBlock(ctx, p)
	b.stored += put.StoredBytes
	return put, err
}

// bootID is the kernel's, zero when it does not say.
func bootID() recoverypoint.ID {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return recoverypoint.ID{}
	}
	id, err := recoverypoint.ParseID(strings.ReplaceAll(strings.TrimSpace(string(b)), "-", ""))
	if err != nil {
		return recoverypoint.ID{}
	}
	return id
}

// monotonic is the time since boot, suspended time included.
func monotonic() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// microseconds is d rounded up: no freeze took no time.
func microseconds(d time.Duration) int64 {
	return max(1, int64((d+time.Microsecond-1)/time.Microsecond))
}
