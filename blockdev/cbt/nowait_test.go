package cbt

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
)

// TestNowaitWritesWaitForNoIntent: in a region that the intent map does not hold a
// write that may not wait writes nothing; once another has made it durable, it does.
func TestNowaitWritesWaitForNoIntent(t *testing.T) {
	d := newMemDisk(64 * mib)
	o := options(t, d)
	o.IntentPath = filepath.Join(t.TempDir(), "intent")
	tr := mustOpen(t, d, NewClock(), o)
	if err := tr.SetBase(PointID{1}); err != nil { // else the first write makes a gibibyte active
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	p[0] = 9
	if _, err := tr.WriteAtNowait(p, 20*mib); !errors.Is(err, blockdev.ErrWouldBlock) || d.data[20*mib] != 0 {
		t.Fatalf("a write of a cold region: %v, the disk holds %d", err, d.data[20*mib])
	}
	mustWrite(t, tr, 20*mib, 4096, 1)
	if _, err := tr.WriteAtNowait(p, 20*mib+8192); err != nil || d.data[20*mib+8192] != 9 {
		t.Errorf("a write of a region that is active: %v, the disk holds %d", err, d.data[20*mib+8192])
	}
	if _, err := tr.WriteAtNowait(p, 40*mib); !errors.Is(err, blockdev.ErrWouldBlock) {
		t.Errorf("a write of another region: %v", err)
	}
	if _, err := tr.WriteAtNowait(p, 64*mib); !errors.Is(err, blockdev.ErrOutOfRange) {
		t.Errorf("a write behind the end: %v", err)
	}
}
