package job

import (
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// The thread of a goroutine in the background stands behind the others, and ends with
// it: no other goroutine may find itself there.
func TestBackgroundTakesAThreadOfItsOwn(t *testing.T) {
	before, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Skip("this kernel does not tell how threads are scheduled:", err)
	}
	if before.Policy != unix.SCHED_NORMAL {
		t.Skipf("the test itself runs with scheduling policy %d, which Background leaves alone", before.Policy)
	}
	if err := tryBatch(); errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		t.Skip("this sandbox does not allow it:", err)
	}
	type seen struct {
		attr *unix.SchedAttr
		err  error
	}
	got := make(chan seen)
	go func() {
		Background()
		a, err := unix.SchedGetAttr(0, 0)
		got <- seen{a, err}
	}()
	s := <-got
	if s.err != nil {
		t.Fatal(s.err)
	}
	if s.attr.Policy != unix.SCHED_BATCH || s.attr.Nice < backgroundNice {
		t.Errorf("thread with policy %d and nice %d, want %d and at least %d", s.attr.Policy, s.attr.Nice, unix.SCHED_BATCH, backgroundNice)
	}
	for range 100 {
		done := make(chan *unix.SchedAttr)
		go func() {
			a, _ := unix.SchedGetAttr(0, 0)
			done <- a
		}()
		if a := <-done; a == nil || a.Policy != before.Policy || a.Nice != before.Nice {
			t.Fatalf("another goroutine runs with %+v, want policy %d and nice %d", a, before.Policy, before.Nice)
		}
	}
}

// tryBatch asks for what Background asks for, on a thread that ends.
func tryBatch() error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		a, err := unix.SchedGetAttr(0, 0)
		if err == nil {
			a.Policy, a.Nice = unix.SCHED_BATCH, max(a.Nice, backgroundNice)
			err = unix.SchedSetAttr(0, a, 0)
		}
		done <- err
	}()
	return <-done
}
