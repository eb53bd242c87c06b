package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"

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

var errNothing = errors.New("the daemon sent no result")
