package cli

import (
	"context"
	"fmt"
	"io"
	"sync"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) jobCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "job", Short: "jobs: list, show, watch, cancel"}
	byID := func(use, short string, run func(ctx context.Context, c *client, id string) error) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(1), ValidArgsFunction: a.completing(false, completeJobs),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				return run(cmd.Context(), c, args[0])
			}}
	}
	cmd.AddCommand(
		&cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "list jobs", Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				c, err := a.client()
				if err != nil {
					return err
				}
				jobs, err := c.listJobs(cmd.Context())
				if err != nil {
					return err
				}
				return a.print(mapped(jobs, toJob), func(w io.Writer) { a.jobTable(w, jobs) })
			}},
		byID("show JOB", "show a job and its steps", func(ctx context.Context, c *client, id string) error {
			r, err := c.jobs.Get(ctx, connect.NewRequest(&kb.GetJobRequest{JobId: id}))
			if err != nil {
				return err
			}
			return a.print(toJob(r.Msg), func(w io.Writer) { describeJob(w, r.Msg) })
		}),
		a.jobWatch(),
		byID("cancel JOB", "cancel a job", func(ctx context.Context, c *client, id string) error {
			r, err := c.jobs.Cancel(ctx, connect.NewRequest(&kb.CancelJobRequest{JobId: id}))
			if err != nil {
				return err
			}
			return a.print(toJob(r.Msg), nil)
		}))
	return cmd
}

func (c *client) listJobs(ctx context.Context) ([]*kb.Job, error) {
	r, err := c.jobs.List(ctx, connect.NewRequest(&kb.ListJobsRequest{}))
	if err != nil {
		return nil, err
	}
	return r.Msg.GetJobs(), nil
}

func completeJobs(ctx context.Context, c *client) []string {
	jobs, _ := c.listJobs(ctx)
	return mapped(jobs, func(j *kb.Job) string {
		return j.GetJobId() + "\t" + jobTitle(j) + " " + j.GetState()
	})
}

func describeJob(w io.Writer, j *kb.Job) {
	amount := human(j.GetDoneBytes())
	if t := j.GetTotalBytes(); t > 0 {
		amount += " of " + human(t)
	}
	describe(w, pair{"job", j.GetJobId()}, pair{"kind", j.GetKind()}, pair{"object", j.GetObjectName()}, pair{"state", j.GetState()},
		pair{"started", at(j.GetStartedAt())}, pair{"ended", at(j.GetEndedAt())}, pair{"done", amount},
		pair{"doing", j.GetDetail()}, pair{"error", j.GetError()})
	for _, s := range j.GetSubTasks() {
		took := ""
		if s.GetEndedAt() != nil {
			took = ", took " + short(s.GetEndedAt().AsTime().Sub(s.GetStartedAt().AsTime()))
		}
		fmt.Fprintf(w, "step %s: %s%s\n", s.GetName(), s.GetState(), took)
	}
	for _, r := range j.GetResult() {
		fmt.Fprintf(w, "result: %s\n", r)
	}
}

func (a *app) jobWatch() *cobra.Command {
	return &cobra.Command{
		Use:   "watch [JOB]",
		Short: "watch a job, or all that run now, until they have ended",
		Long:  "Watches a job until it has ended and exits as the job did. Without a job all that run\nnow are watched.",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			if len(args) == 1 {
				r, err := c.jobs.Get(ctx, connect.NewRequest(&kb.GetJobRequest{JobId: args[0]}))
				if err != nil {
					return err
				}
				return a.finish(ctx, c, r.Msg, false, func(j *kb.Job) error {
					return a.print(toJob(j), func(w io.Writer) { describeJob(w, j) })
				})
			}
			return a.watchRunning(ctx, c)
		},
		ValidArgsFunction: a.completing(false, completeJobs),
	}
}

// watchRunning waits for all jobs that run now. The bars of several would overwrite
// each other, so each job's changes of state are told in lines.
func (a *app) watchRunning(ctx context.Context, c *client) error {
	all, err := c.listJobs(ctx)
	if err != nil {
		return err
	}
	var jobs []*kb.Job
	for _, j := range all {
		if !ended(j) {
			jobs = append(jobs, j)
		}
	}
	if len(jobs) == 0 {
		a.say("no job is running")
	}
	errs := make([]error, len(jobs))
	var wg sync.WaitGroup
	quiet := *a
	quiet.errTerminal = false
	for i := range jobs {
		wg.Go(func() {
			var j *kb.Job
			if j, errs[i] = quiet.follow(ctx, c, jobs[i]); errs[i] == nil {
				jobs[i], errs[i] = j, jobError(j)
			}
		})
	}
	wg.Wait()
	if err := a.print(mapped(jobs, toJob), func(w io.Writer) { a.jobTable(w, jobs) }); err != nil {
		return err
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
