package xfs_test

import (
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// TestVM requires of images that were made in a guest with Debian's kernel what that
// kernel showed: of version 4, which this machine's kernel does not mount, and after
// its recovery of the log (tools/vmlab/images/xfs.sh).
func TestVM(t *testing.T) {
	for _, name := range fstest.VMCases(t, "xfs") {
		t.Run(name, func(t *testing.T) {
			files := fstest.VMCase(t, "xfs", name)
			requireText(t, name, files["volume.img"], files["volume.manifest"])
		})
	}
}
