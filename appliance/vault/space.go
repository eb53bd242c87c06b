package vault

import (
	"fmt"

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
