package ntfs

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// Attributes of a file.
const (
	attrSystem  = 0x4
	attrReparse = 0x400
	// A file of the cloud whose contents are not all here.
	attrOffline      = 0x1000
	attrRecallOnOpen = 0x40000
	attrRecallOnData = 0x400000
)

// maxSteps bounds how many runs NextData and NextHole look at. Where more would be needed
// they say "data", which is always allowed.
const maxSteps = 1 << 14

// maxXattr is the largest extended attribute that Linux can hand over, in bytes.
const maxXattr = 64 << 10

// file is the node of an inode number that came from us.
func (f *FS) file(ino filesystem.Inode) (*node, error) {
	if ino&staleInode != 0 {
		return nil, fmt.Errorf("inode %d: its directory entry is older than the file in MFT record %d: %w", ino, ino&^staleInode, filesystem.ErrCorrupt)
	}
	if uint64(ino) >= uint64(f.mft.size/f.boot.recordSize) {
		return nil, fmt.Errorf("inode %d: %w", ino, filesystem.ErrNotExist)
	}
	n, err := f.node(uint64(ino))
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", ino, err)
	}
	if n.flags&recordInUse == 0 {
		return nil, fmt.Errorf("inode %d: MFT record is not in use: %w", ino, filesystem.ErrNotExist)
	}
	return n, nil
}

// standard is $STANDARD_INFORMATION.
func (f *FS) standard(n *node) ([]byte, error) {
	a, err := f.find(n, typeStandard, "")
	if err != nil {
		return nil, err
	}
	if a == nil || len(a.value) < 48 {
		return nil, corruptf("MFT record %d: no standard information", n.number)
	}
	return a.value, nil
}

// Getattr is stat(2), as ntfs-3g makes it up for root.
func (f *FS) Getattr(ino filesystem.Inode) (filesystem.Attr, error) {
	n, err := f.file(ino)
	if err != nil {
		return filesystem.Attr{}, fmt.Errorf("attributes: %w", err)
	}
	a, err := f.attr(n)
	if err != nil {
		return filesystem.Attr{}, fmt.Errorf("attributes of inode %d: %w", ino, err)
	}
	a.Inode = ino
	return a, nil
}

func (f *FS) attr(n *node) (filesystem.Attr, error) {
	p, err := f.standard(n)
	if err != nil {
		return filesystem.Attr{}, err
	}
	k, err := f.kind(n)
	if err != nil {
		return filesystem.Attr{}, err
	}
	le := binary.LittleEndian
	a := filesystem.Attr{
		Type: k.typ, Perm: 0o777, Generation: uint32(n.sequence), RdevMajor: k.major, RdevMinor: k.minor,
		Birth: stamp(le.Uint64(p)), Mtime: stamp(le.Uint64(p[8:])), Ctime: stamp(le.Uint64(p[16:])), Atime: stamp(le.Uint64(p[24:])),
	}
	if k.typ == filesystem.TypeDir {
		d, err := f.directory(filesystem.Inode(n.number))
		if err != nil {
			return filesystem.Attr{}, err
		}
		a.Nlink, a.Size = 1, int64(len(d.root))
		if d.alloc != nil {
			a.Size, a.Blocks = d.alloc.size, (d.alloc.allocated+511)/512
		}
		return a, nil
	}
	if a.Nlink, err = f.links(n); err != nil {
		return filesystem.Attr{}, err
	}
	s, err := f.namedStream(n, typeData, "")
	if err != nil {
		return filesystem.Attr{}, err
	}
	if s != nil {
		a.Blocks = (s.allocated + 511) / 512
	}
	switch {
	case k.typ == filesystem.TypeSymlink:
		a.Size = int64(len(k.target))
	case s != nil: // of a special file, too, as ntfs-3g does
		a.Size = s.size
	}
	return a, nil
}

// links counts the names of a file, without DOS names beside longer ones.
func (f *FS) links(n *node) (count uint32, err error) {
	err = f.each(n, typeFileName, func(a *attr) bool {
		if len(a.value) >= fileNameHeader && a.value[65] != namespaceDOS {
			count++
		}
		return true
	})
	return max(count, 1), err
}

// stamp is a time of the format: units of 100 ns since the year 1601.
func stamp(v uint64) time.Time {
	const (
		perSecond    = 10_000_000
		toUnix       = 11_644_473_600 // seconds from 1601 to 1970
		greatestTime = math.MaxInt64
	)
	v = min(v, greatestTime)
	return time.Unix(int64(v/perSecond)-toUnix, int64(v%perSecond)*100)
}

// Parent is the directory of the first name of dir that is no DOS name.
func (f *FS) Parent(dir filesystem.Inode) (filesystem.Inode, error) {
	n, err := f.file(dir)
	if err != nil {
		return 0, fmt.Errorf("parent: %w", err)
	}
	if n.flags&recordDirectory == 0 {
		return 0, fmt.Errorf("parent: inode %d: %w", dir, filesystem.ErrNotDir)
	}
	ref, found := uint64(0), false
	err = f.each(n, typeFileName, func(a *attr) bool {
		if len(a.value) >= fileNameHeader {
			ref, found = binary.LittleEndian.Uint64(a.value), true
			return a.value[65] == namespaceDOS
		}
		return true
	})
	if err == nil && !found {
		err = corruptf("it has no name")
	}
	if err != nil {
		return 0, fmt.Errorf("parent of directory %d: %w", dir, err)
	}
	return filesystem.Inode(refNumber(ref)), nil
}

// Readlink is the target of a symbolic link or junction.
func (f *FS) Readlink(ino filesystem.Inode) ([]byte, error) {
	n, err := f.file(ino)
	if err != nil {
		return nil, fmt.Errorf("read link: %w", err)
	}
	k, err := f.kind(n)
	if err != nil {
		return nil, fmt.Errorf("read link: inode %d: %w", ino, err)
	}
	if k.typ != filesystem.TypeSymlink {
		return nil, fmt.Errorf("read link: inode %d: %w", ino, filesystem.ErrInvalid)
	}
	return slices.Clone(k.target), nil
}

// xattrPrefix is put before the name of an alternate data stream.
const xattrPrefix = "user."

// Xattrs lists the alternate data streams.
func (f *FS) Xattrs(ino filesystem.Inode) ([]string, error) {
	n, err := f.file(ino)
	if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	var names []string
	err = f.each(n, typeData, func(a *attr) bool {
		if a.name != "" {
			names = append(names, xattrPrefix+a.name)
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("list attributes of inode %d: %w", ino, err)
	}
	return names, nil
}

// Xattr is the contents of an alternate data stream of up to 64 KiB.
func (f *FS) Xattr(ino filesystem.Inode, name string) ([]byte, error) {
	n, err := f.file(ino)
	if err != nil {
		return nil, fmt.Errorf("attribute %q: %w", name, err)
	}
	p, err := f.xattr(n, name)
	if err != nil {
		return nil, fmt.Errorf("attribute %q of inode %d: %w", name, ino, err)
	}
	return p, nil
}

func (f *FS) xattr(n *node, name string) ([]byte, error) {
	if len(name) <= len(xattrPrefix) || name[:len(xattrPrefix)] != xattrPrefix {
		return nil, filesystem.ErrNoXattr
	}
	s, err := f.namedStream(n, typeData, name[len(xattrPrefix):])
	switch {
	case err != nil:
		return nil, err
	case s == nil:
		return nil, filesystem.ErrNoXattr
	case s.size > maxXattr:
		return nil, unsupportedf("stream of %d bytes is larger than an extended attribute can be", s.size)
	}
	p := make([]byte, s.size)
	return p, f.read(s, p, 0)
}

// regular is the contents of a regular file that can be read; nil when it has none.
func (f *FS) regular(ino filesystem.Inode) (*stream, error) {
	n, err := f.file(ino)
	if err != nil {
		return nil, err
	}
	k, err := f.kind(n)
	switch {
	case err != nil:
		return nil, fmt.Errorf("inode %d: %w", ino, err)
	case k.typ == filesystem.TypeDir:
		return nil, fmt.Errorf("inode %d: %w", ino, filesystem.ErrIsDir)
	case k.typ != filesystem.TypeRegular:
		return nil, fmt.Errorf("inode %d: %w", ino, filesystem.ErrInvalid)
	case k.unreadable != "":
		return nil, fmt.Errorf("inode %d: %w", ino, unsupportedf("%s", k.unreadable))
	}
	s, err := f.namedStream(n, typeData, "")
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", ino, err)
	}
	if s == nil {
		s = &stream{isResident: true}
	}
	return s, nil
}

// ReadAt reads a regular file.
func (f *FS) ReadAt(ino filesystem.Inode, p []byte, off int64) (int, error) {
	s, err := f.regular(ino)
	if err != nil {
		return 0, fmt.Errorf("read: %w", err)
	}
	switch {
	case off < 0:
		return 0, fmt.Errorf("read inode %d at %d: %w", ino, off, filesystem.ErrInvalid)
	case off >= s.size && len(p) == 0:
		return 0, nil
	case off >= s.size:
		return 0, io.EOF
	}
	var atEnd error
	if int64(len(p)) > s.size-off {
		p, atEnd = p[:s.size-off], io.EOF
	}
	if err := f.read(s, p, off); err != nil {
		return 0, fmt.Errorf("read inode %d: %w", ino, err)
	}
	return len(p), atEnd
}

// NextData is SEEK_DATA. Holes are clusters that are not allocated, and, of a compressed
// file, units without any.
func (f *FS) NextData(ino filesystem.Inode, off int64) (int64, error) {
	return f.seek("seek data", ino, off, true)
}

// NextHole is SEEK_HOLE.
func (f *FS) NextHole(ino filesystem.Inode, off int64) (int64, error) {
	return f.seek("seek hole", ino, off, false)
}

func (f *FS) seek(op string, ino filesystem.Inode, off int64, wantData bool) (int64, error) {
	s, err := f.regular(ino)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", op, err)
	}
	if off < 0 || off >= s.size {
		return 0, fmt.Errorf("%s: inode %d at %d: %w", op, ino, off, filesystem.ErrNoData)
	}
	at := off
	for range maxSteps {
		data, end, err := f.extent(s, at)
		if err != nil {
			return 0, fmt.Errorf("%s: inode %d: %w", op, ino, err)
		}
		if data == wantData {
			return at, nil
		}
		if at = end; at >= s.size {
			if wantData {
				return 0, fmt.Errorf("%s: inode %d at %d: %w", op, ino, off, filesystem.ErrNoData)
			}
			return s.size, nil
		}
	}
	if wantData {
		return at, nil
	}
	return s.size, nil
}

// extent tells whether off is data, and up to where that is so at least.
func (f *FS) extent(s *stream, off int64) (data bool, end int64, err error) {
	if s.isResident {
		return true, s.size, nil
	}
	if off >= s.initialized {
		return false, s.size, nil
	}
	cs := f.boot.clusterSize
	if s.unit != 0 {
		size := int64(s.unit) * cs
		_, stored, err := f.unitClusters(s, uint64(off/size))
		return stored > 0, min(off/size*size+size, s.size), err
	}
	r, err := f.at(s, uint64(off/cs))
	if err != nil {
		return false, 0, err
	}
	end = int64(min(r.vcn+r.count, uint64(s.size/cs)+1)) * cs
	return r.lcn != hole, min(end, s.initialized), nil
}
