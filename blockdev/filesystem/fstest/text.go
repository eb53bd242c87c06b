package fstest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Text is the manifest as lines in the order of the paths, for golden files. It
// leaves out the same fields as Diff.
func (m Manifest) Text(ignore Fields) string {
	var b strings.Builder
	for _, path := range slices.Sorted(maps.Keys(m)) {
		e := m[path]
		a := e.Attr
		fmt.Fprintf(&b, "%q type=%d perm=%o nlink=%d uid=%d gid=%d size=%d mtime=%s", path, a.Type, a.Perm, a.Nlink, a.UID, a.GID, a.Size, timeString(a.Mtime))
		field := func(f Fields, name string, value any) {
			if ignore&f == 0 {
				fmt.Fprintf(&b, " %s=%v", name, value)
			}
		}
		field(FieldAtime, "atime", timeString(a.Atime))
		field(FieldCtime, "ctime", timeString(a.Ctime))
		field(FieldBirth, "birth", timeString(a.Birth))
		field(FieldInode, "inode", a.Inode)
		field(FieldBlocks, "blocks", a.Blocks)
		if a.RdevMajor != 0 || a.RdevMinor != 0 {
			fmt.Fprintf(&b, " rdev=%d:%d", a.RdevMajor, a.RdevMinor)
		}
		if e.Target != "" {
			fmt.Fprintf(&b, " target=%q", e.Target)
		}
		if e.Digest != [32]byte{} {
			fmt.Fprintf(&b, " digest=%x", e.Digest[:8])
		}
		if ignore&FieldData == 0 && len(e.Data) > 0 {
			fmt.Fprintf(&b, " data=%v", e.Data)
		}
		for _, name := range slices.Sorted(maps.Keys(e.Xattrs)) {
			fmt.Fprintf(&b, " %q=%q", name, e.Xattrs[name])
		}
		b.WriteByte('\n')
	}
	return b.String()
}
