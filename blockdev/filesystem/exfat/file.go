package exfat

import (
	"fmt"
	"io"
	"time"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// Getattr is stat(2), as Linux makes it up with umask 0022 for root.
func (f *FS) Getattr(ino filesystem.Inode) (filesystem.Attr, error) {
	a := filesystem.Attr{Inode: ino, Perm: 0o755, Type: filesystem.TypeRegular, Nlink: 1}
	if ino == rootInode {
		epoch := time.Unix(0, 0)
		a.Atime, a.Mtime, a.Ctime, a.Birth = epoch, epoch, epoch, epoch
	} else {
		x, err := f.file(ino)
		if err != nil {
			return filesystem.Attr{}, fmt.Errorf("attributes: %w", err)
		}
		a.Birth = stamp(x.times[0], x.hundredths[0], x.zones[0])
		a.Mtime = stamp(x.times[1], x.hundredths[1], x.zones[1])
		a.Atime = stamp(x.times[2], 0, x.zones[2])
		a.Ctime = a.Mtime // the format has none
		a.Size = x.size
		if x.dir() {
			a.Type = filesystem.TypeDir
		} else if x.attributes&attrReadOnly != 0 {
			a.Perm &^= 0o222
		}
	}
	if ino == rootInode || a.Type == filesystem.TypeDir {
		d, err := f.directory(ino)
		if err != nil {
			return filesystem.Attr{}, fmt.Errorf("attributes: %w", err)
		}
		a.Type, a.Nlink, a.Size = filesystem.TypeDir, 2+d.subs, d.size
	}
	cs := f.boot.clusterSize
	a.Blocks = (a.Size/cs + min(a.Size%cs, 1)) * (cs / 512)
	return a, nil
}

// stamp is a time of the format: date and time of two seconds, hundredths of a second on
// top, and the zone: bit 7 says that there is one, the rest are quarters of an hour, with
// a sign. Without one it is taken as UTC, as Linux does.
func stamp(v uint32, hundredths, zone byte) time.Time {
	t := time.Date(1980+int(v>>25), time.Month(v>>21&0xF), int(v>>16&0x1F), int(v>>11&0x1F), int(v>>5&0x3F), int(v&0x1F)*2, 0, time.UTC)
	t = t.Add(time.Duration(hundredths) * 10 * time.Millisecond)
	if zone&0x80 != 0 {
		quarters := int8(zone<<1) >> 1
		t = t.Add(-time.Duration(quarters) * 15 * time.Minute)
	}
	return t
}

// Readlink says that there are no symbolic links.
func (f *FS) Readlink(ino filesystem.Inode) ([]byte, error) {
	return nil, fmt.Errorf("read link: inode %d: exFAT has no symbolic links: %w", ino, filesystem.ErrInvalid)
}

// Xattrs is empty: the format has none.
func (f *FS) Xattrs(ino filesystem.Inode) ([]string, error) {
	if ino == rootInode {
		return nil, nil
	}
	if _, err := f.file(ino); err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	return nil, nil
}

// Xattr is always ErrNoXattr.
func (f *FS) Xattr(ino filesystem.Inode, name string) ([]byte, error) {
	return nil, fmt.Errorf("attribute %q of inode %d: %w", name, ino, filesystem.ErrNoXattr)
}

// regular is the file of an inode that is no directory.
func (f *FS) regular(ino filesystem.Inode) (*file, error) {
	if ino == rootInode {
		return nil, fmt.Errorf("inode %d: %w", ino, filesystem.ErrIsDir)
	}
	x, err := f.file(ino)
	if err != nil {
		return nil, err
	}
	if x.dir() {
		return nil, fmt.Errorf("inode %d: %w", ino, filesystem.ErrIsDir)
	}
	return x, nil
}

// ReadAt reads a regular file. What lies behind its valid data is zeros.
func (f *FS) ReadAt(ino filesystem.Inode, p []byte, off int64) (int, error) {
	x, err := f.regular(ino)
	if err != nil {
		return 0, fmt.Errorf("read: %w", err)
	}
	switch {
	case off < 0:
		return 0, fmt.Errorf("read inode %d at %d: %w", ino, off, filesystem.ErrInvalid)
	case off >= x.size && len(p) == 0:
		return 0, nil
	case off >= x.size:
		return 0, io.EOF
	}
	var atEnd error
	if int64(len(p)) > x.size-off {
		p, atEnd = p[:x.size-off], io.EOF
	}
	if err := f.readFile(x, p, off); err != nil {
		return 0, fmt.Errorf("read inode %d: %w", ino, err)
	}
	return len(p), atEnd
}

func (f *FS) readFile(x *file, p []byte, off int64) error {
	if (x.size-1)/f.boot.clusterSize >= int64(f.boot.clusters) {
		return corruptf("file of %d bytes in %d clusters", x.size, f.boot.clusters)
	}
	if err := f.checkAllocated(x.first); err != nil {
		return err
	}
	c, err := f.chain(x.first, f.need(x.size), x.noFAT, 0)
	if err != nil {
		return err
	}
	data := p[:max(0, min(int64(len(p)), x.valid-off))]
	clear(p[len(data):])
	return f.read(c, data, off, f.cache.ReadDirect)
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
	x, err := f.regular(ino)
	if err != nil {
		return 0, err
	}
	if off < 0 || off >= x.size {
		return 0, fmt.Errorf("inode %d at %d: %w", ino, off, filesystem.ErrNoData)
	}
	return x.size, nil
}
