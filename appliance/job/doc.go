// Package job runs everything that takes time: backups, restores, verifications.
//
// A job is started by [Manager.Start] with the function that does the work, and
// is observed by its [Record]: state, progress in bytes, sub-tasks with times, the
// result, the error. Its states are those of the model system:
//
//	InProgress → Completed | CompletedWithWarnings | Failed
//	InProgress → Cancelling → Cancelled | (what it managed to become)
//
// [Next] is that machine, as a pure function. One goroutine owns each job; the
// Manager joins them all in [Manager.Drain].
//
// # Durability
//
// The record is written to the history (a collection of the catalog) before the
// work begins and when it has ended. A job that a kill interrupted is found
// InProgress by [Manager.Attach] and becomes Failed, "interrupted". Progress
// between is in memory only. A history that cannot be written (a full file system)
// is logged and stops no job. The history keeps the newest [HistoryLimit] jobs.
//
// # Limits
//
// At most Options.Running jobs run at once and Options.Waiting wait for their turn;
// one more is refused. Lock order: Manager.mu before Task.mu.
package job
