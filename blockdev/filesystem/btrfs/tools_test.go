package btrfs_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/filesystem/btrfs"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// few is content for tests that need a little of everything.
var few = fstest.Content{Entries: 200, HalfEntries: 100, SparseBytes: 4 << 20, BigBytes: 2 << 20, StripedParts: 100, GrowSteps: 1}

// conform holds the reader against a mount of the image.
func conform(t *testing.T, path string) *btrfs.FS {
	t.Helper()
	dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "btrfs", ReadOnly: true})
	defer unmount()
	f, size := fstest.Open(t, path)
	fs, err := btrfs.Open(f, size)
	if err != nil {
		t.Fatal(err)
	}
	fstest.Conform(t, dir, fs, fstest.Plan{Reads: 200, Manifest: func(dir string, got fstest.Manifest) (fstest.Manifest, error) {
		return manifest(dir, 0, got)
	}})
	return fs
}

// TestConvertedFromExt reads what btrfs-convert made of an ext4, whose subvolume
// ext2_saved holds the former file system as one file.
func TestConvertedFromExt(t *testing.T) {
	path := fstest.Image(t, 512<<20, "mkfs.ext4", "-q", "-F", "-b", "4096")
	dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "ext4"})
	fstest.Populate(t, dir, few)
	unmount()
	fstest.Run(t, "btrfs-convert", path)
	conform(t, path)
}

// TestChangedUUID: nodes keep the former uuid when btrfstune gives a volume another.
func TestChangedUUID(t *testing.T) {
	path := fstest.Image(t, shortSize, "mkfs.btrfs", "-q")
	dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "btrfs"})
	writeFile(t, dir+"/file", 50000)
	unmount()
	const uuid = "0a1b2c3d-1111-2222-3333-444455556666"
	fstest.Run(t, "btrfstune", "-f", "-M", uuid, path)
	if got := conform(t, path).Info().UUID; got != uuid {
		t.Errorf("uuid %s, want %s", got, uuid)
	}
}

// TestCrashInBalance copies an image while a balance moves its trees and data.
func TestCrashInBalance(t *testing.T) {
	outer, _ := fstest.Mount(t, fstest.Image(t, 4*gib, "mkfs.xfs", "-q", "-f", "-m", "reflink=1"), fstest.MountOptions{Type: "xfs"})
	w := newWork(t, filepath.Join(outer, "image"), nil, "")
	w.data = "skip_balance," + w.data
	w.rnd = rand.New(rand.NewPCG(3, 3))
	for i := range 300 {
		writeFile(t, fmt.Sprintf("%s/sub/a/%d", w.dir, i), i*100)
	}
	fstest.Run(t, "btrfs", "subvolume", "snapshot", w.dir+"/sub", w.dir+"/snapshot")
	balance := exec.Command(fstest.LookTool(t, "btrfs"), "balance", "start", "--full-balance", w.dir)
	if err := balance.Start(); err != nil {
		t.Fatal(err)
	}
	var copies []string
	rounds := 1
	if full() {
		rounds = 6
	}
	for i := range rounds {
		time.Sleep(20 * time.Millisecond)
		for range 10 {
			w.change()
		}
		w.sync()
		copies = append(copies, fmt.Sprint(w.image, "-copy", i))
		fstest.Run(t, "cp", "--reflink=always", w.image, copies[i])
	}
	if err := balance.Wait(); err != nil {
		t.Logf("balance: %v", err) // for want of room, say; what it moved counts
	}
	w.unmount()
	for i, path := range copies {
		compareReplayed(t, fmt.Sprint("copy ", i), path, w.data)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}
