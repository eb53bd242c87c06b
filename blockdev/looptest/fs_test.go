package looptest_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/keelblock/keelblock/blockdev/looptest"
)

// What was synced is there after a power cut; what was only written is not. A cut that
// kept everything would prove nothing.
func TestPowerCutForgetsWhatWasNotSynced(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			fs := looptest.New(t, kind, 320<<20)
			synced, written := filepath.Join(fs.Dir, "synced"), filepath.Join(fs.Dir, "written")
			for _, name := range []string{synced, written} {
				f, err := os.Create(name)
				if err != nil {
					t.Fatal(err)
				}
				if _, err = f.Write(bytes.Repeat([]byte{7}, 8192)); err == nil && name == synced {
					err = f.Sync()
				}
				if err != nil || f.Close() != nil {
					t.Fatal(err)
				}
			}
			f, err := os.OpenFile(synced, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(bytes.Repeat([]byte{9}, 4096), 0); err != nil || f.Close() != nil {
				t.Fatal(err)
			}
			fs.CutPower()
			if err := os.WriteFile(filepath.Join(fs.Dir, "late"), nil, 0o600); err == nil {
				t.Error("a file was made after the power cut")
			}
			fs.Remount()
			if got, err := os.ReadFile(synced); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{7}, 8192)) {
				t.Errorf("the synced content is gone: %d bytes, %v", len(got), err)
			}
			if got, err := os.ReadFile(written); err == nil && len(got) > 0 && got[0] == 7 {
				t.Error("what was not synced is there")
			}
			if err := fs.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}
