package api

import (
	"context"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/job"
)

type jobsService struct{ service }

// List returns all jobs, oldest first.
func (s jobsService) List(context.Context, *connect.Request[kb.ListJobsRequest]) (*connect.Response[kb.ListJobsResponse], error) {
	out := &kb.ListJobsResponse{}
	for _, r := range s.Jobs.List() {
		out.Jobs = append(out.Jobs, jobMessage(r))
	}
	return connect.NewResponse(out), nil
}

// Get returns one job.
func (s jobsService) Get(_ context.Context, r *connect.Request[kb.GetJobRequest]) (*connect.Response[kb.Job], error) {
	rec, err := s.Jobs.Get(r.Msg.JobId)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(jobMessage(rec)), nil
}

// Cancel asks a job to end.
func (s jobsService) Cancel(_ context.Context, r *connect.Request[kb.CancelJobRequest]) (*connect.Response[kb.Job], error) {
	rec, err := s.Jobs.Cancel(r.Msg.JobId)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(jobMessage(rec)), nil
}

// Watch streams a job until it has ended, or all jobs.
func (s jobsService) Watch(ctx context.Context, r *connect.Request[kb.WatchJobRequest], stream *connect.ServerStream[kb.Job]) error {
	return s.Jobs.Watch(ctx, r.Msg.JobId, func(rec job.Record) error { return stream.Send(jobMessage(rec)) })
}
