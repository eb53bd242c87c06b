package ntfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/pagecache"
	"github.com/keelblock/keelblock/blockdev/filesystem/wtf8"
)

// Numbers of records.
const (
	recordMFT       = 0
	recordLogFile   = 2
	recordVolume    = 3
	recordRoot      = 5
	recordBitmap    = 6
	recordUpCase    = 10
	firstUserRecord = 16
)

// staleInode marks an inode number from an entry whose file is gone.
const staleInode = 1 << 62

// cacheBytes bounds the metadata that an FS keeps.
const cacheBytes = 32 << 20

// Classes of values in the cache.
const (
	classRecord      = iota + 1 // A = record: *record
	classNode                   // A = record: *node
	classRuns                   // A = record, B = id of the attribute: []run
	classUnit                   // A = first LCN, B = clusters and unit: []byte, a compression unit
	classDirectory              // A = record: *directory
	classIndex                  // A = record, B = number: []byte, an index block
	classIndexBitmap            // A = record, B = part: []byte
)

// countBitmap is the size of $Bitmap up to which Open counts the free clusters.
const countBitmap = 1 << 20

// FS is one NTFS file system.
type FS struct {
	cache  *pagecache.Cache
	boot   *boot
	mft    *stream
	upcase []uint16
	info   filesystem.Info
}

var _ filesystem.FS = (*FS)(nil)

// Open reads the boot sector, the runs of the MFT, $UpCase, and what tells the volume's
// state, of the volume r of size bytes. r must stay open while the FS is used; the FS
// itself needs no closing.
//
// Errors: ErrUnknown when there is no boot sector of NTFS, ErrUnsupported for a version
// before 3.0 or after 3.1, ErrCorrupt.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	f := &FS{cache: pagecache.New(r, size, cacheBytes)}
	if err := f.open(size); err != nil {
		return nil, fmt.Errorf("open ntfs: %w", err)
	}
	return f, nil
}

func (f *FS) open(size int64) error {
	if size < bootSize {
		return fmt.Errorf("volume of %d bytes: %w", size, filesystem.ErrUnknown)
	}
	p := make([]byte, bootSize)
	if err := f.cache.Read(p, 0); err != nil {
		return fmt.Errorf("boot sector: %w", err)
	}
	var err error
	if f.boot, err = parseBoot(p, size); err != nil {
		return err
	}
	if err := f.openMFT(); err != nil {
		return fmt.Errorf("MFT: %w", err)
	}
	if _, err := f.directory(recordRoot); err != nil {
		return fmt.Errorf("root directory: %w", err)
	}
	if err := f.openUpCase(); err != nil {
		return fmt.Errorf("$UpCase: %w", err)
	}
	b := f.boot
	f.info = filesystem.Info{
		Format:     "ntfs",
		UUID:       fmt.Sprintf("%016X", b.serial),
		BlockSize:  b.clusterSize,
		Blocks:     b.clusters,
		Inodes:     uint64(f.mft.size / b.recordSize),
		MaxNameLen: maxNameLen,
		SizeBytes:  b.sizeBytes,
	}
	flags, err := f.openVolume()
	if err != nil {
		return fmt.Errorf("$Volume: %w", err)
	}
	if f.info.BlocksFree, err = f.countFree(); err != nil {
		return fmt.Errorf("$Bitmap: %w", err)
	}
	f.info.State = f.state(flags)
	return nil
}

// openMFT finds all of the MFT from its first record. The parts of a list are taken in
// their order, each from a record in the parts before it.
func (f *FS) openMFT() error {
	b := f.boot
	p := make([]byte, b.recordSize)
	if err := f.cache.Read(p, int64(b.mft)*b.clusterSize); err != nil {
		return err
	}
	r, err := parseRecord(p, recordMFT)
	if err != nil {
		if r, err = f.mirrored(recordMFT); err != nil {
			return err
		}
	}
	n := &node{record: r}
	var first *attr
	for i := range r.attrs {
		switch a := &r.attrs[i]; {
		case a.kind == typeList:
			if n.list, err = f.attributeList(a); err != nil {
				return fmt.Errorf("attribute list: %w", err)
			}
		case a.kind == typeData && a.name == "" && first == nil:
			first = a
		}
	}
	if first == nil || first.resident || first.lowest != 0 || first.flags != 0 || first.initialized < firstUserRecord*b.recordSize {
		return corruptf("no plain $DATA in record 0")
	}
	f.mft = &stream{size: first.initialized, initialized: first.initialized}
	if f.mft.runs, err = f.decodeRuns(first); err != nil {
		return err
	}
	if len(f.mft.runs) == 0 {
		return corruptf("the MFT has no clusters")
	}
	for _, e := range n.list {
		if e.kind != typeData || e.name != "" || e.lowest == 0 {
			continue
		}
		a, err := f.resolve(n, e)
		if err != nil {
			return err
		}
		runs, err := f.decodeRuns(a)
		if err != nil {
			return err
		}
		if last := f.mft.runs[len(f.mft.runs)-1]; a.lowest != e.lowest || a.lowest != last.vcn+last.count {
			return corruptf("part of the MFT at cluster %d behind %d", a.lowest, last.vcn+last.count)
		}
		f.mft.runs = append(f.mft.runs, runs...)
	}
	for _, r := range f.mft.runs {
		if r.lcn == hole {
			return corruptf("the MFT has a hole at cluster %d", r.vcn)
		}
	}
	return nil
}

// openUpCase reads the table of capitals.
func (f *FS) openUpCase() error {
	const size = 2 << 16
	s, err := f.fileStream(recordUpCase)
	if err != nil {
		return err
	}
	if s.size != size {
		return corruptf("table of %d bytes", s.size)
	}
	p := make([]byte, size)
	if err := f.read(s, p, 0); err != nil {
		return err
	}
	f.upcase = wtf8.Units(p)
	return nil
}

// fileStream is the contents of one of the format's own files.
func (f *FS) fileStream(number uint64) (*stream, error) {
	n, err := f.node(number)
	if err != nil {
		return nil, err
	}
	s, err := f.namedStream(n, typeData, "")
	if err == nil && s == nil {
		err = corruptf("MFT record %d has no $DATA", number)
	}
	return s, err
}

// openVolume reads label, version and flags.
func (f *FS) openVolume() (flags uint16, err error) {
	n, err := f.node(recordVolume)
	if err != nil {
		return 0, err
	}
	label, err := f.find(n, typeVolumeName, "")
	if err != nil {
		return 0, err
	}
	if label != nil {
		f.info.Label = string(wtf8.Append(nil, wtf8.Units(label.value)))
	}
	a, err := f.find(n, typeVolumeInfo, "")
	if err != nil {
		return 0, err
	}
	if a == nil || len(a.value) < 12 {
		return 0, corruptf("no volume information")
	}
	if a.value[8] != 3 || a.value[9] > 1 {
		return 0, unsupportedf("NTFS version %d.%d", a.value[8], a.value[9])
	}
	return binary.LittleEndian.Uint16(a.value[10:]), nil
}

// countFree counts the free clusters where that is quick.
func (f *FS) countFree() (free uint64, err error) {
	s, err := f.fileStream(recordBitmap)
	if err != nil {
		return 0, err
	}
	if s.size > countBitmap || uint64(s.size)*8 < f.boot.clusters {
		return 0, nil
	}
	p := make([]byte, s.size)
	if err := f.read(s, p, 0); err != nil {
		return 0, err
	}
	for c := range f.boot.clusters {
		if p[c/8]>>(c%8)&1 == 0 {
			free++
		}
	}
	return free, nil
}

// Info describes the volume.
func (f *FS) Info() filesystem.Info { return f.info }

// Root is MFT record 5.
func (f *FS) Root() filesystem.Inode { return recordRoot }

// state tells whether what is shown is the newest state of the volume: the log is not
// replayed.
func (f *FS) state(flags uint16) filesystem.State {
	var why []string
	if reason := f.logState(); reason != "" {
		why = append(why, reason)
	}
	if reason := f.hibernation(); reason != "" {
		why = append(why, reason)
	}
	const dirty = 1
	if flags&dirty != 0 {
		why = append(why, "Windows marked the volume to be checked (chkdsk)")
	}
	if len(why) == 0 {
		return filesystem.State{Clean: true}
	}
	return filesystem.State{Reason: strings.Join(why, "; ")}
}

// logState reads the restart pages of $LogFile.
func (f *FS) logState() string {
	const notReplayed = "the volume was in use: its log ($LogFile) has not been replayed, so it is shown as it was on the disk, and the " +
		"newest changes may be missing or incomplete"
	s, err := f.fileStream(recordLogFile)
	if err != nil {
		return "the log ($LogFile) cannot be read, so the newest changes may be missing"
	}
	newest, clean, found := uint64(0), false, false
	for _, off := range []int64{0, 4096} {
		p := make([]byte, 4096)
		if off+4096 > s.size || f.read(s, p, off) != nil {
			return notReplayed
		}
		switch string(p[:4]) {
		case "\xff\xff\xff\xff": // emptied by chkdsk, mkntfs or ntfs-3g
			continue
		case "RSTR":
		default:
			return notReplayed
		}
		lsn, isClean, ok := restartPage(p)
		if !ok {
			continue // written in part; the other one counts
		}
		if !found || lsn > newest {
			newest, clean, found = lsn, isClean, true
		}
		found = true
	}
	if found && !clean {
		return notReplayed
	}
	if !found && !f.logEmpty(s) {
		return notReplayed
	}
	return ""
}

// restartPage reads a restart page: its LSN, and whether the log needs no replay.
func restartPage(p []byte) (lsn uint64, clean, ok bool) {
	if fixup(p, "RSTR") != nil {
		return 0, false, false
	}
	le := binary.LittleEndian
	area := int(le.Uint16(p[24:]))
	if area < 30 || area+48 > len(p) {
		return 0, false, false
	}
	const (
		noClient      = 0xFFFF
		volumeIsClean = 2
	)
	inUse, flags := le.Uint16(p[area+12:]), le.Uint16(p[area+14:])
	return le.Uint64(p[area:]), inUse == noClient || flags&volumeIsClean != 0, true
}

// logEmpty: both restart pages are all FF.
func (f *FS) logEmpty(s *stream) bool {
	p := make([]byte, 8192)
	return f.read(s, p, 0) == nil && bytes.Count(p, []byte{0xFF}) == len(p)
}

// hibernation looks for Windows' image of its memory: what it has changed since then is
// only there.
func (f *FS) hibernation() string {
	const asleep = "Windows is hibernated or was shut down with fast start-up (hiberfil.sys): what it had not written is in that file, " +
		"so the newest changes may be missing"
	ino, err := f.Lookup(recordRoot, []byte("hiberfil.sys"))
	if err != nil {
		return ""
	}
	p := make([]byte, 4096)
	n, err := f.ReadAt(ino, p, 0)
	if err != nil && err != io.EOF {
		return "hiberfil.sys cannot be read, so Windows may be hibernated, and the newest changes may be missing"
	}
	switch strings.ToLower(string(p[:min(n, 4)])) {
	case "hibr":
		return asleep
	case "wake", "":
		return ""
	}
	if strings.Trim(string(p[:n]), "\x00") != "" {
		return asleep
	}
	return ""
}
