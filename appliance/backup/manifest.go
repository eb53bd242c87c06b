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

// manifests describe the points of all parts, and say what each cost.
func (a *attemptState) manifests(ctx context.Context, cut *snapshot.Cut) ([]*recoverypoint.Manifest, []recoverypoint.Accounting, error) {
	site, err := recoverypoint.ParseID(a.h.Site.ID)
	if err != nil {
		return nil, nil, fmt.Errorf("site: %w", err)
	}
	id, err := recoverypoint.ParseID(disks.NewID())
	if err != nil {
		return nil, nil, err
	}
	shared := sharedFacts{site: site, cut: id, frozenMonotonic: monotonic() - since(cut.FrozenAt), bootID: bootID()}
	for _, pt := range a.parts {
		id, err := recoverypoint.ParseID(pt.machine.ID)
		if err != nil {
			return nil, nil, fmt.Errorf("machine %q: %w", pt.machine.Name, err)
		}
		shared.machines = append(shared.machines, id)
	}
	var out []*recoverypoint.Manifest
	var costs []recoverypoint.Accounting
	for i, pt := range a.parts {
		m, cost, err := a.manifest(ctx, cut, shared, i)
		if err != nil {
			return nil, nil, fmt.Errorf("machine %q: %w", pt.machine.Name, err)
		}
		out, costs = append(out, m), append(costs, cost)
	}
	return out, costs, nil
}

// manifest describes the point of one part.
func (a *attemptState) manifest(ctx context.Context, cut *snapshot.Cut, shared sharedFacts, part int) (*recoverypoint.Manifest, recoverypoint.Accounting, error) {
	var acc recoverypoint.Accounting
	pt, machineID := a.parts[part], shared.machines[part]
	generation, err := recoverypoint.ParseID(pt.machine.GenerationID)
	if err != nil {
		return nil, acc, err
	}
	m := &recoverypoint.Manifest{
		Domain:      a.h.Store.Domain(),
		Site:        shared.site,
		MachineID:   machineID,
		MachineName: pt.machine.Name,
		CutID:       shared.cut,
		CutMachines: shared.machines,
		Generation:  recoverypoint.Generation{Number: pt.machine.Generation, ID: generation},
		Sequence:    a.e.o.Vaults.NextSequence(machineID, generation),
		Excluded:    pt.members.excluded,

		FrozenAt:        cut.FrozenAt.UTC().Round(0),
		FrozenMonotonic: shared.frozenMonotonic,
		BootID:          shared.bootID,
		FreezeMicros:    microseconds(cut.FreezeDuration),

		Consistency: recoverypoint.Crash,
		Reason:      a.label(pt),
		Tracking:    dearest(a.plans, pt),
		Note:        a.req.Note,
	}
	if p := a.h.Points.Newest(pt.machine.ID); p != nil {
		m.Parent = p.ID
	}
	b := &countingBatch{Batch: a.batch}
	for i, p := range a.plans {
		if p.part != pt {
			continue
		}
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
	if pt.machine.Definition != "" {
		if m.Definition, err = recoverypoint.PutContent(ctx, b, a.h.Store.BlockSize(), []byte(pt.machine.Definition)); err != nil {
			return nil, acc, fmt.Errorf("definition: %w", err)
		}
	}
	if a.h.Store.Encrypted() { // before its id is computed
		if err := m.PutPrivate(ctx, b, a.h.Store.BlockSize()); err != nil {
			return nil, acc, err
		}
	}
	acc = pt.cost
	acc.ChangedBytes = m.ChangedBytes
	acc.StoredBytes += b.stored
	for _, d := range pt.members.disks {
		acc.ProtectedBytes += d.UsedBytes()
	}
	return m, acc, m.Validate()
}

// changedBytes is the sum of a set's extents on a disk of sizeBytes.
func changedBytes(s *recoverypoint.ChangeSet, sizeBytes int64) (n int64) {
	s.Extents(sizeBytes, func(x blockdev.Extent) bool { n += x.Length; return true })
	return n
}

// label says why the point is crash-consistent, "" when that was asked for. A label
// that is lower than one asked for is a warning of the job.
func (a *attemptState) label(pt *part) string {
	switch recoverypoint.Consistency(a.req.Consistency) {
	case recoverypoint.Crash:
		return ""
	case recoverypoint.Application, recoverypoint.Filesystem:
		why := fmt.Sprintf("asked for %s: the machine has no guest agent", a.req.Consistency)
		of := ""
		if a.req.Group != "" {
			of = " of " + pt.machine.Name
		}
		a.t.Warn(fmt.Sprintf("the point%s is crash-consistent, not %s: the machine has no guest agent", of, a.req.Consistency))
		return why
	}
	return "the machine has no guest agent"
}

// sharedFacts are what all points of a cut have in common.
type sharedFacts struct {
	site, cut       recoverypoint.ID
	machines        []recoverypoint.ID // by part
	frozenMonotonic time.Duration
	bootID          recoverypoint.ID
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
