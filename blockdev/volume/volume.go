package volume

import (
	"errors"
	"fmt"
	"io"
)

// Schemes of a Volume.
const (
	SchemeGPT   = "gpt"   // a partition of a GUID partition table
	SchemeMBR   = "mbr"   // a primary or logical partition of a master boot record
	SchemeWhole = "whole" // the whole disk: it has no partition table
)

// Limits of what List believes.
const (
	// MaxPartitions is the largest number of volumes of one disk; the kernel's
	// limit is the same (DISK_MAX_PARTS, include/linux/blkdev.h).
	MaxPartitions = 256
	// maxTableBytes bounds the entry array of a GPT. 16 KiB is usual; the UEFI
	// specification sets no upper limit.
	maxTableBytes = 1 << 20
)

// ErrTooSmall: the disk cannot hold even one sector.
var ErrTooSmall = errors.New("disk is smaller than one sector")

// Volume is a range of a disk that may hold a file system.
type Volume struct {
	// Number is the partition's number as Linux counts: entry of the GPT plus
	// one; 1 to 4 for primary, from 5 for logical partitions. 0: the whole disk.
	Number int
	// Scheme is SchemeGPT, SchemeMBR or SchemeWhole.
	Scheme string
	// Name is the GPT's partition name in UTF-8, often empty.
	Name string
	// TypeGUID is the GPT's partition type, as "0FC63DAF-8483-4772-8E79-3D69D8477DE4".
	TypeGUID string
	// TypeCode is the MBR's partition type, as 0x83.
	TypeCode byte
	// UUID is what PARTUUID= names: the GPT entry's GUID in lower case; of an MBR its
	// disk signature and the partition's number, as "0a1b2c3d-02", and "" when it has none.
	UUID string
	// Offset and Size are the range in bytes. It lies inside the disk and Size > 0.
	Offset, Size int64
}

// Section is the range of v in r, as a reader that starts at 0.
func (v Volume) Section(r io.ReaderAt) *io.SectionReader {
	return io.NewSectionReader(r, v.Offset, v.Size)
}

// String names the volume for a log line: "gpt 2 (root)".
func (v Volume) String() string {
	if v.Name != "" {
		return fmt.Sprintf("%s %d (%s)", v.Scheme, v.Number, v.Name)
	}
	return fmt.Sprintf("%s %d", v.Scheme, v.Number)
}

// List finds the volumes of the disk r of size bytes, in the order of their
// numbers. The warnings tell, one sentence each, what was damaged and how it was
// helped, or what was left out. An error means that r could not be read.
//
// A GPT counts when the MBR announces it (type 0xEE), or when there is no MBR that
// says otherwise. A disk without a partition table is one volume with Number 0,
// also when it is blank. A disk whose table is there but has no entries has no
// volumes.
func List(r io.ReaderAt, size int64) ([]Volume, []string, error) {
	d := disk{r: r, size: size}
	if size < sectorSize {
		return nil, nil, fmt.Errorf("list volumes of %d bytes: %w", size, ErrTooSmall)
	}
	sector, err := d.read(0, sectorSize)
	if err != nil {
		return nil, nil, fmt.Errorf("list volumes: read sector 0: %w", err)
	}
	m, hasMBR := parseMBR(sector, size)
	volumes, err := d.list(m, hasMBR)
	if err != nil {
		return nil, nil, fmt.Errorf("list volumes: %w", err)
	}
	d.warnOverlaps(volumes)
	return volumes, d.warnings, nil
}

func (d *disk) list(m mbr, hasMBR bool) ([]Volume, error) {
	announced := hasMBR && m.protective()
	t, found, err := d.findGPT(announced)
	if err != nil {
		return nil, err
	}
	switch {
	case found && hasMBR && !announced:
		d.warn("the disk has a GPT that its MBR does not announce; the MBR is used")
		return d.listMBR(m)
	case found:
		if !hasMBR {
			d.warn("the protective MBR is missing; the GPT is used")
		}
		return t.volumes(d), nil
	case announced && m.onlyProtective():
		d.warn("the MBR announces a GPT, but neither the GPT nor its backup is readable")
		return nil, nil
	case hasMBR:
		return d.listMBR(m)
	}
	return []Volume{{Scheme: SchemeWhole, Offset: 0, Size: d.size}}, nil
}

// disk is a disk being read, and what there is to warn about.
type disk struct {
	r        io.ReaderAt
	size     int64
	warnings []string
}

// maxWarnings bounds the list on a hostile disk.
const maxWarnings = 100

func (d *disk) warn(format string, args ...any) {
	if len(d.warnings) < maxWarnings {
		d.warnings = append(d.warnings, fmt.Sprintf(format, args...))
	}
}

// errOutside: the range is not inside the disk.
var errOutside = errors.New("range is outside the disk")

// read gives n bytes at off, or an error.
func (d *disk) read(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > d.size || n > d.size-off {
		return nil, errOutside
	}
	p := make([]byte, n)
	got, err := d.r.ReadAt(p, off)
	if got == len(p) {
		return p, nil // io.ReaderAt may say io.EOF with the last byte
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return nil, err
}

// add appends the range [first, first+count) sectors as a volume, if it lies inside
// the disk.
func (d *disk) add(volumes []Volume, v Volume, first, count uint64, sector int64) []Volume {
	sectors := uint64(d.size / sector)
	switch {
	case len(volumes) >= MaxPartitions:
		d.warn("partition %d is left out: more than %d partitions", v.Number, MaxPartitions)
		return volumes
	case count == 0 || first >= sectors || count > sectors-first:
		d.warn("partition %d is left out: sectors %d+%d are not inside the disk of %d sectors",
			v.Number, first, count, sectors)
		return volumes
	}
	v.Offset, v.Size = int64(first)*sector, int64(count)*sector
	return append(volumes, v)
}

func (d *disk) warnOverlaps(volumes []Volume) {
	for i, a := range volumes {
		for _, b := range volumes[i+1:] {
			if a.Offset < b.Offset+b.Size && b.Offset < a.Offset+a.Size {
				d.warn("partitions %d and %d overlap", a.Number, b.Number)
			}
		}
	}
}
