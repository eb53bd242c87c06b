package api

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/job"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/dedupe/collection"
)

// CollectJob is the kind of the jobs that free what no point needs.
const CollectJob = "Collect"

// Usual reasons of a collection; for another one it is made before its time.
const (
	Scheduled = "in its turn"
	onRequest = "on request"
)

// Collect starts a job that frees what no point of a vault needs.
func (s vaultsService) Collect(ctx context.Context, r *connect.Request[kb.CollectRequest]) (*connect.Response[kb.Job], error) {
	v, err := s.Vaults.Get(r.Msg.Vault)
	if err != nil {
		return nil, err
	}
	h, err := v.Use(ctx)
	if err != nil {
		return nil, err
	}
	t, err := StartCollection(s.Jobs, h, onRequest, r.Msg.DryRun)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(jobMessage(t.Record())), nil
}

// StartCollection starts a collection of an open vault, for the reason given. Its result has
// a line for what was done, before it in a dry run one for each point, and one for each
// problem.
func StartCollection(jobs *job.Manager, h *vault.Handle, reason string, dryRun bool) (*job.Task, error) {
	return jobs.Start(CollectJob, h.Vault.Name(), func(ctx context.Context, t *job.Task) error {
		t.Detail("marking what is needed")
		r, err := h.Collect(ctx, vault.CollectOptions{DryRun: dryRun, Reason: reason, Progress: t.Detail})
		if err != nil {
			return err
		}
		if reason != Scheduled && reason != onRequest {
			t.Result("made before its time: " + reason)
		}
		for _, line := range collectionLines(h, r) {
			t.Result(line)
		}
		for _, problem := range r.Problems {
			t.Warn(problem)
		}
		return nil
	})
}

// lastCollection describes how the last collection of a vault went.
func lastCollection(l vault.LastCollection) *kb.Collection {
	return &kb.Collection{StartedAt: timestamp(l.StartedAt), EndedAt: timestamp(l.EndedAt), Outcome: string(l.Outcome), Reason: l.Reason,
		FreedBytes: l.FreedBytes, KeptBytes: l.KeptBytes, Error: l.Error}
}

// collectionLines say what a collection did, in bytes.
func collectionLines(h *vault.Handle, r collection.Report) (lines []string) {
	for _, p := range r.Freeing {
		about := ""
		if !p.Exact {
			about = "at most "
		}
		lines = append(lines, fmt.Sprintf("%s %s alone needs %s%d bytes", p.Point.ID, h.Points.Name(p.Point), about, p.Bytes))
	}
	verb := "freed"
	if r.DryRun {
		verb = "would free"
	}
	return append(lines, fmt.Sprintf("%s %d bytes: %d packs dropped, %d rewritten; %d points, %d bytes live, %d bytes in packs",
		verb, r.FreedBytes, r.DroppedPacks, r.RewrittenPacks, r.Points, r.LiveBytes, r.PackBytes))
}
