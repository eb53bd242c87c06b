package xfs

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/lru"
)

// Flags of an attribute (XFS_ATTR_*).
const (
	attrLocal      = 1 << 0
	attrRoot       = 1 << 1 // trusted.
	attrSecure     = 1 << 2 // security.
	attrParent     = 1 << 3 // a pointer to the parent, internal
	attrIncomplete = 1 << 7 // being written when the guest stopped
)

const (
	attrHeader2 = 32 // of a leaf, version 4
	attrHeader3 = 80
	attrEntry   = 8
	remoteMagic = 0x5841524D // "XARM"
	// maxXattrValue is XATTR_SIZE_MAX.
	maxXattrValue = 64 << 10
	// maxAttrLeaves bounds how many blocks of attributes of one inode are read.
	// The kernel lists at most 64 KiB of names.
	maxAttrLeaves = 1 << 12
)

// xattr is one attribute. Its value stands here, or in blocks of the fork.
type xattr struct {
	flags  uint8
	suffix string
	value  []byte
	block  uint32 // logical, when not 0
	size   uint32 // of the value in blocks
}

// names are the full names: an ACL has two, as the kernel shows it to root.
func (x *xattr) names() []string {
	switch x.flags & (attrRoot | attrSecure | attrParent | attrIncomplete) {
	case 0:
		return []string{"user." + x.suffix}
	case attrSecure:
		return []string{"security." + x.suffix}
	case attrRoot:
		switch x.suffix {
		case aclAccessAttr:
			return []string{aclAccessName, "trusted." + x.suffix}
		case aclDefaultAttr:
			return []string{aclDefaultName, "trusted." + x.suffix}
		}
		return []string{"trusted." + x.suffix}
	}
	return nil
}

// Xattrs lists the names of the extended attributes.
func (f *FS) Xattrs(ino filesystem.Inode) ([]string, error) {
	_, all, err := f.xattrs(ino)
	if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	var names []string
	for i := range all {
		names = append(names, all[i].names()...)
	}
	return names, nil
}

// Xattr is the value of one extended attribute, in a slice of the caller's own.
func (f *FS) Xattr(ino filesystem.Inode, name string) ([]byte, error) {
	value, err := f.xattr(ino, name)
	if err != nil {
		return nil, fmt.Errorf("attribute %q: %w", name, err)
	}
	return value, nil
}

func (f *FS) xattr(ino filesystem.Inode, name string) ([]byte, error) {
	in, all, err := f.xattrs(ino)
	if err != nil {
		return nil, err
	}
	for i := range all {
		x := &all[i]
		for _, n := range x.names() {
			if n != name {
				continue
			}
			value := bytes.Clone(x.value)
			if x.block != 0 {
				if value, err = f.remoteValue(in, x); err != nil {
					return nil, fmt.Errorf("inode %d: %w", ino, err)
				}
			}
			if n == aclAccessName || n == aclDefaultName {
				return convertACL(value)
			}
			return append([]byte{}, value...), nil
		}
	}
	return nil, fmt.Errorf("inode %d: %w", ino, filesystem.ErrNoXattr)
}

// xattrs are all attributes of an inode.
func (f *FS) xattrs(ino filesystem.Inode) (*inode, []xattr, error) {
	in, err := f.fileInode(ino)
	if err != nil {
		return nil, nil, err
	}
	key := lru.Key{Class: classXattrs, A: in.num}
	if all, ok := lru.Get[[]xattr](f.cache, key); ok {
		return in, all, nil
	}
	var all []xattr
	switch {
	case in.attr.format == formatLocal:
		all, err = shortXattrs(in.attr.raw)
	case in.attr.format == formatBtree || in.attr.extents > 0:
		all, err = f.leafXattrs(in)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("inode %d: %w", ino, err)
	}
	size := 0
	for i := range all {
		size += 80 + len(all[i].suffix) + len(all[i].value)
	}
	f.cache.Put(key, all, size)
	return in, all, nil
}

func checkXattr(x *xattr) error {
	if bytes.IndexByte([]byte(x.suffix), 0) >= 0 && x.flags&attrParent == 0 {
		return corruptf("attribute with a NUL byte in its name")
	}
	return nil
}

// shortXattrs are attributes in the inode (struct xfs_attr_sf_hdr).
func shortXattrs(p []byte) ([]xattr, error) {
	if len(p) < 4 {
		return nil, corruptf("attributes of %d bytes", len(p))
	}
	total, count := int(binary.BigEndian.Uint16(p)), int(p[2])
	if total < 4 || total > len(p) {
		return nil, corruptf("attributes of %d bytes in %d", total, len(p))
	}
	p = p[:total]
	var out []xattr
	at := 4
	for range count {
		if at+3 > len(p) || at+3+int(p[at])+int(p[at+1]) > len(p) {
			return nil, corruptf("attribute at %d is cut short", at)
		}
		nameLen, valueLen := int(p[at]), int(p[at+1])
		x := xattr{flags: p[at+2], suffix: string(p[at+3:][:nameLen]), value: p[at+3+nameLen:][:valueLen]}
		if err := checkXattr(&x); err != nil {
			return nil, err
		}
		if x.flags&(attrParent|attrIncomplete) == 0 {
			out = append(out, x)
		}
		at += 3 + nameLen + valueLen
	}
	return out, nil
}

// leafXattrs reads all leaves, from the leftmost on.
func (f *FS) leafXattrs(in *inode) ([]xattr, error) {
	var out []xattr
	leaf, err := f.descend(&in.attr, 0, 1, 0)
	for n := 0; ; n++ {
		if err != nil {
			return nil, err
		}
		if leaf.magic != magicAttr {
			return nil, corruptf("attributes in a block of magic %#x", leaf.magic)
		}
		if n > maxAttrLeaves {
			return nil, corruptf("over %d blocks of attributes", maxAttrLeaves)
		}
		if out, err = f.parseAttrLeaf(leaf.block, out); err != nil {
			return nil, err
		}
		if leaf.next == 0 {
			return out, nil
		}
		leaf, err = f.daBlock(&in.attr, uint64(leaf.next), 1)
	}
}

// parseAttrLeaf reads the entries of one leaf (struct xfs_attr_leafblock).
func (f *FS) parseAttrLeaf(p []byte, out []xattr) ([]xattr, error) {
	be := binary.BigEndian
	count, size := int(be.Uint16(p[12:])), attrHeader2
	if f.super.v5 {
		count, size = int(be.Uint16(p[56:])), attrHeader3
	}
	if count > (len(p)-size)/attrEntry {
		return nil, corruptf("block of %d attributes", count)
	}
	for i := range count {
		e := p[size+attrEntry*i:]
		x, err := parseAttrEntry(p, int(be.Uint16(e[4:])), e[6])
		if err != nil {
			return nil, err
		}
		if x.flags&(attrParent|attrIncomplete) == 0 {
			out = append(out, x)
		}
	}
	return out, nil
}

// parseAttrEntry reads struct xfs_attr_leaf_name_local or _remote at p[at:].
func parseAttrEntry(p []byte, at int, flags uint8) (xattr, error) {
	be := binary.BigEndian
	x := xattr{flags: flags}
	if at+9 > len(p) && (flags&attrLocal == 0 || at+3 > len(p)) {
		return x, corruptf("attribute at %d is cut short", at)
	}
	if flags&attrLocal != 0 {
		valueLen, nameLen := int(be.Uint16(p[at:])), int(p[at+2])
		if at+3+nameLen+valueLen > len(p) {
			return x, corruptf("attribute at %d is cut short", at)
		}
		x.suffix, x.value = string(p[at+3:][:nameLen]), p[at+3+nameLen:][:valueLen]
		return x, checkXattr(&x)
	}
	x.block, x.size = be.Uint32(p[at:]), be.Uint32(p[at+4:])
	nameLen := int(p[at+8])
	if at+9+nameLen > len(p) {
		return x, corruptf("attribute at %d is cut short", at)
	}
	x.suffix = string(p[at+9:][:nameLen])
	if flags&attrIncomplete == 0 && (x.block == 0 || x.size > maxXattrValue) {
		return x, corruptf("attribute of %d bytes at block %d", x.size, x.block)
	}
	return x, checkXattr(&x)
}

// remoteValue reads a value in blocks of its own; in version 5 each has a header
// (xfs_attr_rmtval_get).
func (f *FS) remoteValue(in *inode, x *xattr) ([]byte, error) {
	be := binary.BigEndian
	bs := int(f.super.blockSize)
	value := make([]byte, 0, x.size)
	for b := uint64(x.block); len(value) < int(x.size); b++ {
		p, at, believed, err := f.gather(&in.attr, b, 1)
		if err != nil {
			return nil, err
		}
		want := min(int(x.size)-len(value), bs)
		if f.super.v5 {
			want = min(want, bs-headerRemote.size)
			if err := f.verify(p, headerRemote, at, in.num, believed); err != nil {
				return nil, fmt.Errorf("value in block %d: %w", at, err)
			}
			if be.Uint32(p) != remoteMagic || int(be.Uint32(p[4:])) != len(value) || int(be.Uint32(p[8:])) != want {
				return nil, corruptf("value in block %d: magic %#x, %d bytes at %d", at, be.Uint32(p), be.Uint32(p[8:]), be.Uint32(p[4:]))
			}
			p = p[headerRemote.size:]
		}
		value = append(value, p[:want]...)
	}
	return value, nil
}
