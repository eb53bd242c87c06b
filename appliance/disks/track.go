package disks

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/appliance/statefile"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/blockdev/localdisk"
)

const (
	mapSuffix    = ".map"
	intentSuffix = ".intent"
	spillSuffix  = ".spill"
	minSpill     = 1 << 30
	runMaps      = "/run/keelblock"
	// tmpfsMagic is TMPFS_MAGIC of linux/magic.h.
	tmpfsMagic = 0x01021994
)

// track puts the changed-block tracker over an open file.
func (r *Registry) track(e Entry, f *localdisk.Disk) (*cbt.Tracker, error) {
	spill := r.o.SpillBytes
	if spill == 0 {
		spill = max(e.SizeBytes/10, minSpill)
	}
	return cbt.Open(f, r.o.Clock, cbt.Options{
		DiskID:     e.ID,
		MapPath:    filepath.Join(r.o.MapDir, e.ID+mapSuffix),
		SavePath:   filepath.Join(r.o.Dir, e.ID+mapSuffix),
		IntentPath: filepath.Join(r.o.Dir, e.ID+intentSuffix),
		SpillPath:  filepath.Join(r.o.SpillDir, e.ID+spillSuffix),
		SpillBytes: spill,
		Witness: func() (cbt.Witness, bool) {
			w, ok := f.Witness()
			return cbt.Witness(w), ok
		},
		AuditUnwitnessed: true, // package backup looks
		Logger:           r.o.Logger.With("disk", e.Name),
	})
}

// doubt makes sure that the next tracker of a disk compares all of it: this run serves
// it without one, because it is temporary, or because a full file system cannot even
// take the note that the saved map is no longer clean. A saved map that is clean bears
// the file's times, which every write changes; one that is not is only believed
// together with the map file, or with the intent file. A block device has no times.
func (r *Registry) doubt(e Entry, f *localdisk.Disk) error {
	gone := []string{filepath.Join(r.o.MapDir, e.ID+mapSuffix), filepath.Join(r.o.Dir, e.ID+intentSuffix)}
	if _, ok := f.Witness(); !ok {
		gone = append(gone, filepath.Join(r.o.Dir, e.ID+mapSuffix))
	}
	for _, p := range gone {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return statefile.SyncDir(r.o.Dir)
}

// forget removes what a tracker leaves beside the file of a disk that was deleted.
func (r *Registry) forget(e Entry) {
	for _, p := range []string{filepath.Join(r.o.MapDir, e.ID+mapSuffix), filepath.Join(r.o.Dir, e.ID+mapSuffix),
		filepath.Join(r.o.Dir, e.ID+intentSuffix), filepath.Join(r.o.SpillDir, e.ID+spillSuffix)} {
		if err := os.Remove(p); err != nil && !os.IsNotExist(err) {
			r.o.Logger.Warn("a file of a deleted disk is left", "disk", e.Name, "error", err)
		}
	}
}

// MapDirectory chooses where the change maps of a data directory lie: below given,
// or /run/keelblock/ID when /run is tmpfs, or /dev/shm/keelblock-ID. ID is made of the
// real path and inode of the data directory, so that a copy of it never shares a map.
func MapDirectory(given, dataDir string) (string, error) {
	real, err := filepath.EvalSymlinks(dataDir)
	if err != nil {
		return "", fmt.Errorf("choose map directory: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(real, &st); err != nil {
		return "", fmt.Errorf("choose map directory: %w", err)
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%d:%d", real, st.Dev, st.Ino))
	id := hex.EncodeToString(sum[:8])
	switch {
	case given != "":
		abs, err := filepath.Abs(given)
		return filepath.Join(abs, id), err
	case IsTmpfs(runMaps) && unix.Access(runMaps, unix.W_OK) == nil, // made by systemd
		IsTmpfs("/run") && unix.Access("/run", unix.W_OK) == nil:
		return filepath.Join(runMaps, id), nil
	}
	return "/dev/shm/keelblock-" + id, nil
}

// IsTmpfs reports whether path lies on tmpfs, which ends with the kernel and not
// with the process.
func IsTmpfs(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == tmpfsMagic
}

// NewID is a random id of 32 hexadecimal digits.
func NewID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return hex.EncodeToString(b[:])
}

func isID(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 16
}
