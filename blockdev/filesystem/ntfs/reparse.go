package ntfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/wtf8"
)

// Reparse tags (MS-FSCC section 2.1.2.1).
const (
	tagMountPoint = 0xA0000003
	tagSymlink    = 0xA000000C
	tagWSLSymlink = 0xA000001D
	tagWSLSocket  = 0x80000023
	tagWSLFifo    = 0x80000024
	tagCloud      = 0x9000001A // and 0x9000101A to 0x9000F01A
	cloudMask     = 0xFFFF0FFF
)

// reparseNames are those of tags whose files cannot be read without what put them there.
var reparseNames = map[uint32]string{
	0x80000013: "deduplicated by Windows Server",
	0x80000017: "compressed by Windows' overlay filter (CompactOS, WOF)",
	0x80000007: "kept once for several files (single instance store)",
	0x80000008: "in a Windows image (WIM)",
	0xC0000004: "moved to other storage (HSM)",
	0x80000006: "moved to other storage (HSM 2)",
	0x80000014: "a special file of an NFS server",
	0x8000001B: "a link to an app of the Microsoft Store",
	0x80000025: "a character device of WSL",
	0x80000026: "a block device of WSL",
	0xA0000019: "a global reparse point",
	0x80000021: "OneDrive's, of an older version",
	0x9000001C: "projected by a file system such as VFS for Git",
}

// kind is what stat(2) shows of a node, beyond its numbers.
type kind struct {
	typ          filesystem.Type
	target       []byte // of a symbolic link
	major, minor uint32 // of a device
	// unreadable tells why the contents cannot be read, if so.
	unreadable string
}

// kind finds out what a node is: a directory, a file, a reparse point, or one of the
// special files that Interix and ntfs-3g make.
func (f *FS) kind(n *node) (kind, error) {
	p, err := f.standard(n)
	if err != nil {
		return kind{}, err
	}
	flags := binary.LittleEndian.Uint32(p[32:])
	k := kind{typ: filesystem.TypeRegular}
	if n.flags&recordDirectory != 0 {
		k.typ = filesystem.TypeDir
	}
	if flags&attrReparse != 0 {
		return f.reparse(n, k, flags)
	}
	if flags&attrSystem != 0 && k.typ == filesystem.TypeRegular && n.number >= firstUserRecord {
		return f.interix(n, k)
	}
	return k, nil
}

func (f *FS) reparse(n *node, k kind, flags uint32) (kind, error) {
	s, err := f.namedStream(n, typeReparse, "")
	if err != nil {
		return k, err
	}
	const maxReparse = 16 << 10 // MAXIMUM_REPARSE_DATA_BUFFER_SIZE
	if s == nil || s.size < 8 || s.size > maxReparse {
		return k, corruptf("MFT record %d: reparse point without its data", n.number)
	}
	p := make([]byte, s.size)
	if err := f.read(s, p, 0); err != nil {
		return k, fmt.Errorf("reparse point: %w", err)
	}
	tag, data := binary.LittleEndian.Uint32(p), p[8:]
	if n := int(binary.LittleEndian.Uint16(p[4:])); n <= len(data) {
		data = data[:n]
	}
	switch {
	case tag == tagSymlink || tag == tagMountPoint:
		k.typ = filesystem.TypeSymlink
		k.target, err = linkTarget(data, tag == tagSymlink)
	case tag == tagWSLSymlink:
		k.typ = filesystem.TypeSymlink
		if len(data) < 5 || bytes.IndexByte(data[4:], 0) >= 0 {
			return k, corruptf("MFT record %d: symbolic link of WSL with %d bytes", n.number, len(data))
		}
		k.target = data[4:]
	case tag == tagWSLSocket:
		k.typ = filesystem.TypeSocket
	case tag == tagWSLFifo:
		k.typ = filesystem.TypeFifo
	case tag&cloudMask == tagCloud:
		if flags&(attrOffline|attrRecallOnOpen|attrRecallOnData) != 0 {
			k.unreadable = "its contents are in the cloud (OneDrive), not on this disk"
		}
	default:
		k.unreadable = fmt.Sprintf("reparse tag %#08x", tag)
		if name := reparseNames[tag]; name != "" {
			k.unreadable = name + " (" + k.unreadable + ")"
		}
	}
	if err != nil {
		return k, fmt.Errorf("MFT record %d: %w", n.number, err)
	}
	return k, nil
}

// linkTarget is the text of a symbolic link or junction (MS-FSCC sections 2.1.2.4 and
// 2.1.2.5): the name to print, else the one that Windows follows without \??\ in front. A
// relative one is written with '/'; an absolute one, which leads nowhere here, as Windows
// has it.
func linkTarget(p []byte, symlink bool) ([]byte, error) {
	le := binary.LittleEndian
	header := 8
	if symlink {
		header = 12
	}
	if len(p) < header {
		return nil, corruptf("link of %d bytes", len(p))
	}
	part := func(at int) ([]byte, error) {
		from, n := int(le.Uint16(p[at:])), int(le.Uint16(p[at+2:]))
		if header+from+n > len(p) {
			return nil, corruptf("link with a name of %d bytes at %d of %d", n, from, len(p))
		}
		return wtf8.Append(nil, wtf8.Units(p[header+from:][:n])), nil
	}
	target, err := part(4)
	if err == nil && len(target) == 0 {
		if target, err = part(0); err == nil {
			target = bytes.TrimPrefix(target, []byte(`\??\`))
		}
	}
	if err != nil {
		return nil, err
	}
	if len(target) == 0 || bytes.IndexByte(target, 0) >= 0 {
		return nil, corruptf("link to %q", target)
	}
	const relative = 1
	if symlink && le.Uint32(p[8:])&relative != 0 {
		target = bytes.ReplaceAll(target, []byte{'\\'}, []byte{'/'})
	}
	return target, nil
}

// interix recognises the special files of Interix, which are system files: an empty one
// is a fifo, one of a byte a socket, and a device or symbolic link begins with its mark.
func (f *FS) interix(n *node, k kind) (kind, error) {
	s, err := f.namedStream(n, typeData, "")
	if err != nil || s == nil {
		return k, err
	}
	const maxLink = 8 + 2*4096
	switch {
	case s.size == 0:
		k.typ = filesystem.TypeFifo
		return k, nil
	case s.size == 1:
		k.typ = filesystem.TypeSocket
		return k, nil
	case s.size < 8 || s.size > maxLink || s.flags&flagEncrypted != 0:
		return k, nil
	}
	p := make([]byte, s.size)
	if err := f.read(s, p, 0); err != nil {
		return k, fmt.Errorf("MFT record %d: %w", n.number, err)
	}
	le := binary.LittleEndian
	switch mark, rest := string(p[:8]), p[8:]; {
	case mark == "IntxLNK\x01":
		target := wtf8.Append(nil, wtf8.Units(rest))
		if i := bytes.IndexByte(target, 0); i >= 0 {
			target = target[:i]
		}
		if len(target) == 0 {
			return k, nil
		}
		k.typ, k.target = filesystem.TypeSymlink, target
	case (mark == "IntxCHR\x00" || mark == "IntxBLK\x00") && len(rest) >= 16:
		k.typ = filesystem.TypeChar
		if strings.HasPrefix(mark, "IntxBLK") {
			k.typ = filesystem.TypeBlock
		}
		k.major, k.minor = uint32(le.Uint64(rest)), uint32(le.Uint64(rest[8:]))
	}
	return k, nil
}
