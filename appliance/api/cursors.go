package api

import (
	"context"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/cursor"
)

type cursorsService struct{ service }

// Create makes a cursor at the newest point of a disk.
func (s cursorsService) Create(ctx context.Context, r *connect.Request[kb.CreateCursorRequest]) (*connect.Response[kb.Cursor], error) {
	c, err := s.Cursors.Create(ctx, r.Msg.Name, r.Msg.Disk)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(cursorMessage(c)), nil
}

// List returns all cursors by name, or those of a disk.
func (s cursorsService) List(_ context.Context, r *connect.Request[kb.ListCursorsRequest]) (*connect.Response[kb.ListCursorsResponse], error) {
	list, err := s.Cursors.List(r.Msg.Disk)
	if err != nil {
		return nil, err
	}
	out := &kb.ListCursorsResponse{}
	for _, c := range list {
		out.Cursors = append(out.Cursors, cursorMessage(c))
	}
	return connect.NewResponse(out), nil
}

// Advance moves a cursor to the newest point of its disk, or to the one given.
func (s cursorsService) Advance(ctx context.Context, r *connect.Request[kb.AdvanceCursorRequest]) (*connect.Response[kb.Cursor], error) {
	c, err := s.Cursors.Advance(ctx, r.Msg.Name, r.Msg.Point)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(cursorMessage(c)), nil
}

// Delete forgets a cursor.
func (s cursorsService) Delete(_ context.Context, r *connect.Request[kb.DeleteCursorRequest]) (*connect.Response[kb.DeleteCursorResponse], error) {
	if err := s.Cursors.Delete(r.Msg.Name); err != nil {
		return nil, err
	}
	return connect.NewResponse(&kb.DeleteCursorResponse{}), nil
}

func cursorMessage(c cursor.Cursor) *kb.Cursor {
	return &kb.Cursor{Name: c.Name, DiskName: c.DiskName, PointId: c.Point, CreatedAt: timestamp(c.CreatedAt),
		AdvancedAt: timestamp(c.AdvancedAt), FrozenAt: timestamp(c.FrozenAt)}
}
