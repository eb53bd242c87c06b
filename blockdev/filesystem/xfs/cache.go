package xfs

// cacheBytes bounds the metadata that an FS keeps. 20 000 entries of one directory
// with their inodes are about 6 MiB.
const cacheBytes = 16 << 20

// The classes of what the cache keeps, with the rest of its key.
const (
	classInode  uint8 = iota // A = inode number: *inode
	classChunk               // A = first block: []byte, a chunk of inodes, not verified
	classMap                 // A = inode number, B = block: []byte, verified node of a map of extents
	classDir                 // A = inode number, B = logical block: []byte, verified
	classDA                  // A = inode number, B = logical block: []byte, verified
	classXattrs              // A = inode number: []xattr
)
