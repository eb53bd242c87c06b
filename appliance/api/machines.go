package api

import (
	"context"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/backup"
	"github.com/keelblock/keelblock/appliance/machine"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
	"github.com/keelblock/keelblock/dedupe/retention"
)

type machinesService struct{ service }

// Create makes a machine; with the name of an earlier one it goes on with its points.
func (s machinesService) Create(ctx context.Context, r *connect.Request[kb.CreateMachineRequest]) (*connect.Response[kb.Machine], error) {
	var earlier *machine.Identity
	if _, err := s.Vaults.Each(ctx); err == nil {
		if m := s.lastManifest(r.Msg.Name); m != nil {
			earlier = &machine.Identity{ID: m.MachineID.String(), GenerationID: m.Generation.ID.String(), Generation: m.Generation.Number}
		}
	}
	m, err := s.Machines.Create(r.Msg.Name, r.Msg.Disks, r.Msg.Definition, earlier)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.machine(m)), nil
}

// lastManifest is that of the point that was cut last of all machines of a name.
func (s service) lastManifest(machine string) *recoverypoint.Manifest {
	var last *recoverypoint.Manifest
	for _, h := range s.Vaults.Handles() {
		if list := h.Points.List(machine, true); len(list) > 0 {
			if m := list[len(list)-1].Manifest; last == nil || m.FrozenAt.After(last.FrozenAt) {
				last = m
			}
		}
	}
	return last
}

// List returns all machines by name.
func (s machinesService) List(context.Context, *connect.Request[kb.ListMachinesRequest]) (*connect.Response[kb.ListMachinesResponse], error) {
	list, err := s.Machines.List()
	if err != nil {
		return nil, err
	}
	out := &kb.ListMachinesResponse{}
	for _, m := range list {
		out.Machines = append(out.Machines, s.machine(m))
	}
	return connect.NewResponse(out), nil
}

// Get returns one machine.
func (s machinesService) Get(_ context.Context, r *connect.Request[kb.GetMachineRequest]) (*connect.Response[kb.Machine], error) {
	m, err := s.Machines.Get(r.Msg.Name)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.machine(m)), nil
}

// Edit adds, removes and excludes disks and changes the definition.
func (s machinesService) Edit(_ context.Context, r *connect.Request[kb.EditMachineRequest]) (*connect.Response[kb.Machine], error) {
	if r.Msg.Vault != nil {
		if _, err := s.Vaults.Get(*r.Msg.Vault); err != nil {
			return nil, err
		}
	}
	var rules *retention.Rules
	if r.Msg.Keep != nil {
		m, err := s.Machines.Get(r.Msg.Name)
		if err != nil {
			return nil, err
		}
		given := rulesOf(r.Msg.Keep)
		if err := s.checkRules(m, given); err != nil {
			return nil, err
		}
		rules = &given
	}
	m, err := s.Machines.Edit(r.Msg.Name, machine.Change{Retention: rules, Add: r.Msg.AddDisks, Remove: r.Msg.RemoveDisks,
		Exclude: r.Msg.ExcludeDisks, Definition: r.Msg.Definition, Vault: r.Msg.Vault})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.machine(m)), nil
}

// Delete deletes a machine; its disks and points stay.
func (s machinesService) Delete(_ context.Context, r *connect.Request[kb.DeleteMachineRequest]) (*connect.Response[kb.DeleteMachineResponse], error) {
	if err := s.Machines.Delete(r.Msg.Name); err != nil {
		return nil, err
	}
	return connect.NewResponse(&kb.DeleteMachineResponse{}), nil
}

// Backup starts a backup, or joins one that has not frozen yet.
func (s machinesService) Backup(ctx context.Context, r *connect.Request[kb.BackupRequest]) (*connect.Response[kb.Job], error) {
	retain, err := retainFor(r.Msg.RetainSeconds)
	if err != nil {
		return nil, err
	}
	t, err := s.Parts.Backup.Start(ctx, backup.Request{Retain: retain, Actor: actor(ctx), Machine: r.Msg.Machine, Consistency: r.Msg.Consistency, Note: r.Msg.Note, Vault: r.Msg.Vault})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(jobMessage(t.Record())), nil
}
