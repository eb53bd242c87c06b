package fat

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// Getattr is stat(2), as Linux makes it up with umask 0022 for root.
func (f *FS) Getattr(ino filesystem.Inode) (filesystem.Attr, error) {
	if ino == rootInode {
		d, err := f.openDir(ino)
		if err != nil {
			return filesystem.Attr{}, fmt.Errorf("attributes: %w", err)
		}
		epoch := time.Unix(0, 0)
		return f.dirAttr(filesystem.Attr{Inode: ino, Perm: 0o755, Atime: epoch, Mtime: epoch, Ctime: epoch, Birth: epoch}, d), nil
	}
	entry, err := f.entry(ino)
	if err != nil {
		return filesystem.Attr{}, fmt.Errorf("attributes: %w", err)
	}
	le := binary.LittleEndian
	a := filesystem.Attr{
		Inode: ino,
		Perm:  0o755,
		Birth: stamp(le.Uint16(entry[16:]), le.Uint16(entry[14:]), entry[13]),
		Atime: stamp(le.Uint16(entry[18:]), 0, 0),
		Mtime: stamp(le.Uint16(entry[24:]), le.Uint16(entry[22:]), 0),
	}
	a.Ctime = a.Mtime // the format has none
	if entry[11]&attrDirectory != 0 {
		d, err := f.openDir(ino)
		if err != nil {
			return filesystem.Attr{}, fmt.Errorf("attributes: %w", err)
		}
		return f.dirAttr(a, d), nil
	}
	if entry[11]&attrReadOnly != 0 {
		a.Perm &^= 0o222
	}
	a.Type, a.Nlink, a.Size = filesystem.TypeRegular, 1, int64(le.Uint32(entry[28:]))
	a.Blocks = f.blocks(a.Size)
	return a, nil
}

// dirAttr adds what the contents of a directory say.
func (f *FS) dirAttr(a filesystem.Attr, d *directory) filesystem.Attr {
	a.Type, a.Nlink, a.Size = filesystem.TypeDir, 2+d.subs, d.size
	a.Blocks = f.blocks(a.Size)
	return a
}

// blocks is st_blocks of size bytes in whole clusters.
func (f *FS) blocks(size int64) int64 {
	cs := f.boot.clusterSize
	return (size + cs - 1) / cs * cs / 512
}

// stamp is a date and time of the format: local time, shown as UTC. hundredths count
// 10 ms on top of the two seconds that the time has. A date of 0 is the first of
// January of 1980, as for the kernel (fat_time_fat2unix).
func stamp(date, clock uint16, hundredths byte) time.Time {
	t := time.Date(1980+int(date>>9), time.Month(max(1, date>>5&0xF)), int(max(1, date&0x1F)),
		int(clock>>11), int(clock>>5&0x3F), int(clock&0x1F)*2, 0, time.UTC)
	return t.Add(time.Duration(hundredths) * 10 * time.Millisecond)
}

// Readlink says that there are no symbolic links.
func (f *FS) Readlink(ino filesystem.Inode) ([]byte, error) {
	return nil, fmt.Errorf("read link: inode %d: FAT has no symbolic links: %w", ino, filesystem.ErrInvalid)
}

// Xattrs is empty: the format has none.
func (f *FS) Xattrs(ino filesystem.Inode) ([]string, error) {
	if ino == rootInode {
		return nil, nil
	}
	if _, err := f.entry(ino); err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	return nil, nil
}

// Xattr is always ErrNoXattr.
func (f *FS) Xattr(ino filesystem.Inode, name string) ([]byte, error) {
	return nil, fmt.Errorf("attribute %q of inode %d: %w", name, ino, filesystem.ErrNoXattr)
}

// file is a regular file's size and first cluster.
func (f *FS) file(ino filesystem.Inode) (size int64, first uint32, err error) {
	if ino == rootInode {
		return 0, 0, fmt.Errorf("inode %d: %w", ino, filesystem.ErrIsDir)
	}
	entry, err := f.entry(ino)
	if err != nil {
		return 0, 0, err
	}
	if entry[11]&attrDirectory != 0 {
		return 0, 0, fmt.Errorf("inode %d: %w", ino, filesystem.ErrIsDir)
	}
	return int64(binary.LittleEndian.Uint32(entry[28:])), f.start(entry), nil
}

// ReadAt reads a regular file.
func (f *FS) ReadAt(ino filesystem.Inode, p []byte, off int64) (int, error) {
	size, first, err := f.file(ino)
	if err != nil {
		return 0, fmt.Errorf("read: %w", err)
	}
	switch {
	case off < 0:
		return 0, fmt.Errorf("read inode %d at %d: %w", ino, off, filesystem.ErrInvalid)
	case off >= size && len(p) == 0:
		return 0, nil
	case off >= size:
		return 0, io.EOF
	}
	var atEnd error
	if int64(len(p)) > size-off {
		p, atEnd = p[:size-off], io.EOF
	}
	n, err := f.readChain(first, size, p, off)
	if err != nil {
		return n, fmt.Errorf("read inode %d: %w", ino, err)
	}
	return n, atEnd
}

// readChain fills p from a file of size bytes, within which p lies.
func (f *FS) readChain(first uint32, size int64, p []byte, off int64) (int, error) {
	cs := f.boot.clusterSize
	c, err := f.chain(first, uint32((size+cs-1)/cs), 0)
	if err != nil {
		return 0, err
	}
	w, err := f.walk(c, uint32(off/cs))
	if err != nil {
		return 0, err
	}
	within := off % cs
	n := 0
	for n < len(p) {
		start, length, err := w.run(within + int64(len(p)-n))
		if err != nil {
			return n, err
		}
		part := p[n:]
		if have := length - within; int64(len(part)) > have {
			part = part[:have]
		}
		if err := f.cache.ReadDirect(part, start+within); err != nil {
			return n, err
		}
		n, within = n+len(part), 0
	}
	return n, nil
}

// NextData is SEEK_DATA: all of a file is data.
func (f *FS) NextData(ino filesystem.Inode, off int64) (int64, error) {
	if _, err := f.within(ino, off); err != nil {
		return 0, fmt.Errorf("seek data: %w", err)
	}
	return off, nil
}

// NextHole is SEEK_HOLE: only the end of the file is one.
func (f *FS) NextHole(ino filesystem.Inode, off int64) (int64, error) {
	size, err := f.within(ino, off)
	if err != nil {
		return 0, fmt.Errorf("seek hole: %w", err)
	}
	return size, nil
}

// within is the size of a file in which off must lie.
func (f *FS) within(ino filesystem.Inode, off int64) (int64, error) {
	size, _, err := f.file(ino)
	if err != nil {
		return 0, err
	}
	if off < 0 || off >= size {
		return 0, fmt.Errorf("inode %d at %d: %w", ino, off, filesystem.ErrNoData)
	}
	return size, nil
}
