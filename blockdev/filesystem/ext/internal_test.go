package ext

import "testing"

// HashForTest is the hash of a name in a directory with half MD4.
func HashForTest(f *FS, name string) uint32 {
	h, _ := f.dirHash(hashHalfMD4, []byte(name), &inode{})
	return h
}

// CheckGroupsForTest reads and verifies the descriptors of all groups.
func CheckGroupsForTest(f *FS) error {
	for g := range f.super.groups {
		if _, err := f.inodeTable(g); err != nil {
			return err
		}
	}
	return nil
}

// An extent of 32 768 blocks is the longest written one, not an unwritten one.
func TestLongestExtentIsWritten(t *testing.T) {
	for _, c := range []struct {
		field     uint16
		length    uint64
		unwritten bool
	}{{1, 1, false}, {32767, 32767, false}, {32768, 32768, false}, {32769, 1, true}, {65535, 32767, true}} {
		entry := make([]byte, extentSize)
		entry[4], entry[5] = byte(c.field), byte(c.field>>8)
		if _, length, unwritten := decodeExtent(entry); length != c.length || unwritten != c.unwritten {
			t.Errorf("%d: %d, %v", c.field, length, unwritten)
		}
	}
}
