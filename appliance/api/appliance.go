package api

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	"github.com/keelblock/keelblock/appliance"
	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/backup"
	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/appliance/doctor"
	"github.com/keelblock/keelblock/appliance/job"
	"github.com/keelblock/keelblock/appliance/vault"
)

type applianceService struct{ service }

// Status is one look at everything. It never waits: what is not open yet is missing.
func (s applianceService) Status(ctx context.Context, _ *connect.Request[kb.StatusRequest]) (*connect.Response[kb.StatusResponse], error) {
	out := &kb.StatusResponse{Version: s.Info.Version, Pid: int64(s.Info.PID), StartedAt: timestamp(s.Info.StartedAt),
		DataDir: s.Info.DataDir, ApiUri: s.Info.APIURI, NbdUris: s.Info.NBDURIs, NbdTls: s.Info.NBDTLS, SiteName: s.Info.SiteName,
		Disks: s.allDisks(), Vault: s.vaultStatus(s.Vaults.Default())}
	if list, err := s.Machines.List(); err == nil {
		for _, m := range list {
			out.Machines = append(out.Machines, s.machine(m))
			if h, p := s.Vaults.Newest(m.ID); p != nil {
				out.LastPoints = append(out.LastPoints, s.point(ctx, h, p))
			}
		}
	}
	for _, r := range s.Jobs.List() {
		if !r.State.Ended() {
			out.RunningJobs = append(out.RunningJobs, jobMessage(r))
		}
	}
	for _, a := range s.alerts(out.Disks) {
		out.Alerts = append(out.Alerts, &kb.Alert{Severity: a.Severity, ObjectName: a.Object, Text: a.Text, Since: timestamp(a.Since)})
	}
	return connect.NewResponse(out), nil
}

// alerts are the daemon's own and what disks and vaults show.
func (s service) alerts(all []*kb.Disk) []Alert {
	out := s.Parts.Alerts()
	if err := s.Vaults.Damage(); err != nil {
		out = append(out, Alert{Severity: "critical", Object: "vaults.json", Text: err.Error()})
	}
	for _, v := range s.Vaults.All() {
		out = append(out, vaultAlerts(v)...)
	}
	out = append(out, s.keyAlerts()...)
	if f := s.Parts.Doctor.Space(); f.Result != doctor.OK {
		severity := map[doctor.Result]string{doctor.Warn: "warning", doctor.Fail: "critical"}[f.Result]
		out = append(out, Alert{Severity: severity, Object: s.Info.DataDir, Text: f.Text})
	}
	out = append(out, s.failedBackups()...)
	out = append(out, s.locationAlerts()...)
	if err := s.Disks.Damage(); err != nil {
		out = append(out, Alert{Severity: "critical", Object: "disks.json", Text: err.Error()})
	}
	for _, d := range all {
		switch disks.State(d.State) {
		case disks.Offline:
			out = append(out, Alert{Severity: "critical", Object: d.Name, Text: "disk is offline: " + d.Reason})
		case disks.Suspect:
			out = append(out, Alert{Severity: "warning", Object: d.Name, Text: "the next backup compares it with the last point: " + d.Reason})
		}
	}
	return out
}

// vaultAlerts are what one vault shows.
func vaultAlerts(v *vault.Vault) []Alert {
	if state, reason := v.State(); state == vault.Closed && reason != nil {
		return []Alert{{Severity: "critical", Object: v.Name(), Text: reason.Error()}}
	}
	h := v.Peek()
	if h == nil {
		return nil
	}
	var out []Alert
	for _, p := range h.Points.Problems() {
		out = append(out, Alert{Severity: "critical", Object: p.ID.String(), Text: "recovery point is not readable: " + p.Err.Error()})
	}
	if n := h.Store.Stats().CorruptBlocks; n > 0 {
		out = append(out, Alert{Severity: "critical", Object: v.Name(),
			Text: fmt.Sprintf("%d reads met damaged blocks; run keelblock recovery-point verify --all", n)})
	}
	return out
}

// failedBackups is one alert for each machine and each group whose newest backup
// failed. A point that a group's backup made of a machine ends the machine's alert.
func (s service) failedBackups() []Alert {
	newest := map[string]job.Record{}
	for _, r := range s.Jobs.List() { // oldest first
		if r.Kind == backup.Kind && r.State.Ended() {
			newest[r.Object] = r
		}
	}
	machines, err := s.Machines.List()
	if err != nil {
		return nil
	}
	groups, err := s.Machines.Groups()
	if err != nil {
		return nil
	}
	var out []Alert
	add := func(name string, r job.Record) {
		if r.State == job.Failed {
			out = append(out, Alert{Severity: "warning", Object: name, Text: "the last backup failed: " + r.Error, Since: r.EndedAt})
		}
	}
	inGroup := map[string]job.Record{}
	for _, g := range groups {
		r := newest[g.Name]
		add(g.Name, r)
		for _, m := range g.Machines {
			inGroup[m] = r
		}
	}
	for _, m := range machines {
		if g := inGroup[m.Name]; g.State != job.Completed && g.State != job.CompletedWithWarnings || g.StartedAt.Before(newest[m.Name].StartedAt) {
			add(m.Name, newest[m.Name])
		}
	}
	return out
}

// Stop begins the end of the daemon and returns.
func (s applianceService) Stop(context.Context, *connect.Request[kb.StopRequest]) (*connect.Response[kb.StopResponse], error) {
	s.Parts.Stop()
	return connect.NewResponse(&kb.StopResponse{Pid: int64(s.Info.PID)}), nil
}

// VaultStatus says what the vault holds, or why it is closed.
func (s applianceService) VaultStatus(_ context.Context, r *connect.Request[kb.VaultStatusRequest]) (*connect.Response[kb.VaultStatusResponse], error) {
	v, err := s.Vaults.Get(r.Msg.Name)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.vaultStatus(v)), nil
}

func (s service) vaultStatus(v *vault.Vault) *kb.VaultStatusResponse {
	state, reason := v.State()
	out := &kb.VaultStatusResponse{Name: v.Name(), State: string(state)}
	if reason != nil {
		out.Reason = reason.Error()
	}
	for _, dir := range []string{v.Spec().Dir, s.Info.DataDir} { // it may not be there yet
		if space, err := vault.SpaceOf(dir); err == nil {
			out.FreeBytes = space.Free
			break
		}
	}
	h := v.Peek()
	if h == nil {
		return out
	}
	out.LastCollection = lastCollection(v.LastCollection())
	st := h.Store.Stats()
	out.Packs, out.PackBytes, out.Blocks, out.CorruptBlocks = st.Packs, st.PackBytes, st.Blocks, st.CorruptBlocks
	out.BlockSizeBytes = int64(h.Store.BlockSize())
	out.RepairedBlocks, out.Locations = st.RepairedBlocks, s.locations(v)
	if quarantined, err := h.Store.Quarantined(); err == nil {
		out.QuarantinedBlocks = int64(len(quarantined))
	}
	for _, d := range s.Verifier.Damaged(h.Vault.Name()) {
		out.DamagedPoints = append(out.DamagedPoints, d.Point.String())
	}
	newest := map[string]int64{} // machine → size of its newest point's disks
	for _, p := range h.Points.List("", true) {
		if p.Deleted {
			out.DeletedPoints++
			continue
		}
		out.Points++
		size := int64(0)
		for _, d := range p.Manifest.Disks {
			size += d.Root.SizeBytes
		}
		newest[p.Manifest.MachineID.String()] = size
	}
	for _, size := range newest {
		out.ProtectedBytes += size
	}
	return out
}

// Doctor checks the machine that the appliance runs on.
func (s applianceService) Doctor(ctx context.Context, _ *connect.Request[kb.DoctorRequest]) (*connect.Response[kb.DoctorResponse], error) {
	out := &kb.DoctorResponse{}
	for _, f := range s.Parts.Doctor.Check(ctx) {
		out.Findings = append(out.Findings, &kb.Finding{Check: f.Check, Result: string(f.Result), Text: f.Text})
	}
	return connect.NewResponse(out), nil
}

// RebuildIndex starts a job that makes the index of a closed vault anew.
func (s applianceService) RebuildIndex(_ context.Context, r *connect.Request[kb.RebuildIndexRequest]) (*connect.Response[kb.Job], error) {
	v, err := s.Vaults.Get(r.Msg.Vault)
	if err != nil {
		return nil, err
	}
	if state, _ := v.State(); state != vault.Closed {
		return nil, &appliance.Error{Op: "rebuild the index of vault " + v.Name(), Kind: appliance.ErrInUse,
			Text: "the vault is " + string(state) + " and needs no rebuild", Hint: "see keelblock vault status"}
	}
	t, err := s.Jobs.Start("RebuildIndex", v.Name(), func(ctx context.Context, t *job.Task) error { return s.Rebuild(ctx, t, v) })
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(jobMessage(t.Record())), nil
}
