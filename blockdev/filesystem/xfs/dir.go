package xfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/lru"
)

// A directory is a file of directory blocks with three spaces, each 32 GiB: entries
// first, then their hashes, then an index of free room, which a reader does not
// need.
const (
	leafSpace = 1 << 35 // XFS_DIR2_LEAF_OFFSET
	freeSpace = 1 << 36

	magicBlock2 = 0x58443242 // "XD2B": entries and hashes in one block
	magicBlock3 = 0x58444233 // "XDB3"
	magicData2  = 0x58443244 // "XD2D": entries
	magicData3  = 0x58444433 // "XDD3"

	headerData2 = 16 // of version 4; headerData.size in version 5
	freeTag     = 0xFFFF
	// dirChunk is how much of a directory is read at once, in bytes.
	dirChunk = 32 << 10
)

// direntTypes are XFS_DIR3_FT_*.
var direntTypes = [...]filesystem.Type{
	1: filesystem.TypeRegular, 2: filesystem.TypeDir, 3: filesystem.TypeChar, 4: filesystem.TypeBlock,
	5: filesystem.TypeFifo, 6: filesystem.TypeSocket, 7: filesystem.TypeSymlink,
}

// dirent is an entry as it stands in a block; name points into the block. A free
// area has no name.
type dirent struct {
	inode uint64
	name  []byte
	kind  uint8
	next  int // where the next one begins
}

func (e *dirent) public(next uint64) filesystem.Dirent {
	d := filesystem.Dirent{Name: e.name, Inode: filesystem.Inode(e.inode), Next: next}
	if int(e.kind) < len(direntTypes) {
		d.Type = direntTypes[e.kind]
	}
	return d
}

// checkDirent refuses what cannot be the name of an entry and could lead a caller
// who joins names elsewhere, and inodes that cannot be.
func (f *FS) checkDirent(e *dirent) error {
	if len(e.name) == 0 || bytes.IndexByte(e.name, '/') >= 0 || bytes.IndexByte(e.name, 0) >= 0 {
		return corruptf("directory entry has the name %q", e.name)
	}
	if _, _, ok := f.super.inodePlace(e.inode); !ok {
		return corruptf("directory entry %q has inode %d", e.name, e.inode)
	}
	return nil
}

func isDot(name []byte) bool    { return len(name) == 1 && name[0] == '.' }
func isDotDot(name []byte) bool { return len(name) == 2 && name[0] == '.' && name[1] == '.' }

// ReadDir yields the entries of dir behind cookie, in the order in which they stand.
// A cookie is the position in the directory, in bytes, behind the entry.
func (f *FS) ReadDir(dir filesystem.Inode, cookie uint64, yield func(filesystem.Dirent) bool) error {
	in, err := f.dirInode(dir)
	if err != nil {
		return fmt.Errorf("read directory: %w", err)
	}
	if in.data.format == formatLocal {
		err = f.eachShort(in, func(e *dirent) bool {
			return uint64(e.next) <= cookie || yield(e.public(uint64(e.next)))
		})
	} else {
		err = f.readBlockDir(in, cookie, yield)
	}
	if err != nil {
		return fmt.Errorf("read directory %d: %w", dir, err)
	}
	return nil
}

// shortParent is the parent and the number of bytes of an inode number in a
// directory inside the inode (struct xfs_dir2_sf_hdr).
func shortParent(p []byte) (parent uint64, inodeBytes int, err error) {
	be := binary.BigEndian
	switch {
	case len(p) >= 6 && p[1] == 0:
		return uint64(be.Uint32(p[2:])), 4, nil
	case len(p) >= 10 && p[1] != 0:
		return be.Uint64(p[2:]), 8, nil
	}
	return 0, 0, corruptf("directory of %d bytes", len(p))
}

// eachShort gives the entries of a directory inside the inode (struct
// xfs_dir2_sf_entry) to use, until it returns false.
func (f *FS) eachShort(in *inode, use func(*dirent) bool) error {
	p := in.data.raw[:in.size]
	_, inodeBytes, err := shortParent(p)
	if err != nil {
		return err
	}
	ftype := int(b2u(f.super.ftype()))
	at := 2 + inodeBytes
	for range p[0] {
		if at+3 > len(p) || at+3+int(p[at])+ftype+inodeBytes > len(p) {
			return corruptf("directory entry at %d is cut short", at)
		}
		e := dirent{name: p[at+3:][:p[at]:p[at]]}
		at += 3 + int(p[at])
		if ftype != 0 {
			e.kind = p[at]
			at++
		}
		if inodeBytes == 4 {
			e.inode = uint64(binary.BigEndian.Uint32(p[at:]))
		} else {
			e.inode = binary.BigEndian.Uint64(p[at:])
		}
		at += inodeBytes
		e.next = at
		if err := f.checkDirent(&e); err != nil {
			return err
		}
		if !use(&e) {
			return nil
		}
	}
	return nil
}

// readBlockDir walks the space of entries. Blocks that became empty are holes.
func (f *FS) readBlockDir(in *inode, cookie uint64, yield func(filesystem.Dirent) bool) error {
	bits := f.super.blockBits + f.super.dirBlockBits
	end := min(uint64(in.size), leafSpace) >> bits
	for b := cookie >> bits; b < end; {
		r, err := f.mapBlock(&in.data, b<<f.super.dirBlockBits)
		if err != nil {
			return err
		}
		if r.kind == runHole {
			if r.blocks>>f.super.dirBlockBits == 0 {
				return corruptf("logical block %d: half of it is a hole", b)
			}
			b += r.blocks >> f.super.dirBlockBits
			continue
		}
		p, err := f.dataBlock(in, b)
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
		b++
	}
	return nil
}

// yieldDirents yields the entries of p, which stands at position base, from cookie
// on. more is false when the caller has enough.
func (f *FS) yieldDirents(p []byte, base, cookie uint64, yield func(filesystem.Dirent) bool) (more bool, err error) {
	start, end, err := f.dataArea(p)
	if err != nil {
		return false, err
	}
	for at := start; at < end; {
		e, err := f.parseDirent(p[:end], at)
		if err != nil {
			return false, err
		}
		position := base + uint64(at)
		at = e.next
		if e.name == nil || position < cookie || isDot(e.name) || isDotDot(e.name) {
			continue
		}
		if err := f.checkDirent(&e); err != nil {
			return false, err
		}
		if !yield(e.public(base + uint64(at))) {
			return false, nil
		}
	}
	return true, nil
}

// dataArea is where entries stand in a block.
func (f *FS) dataArea(p []byte) (start, end int, err error) {
	be := binary.BigEndian
	start, end = headerData2, len(p)
	if f.super.v5 {
		start = headerData.size
	}
	if magic := be.Uint32(p); magic == magicBlock2 || magic == magicBlock3 {
		n := uint64(be.Uint32(p[len(p)-8:])) // struct xfs_dir2_block_tail
		if n > uint64(len(p)-8-start)/8 {
			return 0, 0, corruptf("directory block with %d hashes", n)
		}
		end -= 8 + 8*int(n)
	}
	return start, end, nil
}

// parseDirent reads the entry or the free area at p[at:] (struct
// xfs_dir2_data_entry, xfs_dir2_data_unused); p ends where entries end.
func (f *FS) parseDirent(p []byte, at int) (dirent, error) {
	be := binary.BigEndian
	if len(p)-at < 8 {
		return dirent{}, corruptf("directory entry at %d is cut short", at)
	}
	if be.Uint16(p[at:]) == freeTag {
		n := int(be.Uint16(p[at+2:]))
		if n < 8 || n%8 != 0 || n > len(p)-at || int(be.Uint16(p[at+n-2:])) != at {
			return dirent{}, corruptf("free area of %d bytes at %d of a directory block", n, at)
		}
		return dirent{next: at + n}, nil
	}
	if len(p)-at < 16 {
		return dirent{}, corruptf("directory entry at %d is cut short", at)
	}
	nameLen := int(p[at+8])
	ftype := int(b2u(f.super.ftype()))
	n := (8 + 1 + nameLen + ftype + 2 + 7) &^ 7
	if nameLen == 0 || n > len(p)-at || int(be.Uint16(p[at+n-2:])) != at {
		return dirent{}, corruptf("directory entry at %d with a name of %d bytes", at, nameLen)
	}
	e := dirent{inode: be.Uint64(p[at:]), name: p[at+9:][:nameLen:nameLen], next: at + n}
	if ftype != 0 {
		e.kind = p[at+9+nameLen]
	}
	return e, nil
}

// dataBlock is directory block b of the space of entries, verified. On a miss it
// reads the blocks behind it too, as far as they lie in one piece.
func (f *FS) dataBlock(in *inode, b uint64) ([]byte, error) {
	key := lru.Key{Class: classDir, A: in.num, B: b}
	if p, ok := lru.Get[[]byte](f.cache, key); ok {
		return p, nil
	}
	s := f.super
	per := uint64(1) << s.dirBlockBits
	r, err := f.mapBlock(&in.data, b*per)
	if err != nil {
		return nil, err
	}
	if r.kind != runData || r.blocks < per {
		return f.scatteredBlock(in, b)
	}
	size := s.dirBlockSize()
	n := min(r.blocks/per, uint64(max(dirChunk/size, 1)), leafSpace/uint64(size)-b)
	p, err := f.readBlocks(r.block, n*per)
	if err != nil {
		return nil, err
	}
	for i := range int(n) {
		block, at := p[i*size:][:size:size], r.block+uint64(i)*per
		if err := f.verifyData(in, block, at, f.recovered(at, per)); err != nil {
			if i == 0 {
				return nil, fmt.Errorf("inode %d: directory block %d: %w", in.num, b, err)
			}
			break // whoever needs it will meet it
		}
		// A copy, so that one block in the cache does not keep the whole chunk.
		f.cache.Put(lru.Key{Class: classDir, A: in.num, B: b + uint64(i)}, slices.Clone(block), size)
	}
	return p[:size:size], nil
}

// scatteredBlock is dataBlock for a directory block in several pieces.
func (f *FS) scatteredBlock(in *inode, b uint64) ([]byte, error) {
	p, first, believed, err := f.gather(&in.data, b<<f.super.dirBlockBits, 1<<f.super.dirBlockBits)
	if err == nil {
		err = f.verifyData(in, p, first, believed)
	}
	if err != nil {
		return nil, fmt.Errorf("inode %d: directory block %d: %w", in.num, b, err)
	}
	f.cache.Put(lru.Key{Class: classDir, A: in.num, B: b}, p, len(p))
	return p, nil
}

// gather reads n logical blocks, which must not be holes, wherever they are. first
// is where the first of them is; believed: some come out of the log.
func (f *FS) gather(fk *fork, b, n uint64) (p []byte, first uint64, believed bool, err error) {
	p = make([]byte, 0, n<<f.super.blockBits)
	for done := uint64(0); done < n; {
		r, err := f.mapBlock(fk, b+done)
		if err != nil {
			return nil, 0, false, err
		}
		if r.kind != runData {
			return nil, 0, false, corruptf("logical block %d has no storage", b+done)
		}
		part := min(r.blocks, n-done)
		q, err := f.readBlocks(r.block, part)
		if err != nil {
			return nil, 0, false, err
		}
		if done == 0 {
			first = r.block
		}
		believed = believed || f.recovered(r.block, part)
		p = append(p, q...)
		done += part
	}
	return p, first, believed, nil
}

// verifyData checks a block of entries.
func (f *FS) verifyData(in *inode, p []byte, at uint64, believed bool) error {
	magic := binary.BigEndian.Uint32(p)
	if !f.super.v5 {
		if magic != magicBlock2 && magic != magicData2 {
			return corruptf("magic %#x", magic)
		}
		return nil
	}
	if magic != magicBlock3 && magic != magicData3 {
		return corruptf("magic %#x", magic)
	}
	return f.verify(p, headerData, at, in.num, believed)
}

// Parent is what ".." of dir names.
func (f *FS) Parent(dir filesystem.Inode) (filesystem.Inode, error) {
	in, err := f.dirInode(dir)
	if err != nil {
		return 0, fmt.Errorf("parent: %w", err)
	}
	parent, err := f.parent(in)
	if err == nil {
		if _, _, ok := f.super.inodePlace(parent); !ok {
			err = corruptf("inode %d", parent)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("parent of directory %d: %w", dir, err)
	}
	return filesystem.Inode(parent), nil
}

func (f *FS) parent(in *inode) (uint64, error) {
	if in.data.format == formatLocal {
		parent, _, err := shortParent(in.data.raw[:in.size])
		return parent, err
	}
	p, err := f.dataBlock(in, 0)
	if err != nil {
		return 0, err
	}
	at, end, err := f.dataArea(p)
	if err != nil {
		return 0, err
	}
	for at < end {
		e, err := f.parseDirent(p[:end], at)
		if err != nil {
			return 0, err
		}
		if isDotDot(e.name) {
			return e.inode, nil
		}
		at = e.next
	}
	return 0, corruptf("directory has no entry ..")
}
