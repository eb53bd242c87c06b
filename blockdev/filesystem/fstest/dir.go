package fstest

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// FromDir makes the manifest of the directory tree at root, as the kernel shows it.
// It does not cross into other mounts and does not follow symbolic links.
//
// The holes of a file are asked for before it is read: pages of unwritten extents
// that are in the page cache count as data for the kernel.
func FromDir(root string) (Manifest, error) {
	m := make(Manifest)
	var device uint64
	var walk func(path string) error
	walk = func(path string) error {
		full := root + "/" + path
		e, dev, err := dirEntry(full)
		if err != nil {
			return err
		}
		if path == "" {
			device = dev
		}
		m[path] = e
		if e.Attr.Type != filesystem.TypeDir || dev != device {
			return nil
		}
		names, err := os.ReadDir(full)
		if err != nil {
			return err
		}
		for _, n := range names {
			child := n.Name()
			if path != "" {
				child = path + "/" + child
			}
			if err := walk(child); err != nil {
				return err
			}
		}
		return nil
	}
	if err := walk(""); err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", root, err)
	}
	return m, nil
}

func dirEntry(full string) (e Entry, dev uint64, err error) {
	var s unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, full, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &s); err != nil {
		return e, 0, &os.PathError{Op: "statx", Path: full, Err: err}
	}
	stamp := func(t unix.StatxTimestamp) time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }
	e.Attr = filesystem.Attr{
		Inode:     filesystem.Inode(s.Ino),
		Type:      filesystem.Type(s.Mode >> 12),
		Perm:      s.Mode & 0o7777,
		Nlink:     s.Nlink,
		UID:       s.Uid,
		GID:       s.Gid,
		Size:      int64(s.Size),
		Blocks:    int64(s.Blocks),
		RdevMajor: s.Rdev_major,
		RdevMinor: s.Rdev_minor,
		Atime:     stamp(s.Atime),
		Mtime:     stamp(s.Mtime),
		Ctime:     stamp(s.Ctime),
	}
	if s.Mask&unix.STATX_BTIME != 0 {
		e.Attr.Birth = stamp(s.Btime)
	}
	dev = uint64(s.Dev_major)<<32 | uint64(s.Dev_minor)
	if e.Xattrs, err = dirXattrs(full); err != nil {
		return e, dev, err
	}
	switch e.Attr.Type {
	case filesystem.TypeSymlink:
		e.Target, err = os.Readlink(full)
	case filesystem.TypeRegular:
		err = dirContents(&e, full)
	}
	return e, dev, err
}

func dirXattrs(full string) (map[string]string, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(full, list)
	if errors.Is(err, unix.ENOTSUP) || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: full, Err: err}
	}
	out := make(map[string]string)
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		n, err := unix.Lgetxattr(full, name, value)
		if err != nil {
			return nil, &os.PathError{Op: "getxattr " + name, Path: full, Err: err}
		}
		out[name] = string(value[:n])
	}
	return out, nil
}

func dirContents(e *Entry, full string) error {
	f, err := os.Open(full)
	if err != nil {
		return err
	}
	defer f.Close()
	seek := func(whence int) func(int64) (int64, error) {
		return func(off int64) (int64, error) { return f.Seek(off, whence) }
	}
	noData := func(err error) bool { return errors.Is(err, unix.ENXIO) }
	if e.Data, err = dataExtents(e.Attr.Size, seek(unix.SEEK_DATA), seek(unix.SEEK_HOLE), noData); err != nil {
		return err
	}
	e.Digest, err = digest(e.Attr.Size, e.Data, f.ReadAt)
	return err
}
