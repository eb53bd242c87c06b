package job

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// backgroundNice leaves a job a tenth of a core that a guest's requests fill, so
	// that it ends nevertheless.
	backgroundNice = 10
	// backgroundSlice is how long the kernel lets such a thread run when nobody else
	// wants to. A thread that wakes takes the core at once from one whose slice is
	// longer than its own, and else waits until that slice is over.
	backgroundSlice = 20 * time.Millisecond
)

// Background gives the calling goroutine a thread of its own, behind those that serve
// guests; both end together. It is for a goroutine that computes: a hand-over to it
// costs a switch of threads.
//
// Linux lets a thread that wakes wait until the one that has the core has used up its
// slice. A request that arrived while workers hashed on every core waited for
// milliseconds before anything of ours saw it (ARCHITECTURE.md, "Who gets the core").
// A kernel before 6.12 knows no slices of threads and minds the rest. Where the kernel
// allows none of it the job runs as everything else does.
func Background() {
	runtime.LockOSThread() // never unlocked: the thread must serve nobody else afterwards
	a, err := unix.SchedGetAttr(0, 0)
	if err != nil || a.Policy != unix.SCHED_NORMAL {
		return // the operator has chosen another policy for the daemon
	}
	a.Policy, a.Nice, a.Runtime = unix.SCHED_BATCH, max(a.Nice, backgroundNice), uint64(backgroundSlice)
	_ = unix.SchedSetAttr(0, a, 0)
}
