package cursor

import (
	"context"
	"fmt"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// maxReads bounds how often map and base are read until they fit each other.
const maxReads = 100

// DiskOf is a live disk in a point: itself, or, in the point that it was restored from,
// the disk that it was; nil when the point does not hold it.
func DiskOf(p *recoverypoint.Point, e disks.Entry) *recoverypoint.Disk {
	for i := range p.Manifest.Disks {
		d := &p.Manifest.Disks[i]
		if id := d.ID.String(); id == e.ID || e.Origin.Point == p.ID.String() && e.Origin.DiskID == id {
			return d
		}
	}
	return nil
}

// FindDisk resolves a selector to a point that holds a live disk. A disk that the
// selector names must be that disk.
func FindDisk(ctx context.Context, v *vault.Set, op, selector string, e disks.Entry) (*recoverypoint.Point, *recoverypoint.Disk, error) {
	_, p, rest, err := v.Find(ctx, selector)
	if err != nil {
		return nil, nil, err
	}
	d := DiskOf(p, e)
	switch {
	case d == nil:
		return nil, nil, &appliance.Error{Op: op, Kind: appliance.ErrNotFound,
			Text: fmt.Sprintf("recovery point %s does not hold disk %q", p.ID, e.Name)}
	case rest != "" && rest != d.Name && p.Manifest.Disk(rest) == nil:
		return nil, nil, &appliance.Error{Op: op, Kind: appliance.ErrNotFound,
			Text: fmt.Sprintf("recovery point %s has no disk %q", p.ID, rest)}
	case rest != "" && rest != d.Name:
		return nil, nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid,
			Text: fmt.Sprintf("disk %q of recovery point %s is another disk than %q", rest, p.ID, e.Name),
			Hint: fmt.Sprintf("leave :%s away", rest)}
	}
	return p, d, nil
}

// newest is the newest point, not deleted, that holds a disk, whatever machine it
// belonged to and whichever vault it is in; nil when there is none.
func (s *Set) newest(ctx context.Context, e disks.Entry) (*recoverypoint.Point, error) {
	handles, err := s.vaults.Each(ctx)
	if err != nil {
		return nil, err
	}
	var best *recoverypoint.Point
	for _, h := range handles {
		for _, p := range h.Points.List("", false) {
			if DiskOf(p, e) != nil && (best == nil || !p.Manifest.FrozenAt.Before(best.Manifest.FrozenAt)) {
				best = p
			}
		}
	}
	return best, nil
}

// tracker is the part of cbt.Tracker that is read.
type tracker interface {
	Tracking() (cbt.Tracking, string)
	Bases() (base, candidate cbt.PointID)
	Size() int64
	Changed(yield func(blockdev.Extent) bool)
	Doubtful(yield func(blockdev.Extent) bool)
}

// live is what a tracker lists at one moment, and the points that this is relative to.
type live struct {
	tracking        cbt.Tracking
	base, candidate cbt.PointID
	sizeBytes       int64
	set             *recoverypoint.ChangeSet
}

// readLive reads map and base so that they fit: a backup that commits in between empties
// the map, and moves the base.
func readLive(t tracker) live {
	for range maxReads {
		var a live
		a.read(t)
		a.set = recoverypoint.NewChangeSet()
		add := func(x blockdev.Extent) bool { a.set.Add(x); return true }
		t.Changed(add)
		if a.tracking == cbt.TrackingCompare {
			t.Doubtful(add)
		}
		b := a
		if b.read(t); a == b {
			return a
		}
	}
	return live{tracking: cbt.TrackingNone, sizeBytes: t.Size()} // commits without end: nothing is known
}

func (l *live) read(t tracker) {
	l.tracking, _ = t.Tracking()
	l.base, l.candidate = t.Bases()
	l.sizeBytes = t.Size()
}

// Since lists what differs, or may differ, between a live disk and a point that holds it;
// with p nil, the base of the disk's map. The size is the disk's at that moment. When
// point and base are in different vaults that is everything: digests of two vaults
// cannot be compared.
func (s *Set) Since(ctx context.Context, d *disks.Disk, p *recoverypoint.Point) (set *recoverypoint.ChangeSet, sizeBytes int64, err error) {
	op := fmt.Sprintf("list changes of disk %q", d.Name())
	t := d.Tracker()
	if t == nil {
		return nil, 0, &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: "it is not tracked: offline or temporary"}
	}
	l := readLive(t)
	whole := recoverypoint.NewChangeSet()
	whole.Add(blockdev.Extent{Length: l.sizeBytes})
	if l.tracking == cbt.TrackingNone {
		return whole, l.sizeBytes, nil
	}
	h, base := s.baseOf(l, d.Entry())
	if base == nil { // the map is relative to something that is gone
		return whole, l.sizeBytes, nil
	}
	if p != nil && h.Points.Get(p.ID) == nil {
		return whole, l.sizeBytes, nil
	}
	if p != nil && p.ID != base.ID {
		past, err := h.Points.Difference(ctx, p, DiskOf(p, d.Entry()), base, DiskOf(base, d.Entry()))
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", op, err)
		}
		l.set.Or(past)
	}
	return l.set, l.sizeBytes, nil
}

// baseOf is the point that the list is relative to. After a kill between the publication
// of a point and its entry as the base, both hold, and the newer is the nearer. What is
// in doubt after a power cut holds for one of them.
func (s *Set) baseOf(l live, e disks.Entry) (*vault.Handle, *recoverypoint.Point) {
	for _, id := range []cbt.PointID{l.candidate, l.base} {
		if id.IsZero() {
			continue
		}
		if h, p := s.vaults.Holder(dedupe.Digest(id)); p != nil && DiskOf(p, e) != nil {
			return h, p
		}
		if l.tracking != cbt.TrackingEnabled {
			return nil, nil
		}
	}
	return nil, nil
}
