package fusemount

import (
	"context"
	"time"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// Entry is one name of the tree. Exactly one of Directory, Text, Image and Volume is
// set.
type Entry struct {
	// Name is what a directory listing shows.
	Name string
	// ID is the identity of what is behind the name: the same ID is the same inode.
	// Empty: the name within its directory. A directory is reachable by one path
	// only, so its ID must say through which; files may share one.
	ID string
	// Time is shown as modification time.
	Time time.Time
	// Moving: the name may mean something else at the next lookup, so the kernel
	// asks each time.
	Moving bool
	// Second marks a volume that is reached by a second path: its directories get
	// inode numbers of their own. ID is the same as on the first path.
	Second bool

	Directory Directory
	Text      Text
	Image     Image
	Volume    Volume
}

// Directory is a directory of ours: its content may change at any time.
type Directory interface {
	// Lookup finds a name; filesystem.ErrNotExist when there is none.
	Lookup(ctx context.Context, name string) (Entry, error)
	// List lists the directory.
	List(ctx context.Context) ([]Entry, error)
}

// Text is a small generated file.
type Text interface {
	// Text is the whole content as of now.
	Text(ctx context.Context) ([]byte, error)
}

// Image is a raw disk.
type Image interface {
	// Size is the number of bytes, known without opening the disk.
	Size() int64
	// ReadAt fills p, which lies inside the image, or returns an error.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// NextData and NextHole are lseek(2) with SEEK_DATA and SEEK_HOLE, as in
	// filesystem.FS.
	NextData(ctx context.Context, off int64) (int64, error)
	NextHole(ctx context.Context, off int64) (int64, error)
	// AllocatedBytes says how many bytes are not holes; exact is false while it is
	// only an upper bound.
	AllocatedBytes(ctx context.Context) (n int64, exact bool)
}

// Volume is a guest's file system, opened at its first use.
type Volume interface {
	// Open returns the reader. It is called for each operation and must be cheap
	// once the volume is open.
	Open(ctx context.Context) (filesystem.FS, error)
	// Report takes note of something that was answered with EIO, for STATUS.
	Report(what string, err error)
}
