package fusemount

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// This file serves what is ours: the directories of machines and points, STATUS, and
// raw images.

// lookupOurs answers a lookup in a directory of ours.
func (f *files) lookupOurs(cancel <-chan struct{}, parent uint64, name string, out *fuse.EntryOut) fuse.Status {
	dir := f.table.node(parent)
	if dir == nil || dir.entry.Directory == nil {
		return fuse.ENOTDIR
	}
	e, err := guard(f, &dir.guarded, cancel, func(ctx context.Context) (Entry, error) {
		return dir.entry.Directory.Lookup(ctx, name)
	})
	if err != nil {
		st := status(err)
		f.report(nil, st, "look up "+name, err)
		return st
	}
	return f.enterEntry(cancel, parent, e, out)
}

// enterEntry gives an entry of ours a number and tells the kernel.
func (f *files) enterEntry(cancel <-chan struct{}, parent uint64, e Entry, out *fuse.EntryOut) fuse.Status {
	if !e.Moving {
		out.SetEntryTimeout(ourTimeout)
	}
	if e.Volume != nil {
		return f.enterVolume(cancel, parent, e, out)
	}
	n := f.table.enter(parent, e)
	type result struct {
		attr fuse.Attr
		out  fuse.EntryOut
	}
	r, err := guard(f, &n.guarded, cancel, func(ctx context.Context) (result, error) {
		var r result
		timeout, err := f.ourAttr(ctx, n, &r.attr)
		r.out.SetAttrTimeout(timeout)
		return r, err
	})
	if err != nil {
		f.table.forget(n.number, 1)
		st := status(err)
		f.report(nil, st, "attributes of "+e.Name, err)
		return st
	}
	out.NodeId, out.Attr = n.number, r.attr
	out.AttrValid, out.AttrValidNsec = r.out.AttrValid, r.out.AttrValidNsec
	return fuse.OK
}

// getattrOurs answers stat for what is ours.
func (f *files) getattrOurs(cancel <-chan struct{}, number uint64, out *fuse.AttrOut) fuse.Status {
	n := f.table.node(number)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	r, err := guard(f, &n.guarded, cancel, func(ctx context.Context) (fuse.AttrOut, error) {
		var r fuse.AttrOut
		timeout, err := f.ourAttr(ctx, n, &r.Attr)
		r.SetTimeout(timeout)
		return r, err
	})
	if err != nil {
		st := status(err)
		f.report(nil, st, "attributes of "+n.entry.Name, err)
		return st
	}
	*out = r
	return fuse.OK
}

// statxOurs is getattrOurs in the words of statx: what is ours has no time of birth.
func (f *files) statxOurs(cancel <-chan struct{}, number uint64, out *fuse.StatxOut) fuse.Status {
	var a fuse.AttrOut
	if st := f.getattrOurs(cancel, number, &a); st != fuse.OK {
		return st
	}
	out.AttrValid, out.AttrValidNsec = a.AttrValid, a.AttrValidNsec
	out.Statx = fuse.Statx{Mask: unix.STATX_BASIC_STATS, Blksize: a.Blksize, Nlink: a.Nlink, Uid: a.Uid, Gid: a.Gid,
		Mode: uint16(a.Mode), Ino: a.Ino, Size: a.Size, Blocks: a.Blocks,
		Atime: fuse.SxTime{Sec: a.Atime, Nsec: a.Atimensec}, Mtime: fuse.SxTime{Sec: a.Mtime, Nsec: a.Mtimensec},
		Ctime: fuse.SxTime{Sec: a.Ctime, Nsec: a.Ctimensec}}
	return fuse.OK
}

// openOurs opens an image, or a text as it is now.
func (f *files) openOurs(cancel <-chan struct{}, number uint64, out *fuse.OpenOut) fuse.Status {
	n := f.table.node(number)
	switch {
	case n == nil:
		return fuse.Status(unix.ESTALE)
	case n.entry.Image != nil:
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
		return fuse.OK
	case n.entry.Text != nil:
		text, err := guard(f, &n.guarded, cancel, n.entry.Text.Text)
		if err != nil {
			return status(err)
		}
		out.Fh = f.keep(text)
		out.OpenFlags = fuse.FOPEN_DIRECT_IO
		return fuse.OK
	}
	return fuse.Status(unix.EISDIR)
}

// readOurs reads a text, or a part of an image.
func (f *files) readOurs(cancel <-chan struct{}, in *fuse.ReadIn) (fuse.ReadResult, fuse.Status) {
	if text, ok := f.kept(in.Fh).([]byte); ok && in.Fh != 0 {
		off := min(in.Offset, uint64(len(text)))
		end := min(off+uint64(in.Size), uint64(len(text)))
		return fuse.ReadResultData(text[off:end]), fuse.OK
	}
	n := f.table.node(in.NodeId)
	if n == nil || n.entry.Image == nil {
		return nil, fuse.Status(unix.EBADF)
	}
	image := n.entry.Image
	size := uint64(image.Size())
	off := min(in.Offset, size)
	length := min(uint64(in.Size), size-off)
	if length == 0 {
		return fuse.ReadResultData(nil), fuse.OK
	}
	buf, err := guard(f, &n.guarded, cancel, func(ctx context.Context) (*buffer, error) {
		b := getBuffer(int(length))
		if err := image.ReadAt(ctx, b.p, int64(off)); err != nil {
			b.Done()
			return nil, err
		}
		return b, nil
	})
	if err != nil {
		st := status(err)
		f.report(nil, st, "read "+n.entry.Name, err)
		return nil, st
	}
	return buf, fuse.OK
}

// lseekOurs finds data and holes of an image.
func (f *files) lseekOurs(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	n := f.table.node(in.NodeId)
	if n == nil || n.entry.Image == nil {
		return fuse.ENOSYS
	}
	image := n.entry.Image
	off, err := guard(f, &n.guarded, cancel, func(ctx context.Context) (int64, error) {
		return seek(in, image.Size(),
			func(off int64) (int64, error) { return image.NextData(ctx, off) },
			func(off int64) (int64, error) { return image.NextHole(ctx, off) })
	})
	if err != nil {
		st := status(err)
		f.report(nil, st, "find holes of "+n.entry.Name, err)
		return st
	}
	out.Offset = uint64(off)
	return fuse.OK
}

// seek answers SEEK_DATA and SEEK_HOLE by lseek(2): past the end is ENXIO, and the
// end is a hole.
func seek(in *fuse.LseekIn, size int64, data, hole func(int64) (int64, error)) (int64, error) {
	off := int64(in.Offset)
	if off < 0 || off >= size {
		return 0, filesystem.ErrNoData
	}
	switch in.Whence {
	case unix.SEEK_DATA:
		return data(off)
	case unix.SEEK_HOLE:
		return hole(off)
	}
	return 0, filesystem.ErrInvalid
}

// opendirOurs takes the listing, so that offsets in it stay what they are.
func (f *files) opendirOurs(cancel <-chan struct{}, number uint64, out *fuse.OpenOut) fuse.Status {
	n := f.table.node(number)
	if n == nil || n.entry.Directory == nil {
		return fuse.ENOTDIR
	}
	list, err := guard(f, &n.guarded, cancel, n.entry.Directory.List)
	if err != nil {
		st := status(err)
		f.report(nil, st, "list "+n.entry.Name, err)
		return st
	}
	out.Fh = f.keep(list)
	return fuse.OK
}

// readdirOurs lists a directory of ours from an offset: 1 is behind ".", 2 behind
// "..". add takes an entry, or returns false when the buffer is full.
//
// Attributes are not listed along: to have those of an image or a volume means to open
// a disk, and whoever only wants names should not wait for that. The kernel asks for
// them one by one when they are wanted.
func (f *files) readdirOurs(in *fuse.ReadIn, add func(fuse.DirEntry) bool) fuse.Status {
	list, ok := f.kept(in.Fh).([]Entry)
	n := f.table.node(in.NodeId)
	if !ok || n == nil {
		return fuse.Status(unix.EBADF)
	}
	for off := in.Offset; off < uint64(len(list))+2; off++ {
		d := fuse.DirEntry{Off: off + 1, Mode: unix.S_IFDIR}
		switch off {
		case 0:
			d.Name, d.Ino = ".", n.number
		case 1:
			d.Name, d.Ino = "..", n.parent
		default:
			e := list[off-2]
			d.Name = e.Name
			if e.Directory == nil && e.Volume == nil {
				d.Mode = unix.S_IFREG
			}
		}
		if !add(d) {
			break
		}
	}
	return fuse.OK
}

// keep holds on to something for an open file and returns its handle.
func (f *files) keep(what any) uint64 {
	f.handlesMu.Lock()
	defer f.handlesMu.Unlock()
	f.nextFh++
	f.handles[f.nextFh] = what
	return f.nextFh
}

func (f *files) kept(fh uint64) any {
	f.handlesMu.Lock()
	defer f.handlesMu.Unlock()
	return f.handles[fh]
}

func (f *files) drop(fh uint64) {
	if fh == 0 {
		return
	}
	f.handlesMu.Lock()
	defer f.handlesMu.Unlock()
	delete(f.handles, fh)
}
