package api

import (
	"context"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/disks"
)

// Attach attaches a disk to a device of the host's kernel.
func (s disksService) Attach(ctx context.Context, r *connect.Request[kb.AttachDiskRequest]) (*connect.Response[kb.Disk], error) {
	err := s.Disks.Attach(ctx, r.Msg.Name, disks.Attached{Device: r.Msg.Device, Connections: int(r.Msg.Connections), ReadOnly: r.Msg.ReadOnly})
	if err != nil {
		return nil, err
	}
	return s.named(r.Msg.Name)
}

// Detach frees the device that a disk is attached to.
func (s disksService) Detach(ctx context.Context, r *connect.Request[kb.DetachDiskRequest]) (*connect.Response[kb.Disk], error) {
	if err := s.Disks.Detach(ctx, r.Msg.Name); err != nil {
		return nil, err
	}
	return s.named(r.Msg.Name)
}

// named answers with the disk of this name as it is now.
func (s disksService) named(name string) (*connect.Response[kb.Disk], error) {
	d, err := s.Disks.Get(name)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.disk(d)), nil
}
