package vault

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Space is the state of a file system, in bytes.
type Space struct {
	Total int64
	Free  int64 // for unprivileged users
}

// SpaceOf asks the file system that holds path.
func SpaceOf(path string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Space{}, fmt.Errorf("free space of %s: %w", path, err)
	}
	return Space{Total: int64(st.Blocks) * st.Bsize, Free: int64(st.Bavail) * st.Bsize}, nil
}

// fraction is the smaller of limit and 1/part of the file system.
func (s Space) fraction(part, limit int64) int64 { return min(s.Total/part, limit) }

// DiskReserve is the default of what disk files leave free.
func (s Space) DiskReserve() int64 { return s.fraction(20, 256<<20) }

// VaultReserve is the default of what the vault leaves free. It is the larger, so that
// the vault stops before the disks do; what lies below both is left for index and
// catalog, which die without space.
func (s Space) VaultReserve() int64 { return s.fraction(16, 512<<20) }

// BallastSize is the default size of the ballast.
func (s Space) BallastSize() int64 { return s.fraction(32, 1<<30) }

// Ballast is a file of allocated, unused space.
type Ballast struct {
	Path  string
	Bytes int64
}

// Drop gives the space back when less than low bytes are free, and reports whether
// it did.
func (b Ballast) Drop(low int64) (bool, error) {
	s, err := SpaceOf(parent(b.Path))
	if err != nil || s.Free >= low {
		return false, err
	}
	err = os.Remove(b.Path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Fill makes the file when it is absent and four times its size are free above
// reserve; else it does nothing.
func (b Ballast) Fill(reserve int64) error {
	if st, err := os.Stat(b.Path); b.Bytes == 0 || err == nil && st.Size() == b.Bytes {
		return nil
	}
	s, err := SpaceOf(parent(b.Path))
	if err != nil || s.Free < reserve+4*b.Bytes {
		return err
	}
	f, err := os.OpenFile(b.Path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("make ballast: %w", err)
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, b.Bytes)
	if errors.Is(err, unix.EOPNOTSUPP) { // a file system without fallocate has no ballast
		return errors.Join(f.Close(), os.Remove(b.Path))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("make ballast: %w", err), os.Remove(b.Path))
	}
	return nil
}
