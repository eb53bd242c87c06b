package ext

// cacheBytes bounds the metadata that an FS keeps. 20 000 entries of one directory
// with their inodes are about 6 MiB.
const cacheBytes = 16 << 20

// The classes of what the cache keeps, with the rest of its key.
const (
	classInode    uint8 = iota // A = inode number: *inode
	classTable                 // A = first block: []byte, a chunk of an inode table, not verified
	classGroup                 // A = block: []byte, a block of group descriptors, not verified
	classExtent                // A = inode number, B = block: []byte, verified node
	classIndirect              // A = block: []byte
	classDir                   // A = inode number, B = logical block: []byte, verified
	classXattr                 // A = block: []byte, verified
	classXattrs                // A = inode number: []xattr
)
