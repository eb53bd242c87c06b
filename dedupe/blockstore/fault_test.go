package blockstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/looptest"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
)

// An error of any system call on packs fails the batch under way, and nothing that
// was committed before; the vault goes on, or says that it must be opened again.
func TestFaults(t *testing.T) {
	t.Parallel()
	for _, fault := range []error{unix.ENOSPC, unix.EIO} {
		t.Run(fault.Error(), func(t *testing.T) {
			t.Parallel()
			var at, calls atomic.Int64
			o := crashOptions.WithHook(func(op, name string) error {
				if calls.Add(1) == at.Load() {
					return fault
				}
				return nil
			})
			dir := newVault(t, crashOptions)
			s, err := blockstore.Open(dir, o)
			if err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(5, 5))
			var points []dedupe.Digest
			failed := 0
			for n := int64(1); n < 60; n++ {
				calls.Store(0)
				at.Store(n)
				id, err := tryPoint(s, fmt.Sprintf("call %d", n), seeds(r, 20, 1<<30))
				at.Store(0)
				if err == nil {
					points = append(points, id)
					if calls.Load() < n {
						continue // the commit needs fewer calls
					}
				}
				if err != nil {
					failed++
					if !errors.Is(err, fault) {
						t.Errorf("call %d: error %v", n, err)
					}
					if fault == unix.ENOSPC && !errors.Is(err, dedupe.ErrNoSpace) {
						t.Errorf("call %d: a full disk is not ErrNoSpace: %v", n, err)
					}
				}
				if id, err := tryPoint(s, "after", seeds(r, 5, 1<<30)); err == nil {
					points = append(points, id)
				} else { // it must be opened again
					_ = s.Close() // that it cannot be clean is what this is about
					if s, err = blockstore.Open(dir, o); err != nil {
						t.Fatalf("call %d: open after a failed commit: %v", n, err)
					}
				}
				if err := checkStore(s, points); err != nil {
					t.Fatalf("call %d: %v", n, err)
				}
			}
			if failed < 15 {
				t.Errorf("only %d calls of a commit failed", failed)
			}
			if err := s.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			if err := reopen(dir, crashOptions, points); err != nil {
				t.Error(err)
			}
			if err := checkRebuilt(dir, crashOptions); err != nil {
				t.Error(err)
			}
		})
	}
}

// tryPoint is one batch that may fail anywhere.
func tryPoint(s dedupe.Store, name string, seeds []uint64) (dedupe.Digest, error) {
	ctx := context.Background()
	b, err := s.Begin(ctx)
	if err != nil {
		return dedupe.Digest{}, err
	}
	p, err := putPoint(ctx, s, b, name, seeds)
	if err != nil {
		_ = b.Abort() // its error is the same fault
		return dedupe.Digest{}, err
	}
	return commitPoint(ctx, b, p)
}

// A full file system is ErrNoSpace; committed points stay whole, and storing goes on
// once there is space.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	fs := looptest.New(t, "ext4", 400<<20)
	dir := filepath.Join(fs.Dir, "vault")
	o := blockstore.Options{Compression: blockstore.CompressionNone}
	if err := blockstore.Create(dir, o); err != nil {
		t.Fatal(err)
	}
	s, err := blockstore.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	// What somebody else has on the file system, and will give back.
	other := filepath.Join(fs.Dir, "other")
	if err := os.WriteFile(other, make([]byte, 100<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	var points []dedupe.Digest
	next := uint64(0)
	write := func() error {
		list := make([]uint64, 200) // 12.5 MiB
		for i := range list {
			next++
			list[i] = next
		}
		id, err := tryPoint(s, fmt.Sprintf("from %d", list[0]), list)
		if err == nil {
			points = append(points, id)
		}
		return err
	}
	for len(points) < 100 {
		if err = write(); err != nil {
			break
		}
	}
	if !errors.Is(err, dedupe.ErrNoSpace) {
		t.Fatalf("after %d points: %v, want ErrNoSpace", len(points), err)
	}
	t.Logf("%d points, then: %v", len(points), err)
	if len(points) < 10 {
		t.Errorf("only %d points of 12.5 MiB on a file system of 400 MiB", len(points))
	}
	if err := checkStore(s, points); err != nil {
		t.Errorf("on a full disk: %v", err)
	}
	// Somebody else takes the last byte: the vault cannot be closed cleanly, or can;
	// it is whole in either case.
	filler := filepath.Join(fs.Dir, "filler")
	fill(t, filler)
	if err := write(); !errors.Is(err, dedupe.ErrNoSpace) {
		t.Errorf("with no byte free: %v, want ErrNoSpace", err)
	}
	if err := checkStore(s, points); err != nil {
		t.Errorf("with no byte free: %v", err)
	}
	if _, err := blockstore.Open(dir, o); !errors.Is(err, dedupe.ErrLocked) {
		t.Errorf("second open: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(other); err != nil { // space comes back
		t.Fatal(err)
	}
	if err := write(); err != nil {
		t.Errorf("after space came: %v", err)
	}
	if err := checkStore(s, points); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	s = openVault(t, dir, o)
	if err := checkStore(s, points); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	fill(t, filler)
	if _, err := blockstore.Open(dir, o); !errors.Is(err, dedupe.ErrNoSpace) {
		t.Errorf("open on a full disk: %v, want ErrNoSpace", err)
	}
	o.ReadOnly = true
	ro, err := blockstore.Open(dir, o)
	if err != nil {
		t.Fatalf("open read-only on a full disk: %v", err)
	}
	if err := errors.Join(checkStore(ro, points), ro.Close()); err != nil {
		t.Error(err)
	}
}

// fill takes every free byte of a file system.
func fill(t testing.TB, path string) {
	t.Helper()
	if err := fillUp(path); err != nil {
		t.Fatal(err)
	}
}

func fillUp(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	off := int64(0)
	for step := int64(64 << 20); step >= 4096; {
		if err := unix.Fallocate(int(f.Fd()), 0, off, step); err != nil {
			step /= 2
			continue
		}
		off += step
	}
	return f.Close()
}

// ReserveBytes stay free.
func TestReserve(t *testing.T) {
	t.Parallel()
	fs := looptest.New(t, "ext4", 400<<20)
	dir := filepath.Join(fs.Dir, "vault")
	o := blockstore.Options{Compression: blockstore.CompressionNone, ReserveBytes: 200 << 20}
	if err := blockstore.Create(dir, o); err != nil {
		t.Fatal(err)
	}
	s := openVault(t, dir, o)
	var err error
	for i := uint64(0); err == nil && i < 50; i++ {
		list := make([]uint64, 100)
		for j := range list {
			list[j] = (i*100 + uint64(j)) * versions
		}
		_, err = tryPoint(s, "x", list)
	}
	if !errors.Is(err, dedupe.ErrNoSpace) {
		t.Fatalf("below the reserve: %v", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < o.ReserveBytes-8<<20 {
		t.Errorf("%d bytes free with a reserve of %d", free, o.ReserveBytes)
	}
}

// No pack keeps a preallocated tail after commit, abort or close.
func TestNoTail(t *testing.T) {
	t.Parallel()
	dir := newVault(t, blockstore.Options{})
	s := openVault(t, dir, blockstore.Options{})
	check := func(when string, limit int64) {
		t.Helper()
		names, err := filepath.Glob(filepath.Join(dir, "packs", "*.pack"))
		if err != nil {
			t.Fatal(err)
		}
		total := int64(0)
		for _, name := range names {
			var st unix.Stat_t
			if err := unix.Stat(name, &st); err != nil {
				t.Fatal(err)
			}
			total += max(st.Blocks*512, st.Size)
		}
		if total > limit {
			t.Errorf("%s: %d bytes in packs, want at most %d", when, total, limit)
		}
	}
	writePoint(t, s, "one", []uint64{1, 2, 3})
	check("after a commit", 1<<20)
	b := dedupetest.Begin(t, s)
	if _, err := putPoint(context.Background(), s, b, "never", []uint64{4, 5, 6}); err != nil {
		t.Fatal(err)
	}
	check("in a batch", 65<<20)
	if err := b.Abort(); err != nil {
		t.Fatal(err)
	}
	check("after an abort", 1<<20)
	writePoint(t, s, "two", []uint64{7})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	check("after close", 1<<20)
	if n := len(glob(t, dir, "packs/*.pack")); n != 2 {
		t.Errorf("%d packs, want one of data and one of metadata", n)
	}
}

// Two processes cannot have a vault open for writing; a reader can, and sees what was
// committed when it opened.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	dir := newVault(t, crashOptions)
	ready := make(chan func(), 1)
	done := make(chan struct{})
	c := newSaid()
	go func() {
		defer close(done)
		c.live(t, worker{Job: "write", Dirs: []string{dir}, Seed: 7}, func(kill func()) { ready <- kill })
	}()
	kill := <-ready
	if _, err := blockstore.Open(dir, crashOptions); !errors.Is(err, dedupe.ErrLocked) {
		t.Errorf("open beside a writer: %v, want ErrLocked", err)
	}
	if err := blockstore.RebuildIndex(context.Background(), dir, crashOptions, nil); !errors.Is(err, dedupe.ErrLocked) {
		t.Errorf("rebuild beside a writer: %v, want ErrLocked", err)
	}
	o := crashOptions
	o.ReadOnly = true
	o.ScratchDir = t.TempDir()
	for range 3 {
		s, err := blockstore.Open(dir, o)
		if err != nil {
			t.Errorf("open read-only beside a writer: %v", err)
			break
		}
		if err := checkStore(s, nil); err != nil {
			t.Errorf("read-only beside a writer: %v", err)
		}
		if _, err := s.Begin(context.Background()); !errors.Is(err, dedupe.ErrReadOnly) {
			t.Errorf("begin read-only: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if left, err := os.ReadDir(o.ScratchDir); err != nil || len(left) != 0 {
		t.Errorf("%d scratch folders left, %v", len(left), err)
	}
	kill()
	<-done
	if err := reopen(dir, crashOptions, c.committed()); err != nil {
		t.Error(err)
	}
}

// A cleanly closed vault opens read-only from its own index, without a byte written,
// also from a read-only file system.
func TestReadOnlyMedia(t *testing.T) {
	t.Parallel()
	fs := looptest.New(t, "ext4", 200<<20)
	dir := filepath.Join(fs.Dir, "vault")
	if err := blockstore.Create(dir, crashOptions); err != nil {
		t.Fatal(err)
	}
	s, err := blockstore.Open(dir, crashOptions)
	if err != nil {
		t.Fatal(err)
	}
	points := []dedupe.Digest{writePoint(t, s, "one", []uint64{1, 2, 3})}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "remount,ro", fs.Dir).CombinedOutput(); err != nil {
		t.Skipf("needs to remount read-only: %v: %s", err, out)
	}
	o := crashOptions
	o.ReadOnly = true
	o.ScratchDir = filepath.Join(t.TempDir(), "not there") // so a scratch index would fail
	s, err = blockstore.Open(dir, o)
	if err != nil {
		t.Fatalf("open read-only: %v", err)
	}
	if err := checkStore(s, points); err != nil {
		t.Error(err)
	}
	other, err := blockstore.Open(dir, o) // readers do not exclude each other
	if err != nil {
		t.Errorf("second reader: %v", err)
	} else if err := other.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
