package guestfiles

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// destDir is an open folder that is copied to. All that is made in it is made relative
// to fd, by a name without slashes, so nothing can be made elsewhere.
type destDir struct {
	copier *copier
	parent *destDir // nil for the target folder
	name   string   // in parent
	fd     int
	from   *Node // what it becomes; nil for the target folder
	path   string
	made   bool // by us, so it gets the attributes of from

	// refs counts the listing and the files not copied yet. At 0 nothing is made in
	// the folder any more: it gets its attributes and is closed.
	refs atomic.Int64
}

// openDir opens a folder; with O_NOFOLLOW among flags a symbolic link is refused.
func openDir(at int, name string, flags int) (int, error) {
	return unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|flags, 0)
}

// folder makes a folder in d, or opens the one that is there.
func (d *destDir) folder(from Found, name string) (*destDir, error) {
	if !validName([]byte(name)) {
		return nil, errName
	}
	sub := &destDir{copier: d.copier, parent: d, name: name, from: from.Node, path: from.Path}
	err := unix.Mkdirat(d.fd, name, 0o700)
	switch {
	case err == nil:
		sub.made = true
	case !errors.Is(err, unix.EEXIST):
		return nil, fmt.Errorf("make the folder: %w", err)
	}
	sub.fd, err = openDir(d.fd, name, unix.O_NOFOLLOW)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("%w, and is no folder; symbolic links in the target are not followed", ErrExists)
	}
	if err != nil {
		return nil, fmt.Errorf("open the folder: %w", err)
	}
	d.copier.folders.Add(1)
	d.refs.Add(1)
	sub.refs.Store(1)
	return sub, nil
}

// release lets one reference go.
func (d *destDir) release(ctx context.Context) {
	if d.refs.Add(-1) > 0 {
		return
	}
	c := d.copier
	if d.from != nil && (d.made || c.o.Force) {
		in, err := d.from.load(ctx)
		if err == nil {
			err = c.attributes(d.fd, d.from, in.xattrs)
		}
		if err != nil {
			c.fail(ctx, d.path, err)
		}
	}
	if err := unix.Close(d.fd); err != nil {
		c.fail(ctx, d.path, err)
	}
	if d.parent != nil {
		d.parent.release(ctx)
	}
}

// reopen opens the folder anew, whether it is still open or not, from the target folder
// down and without following links. The target folder itself is open as long as there
// is anything to copy.
func (d *destDir) reopen() (int, error) {
	if d.parent == nil {
		return openDir(d.fd, ".", 0)
	}
	up, err := d.parent.reopen()
	if err != nil {
		return -1, err
	}
	defer unix.Close(up)
	return openDir(up, d.name, unix.O_NOFOLLOW)
}

// vacant says whether a file may be made under the name, before anything is read for
// it.
func (d *destDir) vacant(name string, force bool) error {
	var st unix.Stat_t
	err := unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return fmt.Errorf("%w, and is a folder", ErrExists)
	case !force:
		return fmt.Errorf("%w; --force replaces it", ErrExists)
	}
	return nil
}

// appear gives a file that is whole its name.
func (d *destDir) appear(temp, name string, force bool) error {
	if force {
		err := unix.Renameat(d.fd, temp, d.fd, name)
		// Two names of one file: rename leaves both, so the temporary one is taken away.
		_ = unix.Unlinkat(d.fd, temp, 0)
		return err
	}
	err := unix.Renameat2(d.fd, temp, d.fd, name, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// This file system cannot, but it can refuse to link over a name.
		if err = unix.Linkat(d.fd, temp, d.fd, name, 0); err == nil {
			return unix.Unlinkat(d.fd, temp, 0)
		}
	}
	if err != nil {
		_ = unix.Unlinkat(d.fd, temp, 0)
	}
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%w; --force replaces it", ErrExists)
	}
	return err
}

// mode is the mode that a copy gets. Who cannot give the file to its owner must not
// make a file that runs as themselves for all.
func (c *copier) mode(a filesystem.Attr) uint32 {
	mode := uint32(a.Perm) & 0o7777
	if !c.root && a.Type != filesystem.TypeDir {
		mode &^= 0o6000
	}
	return mode
}

// attributes sets owner, mode, extended attributes and times of an open file. The order
// matters: chown(2) takes setuid and capabilities away, and all of them change times.
func (c *copier) attributes(fd int, n *Node, xattrs []xattr) error {
	a := n.attr
	if n.vol == nil { // one of the tree's: it belongs to who copies it
		return utimes(fd, "", a)
	}
	if c.root {
		if err := unix.Fchown(fd, int(a.UID), int(a.GID)); err != nil {
			return fmt.Errorf("set the owner %d:%d: %w", a.UID, a.GID, err)
		}
	}
	if err := unix.Fchmod(fd, c.mode(a)); err != nil {
		return fmt.Errorf("set the mode %04o: %w", a.Perm, err)
	}
	if err := c.setXattrs(xattrs, func(name string, value []byte) error { return unix.Fsetxattr(fd, name, value, 0) }); err != nil {
		return err
	}
	return utimes(fd, "", a)
}

// attributesByName does the same for what is not opened: links, devices, pipes and
// sockets. It follows no link.
func (c *copier) attributesByName(j copyJob, name string, in contents) error {
	a := j.from.attr
	fd := j.dir.fd
	if c.root {
		if err := unix.Fchownat(fd, name, int(a.UID), int(a.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set the owner %d:%d: %w", a.UID, a.GID, err)
		}
	}
	path := fmt.Sprintf("/proc/self/fd/%d/%s", fd, name)
	if a.Type != filesystem.TypeSymlink {
		err := unix.Fchmodat(fd, name, c.mode(a), unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) { // before Linux 6.6
			err = unix.Fchmodat(fd, name, c.mode(a), 0)
		}
		if err != nil {
			return fmt.Errorf("set the mode %04o: %w", a.Perm, err)
		}
	}
	if err := c.setXattrs(in.xattrs, func(name string, value []byte) error { return unix.Lsetxattr(path, name, value, 0) }); err != nil {
		return err
	}
	return utimes(fd, name, a)
}

// setXattrs sets extended attributes. Those that only root may set are counted and left
// out for others.
func (c *copier) setXattrs(xattrs []xattr, set func(name string, value []byte) error) error {
	for _, x := range xattrs {
		err := set(x.name, x.value)
		switch {
		case err == nil:
		case !c.root && !strings.HasPrefix(x.name, "user."):
			c.skipped.Add(1)
		default:
			return fmt.Errorf("set the extended attribute %q of %d bytes: %w", x.name, len(x.value), err)
		}
	}
	return nil
}

// utimes sets the times of an open file, or of a name in an open folder.
func utimes(fd int, name string, a filesystem.Attr) error {
	times := []unix.Timespec{timespec(a.Atime), timespec(a.Mtime)}
	var err error
	if name != "" {
		err = unix.UtimesNanoAt(fd, name, times, unix.AT_SYMLINK_NOFOLLOW)
	} else {
		err = unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), times, 0)
	}
	if err != nil {
		return fmt.Errorf("set the times: %w", err)
	}
	return nil
}

// timespec leaves a time as it is that the file system does not have.
func timespec(t time.Time) unix.Timespec {
	if t.IsZero() {
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}
