package localdisk_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/blockdevtest"
	"github.com/keelblock/keelblock/blockdev/localdisk"
)

func segmented(t *testing.T, size, segment int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := localdisk.CreateSegments(path, size, segment); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConformanceOfSegments(t *testing.T) {
	blockdevtest.Run(t, func(t *testing.T, size int64) blockdev.Device {
		if size == 0 { // a disk of no bytes never needs a second file
			return open(t, create(t, t.TempDir(), size), localdisk.Options{})
		}
		segment := max(size/3/blockdev.SectorSize, 1) * blockdev.SectorSize
		return open(t, segmented(t, size, segment), localdisk.Options{})
	})
}

// 32 TiB do not fit into one file of ext4. Whatever the file system, the disk is there.
func TestCreateLargerThanAFileMayBe(t *testing.T) {
	const size = 32 << 40
	path := create(t, t.TempDir(), size)
	d := open(t, path, localdisk.Options{})
	if d.Size() != size {
		t.Fatalf("size %d, want %d", d.Size(), int64(size))
	}
	want := bytes.Repeat([]byte("across"), 1<<10)
	for _, off := range []int64{0, 2<<40 - 100, 16<<40 - 3000, size - int64(len(want))} {
		if _, err := d.WriteAt(want, off); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if _, err := d.ReadAt(got, off); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("read at %d: equal %v, %v", off, bytes.Equal(got, want), err)
		}
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	n, err := d.AllocatedBytes()
	if err != nil || n <= 0 || n > 1<<20 {
		t.Fatalf("allocated %d bytes, %v", n, err)
	}
	var data, end int64
	err = d.Extents(0, size, func(e blockdev.Extent, s blockdev.ExtentStatus) bool {
		if e.Offset != end {
			t.Fatalf("extent at %d, the one before ended at %d", e.Offset, end)
		}
		end = e.End()
		if !s.Zero {
			data += e.Length
		}
		return true
	})
	if err != nil || end != size || data < 4*int64(len(want)) || data > 1<<20 {
		t.Fatalf("extents end at %d with %d bytes of data, %v", end, data, err)
	}
	before, _ := d.Witness()
	if _, err := d.WriteAt([]byte{1}, 31<<40); err != nil {
		t.Fatal(err)
	}
	if after, ok := d.Witness(); !ok || after == before {
		t.Fatal("a write to the last segment does not show in the witness")
	}
	d.Close()
	if err := localdisk.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Fatalf("after Remove: %v", err)
	}
}

func TestOpenRefusesDamagedSegments(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		damage     func(dir string) error
	}{
		{"a gap", `"000002.seg" where "000001.seg"`, func(dir string) error { return os.Remove(filepath.Join(dir, "000001.seg")) }},
		{"a stranger", `"notes" where`, func(dir string) error { return os.WriteFile(filepath.Join(dir, "notes"), nil, 0o600) }},
		{"a short one", "segment 1 of 4 has 512 bytes", func(dir string) error { return os.Truncate(filepath.Join(dir, "000001.seg"), 512) }},
		{"an empty folder", "no disk", func(dir string) error {
			return removeAll(dir, "000000.seg", "000001.seg", "000002.seg", "000003.seg")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := segmented(t, 7<<10, 2<<10)
			if err := tt.damage(path); err != nil {
				t.Fatal(err)
			}
			d, err := localdisk.Open(path, localdisk.Options{})
			if err == nil {
				d.Close()
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not say %q", err, tt.want)
			}
		})
	}
}

func removeAll(dir string, names ...string) error {
	for _, n := range names {
		if err := os.Remove(filepath.Join(dir, n)); err != nil {
			return err
		}
	}
	return nil
}
