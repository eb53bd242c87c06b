package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/tools/rig"
)

// product builds the binary of this tree.
func product(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "keelblock")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "../../appliance/cmd/keelblock")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

func needTools(t *testing.T, tools ...string) {
	t.Helper()
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed; make deps installs it", tool)
		}
	}
	if !rig.FUSE() {
		t.Skip("/dev/fuse cannot be opened")
	}
}

// served is a daemon with one disk, which nbdfuse shows as a file.
type served struct {
	t    *testing.T
	r    *rig.Rig
	file string
}

func serveByFUSE(t *testing.T, size string) *served {
	t.Helper()
	r, err := rig.New(product(t), "kb-fsx-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &served{t: t, r: r}
	for _, args := range []string{"serve -d", "disk create d0 --size " + size, "machine create m --disk d0"} {
		s.keelblock(args)
	}
	dir := filepath.Join(r.Dir, "fuse")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.file = filepath.Join(dir, "nbd")
	fuse := exec.Command("nbdfuse", dir, r.URI("d0"))
	var said strings.Builder
	fuse.Stderr = &said
	if err := fuse.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- fuse.Wait() }()
	t.Cleanup(func() {
		if out, err := exec.Command("fusermount3", "-u", dir).CombinedOutput(); err != nil {
			t.Errorf("unmount nbdfuse: %v %s", err, out)
			_ = fuse.Process.Kill() // or the test would never end
		}
		if err := <-ended; err != nil {
			t.Errorf("nbdfuse: %v %s", err, &said)
		}
	})
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(s.file); err == nil {
			return s
		}
		if time.Now().After(end) {
			t.Fatalf("nbdfuse shows no file: %s", &said)
		}
	}
}

func (s *served) keelblock(args string) string {
	s.t.Helper()
	out, err := s.r.Keelblock(s.t.Context(), strings.Fields(args)...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

func (s *served) command(name string, args ...string) {
	s.t.Helper()
	if out, err := s.r.Command(s.t.Context(), name, args...); err != nil {
		s.t.Fatalf("%v\n%s", err, out)
	}
}

// underBackups exercises files while one backup follows the other.
func (s *served) underBackups(o options, paths ...string) (points int) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	failed := make(chan error, 1)
	go func() {
		failed <- run(ctx, o, paths)
		cancel()
	}()
	for ctx.Err() == nil {
		if _, err := s.r.Backup(ctx, "m"); err == nil {
			points++
		} else if ctx.Err() == nil {
			s.t.Error(err)
			cancel()
		}
	}
	if err := <-failed; err != nil {
		s.t.Fatal(err)
	}
	return points
}

// matches takes a last point and compares it with the disk to the byte.
func (s *served) matches() {
	s.t.Helper()
	s.keelblock("backup m")
	s.keelblock("restore file m@latest:d0 back.raw")
	s.command("cmp", "back.raw", filepath.Join(s.r.Data, "disks", "d0.raw"))
	s.command("rm", "back.raw")
}

// A file system over nbdfuse over a live disk is exercised while backups run; it stays
// sound, and so do its points.
func TestNBDFuseUnderBackups(t *testing.T) {
	needTools(t, "nbdfuse", "fusermount3", "mke2fs", "e2fsck")
	s := serveByFUSE(t, "96MiB")
	t.Run("the disk as a file", func(t *testing.T) {
		points := s.underBackups(options{seed: 11, ops: 400, size: 4 << 20, fixed: true}, s.file)
		t.Logf("%d points were made meanwhile", points)
		s.matches()
	})
	t.Run("ext4", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("mounting needs root")
		}
		s.command("mke2fs", "-q", "-F", "-t", "ext4", s.file)
		mount := filepath.Join(s.r.Dir, "mounted")
		s.command("mkdir", mount)
		if out, err := exec.Command("mount", "-o", "loop", s.file, mount).CombinedOutput(); err != nil {
			t.Skipf("loop mounts do not work here: %v %s", err, out)
		}
		mounted := true
		unmount := func() {
			if !mounted {
				return
			}
			mounted = false
			if out, err := exec.Command("umount", mount).CombinedOutput(); err != nil {
				t.Errorf("umount: %v %s", err, out)
			}
		}
		defer unmount()
		points := s.underBackups(options{seed: 12, ops: 300, size: 2 << 20}, filepath.Join(mount, "a"), filepath.Join(mount, "b"), filepath.Join(mount, "c"))
		t.Logf("%d points were made meanwhile", points)
		// The newest of them is a mounted file system at one instant: its journal makes it
		// whole.
		s.keelblock("restore file m@latest:d0 crash.raw")
		unmount()
		s.command("e2fsck", "-fn", s.file)
		if out, err := exec.Command("e2fsck", "-fp", filepath.Join(s.r.Dir, "crash.raw")).CombinedOutput(); err != nil && !strings.Contains(fmt.Sprint(err), "exit status 1") {
			t.Errorf("replay the journal of a point: %v\n%s", err, out)
		}
		s.command("e2fsck", "-fn", "crash.raw")
		s.matches()
	})
	s.keelblock("recovery-point verify --all")
}
