package fusemount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// This file serves what is inside a volume.

// inVolume opens the volume's reader and runs fn with it, guarded.
func inVolume[T any](f *files, v *volume, cancel <-chan struct{}, fn func(fs filesystem.FS) (T, error)) (T, error) {
	return guard(f, &v.guarded, cancel, func(ctx context.Context) (T, error) {
		fs, err := v.entry.Volume.Open(ctx)
		if err != nil {
			var none T
			return none, err
		}
		return fn(fs)
	})
}

// fail turns an error inside a volume into a status and reports it.
func (f *files) fail(v *volume, what string, node uint64, err error) fuse.Status {
	st := status(err)
	f.report(v, st, what+" "+v.names.describe(v.guest(node)), err)
	return st
}

type found struct {
	ino  filesystem.Inode
	attr filesystem.Attr
}

func (f *files) enterVolume(cancel <-chan struct{}, parent uint64, e Entry, out *fuse.EntryOut) fuse.Status {
	v := f.table.enterVolume(parent, e)
	if v == nil {
		return fuse.Status(unix.ENFILE)
	}
	r, err := inVolume(f, v, cancel, func(fs filesystem.FS) (found, error) {
		a, err := fs.Getattr(fs.Root())
		return found{fs.Root(), a}, err
	})
	if err != nil {
		st := status(err)
		if st == fuse.ENOENT { // the root exists by definition
			st = fuse.EIO
		}
		f.report(v, st, "open the volume", err)
		return st
	}
	f.fillEntry(v, r, e.Second, out)
	if e.Moving {
		out.SetEntryTimeout(0)
	}
	return fuse.OK
}

func (f *files) fillEntry(v *volume, r found, second bool, out *fuse.EntryOut) {
	out.NodeId = v.node(r.ino, r.attr.Type == filesystem.TypeDir, second)
	out.Generation = uint64(r.attr.Generation)
	fillAttr(&out.Attr, r.attr, out.NodeId)
	out.SetAttrTimeout(immutableTimeout)
	out.SetEntryTimeout(immutableTimeout)
}

func (f *files) lookupGuest(v *volume, cancel <-chan struct{}, parent uint64, name string, out *fuse.EntryOut) fuse.Status {
	r, err := inVolume(f, v, cancel, func(fs filesystem.FS) (found, error) {
		ino, err := fs.Lookup(v.guest(parent), []byte(name))
		if err != nil {
			return found{}, err
		}
		a, err := fs.Getattr(ino)
		if errors.Is(err, filesystem.ErrNotExist) {
			err = fmt.Errorf("%q names inode %d, which does not exist: %w", name, ino, filesystem.ErrCorrupt)
		}
		return found{ino, a}, err
	})
	if errors.Is(err, filesystem.ErrNotExist) {
		// Number 0 is how the kernel is told to remember that there is nothing.
		out.SetEntryTimeout(immutableTimeout)
		return fuse.OK
	}
	if err != nil {
		return f.fail(v, fmt.Sprintf("look up %q in directory", name), parent, err)
	}
	v.names.met(v.guest(parent), name, r.ino)
	if r.attr.Type != filesystem.TypeDir {
		v.ahead.lookedUp()
	}
	f.fillEntry(v, r, parent&viewBit != 0, out)
	return fuse.OK
}

func (f *files) getattrGuest(v *volume, cancel <-chan struct{}, number uint64, out *fuse.AttrOut) fuse.Status {
	a, err := inVolume(f, v, cancel, func(fs filesystem.FS) (filesystem.Attr, error) {
		return fs.Getattr(v.guest(number))
	})
	if err != nil {
		return f.fail(v, "attributes of", number, err)
	}
	fillAttr(&out.Attr, a, number)
	out.SetTimeout(immutableTimeout)
	return fuse.OK
}

func (f *files) readlinkGuest(v *volume, cancel <-chan struct{}, number uint64) ([]byte, fuse.Status) {
	target, err := inVolume(f, v, cancel, func(fs filesystem.FS) ([]byte, error) {
		return fs.Readlink(v.guest(number))
	})
	if err != nil {
		return nil, f.fail(v, "target of the symbolic link,", number, err)
	}
	return target, fuse.OK
}

// readGuest reads a file. A short result means the end of the file to the kernel, and
// only that: it would fill the rest of the page with zeros.
func (f *files) readGuest(v *volume, cancel <-chan struct{}, in *fuse.ReadIn) (fuse.ReadResult, fuse.Status) {
	buf, err := inVolume(f, v, cancel, func(fs filesystem.FS) (*buffer, error) {
		b := getBuffer(int(in.Size))
		n, err := fs.ReadAt(v.guest(in.NodeId), b.p, int64(in.Offset))
		switch {
		case n == len(b.p) && (err == nil || errors.Is(err, io.EOF)), errors.Is(err, io.EOF):
			b.p = b.p[:n]
			return b, nil
		case err == nil:
			err = errShort
		}
		b.Done()
		return nil, err
	})
	if err != nil {
		return nil, f.fail(v, fmt.Sprintf("read %d bytes at %d of", in.Size, in.Offset), in.NodeId, err)
	}
	if buf.Size() == 0 {
		buf.Done()
		return fuse.ReadResultData(nil), fuse.OK
	}
	return buf, fuse.OK
}

func (f *files) lseekGuest(v *volume, cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	ino := v.guest(in.NodeId)
	off, err := inVolume(f, v, cancel, func(fs filesystem.FS) (int64, error) {
		a, err := fs.Getattr(ino)
		if err != nil {
			return 0, err
		}
		return seek(in, a.Size,
			func(off int64) (int64, error) { return fs.NextData(ino, off) },
			func(off int64) (int64, error) { return fs.NextHole(ino, off) })
	})
	if err != nil {
		return f.fail(v, "find holes of", in.NodeId, err)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

// dirent is an entry that is ready to be listed.
type dirent struct {
	name  string
	node  uint64
	typ   filesystem.Type
	next  uint64
	found found
	plus  bool // found is set
}

// The least that an entry takes in the kernel's buffer: struct fuse_dirent, and with
// attributes struct fuse_direntplus.
const (
	direntBytes     = 24
	direntplusBytes = 152
)

// readdirGuest lists a directory from an offset: 1 is behind ".", 2 behind "..", and
// c + 2 at the guest's cookie c. Entries are collected first, since the reader may
// outlive its deadline and the buffer is not ours then.
func (f *files) readdirGuest(v *volume, cancel <-chan struct{}, in *fuse.ReadIn, plus bool) ([]dirent, fuse.Status) {
	second := in.NodeId&viewBit != 0
	dir := v.guest(in.NodeId)
	least, files := direntBytes, false // attributes of files
	if plus {
		least, files = direntplusBytes, v.ahead.attributes(in.Offset == 0)
	}
	list, err := inVolume(f, v, cancel, func(fs filesystem.FS) ([]dirent, error) {
		var list []dirent
		room := int(in.Size)
		if in.Offset == 0 {
			list = append(list, dirent{name: ".", node: in.NodeId, typ: filesystem.TypeDir, next: 1})
		}
		if in.Offset <= 1 {
			up, err := v.parentNode(fs, dir, second)
			if err != nil {
				return nil, err
			}
			list = append(list, dirent{name: "..", node: up, typ: filesystem.TypeDir, next: 2})
		}
		var cookie uint64
		if in.Offset > 2 {
			cookie = in.Offset - 2
		}
		err := fs.ReadDir(dir, cookie, func(d filesystem.Dirent) bool {
			if !validName(d.Name) {
				v.entry.Volume.Report(fmt.Sprintf("name %q in directory inode %d is left out", d.Name, dir), filesystem.ErrCorrupt)
				return true
			}
			e := dirent{name: string(d.Name), typ: d.Type, next: d.Next + 2}
			if files || plus && d.Type == filesystem.TypeDir || d.Type == 0 {
				// An entry whose inode cannot be read is listed all the same, and
				// whoever asks for it learns why.
				if a, err := fs.Getattr(d.Inode); err == nil {
					e.found, e.typ, e.plus = found{d.Inode, a}, a.Type, plus
					v.names.met(dir, e.name, d.Inode)
				}
			}
			e.node = v.node(d.Inode, e.typ == filesystem.TypeDir, second)
			list = append(list, e)
			room -= least + len(e.name)
			return room > 0
		})
		return list, err
	})
	if err != nil {
		return nil, f.fail(v, "list directory", in.NodeId, err)
	}
	if plus && !files {
		v.ahead.listedNames(bare(list))
	}
	return list, fuse.OK
}

// bare counts the entries that come without attributes.
func bare(list []dirent) (n int) {
	for _, e := range list {
		if !e.plus {
			n++
		}
	}
	return n
}

// parentNode is the number of "..".
func (v *volume) parentNode(fs filesystem.FS, dir filesystem.Inode, second bool) (uint64, error) {
	if dir == fs.Root() {
		if second {
			return v.second, nil
		}
		return v.parent, nil
	}
	up, err := fs.Parent(dir)
	if err != nil {
		return 0, err
	}
	return v.node(up, true, second), nil
}

// validName says whether the kernel would take the name: it refuses the whole listing
// otherwise.
func validName(name []byte) bool {
	return len(name) > 0 && len(name) <= 255 && bytes.IndexByte(name, '/') < 0 && bytes.IndexByte(name, 0) < 0 &&
		!bytes.Equal(name, []byte(".")) && !bytes.Equal(name, []byte(".."))
}

func (f *files) getxattrGuest(v *volume, cancel <-chan struct{}, number uint64, name string) ([]byte, fuse.Status) {
	value, err := inVolume(f, v, cancel, func(fs filesystem.FS) ([]byte, error) {
		return fs.Xattr(v.guest(number), name)
	})
	if err != nil {
		return nil, f.fail(v, "attribute "+name+" of", number, err)
	}
	return value, fuse.OK
}

func (f *files) listxattrGuest(v *volume, cancel <-chan struct{}, number uint64) ([]byte, fuse.Status) {
	names, err := inVolume(f, v, cancel, func(fs filesystem.FS) ([]string, error) {
		return fs.Xattrs(v.guest(number))
	})
	if err != nil {
		return nil, f.fail(v, "list attributes of", number, err)
	}
	var out []byte
	for _, n := range names {
		out = append(append(out, n...), 0)
	}
	return out, fuse.OK
}

func (f *files) statfsGuest(v *volume, cancel <-chan struct{}, out *fuse.StatfsOut) fuse.Status {
	info, err := inVolume(f, v, cancel, func(fs filesystem.FS) (filesystem.Info, error) { return fs.Info(), nil })
	if err != nil {
		return f.fail(v, "space and", uint64(0), err)
	}
	*out = fuse.StatfsOut{Blocks: info.Blocks, Bfree: info.BlocksFree, Bavail: info.BlocksFree,
		Files: info.Inodes, Ffree: info.InodesFree, Bsize: uint32(info.BlockSize),
		Frsize: uint32(info.BlockSize), NameLen: uint32(info.MaxNameLen)}
	return fuse.OK
}

func (f *files) statxGuest(v *volume, cancel <-chan struct{}, number uint64, out *fuse.StatxOut) fuse.Status {
	a, err := inVolume(f, v, cancel, func(fs filesystem.FS) (filesystem.Attr, error) {
		return fs.Getattr(v.guest(number))
	})
	if err != nil {
		return f.fail(v, "attributes of", number, err)
	}
	out.SetTimeout(immutableTimeout)
	s := &out.Statx
	s.Mask = unix.STATX_BASIC_STATS
	s.Nlink, s.Uid, s.Gid = a.Nlink, a.UID, a.GID
	s.Mode = uint16(a.Type)<<12 | a.Perm&07777
	s.Ino, s.Size, s.Blocks = number, uint64(a.Size), uint64(a.Blocks)
	s.RdevMajor, s.RdevMinor = a.RdevMajor, a.RdevMinor
	setStatxTime(&s.Atime, a.Atime)
	setStatxTime(&s.Mtime, a.Mtime)
	setStatxTime(&s.Ctime, a.Ctime)
	if !a.Birth.IsZero() {
		setStatxTime(&s.Btime, a.Birth)
		s.Mask |= unix.STATX_BTIME
	}
	return fuse.OK
}
