package localdisk_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/blockdevtest"
	"github.com/keelblock/keelblock/blockdev/localdisk"
)

func create(t *testing.T, dir string, size int64) string {
	t.Helper()
	path := filepath.Join(dir, "disk.raw")
	if err := localdisk.Create(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, path string, o localdisk.Options) *localdisk.Disk {
	t.Helper()
	d, err := localdisk.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestConformance(t *testing.T) {
	blockdevtest.Run(t, func(t *testing.T, size int64) blockdev.Device {
		return open(t, create(t, t.TempDir(), size), localdisk.Options{})
	})
}

// tmpfs knows neither RWF_NOWAIT nor ZERO_RANGE nor FIEMAP.
func TestConformanceOnTmpfs(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "keelblock-localdisk-")
	if err != nil {
		t.Skipf("no tmpfs to test on: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	blockdevtest.Run(t, func(t *testing.T, size int64) blockdev.Device {
		d, err := os.MkdirTemp(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		return open(t, create(t, d, size), localdisk.Options{})
	})
}

func TestConformanceWithReserve(t *testing.T) {
	blockdevtest.Run(t, func(t *testing.T, size int64) blockdev.Device {
		return open(t, create(t, t.TempDir(), size), localdisk.Options{ReserveBytes: 1 << 20})
	})
}

func TestConformanceReadOnly(t *testing.T) {
	blockdevtest.RunReadOnly(t, func(t *testing.T) (blockdev.Device, []byte) {
		path := create(t, t.TempDir(), 1<<20)
		want := bytes.Repeat([]byte("keelblock"), 1<<20/9+1)[:1<<20]
		clear(want[300_000:500_000])
		if err := os.WriteFile(path, want, 0o600); err != nil {
			t.Fatal(err)
		}
		return open(t, path, localdisk.Options{ReadOnly: true}), want
	})
}

func TestCreate(t *testing.T) {
	dir := t.TempDir()
	path := create(t, dir, 1<<40)
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Size() != 1<<40 || fi.Mode() != 0o600 {
		t.Errorf("created a file of %d bytes, mode %v; want 1 TiB, 0600", fi.Size(), fi.Mode())
	}
	d := open(t, path, localdisk.Options{})
	if n, err := d.AllocatedBytes(); err != nil || n > 1<<20 {
		t.Errorf("AllocatedBytes of a new disk = %d, %v", n, err)
	}
	if err := localdisk.Create(path, 512); !errors.Is(err, os.ErrExist) {
		t.Errorf("Create over a file: %v, want ErrExist", err)
	}
	for _, size := range []int64{-512, 1, 513, blockdev.MaxSize + 512} {
		odd := filepath.Join(dir, "odd")
		if err := localdisk.Create(odd, size); err == nil {
			t.Errorf("Create of %d bytes succeeded", size)
		}
		if _, err := os.Stat(odd); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Create of %d bytes left a file (%v)", size, err)
		}
	}
	if err := localdisk.Create(filepath.Join(dir, "none", "disk"), 512); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Create in a missing folder: %v, want ErrNotExist", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	odd := filepath.Join(dir, "odd")
	if err := os.WriteFile(odd, make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"a size between sectors": odd, "a folder": dir, "a character device": "/dev/null", "nothing": filepath.Join(dir, "none")} {
		if d, err := localdisk.Open(path, localdisk.Options{ReadOnly: true}); err == nil {
			d.Close()
			t.Errorf("Open of %s succeeded", name)
		}
	}
	if _, err := localdisk.Open(filepath.Join(dir, "none"), localdisk.Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open of nothing: %v, want ErrNotExist", err)
	}
}

func TestOneWriterOrManyReaders(t *testing.T) {
	path := create(t, t.TempDir(), 4096)
	w := open(t, path, localdisk.Options{})
	for _, o := range []localdisk.Options{{}, {ReadOnly: true}} {
		if _, err := localdisk.Open(path, o); !errors.Is(err, localdisk.ErrInUse) {
			t.Errorf("Open(%+v) beside a writer: %v, want ErrInUse", o, err)
		}
	}
	w.Close()
	open(t, path, localdisk.Options{ReadOnly: true})
	open(t, path, localdisk.Options{ReadOnly: true})
	if _, err := localdisk.Open(path, localdisk.Options{}); !errors.Is(err, localdisk.ErrInUse) {
		t.Errorf("Open for writing beside readers: %v, want ErrInUse", err)
	}
}

func TestFileThatShrankIsAnErrorNotZeros(t *testing.T) {
	path := create(t, t.TempDir(), 8192)
	d := open(t, path, localdisk.Options{})
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	if n, err := d.ReadAt(make([]byte, 8192), 0); n != 4096 || err == nil {
		t.Errorf("ReadAt past the cut = %d, %v; want 4096 and an error", n, err)
	}
	if _, err := d.ReadAtNowait(make([]byte, 512), 4096); err == nil {
		t.Error("ReadAtNowait past the cut succeeded")
	}
}

func TestWitnessChangesWithAWrite(t *testing.T) {
	d := open(t, create(t, t.TempDir(), 4096), localdisk.Options{})
	a, ok := d.Witness()
	b, _ := d.Witness()
	if !ok || a != b || a.Size != 4096 || a.Inode == 0 {
		t.Fatalf("witnesses of an idle disk: %+v, %+v, %v", a, b, ok)
	}
	for range 100 { // the clock of the file system ticks every few milliseconds
		if _, err := d.WriteAt([]byte{1}, 0); err != nil {
			t.Fatal(err)
		}
		if c, _ := d.Witness(); c.MtimeNanos != a.MtimeNanos && c.CtimeNanos != a.CtimeNanos {
			return
		}
		waitTick()
	}
	t.Error("the witness stayed the same over writes")
}

func TestHolesAndAllocatedZerosAreTold(t *testing.T) {
	dir := t.TempDir()
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if int64(fs.Type) == unix.TMPFS_MAGIC {
		t.Skip("TMPDIR is on tmpfs, which does not tell allocated zeros from data")
	}
	d := open(t, create(t, dir, 4<<20), localdisk.Options{})
	if _, err := d.WriteAt(bytes.Repeat([]byte{1}, 4<<20), 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Flush(); err != nil { // until then the file system may not know its storage
		t.Fatal(err)
	}
	if err := d.WriteZeroes(1<<20, 64<<10, true); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteZeroes(2<<20, 1<<20, false); err != nil {
		t.Fatal(err)
	}
	status := func(off int64) (got blockdev.ExtentStatus) {
		if err := d.Extents(off, 1, func(_ blockdev.Extent, s blockdev.ExtentStatus) bool { got = s; return true }); err != nil {
			t.Fatal(err)
		}
		return got
	}
	if s := status(1<<20 + 4096); s == (blockdev.ExtentStatus{}) {
		t.Skip("the file system under TMPDIR does not tell holes")
	}
	for off, want := range map[int64]blockdev.ExtentStatus{
		0:              {},
		1<<20 - 1:      {},
		1 << 20:        {Hole: true, Zero: true},
		1<<20 + 65535:  {Hole: true, Zero: true},
		1<<20 + 65536:  {},
		2 << 20:        {Zero: true},
		3<<20 - 1:      {Zero: true},
		3 << 20:        {},
		4<<20 - 1:      {},
		1<<20 + 32<<10: {Hole: true, Zero: true},
	} {
		if got := status(off); got != want {
			t.Errorf("byte %d is %+v, want %+v", off, got, want)
		}
	}
	// New data in preallocated storage lies in memory only: it must not be called
	// zero although the file system still calls its storage unwritten.
	if _, err := d.WriteAt([]byte{1}, 2<<20+100_000); err != nil {
		t.Fatal(err)
	}
	if s := status(2<<20 + 100_000); s.Zero {
		t.Errorf("a byte that was just written is called %+v", s)
	}
}

func TestTrimGivesStorageBack(t *testing.T) {
	d := open(t, create(t, t.TempDir(), 64<<20), localdisk.Options{})
	if _, err := d.WriteAt(bytes.Repeat([]byte{1}, 64<<20), 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Trim(512, 64<<20-1024); err != nil { // several steps, odd ends
		t.Fatal(err)
	}
	if n, err := d.AllocatedBytes(); err != nil || n > 1<<20 {
		t.Errorf("after the trim %d bytes are allocated (%v), want next to none", n, err)
	}
	for _, off := range []int64{0, 511, 64<<20 - 512, 64<<20 - 1} {
		p := make([]byte, 1)
		if _, err := d.ReadAt(p, off); err != nil || p[0] != 1 {
			t.Errorf("byte %d beside the trim is %d (%v), want 1", off, p[0], err)
		}
	}
}
