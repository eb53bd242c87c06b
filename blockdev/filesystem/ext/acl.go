package ext

import "encoding/binary"

// POSIX ACLs: on disk an ACL has version 1 and short entries without the id where
// there is none (fs/ext4/acl.h); in an attribute, as the kernel shows it, version 2
// and an id everywhere (include/uapi/linux/posix_acl_xattr.h).
const (
	aclDiskVersion  = 1
	aclXattrVersion = 2
	aclUndefinedID  = 0xFFFFFFFF
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

// convertACL follows ext4_acl_from_disk and posix_acl_to_xattr.
func convertACL(p []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(p) < 4 || le.Uint32(p) != aclDiskVersion {
		return nil, corruptf("ACL of %d bytes has no known version", len(p))
	}
	out := le.AppendUint32(make([]byte, 0, 4+len(p)*2), aclXattrVersion)
	for p = p[4:]; len(p) > 0; {
		if len(p) < 4 {
			return nil, corruptf("ACL entry is cut short")
		}
		tag, perm, id := le.Uint16(p), le.Uint16(p[2:]), uint32(aclUndefinedID)
		size := 4
		switch tag {
		case aclUserObj, aclGroupObj, aclMask, aclOther:
		case aclUser, aclGroup:
			if len(p) < 8 {
				return nil, corruptf("ACL entry is cut short")
			}
			id, size = le.Uint32(p[4:]), 8
		default:
			return nil, corruptf("ACL entry has tag %#x", tag)
		}
		out = le.AppendUint16(out, tag)
		out = le.AppendUint16(out, perm)
		out = le.AppendUint32(out, id)
		p = p[size:]
	}
	return out, nil
}
