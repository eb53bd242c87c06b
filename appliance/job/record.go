package job

import (
	"slices"
	"time"
)

// Record is what is known of a job.
type Record struct {
	// ID is unique and sorts by the time of the start.
	ID string `json:"id"`
	// Kind is Backup, Restore, Verify …; Object is the name of what it works on.
	Kind   string `json:"kind"`
	Object string `json:"object"`
	State  State  `json:"state"`
	// DoneBytes of TotalBytes; TotalBytes is 0 while unknown.
	DoneBytes  int64 `json:"doneBytes"`
	TotalBytes int64 `json:"totalBytes"`
	// StartedAt is when it was asked for; EndedAt is zero until it has ended.
	StartedAt time.Time `json:"startedAt"`
	EndedAt   time.Time `json:"endedAt"`
	// Error is why it failed, or its warnings; ErrorCode is the error's class.
	Error     string `json:"error,omitempty"`
	ErrorCode string `json:"errorCode,omitempty"`
	// Result: Backup gives the ids of the points, Verify a line for each finding.
	Result []string `json:"result,omitempty"`
	// SubTasks in the order in which they began.
	SubTasks []SubTask `json:"subTasks,omitempty"`
	// Detail is one short line: what it is doing now.
	Detail string `json:"detail,omitempty"`
}

// SubTask is a named part of a job with its times.
type SubTask struct {
	Name      string    `json:"name"`
	State     State     `json:"state"`
	StartedAt time.Time `json:"startedAt"`
	EndedAt   time.Time `json:"endedAt"`
}

func (r Record) clone() Record {
	r.Result = slices.Clone(r.Result)
	r.SubTasks = slices.Clone(r.SubTasks)
	return r
}

// equal reports whether a watcher of both would see the same.
func (r Record) equal(o Record) bool {
	return r.ID == o.ID && r.State == o.State && r.DoneBytes == o.DoneBytes && r.TotalBytes == o.TotalBytes &&
		r.Error == o.Error && r.Detail == o.Detail && r.EndedAt.Equal(o.EndedAt) &&
		slices.Equal(r.Result, o.Result) && slices.Equal(r.SubTasks, o.SubTasks)
}
