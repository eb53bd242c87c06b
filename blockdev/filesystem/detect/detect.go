package detect

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/btrfs"
	"github.com/keelblock/keelblock/blockdev/filesystem/exfat"
	"github.com/keelblock/keelblock/blockdev/filesystem/ext"
	"github.com/keelblock/keelblock/blockdev/filesystem/fat"
	"github.com/keelblock/keelblock/blockdev/filesystem/ntfs"
	"github.com/keelblock/keelblock/blockdev/filesystem/xfs"
)

// Open opens the file system of the volume r of size bytes. r must stay open while
// it is used.
//
// Errors: ErrUnknown when no reader knows the volume, with the name of what was seen
// when that is known; what the reader says (ErrUnsupported, ErrCorrupt) when one
// does; and errors of r.
func Open(r io.ReaderAt, size int64) (filesystem.FS, error) {
	name, err := Name(r, size)
	if err != nil {
		return nil, fmt.Errorf("detect file system: %w", err)
	}
	if name == "" {
		return nil, fmt.Errorf("detect file system: %w", filesystem.ErrUnknown)
	}
	if open, ok := readers[name]; ok {
		return open(r, size)
	}
	return nil, fmt.Errorf("volume holds %s, for which there is no reader: %w", name, filesystem.ErrUnknown)
}

// Readable reports whether Open has a reader for what Name says.
func Readable(name string) bool { return readers[name] != nil }

var readers = map[string]func(io.ReaderAt, int64) (filesystem.FS, error){
	"btrfs": opener(btrfs.Open),
	"ext":   opener(ext.Open),
	"xfs":   opener(xfs.Open),
	"vfat":  opener(fat.Open),
	"exfat": opener(exfat.Open),
	"ntfs":  opener(ntfs.Open),
}

// opener hands on what a reader's Open returns, without a typed nil beside an error.
func opener[F filesystem.FS](open func(io.ReaderAt, int64) (F, error)) func(io.ReaderAt, int64) (filesystem.FS, error) {
	return func(r io.ReaderAt, size int64) (filesystem.FS, error) {
		fs, err := open(r, size)
		if err != nil {
			return nil, err
		}
		return fs, nil
	}
}

// Blank is the Name of a volume whose first 128 KiB are zero.
const Blank = "nothing (it is blank)"

// magic is a signature at a fixed place.
type magic struct {
	name  string
	at    int64
	bytes string
}

const mdMagic = "\xfc\x4e\x2b\xa9"

// containers are looked for before ext: their tools leave the superblock of a former
// ext file system in place (mdadm), and mkfs.ext4 overwrites them.
var containers = []magic{
	{"LUKS", 0, "LUKS\xba\xbe"},
	{"a member of an md RAID", 4096, mdMagic},
	{"a member of an md RAID", 0, mdMagic},
}

// others are looked for behind ext: mkfs.ext4 leaves what stands in the first 1 KiB
// and behind the first 8 KiB. Places are those of libblkid 2.38 (util-linux,
// libblkid/src/superblocks).
var others = []magic{
	{"a BitLocker volume", 3, "-FVE-FS-"},
	{"xfs", 0, "XFSB"},
	{"ntfs", 3, "NTFS    "},
	{"exfat", 3, "EXFAT   "},
	{"btrfs", 0x10040, "_BHRfS_M"},
	{"swap space", 4086, "SWAPSPACE2"},
	{"swap space", 8182, "SWAPSPACE2"},
	{"swap space", 16374, "SWAPSPACE2"},
	{"swap space", 65526, "SWAPSPACE2"},
	{"a suspended system in swap space", 4086, "S1SUSPEND"},
	{"f2fs", 1024, "\x10\x20\xf5\xf2"},
	{"a bcache device", 4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"},
	{"reiserfs", 0x10034, "ReIsEr"},
	{"erofs", 1024, "\xe2\xe1\xf5\xe0"},
	{"squashfs", 0, "hsqs"},
	{"hfsplus", 1024, "H+"},
	{"hfsplus", 1024, "HX"},
	{"apfs", 32, "NXSB"},
	{"refs", 3, "ReFS\x00\x00\x00\x00"},
	{"iso9660", 0x8001, "CD001"},
	{"vfat", 82, "FAT32   "},
	{"vfat", 54, "FAT16   "},
	{"vfat", 54, "FAT12   "},
	{"vfat", 54, "FAT     "},
}

// in: the signature is in p, the start of a volume.
func (m magic) in(p []byte) bool {
	return m.at+int64(len(m.bytes)) <= int64(len(p)) && string(p[m.at:][:len(m.bytes)]) == m.bytes
}

func find(p []byte, magics []magic) string {
	for _, m := range magics {
		if m.in(p) {
			return m.name
		}
	}
	return ""
}

// lvmLabel: one of the first four sectors holds the label of a physical volume
// (lib/label/label.h of LVM2).
func lvmLabel(p []byte) bool {
	for sector := int64(0); sector < 4; sector++ {
		if (magic{"", sector * 512, "LABELONE"}).in(p) && (magic{"", sector*512 + 24, "LVM2 001"}).in(p) {
			return true
		}
	}
	return false
}

// window is how much of the start of a volume is looked at.
const window = 128 << 10

// Name says what the volume r of size bytes seems to hold: "ext", or words that fit
// into a sentence; "" when it is not known. An error is one of reading r.
func Name(r io.ReaderAt, size int64) (string, error) {
	p := make([]byte, max(0, min(size, window)))
	if n, err := r.ReadAt(p, 0); n < len(p) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return "", err
	}
	switch {
	case find(p, containers) != "":
		return find(p, containers), nil
	case (magic{"", 1024 + 0x38, "\x53\xEF"}).in(p):
		return "ext", nil
	case lvmLabel(p):
		return "an LVM2 physical volume", nil
	case find(p, others) != "":
		return find(p, others), nil
	case fat.Probe(p, size): // the text in its boot sector is of no account
		return "vfat", nil
	}
	md, err := mdAtEnd(r, size)
	if err != nil {
		return "", err
	}
	switch {
	case md:
		return "a member of an md RAID", nil
	case len(bytes.TrimLeft(p, "\x00")) == 0:
		return Blank, nil
	}
	return "", nil
}

// mdAtEnd looks for md's superblocks at the end of a device: version 1.0, 8 to 12 KiB
// before the end, and 0.90, in the last 64 KiB that are aligned to 64 KiB
// (drivers/md/md.c, super_1_load and calc_dev_sboffset).
func mdAtEnd(r io.ReaderAt, size int64) (bool, error) {
	for _, at := range []int64{(size&^511 - 8<<10) &^ 4095, size&^(64<<10-1) - 64<<10} {
		if at < 0 || at > size-4 {
			continue
		}
		var p [4]byte
		if n, err := r.ReadAt(p[:], at); n < len(p) {
			if errors.Is(err, io.EOF) || err == nil {
				err = io.ErrUnexpectedEOF
			}
			return false, err
		}
		if string(p[:]) == mdMagic {
			return true, nil
		}
	}
	return false, nil
}
