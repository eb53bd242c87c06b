package api

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	"github.com/keelblock/keelblock/appliance"
	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/api/keelblockv1/keelblockv1connect"
	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

type disksService struct {
	keelblockv1connect.UnimplementedDisksHandler
	service
}

// Create makes a disk.
func (s disksService) Create(_ context.Context, r *connect.Request[kb.CreateDiskRequest]) (*connect.Response[kb.Disk], error) {
	d, err := s.Disks.Create(disks.Spec{Name: r.Msg.Name, SizeBytes: r.Msg.SizeBytes, Backing: r.Msg.Backing, Role: disks.Role(r.Msg.Role)})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.disk(d)), nil
}

// List returns all disks by name.
func (s disksService) List(context.Context, *connect.Request[kb.ListDisksRequest]) (*connect.Response[kb.ListDisksResponse], error) {
	return connect.NewResponse(&kb.ListDisksResponse{Disks: s.allDisks()}), nil
}

// Get returns one disk.
func (s disksService) Get(_ context.Context, r *connect.Request[kb.GetDiskRequest]) (*connect.Response[kb.Disk], error) {
	d, err := s.Disks.Get(r.Msg.Name)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.disk(d)), nil
}

// Delete deletes a disk that nobody uses.
func (s disksService) Delete(ctx context.Context, r *connect.Request[kb.DeleteDiskRequest]) (*connect.Response[kb.DeleteDiskResponse], error) {
	if err := s.Disks.Delete(ctx, r.Msg.Name); err != nil {
		return nil, err
	}
	return connect.NewResponse(&kb.DeleteDiskResponse{}), nil
}

// Map lists what differs, or may differ, from a point: from the newest that the
// disk's map is relative to, or from SincePoint.
func (s disksService) Map(ctx context.Context, r *connect.Request[kb.MapDiskRequest]) (*connect.Response[kb.MapDiskResponse], error) {
	op := fmt.Sprintf("map disk %q", r.Msg.Name)
	d, err := s.Disks.Get(r.Msg.Name)
	if err != nil {
		return nil, err
	}
	if d.Tracker() == nil {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: "it is not tracked: offline or temporary"}
	}
	set := recoverypoint.NewChangeSet()
	// The map's base is read before the map: a backup that commits in between
	// then makes the answer larger, never smaller.
	base, haveBase, err := s.baseRoot(ctx, d)
	if err != nil {
		return nil, err
	}
	since := base
	if r.Msg.SincePoint != "" {
		if since, err = s.rootSince(ctx, op, d, r.Msg.SincePoint); err != nil {
			return nil, err
		}
	}
	state, _ := d.Tracker().Tracking()
	switch {
	case state != cbt.TrackingEnabled || !haveBase: // nothing is known: all may differ
		set.Add(blockdev.Extent{Length: d.Entry().SizeBytes})
	case since != base:
		h, err := s.Vault.Use(ctx)
		if err != nil {
			return nil, err
		}
		if err := hashtree.Diff(ctx, h.Store, since, base, func(e blockdev.Extent) bool { set.Add(e); return true }); err != nil {
			return nil, fmt.Errorf("%s: %w", op, err)
		}
	}
	d.Tracker().Changed(func(e blockdev.Extent) bool { set.Add(e); return true })
	extents, err := extentsOf(op, set, d.Entry().SizeBytes)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&kb.MapDiskResponse{Extents: extents}), nil
}

// baseRoot is the tree of the point that the disk's map is relative to.
func (s service) baseRoot(ctx context.Context, d *disks.Disk) (root hashtree.Root, ok bool, err error) {
	base, _ := d.Tracker().Bases()
	if base.IsZero() {
		return root, false, nil
	}
	h, err := s.Vault.Use(ctx)
	if err != nil {
		return root, false, err
	}
	p := h.Points.Get(dedupe.Digest(base))
	if p == nil {
		return root, false, nil
	}
	root, ok = diskRoot(p.Manifest, d.Entry())
	return root, ok, nil
}

func (s service) rootSince(ctx context.Context, op string, d *disks.Disk, selector string) (hashtree.Root, error) {
	_, p, _, err := s.Vault.Find(ctx, selector)
	if err != nil {
		return hashtree.Root{}, err
	}
	if root, ok := diskRoot(p.Manifest, d.Entry()); ok {
		return root, nil
	}
	return hashtree.Root{}, &appliance.Error{Op: op, Kind: appliance.ErrNotFound,
		Text: fmt.Sprintf("recovery point %s does not hold this disk", p.ID)}
}

// diskRoot is the tree of a live disk in a point, also in the one it was restored from.
func diskRoot(m *recoverypoint.Manifest, e disks.Entry) (hashtree.Root, bool) {
	id, err := m.ID()
	if err != nil {
		return hashtree.Root{}, false
	}
	for _, d := range m.Disks {
		if d.ID.String() == e.ID || e.Origin.Point == id.String() && d.ID.String() == e.Origin.DiskID {
			return d.Root, true
		}
	}
	return hashtree.Root{}, false
}

// extentsOf is a set as the API has it, bounded.
func extentsOf(op string, set *recoverypoint.ChangeSet, sizeBytes int64) ([]*kb.Extent, error) {
	var out []*kb.Extent
	set.Extents(sizeBytes, func(e blockdev.Extent) bool {
		out = append(out, &kb.Extent{Offset: e.Offset, Length: e.Length})
		return len(out) <= MaxExtents
	})
	if len(out) > MaxExtents {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: fmt.Sprintf("it has more than %d ranges", MaxExtents)}
	}
	return out, nil
}
