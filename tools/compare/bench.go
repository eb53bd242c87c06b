package main

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/keelblock/keelblock/tools/rig"
)

// bench is a running appliance with one filled disk, and the same disk as a file.
type bench struct {
	ctx    context.Context
	r      *rig.Rig
	t      *table
	rounds int

	image     string // the disk as a file
	allocated int64  // bytes of data in it
	files     int
	machines  int
}

// newBench makes the image and starts the daemon.
func newBench(ctx context.Context, bin string, contentBytes int64, rounds int, t *table) (*bench, error) {
	r, err := rig.New(bin, "keelblock-bench-")
	if err != nil {
		return nil, err
	}
	b := &bench{ctx: ctx, r: r, t: t, rounds: rounds, image: filepath.Join(r.Dir, "disk.img")}
	if err := b.prepare(contentBytes); err != nil {
		_ = b.close() // the first error counts
		return nil, err
	}
	return b, nil
}

func (b *bench) prepare(contentBytes int64) error {
	stage := filepath.Join(b.r.Dir, "files")
	// One large file for sequential reads, of data that does not compress to nothing.
	if err := writeNoise(filepath.Join(stage, "large"), largeBytes); err != nil {
		return err
	}
	files, bytes, err := rig.Gather(b.ctx, stage, contentBytes)
	if err != nil {
		return err
	}
	b.files = files
	if err := b.r.MakeDisk(b.ctx, b.image, "files", rig.DiskSize(bytes+largeBytes)); err != nil {
		return err
	}
	if err := os.RemoveAll(stage); err != nil {
		return err
	}
	if b.allocated, err = allocatedBytes(b.image); err != nil {
		return err
	}
	_, err = b.r.Keelblock(b.ctx, "serve", "-d")
	return err
}

const largeBytes = 192 << 20

// writeNoise writes pseudo-random bytes from a fixed seed.
func writeNoise(path string, n int64) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	src := rand.NewChaCha8([32]byte{'n', 'o', 'i', 's', 'e'})
	buf := make([]byte, 1<<20)
	for ; n > 0; n -= int64(len(buf)) {
		if _, err := src.Read(buf); err != nil {
			return err
		}
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	return f.Close()
}

// freshMachine makes a disk and a machine and fills the disk from the image.
func (b *bench) freshMachine() (machine, disk string, err error) {
	b.machines++
	machine, disk = fmt.Sprintf("m%d", b.machines), fmt.Sprintf("d%d", b.machines)
	info, err := os.Stat(b.image)
	if err != nil {
		return "", "", err
	}
	if _, err := b.r.Keelblock(b.ctx, "disk", "create", disk, "--size", fmt.Sprint(info.Size())); err != nil {
		return "", "", err
	}
	if _, err := b.r.Keelblock(b.ctx, "machine", "create", machine, "--disk", disk); err != nil {
		return "", "", err
	}
	_, err = b.r.Command(b.ctx, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", b.image, b.r.URI(disk))
	return machine, disk, err
}

// restart begins anew with an empty vault, so that each first backup is one.
func (b *bench) restart() error {
	if _, err := b.r.Keelblock(b.ctx, "stop"); err != nil {
		return err
	}
	if err := os.RemoveAll(b.r.Data); err != nil {
		return err
	}
	if _, err := b.r.Shell(b.ctx, "sync -f ."); err != nil {
		return err
	}
	_, err := b.r.Keelblock(b.ctx, "serve", "-d")
	return err
}

// timed is how long a shell line takes.
func (b *bench) timed(line string) (time.Duration, error) {
	start := time.Now()
	_, err := b.r.Shell(b.ctx, line)
	return time.Since(start), err
}

func (b *bench) close() error { return b.r.Close() }

// allocatedBytes is what a file takes on disk.
func allocatedBytes(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return blocksOf(info), nil
}

// folderBytes is what the files of a folder take on disk.
func folderBytes(dir string) (int64, error) {
	var n int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		n += blocksOf(info)
		return nil
	})
	return n, err
}

func mbPerSecond(bytes int64, took time.Duration) float64 {
	return float64(bytes) / 1e6 / took.Seconds()
}

func mbs(v float64) string { return fmt.Sprintf("%.0fMB/s", v) }
func mib(v float64) string { return fmt.Sprintf("%.1fMiB", v) }
func sec(v float64) string { return fmt.Sprintf("%.2fs", v) }
