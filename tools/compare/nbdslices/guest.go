package main

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/nbd"
)

// sample is one write of a guest.
type sample struct {
	sent time.Time
	took time.Duration
}

// guest writes 4 KiB at random places, perSecond of them, until ctx ends. It sends each
// when it is due, whether or not those before it were answered, so that a server that
// stalls is asked on and every request that it delays counts.
//
// Its thread has real-time priority if it may: how long a guest waits for a core of its
// own, once it is answered, says nothing of a server. (With an ordinary thread the quiet
// p99 of either disk was between 210 and 470 us from one minute to the next, with this
// one 126 us.)
func (l *load) guest(ctx context.Context, perSecond int) (list []sample, err error) {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0); err != nil {
		fmt.Println("# no real-time priority for the guests, whose latencies hold their own waits for a core:", err)
	}
	// The kernel may let a thread sleep 50 us too long, which would show as latency
	// where a reply comes just after a request.
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	every := time.Second / time.Duration(perSecond)
	s := shape{write: true, bytes: 4 << 10}
	underWay := map[uint64]time.Time{}
	cookie := uint64(0)
	for due := time.Now(); ctx.Err() == nil || len(underWay) > 0; {
		now := time.Now()
		if ctx.Err() == nil && !now.Before(due) {
			cookie++
			underWay[cookie] = now
			l.request(s, cookie)
			if err := l.flush(); err != nil {
				return nil, err
			}
			due = due.Add(every)
			if now.Sub(due) > 10*time.Millisecond {
				due = now // this thread itself was held up: no burst to make up for it
			}
			continue
		}
		wait := unix.NsecToTimespec(int64(max(due.Sub(now), 0)))
		if ctx.Err() != nil {
			wait = unix.NsecToTimespec(int64(time.Second))
		}
		fds := []unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}
		if n, err := unix.Ppoll(fds, &wait, nil); n <= 0 {
			if err != nil && err != unix.EINTR {
				return nil, err
			}
			continue
		}
		for first := true; first || l.w-l.r >= nbd.SimpleReplySize; first = false {
			_, k, err := l.reply()
			if err != nil {
				return nil, err
			}
			list = append(list, sample{underWay[k], time.Since(underWay[k])})
			delete(underWay, k)
		}
	}
	return list, nil
}

// window is a stretch of time.
type window struct{ from, to time.Time }

// in are those of a guest's writes that were sent within a window.
func in(list []sample, w window) (took []time.Duration) {
	for _, s := range list {
		if !s.sent.Before(w.from) && s.sent.Before(w.to) {
			took = append(took, s.took)
		}
	}
	return took
}

// percentile of at least one latency; part is 0.99 for p99.
func percentile(list []time.Duration, part float64) time.Duration {
	list = slices.SortedFunc(slices.Values(list), cmp.Compare)
	return list[min(int(float64(len(list))*part), len(list)-1)]
}

func describe(list []time.Duration) string {
	if len(list) == 0 {
		return "nothing"
	}
	return fmt.Sprintf("p50 %s p90 %s p99 %s p99.9 %s max %s of %d", microseconds(percentile(list, 0.5)), microseconds(percentile(list, 0.9)),
		microseconds(percentile(list, 0.99)), microseconds(percentile(list, 0.999)), microseconds(percentile(list, 1)), len(list))
}
