package ext

import (
	"encoding/binary"

	"github.com/keelblock/keelblock/blockdev/filesystem/lru"
)

// directBlocks is EXT4_NDIR_BLOCKS; behind them i_block has one pointer to a block
// of pointers, one to a block of those, and one a level deeper.
const directBlocks = 12

// mapIndirect follows ext4_block_to_path. The depth is fixed, so a block that points
// to itself costs nothing but wrong data, which the format cannot detect.
func (f *FS) mapIndirect(in *inode, b uint64) (run, error) {
	pointers := in.block()[:4*directBlocks]
	bits := f.super.blockBits - 2 // of pointers per block
	if b < directBlocks {
		return f.pointerRun(pointers, b)
	}
	b -= directBlocks
	for level := uint(1); level <= 3; level++ {
		if b >= 1<<(level*bits) {
			b -= 1 << (level * bits)
			continue
		}
		slot := in.block()[4*(directBlocks+level-1):][:4]
		return f.indirectRun(slot, level, b)
	}
	return run{}, corruptf("the map of blocks does not reach that far")
}

// indirectRun is the run of block b below the pointer slot, level levels deep.
func (f *FS) indirectRun(slot []byte, level uint, b uint64) (run, error) {
	bits := f.super.blockBits - 2
	for {
		block := uint64(binary.LittleEndian.Uint32(slot))
		if block == 0 {
			return run{kind: runHole, blocks: 1<<(level*bits) - b}, nil
		}
		pointers, err := f.indirectBlock(block)
		if err != nil {
			return run{}, err
		}
		level--
		if level == 0 {
			return f.pointerRun(pointers, b)
		}
		slot = pointers[4*(b>>(level*bits)):][:4]
		b &= 1<<(level*bits) - 1
	}
}

// pointerRun is the run that begins at pointer i: pointers in sequence, or zeros.
func (f *FS) pointerRun(pointers []byte, i uint64) (run, error) {
	at := func(i uint64) uint64 { return uint64(binary.LittleEndian.Uint32(pointers[4*i:])) }
	n, first, end := uint64(1), at(i), uint64(len(pointers)/4)
	if first == 0 {
		for i+n < end && at(i+n) == 0 {
			n++
		}
		return run{kind: runHole, blocks: n}, nil
	}
	for i+n < end && at(i+n) == first+n {
		n++
	}
	if !f.super.validRange(first, n) {
		return run{}, corruptf("block %d of %d", first, f.super.blocks)
	}
	return run{kind: runData, block: first, blocks: n}, nil
}

func (f *FS) indirectBlock(b uint64) ([]byte, error) {
	key := lru.Key{Class: classIndirect, A: b}
	if p, ok := lru.Get[[]byte](f.cache, key); ok {
		return p, nil
	}
	if !f.super.validRange(b, 1) {
		return nil, corruptf("indirect block %d of %d", b, f.super.blocks)
	}
	p, err := f.readBlock(b)
	if err != nil {
		return nil, err
	}
	f.cache.Put(key, p, len(p))
	return p, nil
}
