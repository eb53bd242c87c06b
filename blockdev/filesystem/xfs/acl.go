package xfs

import "encoding/binary"

// POSIX ACLs stand in attributes of the root's name space, big-endian and with an id
// in every entry (struct xfs_acl); the kernel shows them as attributes of its own
// (include/uapi/linux/posix_acl_xattr.h).
const (
	aclAccessAttr   = "SGI_ACL_FILE"
	aclDefaultAttr  = "SGI_ACL_DEFAULT"
	aclAccessName   = "system.posix_acl_access"
	aclDefaultName  = "system.posix_acl_default"
	aclXattrVersion = 2
	aclUndefinedID  = 0xFFFFFFFF
	aclEntrySize    = 12
)

// Tags, include/uapi/linux/posix_acl.h.
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// convertACL follows xfs_acl_from_disk and posix_acl_to_xattr.
func convertACL(p []byte) ([]byte, error) {
	be, le := binary.BigEndian, binary.LittleEndian
	if len(p) < 4 || uint64(len(p)) < 4+aclEntrySize*uint64(be.Uint32(p)) {
		return nil, corruptf("ACL of %d bytes", len(p))
	}
	n := int(be.Uint32(p))
	out := le.AppendUint32(make([]byte, 0, 4+8*n), aclXattrVersion)
	for i := range n {
		e := p[4+aclEntrySize*i:]
		tag, id, perm := be.Uint32(e), be.Uint32(e[4:]), be.Uint16(e[8:])
		switch tag {
		case aclUserObj, aclGroupObj, aclMask, aclOther:
			id = aclUndefinedID
		case aclUser, aclGroup:
		default:
			return nil, corruptf("ACL entry has tag %#x", tag)
		}
		out = le.AppendUint16(out, uint16(tag))
		out = le.AppendUint16(out, perm)
		out = le.AppendUint32(out, id)
	}
	return out, nil
}
