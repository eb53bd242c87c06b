package api

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/appliance/job"
	"github.com/keelblock/keelblock/appliance/machine"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// nbdURI is how clients name an export of nbd.sock.
func (s service) nbdURI(name string) string {
	return "nbd+unix:///" + name + "?socket=" + s.Info.NBDSocket
}

func (s service) disk(d *disks.Disk) *kb.Disk {
	e := d.Entry()
	state, reason := d.State()
	out := &kb.Disk{Name: e.Name, SizeBytes: e.SizeBytes, AllocatedBytes: d.AllocatedBytes(), Role: string(e.Role),
		MachineName: s.Disks.Owner(e.Name), State: string(state), Reason: reason, Uri: s.nbdURI(e.Name), Tracking: cbt.TrackingNone.String(),
		Backing: d.Path(), Connections: int64(s.Disks.Connections(e.Name)), Allow: e.Allow, Exclusive: e.Exclusive}
	device, lacks := s.Disks.Device(d)
	out.Device = device
	if lacks != nil && reason == "" {
		out.Reason = fmt.Sprintf("%s lacks connections: %v", device, lacks)
	}
	out.DirtyBitmaps = s.Cursors.Bitmaps(d)
	if t := d.Tracker(); t != nil {
		tracking, _ := t.Tracking()
		out.Tracking = tracking.String()
		out.ChangedBytes = t.Stats().ChangedBytes
		if base, _ := t.Bases(); !base.IsZero() {
			out.LastPointId = dedupe.Digest(base).String()
		}
	}
	return out
}

func (s service) allDisks() []*kb.Disk {
	var out []*kb.Disk
	for _, d := range s.Disks.List() {
		out = append(out, s.disk(d))
	}
	return out
}

func (s service) machine(m machine.Machine) *kb.Machine {
	out := &kb.Machine{Name: m.Name, SiteName: s.Info.SiteName, Role: "source", Generation: int64(m.Generation),
		Definition: m.Definition, ExcludedDisks: m.Excluded, GroupName: s.Machines.GroupOf(m.Name), Keep: keepRules(m.Retention),
		Vault: cmp.Or(m.Vault, vault.DefaultName)}
	for _, name := range m.Disks {
		if d, err := s.Disks.Get(name); err == nil {
			out.Disks = append(out.Disks, s.disk(d))
		} else {
			out.Disks = append(out.Disks, &kb.Disk{Name: name, MachineName: m.Name, State: string(disks.Offline), Reason: err.Error()})
		}
	}
	if _, p := s.Vaults.Newest(m.ID); p != nil {
		out.LastPointId = p.ID.String()
	}
	return out
}

// point describes a point. What only it needs is left 0 when it cannot be counted.
func (s service) point(ctx context.Context, h *vault.Handle, p *recoverypoint.Point) *kb.RecoveryPoint {
	out := s.briefPoint(h, p)
	unique, err := h.Points.UniqueBytes(ctx, p.ID)
	if err != nil {
		s.Logger.Warn("bytes that only this point needs are not counted", "recovery_point", p.ID, "error", err)
	}
	out.UniqueBytes = unique
	return out
}

// briefPoint describes a point without what has to be counted.
func (s service) briefPoint(h *vault.Handle, p *recoverypoint.Point) *kb.RecoveryPoint {
	m := p.Manifest
	out := &kb.RecoveryPoint{Id: p.ID.String(), MachineName: m.MachineName, CutId: m.CutID.String(),
		Generation: int64(m.Generation.Number), Sequence: int64(m.Sequence), FrozenAt: timestamp(m.FrozenAt),
		Consistency: string(m.Consistency), Reason: m.Reason, Tracking: string(m.Tracking),
		ReadBytes: p.Accounting.ReadBytes, ChangedBytes: m.ChangedBytes, NewBytes: p.Accounting.NewBytes,
		StoredBytes: p.Accounting.StoredBytes, FreezeMicros: m.FreezeMicros, State: "available", Note: m.Note,
		TimeName: h.Points.TimeName(p)}
	if p.Deleted {
		out.State, out.DeletedAt, out.DeletedUntil = "deleted", timestamp(p.DeletedAt), timestamp(p.DeletedUntil)
	}
	for _, d := range m.Disks {
		out.Disks = append(out.Disks, &kb.PointDisk{Name: d.Name, SizeBytes: d.Root.SizeBytes, RootDigest: d.Root.Digest().String()})
	}
	out.Held, out.RetainUntil, out.LockedUntil = p.Held, timestamp(p.RetainUntil), timestamp(p.LockEnd(h.Points.Settings()))
	for _, d := range m.Excluded {
		out.ExcludedDisks = append(out.ExcludedDisks, d.Name)
	}
	return out
}

func jobMessage(r job.Record) *kb.Job {
	out := &kb.Job{JobId: r.ID, Kind: r.Kind, ObjectName: r.Object, State: string(r.State), DoneBytes: r.DoneBytes,
		TotalBytes: r.TotalBytes, StartedAt: timestamp(r.StartedAt), EndedAt: timestamp(r.EndedAt), Error: r.Error,
		ErrorCode: r.ErrorCode, Result: r.Result, Detail: r.Detail}
	for _, t := range r.SubTasks {
		out.SubTasks = append(out.SubTasks, &kb.SubTask{Name: t.Name, State: string(t.State),
			StartedAt: timestamp(t.StartedAt), EndedAt: timestamp(t.EndedAt)})
	}
	return out
}
