package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// Final states of a job.
const (
	jobCompleted    = "Completed"
	jobWithWarnings = "CompletedWithWarnings"
	jobFailed       = "Failed"
	jobCancelled    = "Cancelled"
)

func ended(j *kb.Job) bool {
	switch j.GetState() {
	case jobCompleted, jobWithWarnings, jobFailed, jobCancelled:
		return true
	}
	return false
}

// follow shows a job's progress until it has ended, and returns it as it ended. An
// ended job is no error here: see jobError.
func (a *app) follow(ctx context.Context, c *client, j *kb.Job) (*kb.Job, error) {
	if ended(j) {
		return j, nil
	}
	bar := a.newProgress(jobTitle(j), j.GetTotalBytes())
	defer bar.end()
	for failures := 0; ; {
		last, err := a.watch(ctx, c, j.GetJobId(), func(j *kb.Job) {
			failures = 0
			bar.set(j.GetDoneBytes(), j.GetTotalBytes())
		})
		if last != nil && ended(last) {
			return last, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("stopped watching job %s, which goes on; see keelblock job watch %s: %w", j.GetJobId(), j.GetJobId(), ctx.Err())
		}
		if failures++; err != nil && (failures > 5 || gone(err)) {
			return nil, fmt.Errorf("watch job %s: %w", j.GetJobId(), err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// watch calls seen for each state of a job, and returns the last.
func (a *app) watch(ctx context.Context, c *client, id string, seen func(*kb.Job)) (*kb.Job, error) {
	stream, err := c.jobs.Watch(ctx, connect.NewRequest(&kb.WatchJobRequest{JobId: id}))
	if err != nil {
		return nil, explainer{a, c.address}.explain(err)
	}
	defer stream.Close()
	var last *kb.Job
	for stream.Receive() {
		last = stream.Msg()
		seen(last)
	}
	return last, explainer{a, c.address}.explain(stream.Err())
}

func jobTitle(j *kb.Job) string {
	return strings.ToLower(j.GetKind()) + " " + j.GetObjectName()
}

// jobError is what an ended job means for the exit status.
func jobError(j *kb.Job) error {
	switch j.GetState() {
	case jobFailed:
		text := j.GetError()
		if text == "" {
			text = fmt.Sprintf("%s failed; see keelblock job show %s", jobTitle(j), j.GetJobId())
		}
		var code connect.Code
		if code.UnmarshalText([]byte(j.GetErrorCode())) != nil {
			code = connect.CodeUnknown
		}
		return codeError{code, text}
	case jobCancelled:
		return fmt.Errorf("%s was cancelled", jobTitle(j))
	case jobWithWarnings:
		text := j.GetError()
		if text == "" {
			text = fmt.Sprintf("%s ended with warnings; see keelblock job show %s", jobTitle(j), j.GetJobId())
		}
		return partialError{text}
	}
	return nil
}

// finish waits for a job, prints its result, failed or not, and returns what it means
// for the exit status.
func (a *app) finish(ctx context.Context, c *client, j *kb.Job, noWait bool, result func(*kb.Job) error) error {
	if noWait {
		return a.printJobID(j)
	}
	j, err := a.follow(ctx, c, j)
	if err != nil {
		return err
	}
	if err := result(j); err != nil {
		return err
	}
	return jobError(j)
}

// printLines prints the result of a job that has a line for each thing it did.
func (a *app) printLines(j *kb.Job) error {
	return a.print(toJob(j), func(w io.Writer) {
		for _, line := range j.GetResult() {
			fmt.Fprintln(w, line)
		}
	})
}

// startsJob makes cmd, which takes no arguments, start a job and print what came of it, or
// with --no-wait the job's id. It gives it --vault, for the request's field.
func (a *app) startsJob(cmd *cobra.Command, vault *string, start func(ctx context.Context, c *client) (*connect.Response[kb.Job], error)) *cobra.Command {
	var noWait bool
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		j, err := start(cmd.Context(), c)
		if err != nil {
			return err
		}
		return a.finish(cmd.Context(), c, j.Msg, noWait, a.printLines)
	}
	cmd.ValidArgsFunction = a.completing(false, completeNothing)
	cmd.Flags().StringVar(vault, "vault", "", "the vault (default: default)")
	_ = cmd.RegisterFlagCompletionFunc("vault", a.completing(true, completeVaults))
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "print the job's id and return at once")
	return cmd
}

var errNothing = errors.New("the daemon sent no result")
