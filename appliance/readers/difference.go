package readers

import (
	"context"
	"fmt"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/dirtybitmap"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// difference is the dirty bitmap of a reader's disk since another point. The point need
// not outlive the call.
func (s *Set) difference(ctx context.Context, r *Reader, since string) (server.ContextSource, error) {
	op := fmt.Sprintf("export disk %q of recovery point %s", r.Disk.Name, r.Point.ID)
	h, p, rest, err := s.o.Vaults.Find(ctx, since)
	if err != nil {
		return nil, err
	}
	d := s.same(r, p)
	switch {
	case rest != "" && p.Manifest.Disk(rest) == nil:
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrNotFound, Text: fmt.Sprintf("recovery point %s has no disk %q", p.ID, rest)}
	case rest != "" && (d == nil || d.Name != rest):
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid,
			Text: fmt.Sprintf("disk %q of recovery point %s is another disk", rest, p.ID), Hint: "compare points of one disk"}
	case d == nil:
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrNotFound, Text: fmt.Sprintf("recovery point %s does not hold this disk", p.ID)}
	}
	if h.Points.Get(r.Point.ID) == nil {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf("recovery point %s is in vault %q and this one is not", p.ID, h.Vault.Name()),
			Hint: "compare points of one vault"}
	}
	set, err := h.Points.Difference(ctx, p, d, r.Point, &r.Disk)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	r.Since = p
	return dirtybitmap.Fixed{Name: dirtybitmap.Since(p), Bitmap: dirtybitmap.New(set, r.Disk.Root.SizeBytes)}, nil
}

// same is the disk of p that the reader's is: the same one, or the one that either was
// restored from, as the live disks know.
func (s *Set) same(r *Reader, p *recoverypoint.Point) *recoverypoint.Disk {
	for i := range p.Manifest.Disks {
		if d := &p.Manifest.Disks[i]; d.ID == r.Disk.ID {
			return d
		}
	}
	for _, live := range s.o.Disks.List() {
		e := live.Entry()
		for i := range p.Manifest.Disks {
			d := &p.Manifest.Disks[i]
			if e.ID == r.Disk.ID.String() && e.Origin.Point == p.ID.String() && e.Origin.DiskID == d.ID.String() ||
				e.ID == d.ID.String() && e.Origin.Point == r.Point.ID.String() && e.Origin.DiskID == r.Disk.ID.String() {
				return d
			}
		}
	}
	return nil
}
