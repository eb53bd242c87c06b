package faultdev_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/blockdevtest"
	"github.com/keelblock/keelblock/blockdev/faultdev"
	"github.com/keelblock/keelblock/blockdev/localdisk"
)

func open(t *testing.T, size int64) *faultdev.Device {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := localdisk.Create(path, size); err != nil {
		t.Fatal(err)
	}
	d, err := localdisk.Open(path, localdisk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	f := faultdev.New(d)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestConformance(t *testing.T) {
	blockdevtest.Run(t, func(t *testing.T, size int64) blockdev.Device { return open(t, size) })
}

func TestConformanceWhileForgetting(t *testing.T) {
	blockdevtest.Run(t, func(t *testing.T, size int64) blockdev.Device {
		d := open(t, size)
		d.Forget()
		return d
	})
}

// plain hides the abilities of the Device below.
type plain struct{ blockdev.Device }

func TestConformanceOverAPlainDevice(t *testing.T) {
	blockdevtest.Run(t, func(t *testing.T, size int64) blockdev.Device {
		return faultdev.New(plain{open(t, size)})
	})
}

func TestFaultIsReturnedAndTearsTheWrite(t *testing.T) {
	d := open(t, 8192)
	d.Inject(func(r faultdev.Request) faultdev.Fault {
		if r.Op == faultdev.Write && r.Offset == 1024 {
			return faultdev.Fault{Err: blockdev.ErrNoSpace, DoneBytes: 512}
		}
		return faultdev.Fault{}
	})
	p := bytes.Repeat([]byte{7}, 2048)
	if n, err := d.WriteAt(p, 1024); n != 512 || !errors.Is(err, blockdev.ErrNoSpace) {
		t.Errorf("WriteAt = %d, %v; want 512, ErrNoSpace", n, err)
	}
	if n, err := d.WriteAt(p, 4096); n != 2048 || err != nil {
		t.Errorf("WriteAt elsewhere = %d, %v", n, err)
	}
	got := make([]byte, 8192)
	if _, err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 8192)
	copy(want[1024:1536], p)
	copy(want[4096:], p)
	if !bytes.Equal(got, want) {
		t.Error("the torn write left something else than its first 512 bytes")
	}
	if n := d.Count(faultdev.Write); n != 2 {
		t.Errorf("Count(Write) = %d, want 2", n)
	}
}

func TestHoldStopsARequestUntilRelease(t *testing.T) {
	d := open(t, 4096)
	h := d.Hold(func(r faultdev.Request) bool { return r.Op == faultdev.Flush })
	done := make(chan error, 1)
	go func() { done <- d.Flush() }()
	if r := <-h.Arrived(); r.Op != faultdev.Flush {
		t.Errorf("held %v, want a flush", r)
	}
	select {
	case <-done:
		t.Error("Flush returned while it was held")
	case <-time.After(20 * time.Millisecond):
	}
	h.Release()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestPowerCutLosesOnlyWhatWasNotFlushed(t *testing.T) {
	d := open(t, 64<<10)
	d.Forget()
	durable, volatile := bytes.Repeat([]byte{1}, 64<<10), bytes.Repeat([]byte{2}, 32<<10)
	if _, err := d.WriteAt(durable, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(volatile, 100); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteZeroes(50<<10, 1024, true); err != nil {
		t.Fatal(err)
	}
	lost, err := d.PowerCut(rand.New(rand.NewPCG(1, 2)))
	if err != nil || lost == 0 {
		t.Fatalf("PowerCut lost %d sectors, %v", lost, err)
	}
	if _, err := d.ReadAt(make([]byte, 1), 0); !errors.Is(err, faultdev.ErrPowerCut) {
		t.Errorf("ReadAt after the cut: %v", err)
	}
	d.PowerOn()
	got := make([]byte, 64<<10)
	if _, err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	old, kept := 0, 0
	for s := 0; s < len(got); s += 512 {
		sector := got[s : s+512]
		switch {
		case bytes.Equal(sector, durable[:512]):
			old++
		case s >= 512 && s < 32<<10 && bytes.Equal(sector, volatile[:512]),
			s >= 50<<10 && s < 51<<10 && bytes.Equal(sector, make([]byte, 512)):
			kept++
		case s == 0 && bytes.Equal(sector[:100], durable[:100]), s == 32<<10 && bytes.Equal(sector[100:], durable[100:512]):
			kept++ // the borders of the write
		default:
			t.Fatalf("sector at %d is neither old nor new", s)
		}
	}
	if kept == 0 || old < lost {
		t.Errorf("%d sectors lost, %d old, %d new: want some of both", lost, old, kept)
	}
}
