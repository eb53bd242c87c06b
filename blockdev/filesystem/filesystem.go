package filesystem

import (
	"errors"
	"time"
)

// Inode addresses a file inside one file system. 0 is no inode.
type Inode uint64

// Type is the kind of a file. The values are the file type bits of st_mode >> 12.
type Type uint8

// The types.
const (
	TypeFifo    Type = 1
	TypeChar    Type = 2
	TypeDir     Type = 4
	TypeBlock   Type = 6
	TypeRegular Type = 8
	TypeSymlink Type = 10
	TypeSocket  Type = 12
)

// Attr is what stat(2) shows.
type Attr struct {
	Inode Inode
	Type  Type
	// Perm are the low 12 bits of st_mode: permissions, setuid, setgid, sticky.
	Perm   uint16
	Nlink  uint32
	UID    uint32
	GID    uint32
	Size   int64 // bytes
	Blocks int64 // allocated, in 512 bytes
	// Rdev major and minor are set for TypeChar and TypeBlock.
	RdevMajor, RdevMinor uint32
	// Times with nanoseconds as far as the format has them. Birth may be zero.
	Atime, Mtime, Ctime, Birth time.Time
	// Generation changes when an inode number is used again.
	Generation uint32
}

// Dirent is one entry of a directory.
type Dirent struct {
	// Name is bytes as stored: never cleaned, not necessarily UTF-8. It is valid
	// only until yield returns.
	Name  []byte
	Inode Inode
	Type  Type // 0 when the format does not say
	// Next is the cookie that resumes behind this entry.
	Next uint64
}

// State says how much a volume can be trusted to be current.
type State struct {
	// Clean: what is shown is the newest state: the volume was cleanly unmounted or
	// frozen, or its journal was replayed.
	Clean bool
	// Reason tells a reader why not, in one sentence, and what is shown instead. Of a
	// clean volume it may tell what was replayed.
	Reason string
}

// Info describes a volume.
type Info struct {
	Format string // "ext4", "ext3", "ext2", ...
	Label  string
	UUID   string
	State  State
	// BlockSize and the counts are for statfs(2).
	BlockSize          int64
	Blocks, BlocksFree uint64
	Inodes, InodesFree uint64
	MaxNameLen         int
	SizeBytes          int64
}

// FS is a guest's file system, read-only, addressed by inode (rule F1). It reads
// an image that may be damaged or hostile.
//
// Concurrency: all methods may be called from any number of goroutines.
//
// Errors: what cannot be read is an error, never zeros and never older data
// (rules F2, F4): ErrCorrupt when the image contradicts itself or a checksum fails,
// ErrUnsupported when the format has something that this reader does not know,
// ErrNotExist and ErrNotDir as usual, and what the Device below returned.
// No method panics, follows symlinks, or loops on a cyclic image.
type FS interface {
	// Info describes the volume. It is cheap.
	Info() Info
	// Root is the inode of the root directory.
	Root() Inode
	// Lookup finds name in the directory dir.
	Lookup(dir Inode, name []byte) (Inode, error)
	// ReadDir yields the entries of dir behind cookie (0: from the start), without
	// "." and "..", until yield returns false. A cookie stays valid for ever, since
	// the image does not change.
	ReadDir(dir Inode, cookie uint64, yield func(Dirent) bool) error
	// Getattr is stat(2).
	Getattr(ino Inode) (Attr, error)
	// Parent is the directory that ".." of dir names.
	Parent(dir Inode) (Inode, error)
	// Readlink is the target of a symbolic link, as bytes.
	Readlink(ino Inode) ([]byte, error)
	// Xattrs lists the names of the extended attributes with their prefix
	// ("user.", "system.posix_acl_access", ...).
	Xattrs(ino Inode) ([]string, error)
	// Xattr is the value of one extended attribute; ErrNoXattr when there is none.
	Xattr(ino Inode, name string) ([]byte, error)
	// ReadAt reads a regular file. It fills p, or stops at the end of the file
	// with io.EOF, or returns an error and how many leading bytes are good.
	ReadAt(ino Inode, p []byte, off int64) (int, error)
	// NextData and NextHole are lseek(2) with SEEK_DATA and SEEK_HOLE: the first
	// offset at or after off that is data, or hole; ErrNoData when there is no
	// data behind off. The end of the file counts as a hole.
	NextData(ino Inode, off int64) (int64, error)
	NextHole(ino Inode, off int64) (int64, error)
}

// Mapper is an FS that can say where the contents of a file lie. What compares two points
// of one disk reads only what lies on other blocks, or on blocks that have changed.
type Mapper interface {
	// Map yields the data of a regular file, ascending, until yield returns false. What
	// it leaves out reads as zeros. The bytes of an extent with a place are those of
	// the volume, as they are.
	Map(ino Inode, yield func(FileExtent) bool) error
}

// Subvolumes is an FS of which parts are mounted as if they were file systems of their own
// (btrfs). Root is the part that is mounted when none is named.
type Subvolumes interface {
	// TopLevel is the root above all parts: the option subvol=PATH of mount(8) begins
	// there.
	TopLevel() Inode
	// Subvolume is the root of the part with this number, the option subvolid=N.
	Subvolume(id uint64) (Inode, error)
}

// FileExtent is a range of a file.
type FileExtent struct {
	Offset, Length int64 // in the file
	// Place is the offset on the volume, or -1 for data that is stored otherwise:
	// inline, compressed, replaced by a journal.
	Place int64
}

// Sentinel errors of file system readers.
var (
	// ErrNotExist: no such name, inode or attribute owner.
	ErrNotExist = errors.New("no such file or directory")
	// ErrNotDir: the inode is not a directory.
	ErrNotDir = errors.New("not a directory")
	// ErrIsDir: the inode is a directory.
	ErrIsDir = errors.New("is a directory")
	// ErrInvalid: the call does not fit the inode's type.
	ErrInvalid = errors.New("invalid for this type of file")
	// ErrNoXattr: the file has no such extended attribute.
	ErrNoXattr = errors.New("no such extended attribute")
	// ErrNoData: there is no data at or after the offset.
	ErrNoData = errors.New("no data at or after the offset")
	// ErrCorrupt: a checksum fails or the image contradicts itself.
	ErrCorrupt = errors.New("file system is damaged here")
	// ErrUnsupported: a feature or compression that this reader does not know.
	ErrUnsupported = errors.New("not supported by this reader")
	// ErrUnknown: no reader recognises the volume.
	ErrUnknown = errors.New("no known file system")
)
