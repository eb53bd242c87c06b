package fusemount

import (
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// This file is the file system as the kernel asks for it: each call goes to what is
// ours or into a volume.
//
// A request's memory belongs to go-fuse and is used again as soon as the call returns,
// while an operation may outlive its deadline. So what is passed on is a copy.

// copied is a copy of a request.
func copied[T any](in *T) *T {
	c := *in
	return &c
}

// String names the file system.
func (f *files) String() string { return SourceName }

// Lookup finds a name.
func (f *files) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	name = strings.Clone(name)
	if v := f.table.volume(h.NodeId); v != nil {
		return f.lookupGuest(v, cancel, h.NodeId, name, out)
	}
	return f.lookupOurs(cancel, h.NodeId, name, out)
}

// Forget drops references of the kernel. Guest files have none to drop.
func (f *files) Forget(number, count uint64) {
	if f.table.volume(number) == nil {
		f.table.forget(number, count)
	}
}

// GetAttr is stat(2).
func (f *files) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if v := f.table.volume(in.NodeId); v != nil {
		return f.getattrGuest(v, cancel, in.NodeId, out)
	}
	return f.getattrOurs(cancel, in.NodeId, out)
}

// Statx is statx(2) where it asks for the time of birth.
func (f *files) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	if v := f.table.volume(in.NodeId); v != nil {
		return f.statxGuest(v, cancel, in.NodeId, out)
	}
	return f.statxOurs(cancel, in.NodeId, out)
}

// Access is asked for only where the kernel does not check permissions: in the mount
// of one ordinary user, who may read everything.
func (f *files) Access(_ <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	if in.Mask&unix.W_OK != 0 {
		return fuse.EROFS
	}
	return fuse.OK
}

// Readlink is the target of a symbolic link, which nobody here follows.
func (f *files) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	if v := f.table.volume(h.NodeId); v != nil {
		return f.readlinkGuest(v, cancel, h.NodeId)
	}
	return nil, fuse.EINVAL
}

// Open opens for reading.
func (f *files) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.Flags&unix.O_ACCMODE != unix.O_RDONLY {
		return fuse.EROFS
	}
	if f.table.volume(in.NodeId) != nil {
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
		return fuse.OK
	}
	return f.openOurs(cancel, in.NodeId, out)
}

// Read reads a file.
func (f *files) Read(cancel <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	in = copied(in)
	if v := f.table.volume(in.NodeId); v != nil {
		return f.readGuest(v, cancel, in)
	}
	return f.readOurs(cancel, in)
}

// Lseek finds data and holes.
func (f *files) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	in = copied(in)
	if v := f.table.volume(in.NodeId); v != nil {
		return f.lseekGuest(v, cancel, in, out)
	}
	return f.lseekOurs(cancel, in, out)
}

// Release closes a file.
func (f *files) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { f.drop(in.Fh) }

// Flush is close(2) of one descriptor: there is nothing to write.
func (f *files) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

// OpenDir opens a directory.
func (f *files) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if f.table.volume(in.NodeId) != nil {
		out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
		return fuse.OK
	}
	return f.opendirOurs(cancel, in.NodeId, out)
}

// ReadDir lists names.
func (f *files) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	in = copied(in)
	v := f.table.volume(in.NodeId)
	if v == nil {
		return f.readdirOurs(in, out.AddDirEntry)
	}
	list, st := f.readdirGuest(v, cancel, in, false)
	for _, e := range list {
		if !out.AddDirEntry(e.fuse()) {
			break
		}
	}
	return st
}

// ReadDirPlus lists names with their attributes.
func (f *files) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	in = copied(in)
	v := f.table.volume(in.NodeId)
	if v == nil {
		return f.readdirOurs(in, func(d fuse.DirEntry) bool { return out.AddDirLookupEntry(d) != nil })
	}
	list, st := f.readdirGuest(v, cancel, in, true)
	for _, e := range list {
		entry := out.AddDirLookupEntry(e.fuse())
		if entry == nil {
			break
		}
		if e.plus {
			f.fillEntry(v, e.found, in.NodeId&viewBit != 0, entry)
		}
	}
	return st
}

func (e dirent) fuse() fuse.DirEntry {
	return fuse.DirEntry{Name: e.name, Ino: e.node, Mode: uint32(e.typ) << 12, Off: e.next}
}

// ReleaseDir closes a directory.
func (f *files) ReleaseDir(in *fuse.ReleaseIn) { f.drop(in.Fh) }

// GetXAttr is one extended attribute.
func (f *files) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	v := f.table.volume(h.NodeId)
	if v == nil {
		return 0, fuse.ENODATA
	}
	name = strings.Clone(name)
	value, st := f.getxattrGuest(v, cancel, h.NodeId, name)
	return fit(dest, value, st)
}

// ListXAttr lists the names of extended attributes.
func (f *files) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	v := f.table.volume(h.NodeId)
	if v == nil {
		return 0, fuse.OK
	}
	names, st := f.listxattrGuest(v, cancel, h.NodeId)
	return fit(dest, names, st)
}

// fit copies value to dest, or says how much room it needs.
func fit(dest, value []byte, st fuse.Status) (uint32, fuse.Status) {
	if st != fuse.OK {
		return 0, st
	}
	if len(value) > len(dest) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

// StatFs describes a volume; the tree of ours takes no space.
func (f *files) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	if v := f.table.volume(h.NodeId); v != nil {
		return f.statfsGuest(v, cancel, out)
	}
	*out = fuse.StatfsOut{Bsize: 4096, Frsize: 4096, NameLen: 255}
	return fuse.OK
}

var _ fuse.RawFileSystem = (*files)(nil)
