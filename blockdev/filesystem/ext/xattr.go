package ext

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/lru"
)

const (
	xattrMagic       = 0xEA020000
	xattrBlockHeader = 32
	xattrEntrySize   = 16
	// maxXattrValue is XATTR_SIZE_MAX: the kernel lets nobody write or read more.
	maxXattrValue = 64 << 10
)

// Name indexes, fs/ext4/xattr.h.
const (
	xattrACLAccess  = 2
	xattrACLDefault = 3
	xattrSystem     = 7
)

// xattrPrefixes are those that the kernel has a handler for. "system." other than
// ACLs is inline data, 9 the context of an encrypted file: neither is shown.
var xattrPrefixes = map[byte]string{
	1: "user.", xattrACLAccess: "system.posix_acl_access", xattrACLDefault: "system.posix_acl_default",
	4: "trusted.", 6: "security.", 10: "gnu.",
}

// xattr is one attribute. Its value stands here, or in an inode of its own.
type xattr struct {
	index      byte
	suffix     string
	value      []byte
	valueInode uint32
	valueSize  uint32
}

// name is the full name, or "" for what is not shown.
func (x *xattr) name() string {
	prefix := xattrPrefixes[x.index]
	if prefix == "" || strings.HasSuffix(prefix, ".") == (x.suffix == "") {
		return "" // a bare "user." or an ACL with a suffix
	}
	return prefix + x.suffix
}

// Xattrs lists the names of the extended attributes.
func (f *FS) Xattrs(ino filesystem.Inode) ([]string, error) {
	in, err := f.fileInode(ino)
	if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	entries, err := f.xattrs(in)
	if err != nil {
		return nil, fmt.Errorf("list attributes: inode %d: %w", ino, err)
	}
	var names []string
	for i := range entries {
		if name := entries[i].name(); name != "" {
			names = append(names, name)
		}
	}
	return names, nil
}

// Xattr is the value of one extended attribute, in a slice of the caller's own.
func (f *FS) Xattr(ino filesystem.Inode, name string) ([]byte, error) {
	in, err := f.fileInode(ino)
	if err != nil {
		return nil, fmt.Errorf("attribute %q: %w", name, err)
	}
	value, err := f.xattr(in, name)
	if err != nil {
		return nil, fmt.Errorf("attribute %q: inode %d: %w", name, ino, err)
	}
	return value, nil
}

func (f *FS) xattr(in *inode, name string) ([]byte, error) {
	entries, err := f.xattrs(in)
	if err != nil {
		return nil, err
	}
	for i := range entries {
		x := &entries[i]
		if name == "" || x.name() != name {
			continue
		}
		value := append([]byte{}, x.value...)
		if x.valueInode != 0 {
			if value, err = f.xattrInode(in, x); err != nil {
				return nil, err
			}
		}
		if x.index == xattrACLAccess || x.index == xattrACLDefault {
			return convertACL(value)
		}
		return value, nil
	}
	return nil, filesystem.ErrNoXattr
}

// xattrs are all attributes of an inode: those inside it, then those of its block.
func (f *FS) xattrs(in *inode) ([]xattr, error) {
	entries, err := f.bodyXattrs(in)
	if err != nil || in.fileACL == 0 {
		return entries, err
	}
	p, err := f.xattrBlock(in.fileACL)
	if err != nil {
		return nil, err
	}
	more, err := f.parseXattrs(p, xattrBlockHeader, p)
	if err != nil {
		return nil, fmt.Errorf("attribute block %d: %w", in.fileACL, err)
	}
	return append(entries, more...), nil
}

// bodyXattrs are the attributes in the inode itself.
func (f *FS) bodyXattrs(in *inode) ([]xattr, error) {
	start := goodOldInodeSize + in.extraSize
	if in.extraSize == 0 || len(in.raw)-start < 8 {
		return nil, nil
	}
	p := in.raw[start:]
	if binary.LittleEndian.Uint32(p) != xattrMagic {
		return nil, nil
	}
	entries, err := f.parseXattrs(p[4:], 0, p[4:])
	if err != nil {
		return nil, fmt.Errorf("attributes in the inode: %w", err)
	}
	return entries, nil
}

// parseXattrs reads the entries that begin at p[at:]; values are offsets into
// values (check_xattrs). The list ends with four zero bytes.
func (f *FS) parseXattrs(p []byte, at int, values []byte) ([]xattr, error) {
	le := binary.LittleEndian
	var out []xattr
	for {
		if len(p)-at < 4 {
			return nil, corruptf("list of attributes has no end")
		}
		if le.Uint32(p[at:]) == 0 {
			return out, nil
		}
		if len(p)-at < xattrEntrySize+int(p[at]) {
			return nil, corruptf("attribute at %d is cut short", at)
		}
		e := p[at:]
		x := xattr{
			index:      e[1],
			suffix:     string(e[xattrEntrySize:][:e[0]]),
			valueInode: le.Uint32(e[4:]),
			valueSize:  le.Uint32(e[8:]),
		}
		offset := int64(le.Uint16(e[2:]))
		switch {
		case strings.IndexByte(x.suffix, 0) >= 0:
			return nil, corruptf("attribute with a NUL byte in its name")
		case x.valueInode != 0:
			if !f.super.has(incompatEAInode) {
				return nil, corruptf("attribute in an inode without the feature ea_inode")
			}
		case x.valueSize == 0:
		case offset+int64(x.valueSize) > int64(len(values)):
			return nil, corruptf("attribute of %d bytes at %d does not fit", x.valueSize, offset)
		default:
			x.value = values[offset:][:x.valueSize]
		}
		out = append(out, x)
		at += (xattrEntrySize + int(e[0]) + 3) &^ 3
	}
}

// xattrBlock is a block of attributes, verified (ext4_xattr_block_csum).
func (f *FS) xattrBlock(b uint64) ([]byte, error) {
	key := lru.Key{Class: classXattr, A: b}
	if p, ok := lru.Get[[]byte](f.cache, key); ok {
		return p, nil
	}
	p, err := f.readBlock(b)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if le.Uint32(p) != xattrMagic || le.Uint32(p[8:]) != 1 {
		return nil, corruptf("attribute block %d: header is wrong", b)
	}
	if f.super.metadataCsum() {
		const at = 0x10
		var number [8]byte
		le.PutUint64(number[:], b)
		crc := crc32c(f.super.seed, number[:])
		crc = crc32c(crc, p[:at])
		crc = crc32cZeros(crc, 4)
		crc = crc32c(crc, p[at+4:])
		if crc != le.Uint32(p[at:]) {
			return nil, corruptf("attribute block %d: checksum is wrong", b)
		}
	}
	f.cache.Put(key, p, len(p))
	return p, nil
}

// xattrInode reads a value from its inode (ext4_xattr_inode_get), whose access time
// holds a checksum of it. Lustre's older form has the owner's number in the
// modification time and its generation instead.
func (f *FS) xattrInode(owner *inode, x *xattr) ([]byte, error) {
	if x.valueSize > maxXattrValue {
		return nil, corruptf("attribute of %d bytes", x.valueSize)
	}
	in, err := f.inode(x.valueInode)
	if err != nil {
		return nil, err
	}
	if !in.has(flagEAInode) || in.kind() != filesystem.TypeRegular || in.size != int64(x.valueSize) {
		return nil, corruptf("attribute inode %d is not one of %d bytes", in.num, x.valueSize)
	}
	value := make([]byte, in.size)
	if n, err := f.readFile(in, value, 0); err != nil || n < len(value) {
		return nil, fmt.Errorf("attribute inode %d: %w", in.num, err)
	}
	hash, backPointer := binary.LittleEndian.Uint32(in.raw[0x8:]), binary.LittleEndian.Uint32(in.raw[0x10:])
	lustre := backPointer == owner.num && in.generation == owner.generation
	if crc32c(f.super.seed, value) != hash && !lustre {
		return nil, corruptf("attribute inode %d: checksum of the value is wrong", in.num)
	}
	return value, nil
}
