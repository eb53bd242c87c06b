package api

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	"github.com/keelblock/keelblock/appliance"
	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/backup"
	"github.com/keelblock/keelblock/appliance/machine"
)

type groupsService struct{ service }

// Create makes a group of machines. The name must not be that of a machine that left
// points: NAME@latest would mean two things.
func (s groupsService) Create(_ context.Context, r *connect.Request[kb.CreateGroupRequest]) (*connect.Response[kb.Group], error) {
	_, gone := s.Machines.Get(r.Msg.Name)
	if gone != nil && s.lastManifest(r.Msg.Name) != nil {
		return nil, &appliance.Error{Op: fmt.Sprintf("create group %q", r.Msg.Name), Kind: appliance.ErrExists,
			Text: "there are recovery points of a machine with this name", Hint: "choose another name"}
	}
	g, err := s.Machines.CreateGroup(r.Msg.Name, r.Msg.Machines)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.group(g)), nil
}

// group describes a group with its machines as they are.
func (s service) group(g machine.Group) *kb.Group {
	out := &kb.Group{Name: g.Name}
	for _, name := range g.Machines {
		if m, err := s.Machines.Get(name); err == nil {
			out.Machines = append(out.Machines, s.machine(m))
		} else {
			out.Machines = append(out.Machines, &kb.Machine{Name: name})
		}
	}
	return out
}

// List returns all groups by name.
func (s groupsService) List(context.Context, *connect.Request[kb.ListGroupsRequest]) (*connect.Response[kb.ListGroupsResponse], error) {
	list, err := s.Machines.Groups()
	if err != nil {
		return nil, err
	}
	out := &kb.ListGroupsResponse{}
	for _, g := range list {
		out.Groups = append(out.Groups, s.group(g))
	}
	return connect.NewResponse(out), nil
}

// Get returns one group.
func (s groupsService) Get(_ context.Context, r *connect.Request[kb.GetGroupRequest]) (*connect.Response[kb.Group], error) {
	g, err := s.Machines.Group(r.Msg.Name)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(s.group(g)), nil
}

// Delete takes a group apart; its machines and points stay.
func (s groupsService) Delete(_ context.Context, r *connect.Request[kb.DeleteGroupRequest]) (*connect.Response[kb.DeleteGroupResponse], error) {
	if _, err := s.Machines.DeleteGroup(r.Msg.Name); err != nil {
		return nil, err
	}
	return connect.NewResponse(&kb.DeleteGroupResponse{}), nil
}

// Backup starts a backup of all machines at one instant, or joins one that has not
// frozen yet.
func (s groupsService) Backup(ctx context.Context, r *connect.Request[kb.GroupBackupRequest]) (*connect.Response[kb.Job], error) {
	if _, err := s.Machines.Group(r.Msg.Group); err != nil {
		return nil, err
	}
	retain, err := retainFor(r.Msg.RetainSeconds)
	if err != nil {
		return nil, err
	}
	t, err := s.Parts.Backup.Start(ctx, backup.Request{Retain: retain, Actor: actor(ctx), Group: r.Msg.Group, Consistency: r.Msg.Consistency, Note: r.Msg.Note, Vault: r.Msg.Vault})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(jobMessage(t.Record())), nil
}
