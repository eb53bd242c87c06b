package detect_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem/detect"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
	"github.com/keelblock/keelblock/blockdev/volume"
)

const mib = 1 << 20

// TestPartitionedDisksConform puts file systems into partitions made by sfdisk and
// compares each with the kernel's mount of the same range.
func TestPartitionedDisksConform(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		want   []volume.Volume
	}{
		"gpt": {
			"label: gpt\nstart=2048, size=163840, name=\"root\"\nstart=165888, size=131072, name=\"data\"\n",
			[]volume.Volume{
				{Number: 1, Scheme: "gpt", Name: "root", Offset: mib, Size: 80 * mib},
				{Number: 2, Scheme: "gpt", Name: "data", Offset: 81 * mib, Size: 64 * mib},
			},
		},
		"mbr": {
			"label: dos\n1: start=2048, size=163840, type=83\n2: start=165888, type=5\n5: size=131072, type=83\n",
			[]volume.Volume{
				{Number: 1, Scheme: "mbr", Offset: mib, Size: 80 * mib},
				{Number: 5, Scheme: "mbr", Offset: 82 * mib, Size: 64 * mib},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			disk := fstest.Image(t, 192*mib)
			fstest.RunInput(t, c.script, "sfdisk", "--quiet", "--no-tell-kernel", disk)
			for i, v := range c.want {
				fill(t, disk, v, i)
			}
			f, size := fstest.Open(t, disk)
			volumes, warnings, err := volume.List(f, size)
			if err != nil || len(warnings) != 0 || len(volumes) != len(c.want) {
				t.Fatalf("%+v, %q, %v", volumes, warnings, err)
			}
			for i, v := range volumes {
				w := c.want[i]
				if v.Number != w.Number || v.Scheme != w.Scheme || v.Name != w.Name || v.Offset != w.Offset || v.Size != w.Size {
					t.Fatalf("%+v, want %+v", v, w)
				}
				dir, _ := fstest.Mount(t, disk, fstest.MountOptions{Type: "ext4", ReadOnly: true, Offset: v.Offset, Size: v.Size})
				fs, err := detect.Open(v.Section(f), v.Size)
				if err != nil {
					t.Fatal(err)
				}
				fstest.Conform(t, dir, fs, fstest.Plan{Reads: 200})
			}
		})
	}
}

// fill makes a file system in the range of v, by mkfs on a file of its size.
func fill(t *testing.T, disk string, v volume.Volume, n int) {
	t.Helper()
	tool := []string{"mkfs.ext4", "mkfs.ext3"}[n%2]
	part := fstest.Image(t, v.Size, tool, "-q", "-F", "-L", fmt.Sprint("volume", v.Number))
	fstest.Run(t, "dd", "if="+part, "of="+disk, "bs=1M", fmt.Sprint("seek=", v.Offset/mib), "conv=notrunc,sparse", "status=none")
	if err := os.Remove(part); err != nil {
		t.Fatal(err)
	}
	dir, unmount := fstest.Mount(t, disk, fstest.MountOptions{Type: "ext4", Offset: v.Offset, Size: v.Size})
	fstest.Populate(t, dir, fstest.Content{Entries: 500, HalfEntries: 200, BigBytes: 2 * mib, StripedParts: 200, GrowSteps: 3})
	unmount()
}
