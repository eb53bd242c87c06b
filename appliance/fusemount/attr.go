package fusemount

import (
	"context"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// How long the kernel may keep what it was told.
const (
	immutableTimeout = 10 * 365 * 24 * time.Hour // for ever: points do not change
	ourTimeout       = time.Second               // our own directories do
)

func fillAttr(out *fuse.Attr, a filesystem.Attr, node uint64) {
	*out = fuse.Attr{
		Ino:    node,
		Size:   uint64(a.Size),
		Blocks: uint64(a.Blocks),
		Mode:   uint32(a.Type)<<12 | uint32(a.Perm&07777),
		Nlink:  a.Nlink,
		Owner:  fuse.Owner{Uid: a.UID, Gid: a.GID},
		Rdev:   encodeDev(a.RdevMajor, a.RdevMinor),
	}
	setTime(&out.Atime, &out.Atimensec, a.Atime)
	setTime(&out.Mtime, &out.Mtimensec, a.Mtime)
	setTime(&out.Ctime, &out.Ctimensec, a.Ctime)
}

// setTime writes seconds as the kernel reads them back: as a signed number, so that
// times before 1970 pass.
func setTime(sec *uint64, nsec *uint32, t time.Time) {
	if t.IsZero() {
		return
	}
	*sec, *nsec = uint64(t.Unix()), uint32(t.Nanosecond())
}

// encodeDev packs a device number as new_encode_dev of the kernel does
// (include/linux/kdev_t.h).
func encodeDev(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}

// ourAttr fills the attributes of a node of ours.
func (f *files) ourAttr(ctx context.Context, n *node, out *fuse.Attr) (time.Duration, error) {
	e := n.entry
	when := e.Time
	if when.IsZero() {
		when = f.began
	}
	*out = fuse.Attr{Ino: n.number, Nlink: 1, Owner: fuse.Owner{Uid: f.uid, Gid: f.gid}}
	setTime(&out.Atime, &out.Atimensec, when)
	setTime(&out.Mtime, &out.Mtimensec, when)
	setTime(&out.Ctime, &out.Ctimensec, when)
	switch {
	case e.Directory != nil:
		out.Mode, out.Nlink, out.Blksize = unix.S_IFDIR|0o555, 2, 4096
		return ourTimeout, nil
	case e.Image != nil:
		// The disk holds everything that the guest kept private.
		out.Mode, out.Blksize = unix.S_IFREG|0o400, 1<<20
		out.Size = uint64(e.Image.Size())
		n, exact := e.Image.AllocatedBytes(ctx)
		out.Blocks = uint64(n+511) / 512
		if exact {
			return immutableTimeout, nil
		}
		return ourTimeout, nil
	default:
		text, err := e.Text.Text(ctx)
		out.Mode, out.Size = unix.S_IFREG|0o444, uint64(len(text))
		out.Blocks = (out.Size + 511) / 512
		return 0, err
	}
}

func setStatxTime(out *fuse.SxTime, t time.Time) {
	if !t.IsZero() {
		out.Sec, out.Nsec = uint64(t.Unix()), uint32(t.Nanosecond())
	}
}
