package cbt

import (
	"path/filepath"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/blockdevtest"
	"github.com/keelblock/keelblock/blockdev/localdisk"
)

func onFile(tb testing.TB, size int64, c *Clock) (*localdisk.Disk, *Tracker) {
	tb.Helper()
	dir := tb.TempDir()
	path := filepath.Join(dir, "disk")
	if err := localdisk.Create(path, size); err != nil {
		tb.Fatal(err)
	}
	d, err := localdisk.Open(path, localdisk.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	t, err := Open(d, c, Options{DiskID: path[max(0, len(path)-90):], MapPath: filepath.Join(shm(tb), "map"), SavePath: path + ".map",
		Witness: func() (Witness, bool) { w, ok := d.Witness(); return Witness(w), ok }})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { t.Close() })
	return d, t
}

func TestTrackerIsADevice(t *testing.T) {
	blockdevtest.Run(t, func(t *testing.T, size int64) blockdev.Device {
		_, tr := onFile(t, size, NewClock())
		return tr
	})
}

// TestFrozenTrackerIsADevice: the same while a snapshot is open.
func TestFrozenTrackerIsADevice(t *testing.T) {
	blockdevtest.Run(t, func(t *testing.T, size int64) blockdev.Device {
		c := NewClock()
		_, tr := onFile(t, size, c)
		if size > 0 {
			if err := tr.WriteZeroes(0, size, false); err != nil {
				t.Fatal(err)
			}
		}
		mustFreeze(t, c, tr)
		return tr
	})
}
