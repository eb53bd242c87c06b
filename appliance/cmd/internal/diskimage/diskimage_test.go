package diskimage_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/appliance/cmd/internal/diskimage"
	"github.com/keelblock/keelblock/blockdev"
)

// memory is a disk in memory that knows its holes and can fail.
type memory struct {
	p      []byte
	failAt int64 // reads of this byte fail; -1: none
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if err := blockdev.CheckRange(off, int64(len(p)), int64(len(m.p))); err != nil {
		return 0, err
	}
	if m.failAt >= off && m.failAt < off+int64(len(p)) {
		return 0, blockdev.ErrCorrupt
	}
	return copy(p, m.p[off:]), nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if err := blockdev.CheckRange(off, int64(len(p)), int64(len(m.p))); err != nil {
		return 0, err
	}
	return copy(m.p[off:], p), nil
}
func (m *memory) Size() int64  { return int64(len(m.p)) }
func (m *memory) Flush() error { return nil }
func (m *memory) Close() error { return nil }

func (m *memory) Extents(off, n int64, yield func(blockdev.Extent, blockdev.ExtentStatus) bool) error {
	const grain = 64 << 10
	for at := off; at < off+n; {
		end := min((at/grain+1)*grain, off+n)
		zero := len(bytes.Trim(m.p[at:end], "\x00")) == 0
		if !yield(blockdev.Extent{Offset: at, Length: end - at}, blockdev.ExtentStatus{Hole: zero, Zero: zero}) {
			break
		}
		at = end
	}
	return nil
}

var _ blockdev.ExtentLister = (*memory)(nil)

// sparse makes a disk of which a tenth is data, with an odd tail.
func sparse(seed uint64, size int) *memory {
	r := rand.New(rand.NewPCG(seed, 1))
	m := &memory{p: make([]byte, size), failAt: -1}
	for range size / (640 << 10) {
		off := r.IntN(size)
		end := min(size, off+r.IntN(128<<10))
		for i := off; i < end; i++ {
			m.p[i] = byte(r.Uint32())
		}
	}
	m.p[size-1] = 7
	return m
}

func TestRawIsTheDiskAndStaysSparse(t *testing.T) {
	m := sparse(1, 64<<20+512)
	path := filepath.Join(t.TempDir(), "disk.raw")
	o, err := diskimage.Create(path, false)
	if err != nil {
		t.Fatal(err)
	}
	var seen int64
	mu := make(chan struct{}, 1)
	r, err := diskimage.WriteRaw(context.Background(), o, m, func(n int64) { mu <- struct{}{}; seen += n; <-mu })
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Commit(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, m.p) {
		t.Fatalf("the file differs from the disk (%v)", err)
	}
	if seen != m.Size() {
		t.Errorf("progress saw %d of %d bytes", seen, m.Size())
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Blocks*512 > r.WrittenBytes+1<<20 || st.Mode&0o777 != 0o600 {
		t.Errorf("file takes %d bytes for %d written, mode %o", st.Blocks*512, r.WrittenBytes, st.Mode&0o777)
	}
}

func TestQCOW2IsTheDiskByQEMU(t *testing.T) {
	qemu, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Skip("qemu-img is not installed")
	}
	for name, m := range map[string]*memory{
		"sparse":        sparse(2, 48<<20+512),
		"empty":         {p: make([]byte, 1<<20), failAt: -1},
		"one sector":    {p: bytes.Repeat([]byte{9}, 512), failAt: -1},
		"two L2 tables": sparse(3, 512<<20+3<<20),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path, raw := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "disk.raw")
			o, err := diskimage.Create(path, false)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := diskimage.WriteQCOW2(context.Background(), o, m, nil); err != nil {
				t.Fatal(err)
			}
			if err := o.Commit(); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(raw, m.p, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{"check", "-f", "qcow2", path}, {"compare", "-f", "qcow2", "-F", "raw", path, raw}} {
				if out, err := exec.Command(qemu, args...).CombinedOutput(); err != nil {
					t.Errorf("qemu-img %s: %v\n%s", args[0], err, out)
				}
			}
			out, err := exec.Command(qemu, "info", path).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "file format: qcow2") {
				t.Errorf("qemu-img info: %v\n%s", err, out)
			}
		})
	}
}

func TestImportIsTheFile(t *testing.T) {
	m := sparse(4, 32<<20+100) // not whole sectors
	path := filepath.Join(t.TempDir(), "in.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for off := 0; off < len(m.p); off += 4096 { // with holes
		p := m.p[off:min(off+4096, len(m.p))]
		if len(bytes.Trim(p, "\x00")) > 0 {
			if _, err := f.WriteAt(p, int64(off)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := f.Truncate(m.Size()); err != nil {
		t.Fatal(err)
	}
	d := &memory{p: make([]byte, 33<<20), failAt: -1}
	r, err := diskimage.ReadRaw(context.Background(), d, f, m.Size(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(d.p[:len(m.p)], m.p) || len(bytes.Trim(d.p[len(m.p):], "\x00")) > 0 {
		t.Fatal("the disk differs from the file")
	}
	if r.WrittenBytes > m.Size()/2 {
		t.Errorf("%d of %d bytes were written: zeros were not left out", r.WrittenBytes, m.Size())
	}
}

func TestFailureLeavesNothingAndReplacesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(path, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := diskimage.Create(path, false); !errors.Is(err, diskimage.ErrExists) {
		t.Fatalf("an existing file: %v", err)
	}
	m := sparse(5, 8<<20)
	m.failAt = m.Size() - 1
	o, err := diskimage.Create(path, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := diskimage.WriteRaw(context.Background(), o, m, nil); !errors.Is(err, blockdev.ErrCorrupt) {
		t.Fatalf("a corrupt disk: %v", err)
	}
	o.Discard()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("left behind: %v (%v)", entries, err)
	}
	if p, _ := os.ReadFile(path); string(p) != "precious" {
		t.Fatalf("the old file was touched: %q", p)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if o, err = diskimage.Create(path, true); err != nil {
		t.Fatal(err)
	}
	defer o.Discard()
	if _, err := diskimage.WriteRaw(ctx, o, sparse(6, 8<<20), nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
}
