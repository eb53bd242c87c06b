package localdisk

import (
	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
)

var _ blockdev.FastZeroer = (*Disk)(nil)

// ZeroesFast implements blockdev.FastZeroer. File systems are known by name: a trial
// would have to change the file, or could not tell a mark from a write.
func (d *Disk) ZeroesFast(mayPunch bool) bool {
	if d.parts != nil {
		for _, part := range d.parts {
			if !part.ZeroesFast(mayPunch) {
				return false
			}
		}
		return len(d.parts) > 0
	}
	if d.readOnly || d.enter() != nil {
		return false
	}
	defer d.leave()
	if d.isBlock {
		// The kernel punches a block device only where that zeroes without a write;
		// ZERO_RANGE may write.
		return mayPunch && !d.noPunch.Load()
	}
	var st unix.Statfs_t
	if unix.Fstatfs(d.fd, &st) != nil {
		return false
	}
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC:
		return mayPunch && !d.noPunch.Load() || !d.noZeroRange.Load()
	case tmpfsMagic:
		return mayPunch && !d.noPunch.Load()
	}
	return false
}
