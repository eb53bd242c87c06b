package api

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	"github.com/keelblock/keelblock/appliance"
	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/cursor"
	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

type disksService struct{ service }

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

// Resize waits for the disk's slot, and gives it another size while it is served.
func (s disksService) Resize(ctx context.Context, r *connect.Request[kb.ResizeDiskRequest]) (*connect.Response[kb.Disk], error) {
	if err := s.Disks.CheckResize(r.Msg.Name, r.Msg.SizeBytes, r.Msg.Shrink); err != nil {
		return nil, err
	}
	release, err := s.Backup.Slot(ctx, r.Msg.Name)
	if err != nil {
		return nil, fmt.Errorf("resize disk %q: %w", r.Msg.Name, err)
	}
	defer release()
	d, err := s.Disks.Resize(ctx, r.Msg.Name, r.Msg.SizeBytes, r.Msg.Shrink)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.disk(d)), nil
}

// Edit changes who may use a disk, and its role. A disk on which a cursor stands is not
// made temporary.
func (s disksService) Edit(ctx context.Context, r *connect.Request[kb.EditDiskRequest]) (*connect.Response[kb.Disk], error) {
	if disks.Role(r.Msg.Role) == disks.Temporary {
		if err := s.noCursor(fmt.Sprintf("edit disk %q", r.Msg.Name), r.Msg.Name); err != nil {
			return nil, err
		}
	}
	d, err := s.Disks.Edit(ctx, r.Msg.Name, disks.Change{Allow: r.Msg.Allow, Disallow: r.Msg.Disallow, Exclusive: r.Msg.Exclusive,
		Role: disks.Role(r.Msg.Role)})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.disk(d)), nil
}

// noCursor is an error when a cursor stands on a disk.
func (s service) noCursor(op, disk string) error {
	list, err := s.Cursors.List(disk)
	if err != nil || len(list) == 0 {
		return nil // what does not exist, or is not open, who asked finds out
	}
	return &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: fmt.Sprintf("cursor %q stands on it", list[0].Name),
		Hint: "keelblock cursor delete " + list[0].Name}
}

// Delete deletes a disk that nobody uses, and on which no cursor stands.
func (s disksService) Delete(ctx context.Context, r *connect.Request[kb.DeleteDiskRequest]) (*connect.Response[kb.DeleteDiskResponse], error) {
	if err := s.noCursor(fmt.Sprintf("delete disk %q", r.Msg.Name), r.Msg.Name); err != nil {
		return nil, err
	}
	if err := s.Disks.Delete(ctx, r.Msg.Name); err != nil {
		return nil, err
	}
	return connect.NewResponse(&kb.DeleteDiskResponse{}), nil
}

// Map lists what differs, or may differ, from a point: from the newest that the
// disk's map is relative to, from SincePoint, or from that of a cursor.
func (s disksService) Map(ctx context.Context, r *connect.Request[kb.MapDiskRequest]) (*connect.Response[kb.MapDiskResponse], error) {
	op := fmt.Sprintf("map disk %q", r.Msg.Name)
	d, err := s.Disks.Get(r.Msg.Name)
	if err != nil {
		return nil, err
	}
	var set *recoverypoint.ChangeSet
	var size int64
	switch {
	case r.Msg.SincePoint != "" && r.Msg.Cursor != "":
		err = &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: "a point and a cursor are given", Hint: "give one of them"}
	case r.Msg.Cursor != "":
		set, size, err = s.Cursors.Changes(ctx, d, r.Msg.Cursor)
	default:
		set, size, err = s.changesSince(ctx, op, d, r.Msg.SincePoint)
	}
	if err != nil {
		return nil, err
	}
	extents, err := extentsOf(op, set, size)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&kb.MapDiskResponse{Extents: extents}), nil
}

// changesSince is what changed since the point that selector names; "" is the base of
// the disk's map.
func (s service) changesSince(ctx context.Context, op string, d *disks.Disk, selector string) (set *recoverypoint.ChangeSet, sizeBytes int64, err error) {
	if _, err := s.Vaults.Each(ctx); err != nil {
		return nil, 0, err
	}
	var p *recoverypoint.Point
	if selector != "" {
		if p, _, err = cursor.FindDisk(ctx, s.Vaults, op, selector, d.Entry()); err != nil {
			return nil, 0, err
		}
	}
	return s.Cursors.Since(ctx, d, p)
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
