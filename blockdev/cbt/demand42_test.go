package cbt

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// TestDemand42CaptureReadsOnlyWhatChanged: the disk is asked for the changed grains
// and for nothing else, each once.
func TestDemand42CaptureReadsOnlyWhatChanged(t *testing.T) {
	d, c := newMemDisk(64*mib), NewClock()
	tr := mustOpen(t, d, c, options(t, d))
	for range 200 {
		mustWrite(t, tr, rand.Int64N(16000)<<grainShift, 4096, 1)
	}
	f := mustFreeze(t, c, tr).Disks[0]
	want, read, got := f.ChangedBytes(), int64(0), int64(0)
	d.fault = func(op string, off, n int64) error {
		if op == "read" {
			read += n
		}
		return nil
	}
	err := f.Capture(context.Background(), Sink{Write: func(off int64, p []byte) error {
		got += int64(len(p))
		return nil
	}})
	if err != nil || read != want || got != want || want == 0 {
		t.Errorf("%d bytes changed, %d were read, %d were handed on: %v", want, read, got, err)
	}
}

// TestChunkIsInASnapshotWholeOrNotAtAll: two clients write 1 MiB of one byte at once,
// over five stripes, while cuts are made. A snapshot never holds half of one (V4).
func TestChunkIsInASnapshotWholeOrNotAtAll(t *testing.T) {
	const start, size = mib/2 + 4096*3, mib
	d, c := newMemDisk(3*mib), NewClock()
	tr := mustOpen(t, d, c, options(t, d))
	var stop atomic.Bool
	var clients sync.WaitGroup
	for client := range byte(2) {
		clients.Go(func() {
			buf := make([]byte, size)
			for k := byte(0); !stop.Load(); k++ {
				for i := range buf {
					buf[i] = k<<1 | client
				}
				// Each client has a chunk of its own, so that two writes never overlap.
				if _, err := tr.WriteAt(buf, start+int64(client)*size); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	content := make([]byte, d.Size())
	for k := range 25 {
		f := mustFreeze(t, c, tr).Disks[0]
		content = capture(t, f, content)
		for client := range int64(2) {
			chunk := content[start+client*size:][:size]
			for i, b := range chunk {
				if b != chunk[0] {
					t.Fatalf("cut %d: byte %d is %d, byte 0 is %d", k, i, b, chunk[0])
				}
			}
		}
		if err := f.Prepare(PointID{1}); err != nil {
			t.Fatal(err)
		}
		if err := f.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	clients.Wait()
}
