package ext

import (
	"cmp"
	"encoding/binary"
	"io"
	"slices"
)

// overlay is a volume after the replay of its journal: blocks that the log replaces
// are read from the journal, all others from where they are. It keeps numbers of
// blocks only, 16 bytes for each, no copies.
type overlay struct {
	base io.ReaderAt
	bits uint
	// blocks are in the order of home.
	blocks []replaced
}

// replaced is a block of the volume that is read elsewhere.
type replaced struct {
	home uint64
	log  uint64 // a block of the volume, with escaped as its highest bit
}

// escaped: the first four bytes of the block are the journal's magic, which the log
// may not have there.
const escaped = 1 << 63

var _ io.ReaderAt = (*overlay)(nil)

// overlay gives the volume as the recovery r leaves it.
func (r *recovery) overlay() *overlay {
	o := &overlay{base: r.j.fs.r, bits: r.j.fs.super.blockBits, blocks: make([]replaced, len(r.tags))}
	for i, t := range r.tags {
		block, _ := r.j.run(t.log)
		if t.transaction&tagEscaped != 0 {
			block |= escaped
		}
		o.blocks[i] = replaced{t.block, block}
	}
	return o
}

// find is the index of the first replaced block that is block or behind it.
func (o *overlay) find(block uint64) int {
	i, _ := slices.BinarySearchFunc(o.blocks, block, func(b replaced, block uint64) int { return cmp.Compare(b.home, block) })
	return i
}

// ReadAt is the io.ReaderAt of the volume. Neighbours that are neighbours in the
// journal too are read at once.
func (o *overlay) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return o.base.ReadAt(p, off)
	}
	n := 0
	for i := o.find(uint64(off) >> o.bits); n < len(p); {
		at := off + int64(n)
		block, within := uint64(at)>>o.bits, at&(1<<o.bits-1)
		if i == len(o.blocks) || o.blocks[i].home > block {
			part := p[n:]
			if i < len(o.blocks) && o.blocks[i].home-block <= uint64(int64(len(part))+within)>>o.bits {
				part = part[:int64(o.blocks[i].home)<<o.bits-at]
			}
			k, err := o.base.ReadAt(part, at)
			n += k
			if k < len(part) || n == len(p) {
				return n, err
			}
			continue
		}
		k := 1
		for i+k < len(o.blocks) && int64(k)<<o.bits-within < int64(len(p)-n) && o.blocks[i+k] == (replaced{block + uint64(k), o.blocks[i].log + uint64(k)}) {
			k++
		}
		part := p[n:min(int64(len(p)), int64(n)+int64(k)<<o.bits-within)]
		if err := o.readLog(o.blocks[i], part, within); err != nil {
			return n, err
		}
		n += len(part)
		i += k
	}
	return n, nil
}

// readLog fills p from byte within of the block b and what follows it in the log.
func (o *overlay) readLog(b replaced, p []byte, within int64) error {
	if n, err := o.base.ReadAt(p, int64(b.log&^escaped)<<o.bits+within); n < len(p) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if b.log&escaped == 0 {
		return nil
	}
	var magic [4]byte
	binary.BigEndian.PutUint32(magic[:], journalMagic)
	for at := int64(0); at-within < int64(len(p)); at += 1 << o.bits {
		for i, c := range magic {
			if k := at + int64(i) - within; k >= 0 && k < int64(len(p)) {
				p[k] = c
			}
		}
	}
	return nil
}
