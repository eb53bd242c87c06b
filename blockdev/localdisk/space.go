package localdisk

import (
	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
)

// maxGrant bounds how much a disk writes before it looks at the free space again.
// One fstatfs per 16 MiB does not show in a profile.
const maxGrant = 16 << 20

// admit refuses a write of [off, off+n) that needs new space while less than the
// reserve is free.
func (d *Disk) admit(off, n int64) error {
	if d.reserve <= 0 || d.spare.Add(-n) >= 0 {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(d.fd, &st); err != nil {
		return nil // the write itself will tell
	}
	above := int64(st.Bavail)*st.Bsize - d.reserve - n
	if above >= 0 {
		// A 64th: as many disks may share the file system, each with its grant.
		d.spare.Store(min(above/64, maxGrant))
		return nil
	}
	d.spare.Store(0)
	if d.allocated(off, n) {
		return nil
	}
	return blockdev.ErrNoSpace
}
