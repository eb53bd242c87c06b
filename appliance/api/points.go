package api

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/keelblock/keelblock/appliance"
	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/dirtybitmap"
	"github.com/keelblock/keelblock/appliance/readers"
	"github.com/keelblock/keelblock/appliance/restore"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

type pointsService struct{ service }

// List returns the points of a machine, of a group's machines, or all, oldest first.
func (s pointsService) List(ctx context.Context, r *connect.Request[kb.ListPointsRequest]) (*connect.Response[kb.ListPointsResponse], error) {
	handles, err := s.Vaults.Each(ctx)
	if err != nil {
		return nil, err
	}
	out, known := &kb.ListPointsResponse{}, r.Msg.Machine == ""
	g, groupErr := s.Machines.Group(r.Msg.Machine)
	for _, h := range handles {
		list := h.Points.List(r.Msg.Machine, r.Msg.Deleted)
		if groupErr == nil {
			list = slices.DeleteFunc(h.Points.List("", r.Msg.Deleted), func(p *recoverypoint.Point) bool {
				return !slices.Contains(g.Machines, p.Manifest.MachineName)
			})
		}
		known = known || groupErr == nil || len(h.Points.List(r.Msg.Machine, true)) > 0
		for _, p := range list {
			out.Points = append(out.Points, s.point(ctx, h, p))
		}
	}
	if !known {
		if _, err := s.Machines.Get(r.Msg.Machine); err != nil {
			return nil, err
		}
	}
	if len(handles) > 1 { // each vault's are in order already
		slices.SortStableFunc(out.Points, func(a, b *kb.RecoveryPoint) int { return a.FrozenAt.AsTime().Compare(b.FrozenAt.AsTime()) })
	}
	return connect.NewResponse(out), nil
}

// Get resolves any spelling of a point and says what it names.
func (s pointsService) Get(ctx context.Context, r *connect.Request[kb.GetPointRequest]) (*connect.Response[kb.GetPointResponse], error) {
	h, p, rest, err := s.Vaults.Find(ctx, r.Msg.Selector)
	if err != nil {
		return nil, err
	}
	if r.Msg.Brief {
		return connect.NewResponse(&kb.GetPointResponse{Point: s.briefPoint(h, p), Disk: rest}), nil
	}
	out := &kb.GetPointResponse{Point: s.point(ctx, h, p), Disk: rest}
	def, err := recoverypoint.LoadContent(ctx, h.Store, p.Manifest.Definition)
	if err != nil {
		return nil, fmt.Errorf("definition of recovery point %s: %w", p.ID, err)
	}
	out.Point.Definition = string(def)
	return connect.NewResponse(out), nil
}

// Delete deletes a point softly, or for good.
func (s pointsService) Delete(ctx context.Context, r *connect.Request[kb.DeletePointRequest]) (*connect.Response[kb.RecoveryPoint], error) {
	h, p, rest, err := s.Vaults.Find(ctx, r.Msg.Point)
	if err != nil {
		return nil, err
	}
	before := s.point(ctx, h, p)
	// By id: another point may be the latest by now.
	selector := p.ID.String()
	if rest != "" {
		selector += ":" + rest
	}
	if p, err = s.Vaults.Delete(ctx, selector, r.Msg.Purge, actor(ctx), s.Clock.Now()); err != nil {
		return nil, err
	}
	before.State = "deleted"
	before.DeletedAt, before.DeletedUntil = timestamp(p.DeletedAt), timestamp(p.DeletedUntil)
	return connect.NewResponse(before), nil
}

// Undelete brings a soft-deleted point back.
func (s pointsService) Undelete(ctx context.Context, r *connect.Request[kb.UndeletePointRequest]) (*connect.Response[kb.RecoveryPoint], error) {
	return s.restated(ctx)(s.Vaults.Undelete(ctx, r.Msg.Point, actor(ctx), s.Clock.Now()))
}

// Diff lists what differs between two points, disk by disk, from their trees. A disk
// that only one of them holds differs wherever it has data.
func (s pointsService) Diff(ctx context.Context, r *connect.Request[kb.DiffPointsRequest]) (*connect.Response[kb.DiffPointsResponse], error) {
	h, from, fromDisk, err := s.Vaults.Find(ctx, r.Msg.From)
	if err != nil {
		return nil, err
	}
	other, to, toDisk, err := s.Vaults.Find(ctx, r.Msg.To)
	if err != nil {
		return nil, err
	}
	op := fmt.Sprintf("compare recovery points %s and %s", from.ID, to.ID)
	if other != h {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf("they are in vault %q and vault %q", h.Vault.Name(), other.Vault.Name()),
			Hint: "compare points of one vault"}
	}
	only := r.Msg.Disk
	for _, rest := range []string{fromDisk, toDisk} {
		if only == "" {
			only = rest
		} else if rest != "" && rest != only {
			return nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf("disks %q and %q are named; compare one disk", only, rest)}
		}
	}
	out := &kb.DiffPointsResponse{}
	for _, name := range unionOfDisks(from.Manifest, to.Manifest) {
		if only != "" && name != only {
			continue
		}
		extents, err := diffDisk(ctx, op, h, rootOf(from.Manifest, to.Manifest, name), rootOf(to.Manifest, from.Manifest, name))
		if err != nil {
			return nil, fmt.Errorf("%s: disk %q: %w", op, name, err)
		}
		out.Disks = append(out.Disks, &kb.DiskDiff{Disk: name, Extents: extents})
	}
	if only != "" && len(out.Disks) == 0 {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrNotFound, Text: fmt.Sprintf("neither has a disk %q", only)}
	}
	return connect.NewResponse(out), nil
}

func diffDisk(ctx context.Context, op string, h *vault.Handle, a, b hashtree.Root) ([]*kb.Extent, error) {
	set := recoverypoint.NewChangeSet()
	if err := hashtree.Diff(ctx, h.Store, a, b, func(e blockdev.Extent) bool { set.Add(e); return true }); err != nil {
		return nil, err
	}
	return extentsOf(op, set, max(a.SizeBytes, b.SizeBytes))
}

// rootOf is the tree of a disk of m; when m does not have it, an empty tree of the
// size that it has in other.
func rootOf(m, other *recoverypoint.Manifest, name string) hashtree.Root {
	if d := m.Disk(name); d != nil {
		return d.Root
	}
	r := other.Disk(name).Root
	return hashtree.Root{SizeBytes: r.SizeBytes, BlockSize: r.BlockSize, Depth: r.Depth}
}

func unionOfDisks(a, b *recoverypoint.Manifest) []string {
	var out []string
	for _, d := range a.Disks {
		out = append(out, d.Name)
	}
	for _, d := range b.Disks {
		if a.Disk(d.Name) == nil {
			out = append(out, d.Name)
		}
	}
	return out
}

// Verify starts a job that reads everything of a point, or of all points.
func (s pointsService) Verify(ctx context.Context, r *connect.Request[kb.VerifyRequest]) (*connect.Response[kb.Job], error) {
	t, err := s.Verifier.Start(ctx, r.Msg.Point)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(jobMessage(t.Record())), nil
}

// RestoreDisk starts a restore to a new disk.
func (s pointsService) RestoreDisk(ctx context.Context, r *connect.Request[kb.RestoreDiskRequest]) (*connect.Response[kb.Job], error) {
	t, err := s.Restore.Start(ctx, restore.Request{Point: r.Msg.Point, Disk: r.Msg.Disk, Name: r.Msg.Name})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(jobMessage(t.Record())), nil
}

// progressInterval is how often a stream says how far it is.
const progressInterval = 200 * time.Millisecond

// RestoreFile writes a disk of a point to the file that came with the call.
func (s pointsService) RestoreFile(ctx context.Context, r *connect.Request[kb.RestoreFileRequest], stream *connect.ServerStream[kb.RestoreFileResponse]) error {
	f := handedOver(ctx)
	if f == nil {
		return stream.Send(&kb.RestoreFileResponse{Declined: "no file came with the call"})
	}
	defer f.Close() // the caller syncs it
	if uid := peerOf(ctx).UID; uid != os.Geteuid() {
		// What this user may take of a disk is not what the daemon may.
		return stream.Send(&kb.RestoreFileResponse{Declined: fmt.Sprintf("the daemon is of another user than %d", uid)})
	}
	var done, total atomic.Int64
	end, told := make(chan struct{}), make(chan error, 1)
	go func() { // waited for below
		tick := time.NewTicker(progressInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if err := stream.Send(&kb.RestoreFileResponse{DoneBytes: done.Load(), TotalBytes: total.Load()}); err != nil {
					<-end
					told <- err
					return
				}
			case <-end:
				told <- nil
				return
			}
		}
	}()
	size, written, err := s.Restore.ToFile(ctx, r.Msg.Point, r.Msg.Disk, restore.File{File: f, Progress: func(n, of int64) { done.Store(n); total.Store(of) }})
	close(end)
	sendErr := <-told
	switch {
	case errors.Is(err, restore.ErrUnsuitable):
		return stream.Send(&kb.RestoreFileResponse{Declined: err.Error()})
	case err != nil:
		return err
	case sendErr != nil:
		return sendErr
	}
	return stream.Send(&kb.RestoreFileResponse{Done: true, SizeBytes: size, WrittenBytes: written})
}

// OpenReader serves a disk of a point on points.sock for the user who calls.
func (s pointsService) OpenReader(ctx context.Context, r *connect.Request[kb.OpenReaderRequest]) (*connect.Response[kb.OpenReaderResponse], error) {
	rd, err := s.Readers.Open(ctx, r.Msg.Point, r.Msg.Disk, peerOf(ctx).UID, time.Duration(r.Msg.TtlSeconds)*time.Second)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&kb.OpenReaderResponse{ExportName: rd.Name, Socket: s.Info.PointsPath,
		PointId: rd.Point.ID.String(), Disk: rd.Disk.Name, SizeBytes: rd.Disk.Root.SizeBytes}), nil
}

// CloseReader ends a reader of the user who calls.
func (s pointsService) CloseReader(ctx context.Context, r *connect.Request[kb.CloseReaderRequest]) (*connect.Response[kb.CloseReaderResponse], error) {
	if err := s.Readers.Close(ctx, r.Msg.ExportName, peerOf(ctx).UID); err != nil {
		return nil, err
	}
	return connect.NewResponse(&kb.CloseReaderResponse{}), nil
}

// Export serves a disk of a point on nbd.sock until Unexport or a stop of the daemon.
func (s pointsService) Export(ctx context.Context, r *connect.Request[kb.ExportRequest]) (*connect.Response[kb.ExportResponse], error) {
	rd, err := s.Readers.Export(ctx, r.Msg.Point, r.Msg.Disk, r.Msg.Name, r.Msg.Since)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.export(rd)), nil
}

// Unexport takes a named export back.
func (s pointsService) Unexport(ctx context.Context, r *connect.Request[kb.UnexportRequest]) (*connect.Response[kb.UnexportResponse], error) {
	if err := s.Readers.Unexport(ctx, r.Msg.Name); err != nil {
		return nil, err
	}
	return connect.NewResponse(&kb.UnexportResponse{}), nil
}

// ListExports returns the named exports, by name.
func (s pointsService) ListExports(context.Context, *connect.Request[kb.ListExportsRequest]) (*connect.Response[kb.ListExportsResponse], error) {
	out := &kb.ListExportsResponse{}
	for _, rd := range s.Readers.Exports() {
		out.Exports = append(out.Exports, s.export(rd))
	}
	return connect.NewResponse(out), nil
}

func (s service) export(rd *readers.Reader) *kb.ExportResponse {
	out := &kb.ExportResponse{Name: rd.Name, Uri: s.nbdURI(rd.Name), PointId: rd.Point.ID.String(), Disk: rd.Disk.Name,
		SizeBytes: rd.Disk.Root.SizeBytes}
	if rd.Since != nil {
		out.SincePointId, out.DirtyBitmaps = rd.Since.ID.String(), []string{dirtybitmap.Since(rd.Since)}
	}
	return out
}
