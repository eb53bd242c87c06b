package ext

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/lru"
)

const (
	maxNameLen = 255
	// direntHeader is the size of an entry without its name.
	direntHeader = 8
	// dirTailSize is an entry without inode at the end of a block, whose type is
	// dirTailType and whose name is a checksum (struct ext4_dir_entry_tail).
	dirTailSize = 12
	dirTailType = 0xDE
	// dirChunk is how much of a directory is read at once, in bytes.
	dirChunk = 32 << 10
)

// direntTypes are EXT4_FT_*.
var direntTypes = [...]filesystem.Type{
	1: filesystem.TypeRegular, 2: filesystem.TypeDir, 3: filesystem.TypeChar, 4: filesystem.TypeBlock,
	5: filesystem.TypeFifo, 6: filesystem.TypeSocket, 7: filesystem.TypeSymlink,
}

// dirent is an entry as it stands in a block; name points into the block.
type dirent struct {
	inode uint32
	kind  uint8
	name  []byte
	next  int // where the next one begins
}

// parseDirent reads the entry at p[at:], following __ext4_check_dir_entry. p is a
// directory block, or one of the two areas of an inline directory.
func (f *FS) parseDirent(p []byte, at int) (dirent, error) {
	if len(p)-at < direntHeader {
		return dirent{}, corruptf("directory entry at %d is cut short", at)
	}
	le := binary.LittleEndian
	length := f.recordLength(le.Uint16(p[at+4:]))
	e := dirent{inode: le.Uint32(p[at:]), kind: p[at+7], next: at + length}
	nameLen := int(p[at+6])
	if !f.super.has(incompatFiletype) {
		e.kind = 0 // the byte is the high part of the name's length, which is 0
	}
	switch {
	case length < direntHeader+4 || length%4 != 0 || length > len(p)-at || direntHeader+nameLen > length:
		return dirent{}, corruptf("directory entry at %d has length %d, name %d", at, length, nameLen)
	case e.inode > f.super.inodes:
		return dirent{}, corruptf("directory entry at %d has inode %d of %d", at, e.inode, f.super.inodes)
	}
	e.name = p[at+direntHeader:][:nameLen:nameLen]
	return e, nil
}

// recordLength is ext4_rec_len_from_disk: with blocks of 64 KiB the low two bits are
// the high ones.
func (f *FS) recordLength(v uint16) int {
	if f.super.blockSize < 1<<16 {
		return int(v)
	}
	if v == 0 || v == 0xFFFF {
		return 1 << 16
	}
	return int(v&0xFFFC) | int(v&3)<<16
}

// checkName refuses what cannot be the name of an entry and could lead a caller who
// joins names elsewhere.
func checkName(e dirent) error {
	if len(e.name) == 0 || bytes.IndexByte(e.name, '/') >= 0 || bytes.IndexByte(e.name, 0) >= 0 {
		return corruptf("directory entry has the name %q", e.name)
	}
	return nil
}

func isDot(name []byte) bool    { return len(name) == 1 && name[0] == '.' }
func isDotDot(name []byte) bool { return len(name) == 2 && name[0] == '.' && name[1] == '.' }

// ReadDir yields the entries of dir behind cookie, in the order of the blocks, which
// is not the kernel's order for hashed directories. A cookie is the position in the
// directory, in bytes, behind the entry.
func (f *FS) ReadDir(dir filesystem.Inode, cookie uint64, yield func(filesystem.Dirent) bool) error {
	in, err := f.dirInode(dir)
	if err != nil {
		return fmt.Errorf("read directory: %w", err)
	}
	base := func(yield func(filesystem.Dirent) bool) error {
		if in.has(flagInlineData) {
			return f.readInlineDir(in, cookie, yield)
		}
		return f.readBlockDir(in, cookie, yield)
	}
	if d := f.fast.dir(in.num); d != nil {
		err = d.readDir(cookie, yield, base)
	} else {
		err = base(yield)
	}
	if err != nil {
		return fmt.Errorf("read directory %d: %w", dir, err)
	}
	return nil
}

func (f *FS) readBlockDir(in *inode, cookie uint64, yield func(filesystem.Dirent) bool) error {
	bits := f.super.blockBits
	for b := cookie >> bits; b < uint64(in.size)>>bits; b++ {
		p, err := f.dirBlock(in, b)
		if err != nil {
			return err
		}
		more, err := f.yieldDirents(p, b<<bits, cookie, yield)
		if err != nil {
			return fmt.Errorf("logical block %d: %w", b, err)
		}
		if !more {
			return nil
		}
	}
	return nil
}

// yieldDirents yields the entries of p, which stands at position base, from cookie
// on. more is false when the caller has enough.
func (f *FS) yieldDirents(p []byte, base, cookie uint64, yield func(filesystem.Dirent) bool) (more bool, err error) {
	for at := 0; at < len(p); {
		e, err := f.parseDirent(p, at)
		if err != nil {
			return false, err
		}
		start := base + uint64(at)
		at = e.next
		if e.inode == 0 || start < cookie || isDot(e.name) || isDotDot(e.name) {
			continue
		}
		if err := checkName(e); err != nil {
			return false, err
		}
		d := filesystem.Dirent{Name: e.name, Inode: filesystem.Inode(e.inode), Next: base + uint64(at)}
		if int(e.kind) < len(direntTypes) {
			d.Type = direntTypes[e.kind]
		}
		if !yield(d) {
			return false, nil
		}
	}
	return true, nil
}

// dirBlock is logical block b of a directory, verified. On a miss it reads the
// blocks behind it too, as far as they lie in one piece.
func (f *FS) dirBlock(in *inode, b uint64) ([]byte, error) {
	key := lru.Key{Class: classDir, A: uint64(in.num), B: b}
	if p, ok := lru.Get[[]byte](f.cache, key); ok {
		return p, nil
	}
	s := f.super
	if b >= uint64(in.size)>>s.blockBits {
		return nil, corruptf("inode %d: directory block %d of %d", in.num, b, in.size>>s.blockBits)
	}
	r, err := f.mapBlock(in, b)
	if err != nil {
		return nil, err
	}
	if r.kind != runData {
		return nil, corruptf("inode %d: directory block %d is a hole", in.num, b)
	}
	n := min(r.blocks, uint64(max(dirChunk>>s.blockBits, 1)), uint64(in.size)>>s.blockBits-b)
	p, err := f.readBlocks(r.block, n)
	if err != nil {
		return nil, err
	}
	bs := int(s.blockSize)
	for i := range int(n) {
		block := p[i*bs:][:bs:bs]
		if err := f.verifyDirBlock(in, b+uint64(i), block); err != nil {
			if i == 0 {
				return nil, fmt.Errorf("inode %d: directory block %d: %w", in.num, b, err)
			}
			break // whoever needs it will meet it
		}
		// A copy, so that one block in the cache does not keep the whole chunk.
		f.cache.Put(lru.Key{Class: classDir, A: uint64(in.num), B: b + uint64(i)}, slices.Clone(block), bs)
	}
	return p[:bs:bs], nil
}

// hashed: the directory has a hash tree (is_dx).
func (f *FS) hashed(in *inode) bool {
	return f.super.compat&compatDirIndex != 0 && in.has(flagIndex)
}

// isNode: the block is an inner node of a hash tree: one entry without inode that
// fills it. An empty leaf looks the same only without metadata_csum.
func (f *FS) isNode(p []byte) bool {
	return binary.LittleEndian.Uint32(p) == 0 && f.recordLength(binary.LittleEndian.Uint16(p[4:])) == len(p)
}

// verifyDirBlock checks the checksum of a leaf, or of a node of a hash tree
// (__ext4_read_dirblock, ext4_dirblock_csum, ext4_dx_csum).
func (f *FS) verifyDirBlock(in *inode, b uint64, p []byte) error {
	if !f.super.metadataCsum() {
		return nil
	}
	le := binary.LittleEndian
	if !f.hashed(in) || (b > 0 && !f.isNode(p)) {
		tail := p[len(p)-dirTailSize:]
		switch {
		case le.Uint32(tail) != 0 || le.Uint16(tail[4:]) != dirTailSize || tail[6] != 0 || tail[7] != dirTailType:
			return corruptf("checksum is missing")
		case crc32c(in.seed, p[:len(p)-dirTailSize]) != le.Uint32(tail[8:]):
			return corruptf("checksum is wrong")
		}
		return nil
	}
	offset := nodeOffset
	if b == 0 {
		offset = rootOffset
	}
	limit, count := int(le.Uint16(p[offset:])), int(le.Uint16(p[offset+2:]))
	end := offset + limit*hashEntrySize
	if count > limit || end+8 > len(p) {
		return corruptf("hash tree node has %d of %d entries", count, limit)
	}
	crc := crc32c(in.seed, p[:offset+count*hashEntrySize])
	crc = crc32c(crc, p[end:end+4])
	crc = crc32cZeros(crc, 4)
	if crc != le.Uint32(p[end+4:]) {
		return corruptf("checksum of a hash tree node is wrong")
	}
	return nil
}

// Parent is what ".." of dir names.
func (f *FS) Parent(dir filesystem.Inode) (filesystem.Inode, error) {
	in, err := f.dirInode(dir)
	if err != nil {
		return 0, fmt.Errorf("parent: %w", err)
	}
	parent, err := f.parent(in)
	if err != nil {
		return 0, fmt.Errorf("parent of directory %d: %w", dir, err)
	}
	return filesystem.Inode(parent), nil
}

func (f *FS) parent(in *inode) (uint32, error) {
	if d := f.fast.dir(in.num); d != nil && d.fresh {
		return d.parent, nil
	}
	if in.has(flagInlineData) {
		return f.validTarget(binary.LittleEndian.Uint32(in.block()))
	}
	p, err := f.dirBlock(in, 0)
	if err != nil {
		return 0, err
	}
	for at := 0; at < len(p); {
		e, err := f.parseDirent(p, at)
		if err != nil {
			return 0, err
		}
		if isDotDot(e.name) && e.inode != 0 {
			return f.validTarget(e.inode)
		}
		at = e.next
	}
	return 0, corruptf("directory has no entry ..")
}

// validTarget: n may stand in an entry of a directory (ext4_valid_inum).
func (f *FS) validTarget(n uint32) (uint32, error) {
	if n != rootInode && (n < f.super.firstInode || n > f.super.inodes) {
		return 0, corruptf("directory entry with the reserved inode %d", n)
	}
	return n, nil
}
