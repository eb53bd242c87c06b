package detect_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/detect"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

func TestSignaturesAreNamed(t *testing.T) {
	const size = 1 << 20
	for want, set := range map[string]func(p []byte){
		"xfs":                     func(p []byte) { copy(p, "XFSB") },
		"f2fs":                    func(p []byte) { copy(p[1024:], "\x10\x20\xf5\xf2") },
		"LUKS":                    func(p []byte) { copy(p, "LUKS\xba\xbe\x00\x02") },
		"LVM2":                    func(p []byte) { copy(p[512:], "LABELONE"); copy(p[512+24:], "LVM2 001") },
		"swap":                    func(p []byte) { copy(p[4086:], "SWAPSPACE2") },
		"md RAID":                 func(p []byte) { copy(p[4096:], "\xfc\x4e\x2b\xa9") },
		"a member of an md RAID":  func(p []byte) { copy(p[size-64<<10:], "\xfc\x4e\x2b\xa9") },
		"a member of an md RAID:": func(p []byte) { p[0] = 1; copy(p[size-8<<10:], "\xfc\x4e\x2b\xa9") },
		"blank":                   func(p []byte) {},
		"LUKS,":                   func(p []byte) { copy(p, "LUKS\xba\xbe\x00\x01"); copy(p[1080:], "\x53\xef") },
	} {
		p := make([]byte, size)
		set(p)
		_, err := detect.Open(bytes.NewReader(p), size)
		if !errors.Is(err, filesystem.ErrUnknown) || !strings.Contains(err.Error(), strings.Trim(want, ":,")) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := detect.Open(bytes.NewReader([]byte{1, 2, 3}), 3); !errors.Is(err, filesystem.ErrUnknown) {
		t.Errorf("3 bytes: %v", err)
	}
}

func TestRealToolsAreNamed(t *testing.T) {
	for want, mkfs := range map[string][]string{
		"swap": {"mkswap", "-q"},
	} {
		t.Run(want, func(t *testing.T) {
			f, size := fstest.Open(t, fstest.Image(t, 512<<20, mkfs...))
			_, err := detect.Open(f, size)
			if !errors.Is(err, filesystem.ErrUnknown) || !strings.Contains(err.Error(), want) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestXFSIsOpened(t *testing.T) {
	f, size := fstest.Open(t, fstest.Image(t, 320<<20, "mkfs.xfs", "-q", "-f"))
	fs, err := detect.Open(f, size)
	if err != nil {
		t.Fatal(err)
	}
	if got := fs.Info().Format; got != "xfs" {
		t.Errorf("format %q", got)
	}
}

func TestBtrfsIsOpened(t *testing.T) {
	f, size := fstest.Open(t, fstest.Image(t, 256<<20, "mkfs.btrfs", "-q"))
	fs, err := detect.Open(f, size)
	if err != nil {
		t.Fatal(err)
	}
	if got := fs.Info().Format; got != "btrfs" {
		t.Errorf("format %q", got)
	}
}

func TestExtIsOpened(t *testing.T) {
	f, size := fstest.Open(t, fstest.Image(t, 16<<20, "mkfs.ext4", "-q", "-F"))
	fs, err := detect.Open(f, size)
	if err != nil {
		t.Fatal(err)
	}
	if got := fs.Info().Format; got != "ext4" {
		t.Errorf("format %q", got)
	}
}

// FAT is known by its numbers, whatever its text fields say.
func TestFATIsOpened(t *testing.T) {
	for _, wipe := range []bool{false, true} {
		f, size := fstest.Open(t, fstest.Image(t, 64<<20, "mkfs.vfat", "-F", "32"))
		s := fstest.ReadSparse(t, f)
		if wipe {
			s.Patch(3, make([]byte, 8))
			s.Patch(82, make([]byte, 8))
		}
		fs, err := detect.Open(s, size)
		if err != nil {
			t.Fatal(err)
		}
		if got := fs.Info().Format; got != "fat32" {
			t.Errorf("format %q", got)
		}
	}
}

func TestWindowsFileSystemsAreOpened(t *testing.T) {
	for want, mkfs := range map[string][]string{"ntfs": {"mkntfs", "-q", "-F"}, "exfat": {"mkfs.exfat"}} {
		t.Run(want, func(t *testing.T) {
			f, size := fstest.Open(t, fstest.Image(t, 16<<20, mkfs...))
			fs, err := detect.Open(f, size)
			if err != nil {
				t.Fatal(err)
			}
			if got := fs.Info().Format; got != want {
				t.Errorf("format %q", got)
			}
		})
	}
}

// A damaged ext file system says what is damaged, not that it is unknown.
func TestDamagedExtIsCorrupt(t *testing.T) {
	p := make([]byte, 1<<20)
	copy(p[1080:], "\x53\xef")
	if _, err := detect.Open(bytes.NewReader(p), int64(len(p))); !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("%v", err)
	}
}
