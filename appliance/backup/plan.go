package backup

import (
	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// plan says how one disk is read.
type plan struct {
	part *part // whose disk it is
	disk *disks.Disk
	id   recoverypoint.ID
	// tracking: enabled reads what the map lists; the others read the whole disk.
	tracking recoverypoint.Tracking
	// base is the tree that unchanged ranges are taken from, zero when tracking is full.
	base hashtree.Root
	// point is whose tree that is.
	point dedupe.Digest
	// reason says why it is not enabled.
	reason string
	// narrow: base is a point that the disk's map names, so of a compare only what the
	// tracker has in doubt is read.
	narrow bool
}

// planner decides for the disks of a cut.
type planner struct {
	points *recoverypoint.Index
	// distrusted disks, by id, have a base that did not verify: first they compare,
	// then they are read in full.
	distrusted map[string]int
}

func newPlanner(h *vault.Handle) *planner {
	return &planner{points: h.Points, distrusted: map[string]int{}}
}

// plan decides for one disk. The map's base counts only when the vault holds the
// point: after a kill between publication and retirement it is the candidate.
func (p *planner) plan(pt *part, d *disks.Disk) (plan, error) {
	id, err := recoverypoint.ParseID(d.Entry().ID)
	if err != nil {
		return plan{}, err
	}
	out := plan{part: pt, disk: d, id: id, tracking: recoverypoint.TrackingFull}
	state, reason := d.Tracker().Tracking()
	out.reason = reason
	base, root, ok := p.base(d)
	strikes := p.distrusted[d.Entry().ID]
	switch {
	case strikes > 1:
		out.reason = "the base does not verify"
		return out, nil
	case state == cbt.TrackingEnabled && ok && strikes == 0:
		out.tracking, out.base, out.point, out.reason = recoverypoint.TrackingEnabled, root, base, ""
		return out, nil
	case strikes > 0:
		out.reason = "a block of the base does not verify"
	case state == cbt.TrackingEnabled:
		out.reason = "the base of the map is not in the vault any more"
	case state == cbt.TrackingNone:
		out.reason = "first backup of the disk"
	}
	out.narrow = ok && strikes == 0
	if !ok {
		base, root, ok = p.newest(pt.machine.ID, d)
	}
	if ok {
		out.tracking, out.base, out.point = recoverypoint.TrackingChecksumCompare, root, base
	}
	return out, nil
}

// base is the tree that the map is relative to, if the vault has it.
func (p *planner) base(d *disks.Disk) (dedupe.Digest, hashtree.Root, bool) {
	base, candidate := d.Tracker().Bases()
	for _, id := range []cbt.PointID{candidate, base} {
		if id.IsZero() {
			continue
		}
		if pt := p.points.Get(dedupe.Digest(id)); pt != nil {
			if root, ok := rootOf(pt, d.Entry()); ok {
				return pt.ID, root, true
			}
		}
	}
	return dedupe.Digest{}, hashtree.Root{}, false
}

// newest is the tree of the newest point that holds the disk.
func (p *planner) newest(machineID string, d *disks.Disk) (dedupe.Digest, hashtree.Root, bool) {
	list := p.points.List(machineID, true)
	for i := len(list) - 1; i >= 0; i-- {
		if root, ok := rootOf(list[i], d.Entry()); ok {
			return list[i].ID, root, true
		}
	}
	return dedupe.Digest{}, hashtree.Root{}, false
}

// rootOf is the tree of a disk in a point: its own, or, in the point that it was
// restored from, that of the disk it was.
func rootOf(p *recoverypoint.Point, e disks.Entry) (hashtree.Root, bool) {
	for i := range p.Manifest.Disks {
		d := &p.Manifest.Disks[i]
		id := d.ID.String()
		if id == e.ID || e.Origin.Point == p.ID.String() && id == e.Origin.DiskID {
			return d.Root, true
		}
	}
	return hashtree.Root{}, false
}

// dearest is the label of a point of pt whose disks were read in different ways.
func dearest(plans []plan, pt *part) recoverypoint.Tracking {
	out := recoverypoint.TrackingEnabled
	for _, p := range plans {
		switch {
		case p.part != pt:
		case p.tracking == recoverypoint.TrackingFull:
			return p.tracking
		case p.tracking == recoverypoint.TrackingChecksumCompare:
			out = p.tracking
		}
	}
	return out
}
