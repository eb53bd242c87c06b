package ext

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// The journal, include/linux/jbd2.h and Documentation/filesystems/ext4/journal.rst.
// All its numbers are big-endian.
const (
	journalMagic      = 0xC03B3998
	journalHeaderSize = 12 // magic, block type, transaction
	journalSuperSize  = 1024

	journalDescriptor = 1 // block types
	journalCommit     = 2
	journalSuperV1    = 3
	journalSuperV2    = 4
	journalRevoke     = 5

	journalCompatChecksum = 0x1 // JBD2_FEATURE_COMPAT_CHECKSUM, "csum v1"

	journalIncompatRevoke      = 0x1
	journalIncompat64bit       = 0x2
	journalIncompatAsyncCommit = 0x4
	journalIncompatCsumV2      = 0x8
	journalIncompatCsumV3      = 0x10
	journalIncompatFastCommit  = 0x20
	journalIncompatKnown       = journalIncompatRevoke | journalIncompat64bit | journalIncompatAsyncCommit |
		journalIncompatCsumV2 | journalIncompatCsumV3 | journalIncompatFastCommit

	journalMinBlocks         = 1024 // JBD2_MIN_JOURNAL_BLOCKS
	journalFastCommitDefault = 256  // JBD2_DEFAULT_FAST_COMMIT_BLOCKS
	// journalMaxBlocks is the largest journal that mke2fs makes (-J size). It bounds
	// the memory of a replay: 16 bytes for each block of the log.
	journalMaxBlocks = 10240000
)

// journal is the log of an FS whose blocks are as they lie on disk.
type journal struct {
	fs   *FS
	runs []journalRun // where the journal's blocks are, in their order
	log  window
	// scratch are the tags of the descriptor that was read last.
	scratch []descriptorTag
	// first and last bound the circular log: it wraps from last to first. Behind it
	// come the blocks of fast commits, up to maxBlocks.
	first, last, maxBlocks uint32
	start                  uint32 // block of the oldest transaction; 0: the log is empty
	sequence               uint32 // of the oldest transaction
	errno                  int32  // an error that the guest's kernel recorded
	compat, incompat       uint32
	seed                   uint32 // of the crc32c of csum v2 and v3
}

// journalRun is a run of the journal's blocks.
type journalRun struct {
	logical uint32
	blocks  uint32
	block   uint64 // on the volume
}

func (j *journal) has(incompat uint32) bool { return j.incompat&incompat != 0 }

// checksummed: each block of the log has a checksum (csum v2 or v3).
func (j *journal) checksummed() bool {
	return j.has(journalIncompatCsumV2 | journalIncompatCsumV3)
}

// openJournal reads and checks the superblock of the journal of f as
// journal_load_superblock does. What the kernel refuses is an error here.
func (f *FS) openJournal() (*journal, error) {
	in, err := f.inode(f.super.journalInode)
	if err != nil {
		return nil, err
	}
	if in.kind() != filesystem.TypeRegular || in.has(flagInlineData) {
		return nil, corruptf("inode %d is no journal", in.num)
	}
	p := make([]byte, journalSuperSize)
	if n, err := f.readFile(in, p, 0); n < len(p) {
		if err == nil || err == io.EOF {
			err = corruptf("journal of %d bytes", in.size)
		}
		return nil, err
	}
	j := &journal{fs: f}
	if err := j.parseSuper(p, uint64(in.size)>>f.super.blockBits); err != nil {
		return nil, err
	}
	return j, j.mapBlocks(in)
}

func (j *journal) parseSuper(p []byte, inodeBlocks uint64) error {
	be := binary.BigEndian
	kind := be.Uint32(p[4:])
	if be.Uint32(p) != journalMagic || (kind != journalSuperV1 && kind != journalSuperV2) {
		return corruptf("the journal has no superblock")
	}
	if size := be.Uint32(p[0xC:]); int64(size) != j.fs.super.blockSize {
		return corruptf("the journal's blocks have %d bytes", size)
	}
	j.maxBlocks, j.first = be.Uint32(p[0x10:]), be.Uint32(p[0x14:])
	j.sequence, j.start, j.errno = be.Uint32(p[0x18:]), be.Uint32(p[0x1C:]), int32(be.Uint32(p[0x20:]))
	if kind == journalSuperV2 {
		j.compat, j.incompat = be.Uint32(p[0x24:]), be.Uint32(p[0x28:])
		if roCompat := be.Uint32(p[0x2C:]); roCompat != 0 || j.incompat&^journalIncompatKnown != 0 {
			return unsupportedf("feature of the journal (incompat %#x, ro_compat %#x)", j.incompat&^journalIncompatKnown, roCompat)
		}
	}
	if err := j.checkSums(p); err != nil {
		return err
	}
	return j.checkGeometry(be.Uint32(p[0x54:]), inodeBlocks)
}

// checkSums refuses combinations of checksum features that nobody writes, and a
// journal superblock whose checksum is wrong.
func (j *journal) checkSums(p []byte) error {
	if j.has(journalIncompatCsumV2) && j.has(journalIncompatCsumV3) ||
		j.checksummed() && j.compat&journalCompatChecksum != 0 {
		return corruptf("the journal has two kinds of checksums (compat %#x, incompat %#x)", j.compat, j.incompat)
	}
	if !j.checksummed() {
		return nil
	}
	const typeCRC32C, at = 4, 0xFC
	if p[0x50] != typeCRC32C {
		return unsupportedf("checksum type %d of the journal", p[0x50])
	}
	crc := crc32c(^uint32(0), p[:at])
	crc = crc32cZeros(crc, 4)
	if crc32c(crc, p[at+4:]) != binary.BigEndian.Uint32(p[at:]) {
		return corruptf("the journal's superblock: checksum is wrong")
	}
	j.seed = crc32c(^uint32(0), p[0x30:0x40])
	return nil
}

func (j *journal) checkGeometry(fastCommitBlocks uint32, inodeBlocks uint64) error {
	switch {
	case uint64(j.maxBlocks) > inodeBlocks:
		return corruptf("the journal's superblock tells of %d blocks, its file has %d", j.maxBlocks, inodeBlocks)
	case j.maxBlocks > journalMaxBlocks:
		return unsupportedf("journal of %d blocks, more than the %d that mke2fs makes", j.maxBlocks, journalMaxBlocks)
	case j.maxBlocks < journalMinBlocks:
		return corruptf("journal of %d blocks, less than %d", j.maxBlocks, journalMinBlocks)
	}
	j.last = j.maxBlocks
	if j.has(journalIncompatFastCommit) {
		if fastCommitBlocks == 0 {
			fastCommitBlocks = journalFastCommitDefault
		}
		if j.maxBlocks-journalMinBlocks < fastCommitBlocks {
			return corruptf("journal of %d blocks with %d for fast commits", j.maxBlocks, fastCommitBlocks)
		}
		j.last -= fastCommitBlocks
	}
	if j.first == 0 || j.first >= j.last || j.start >= j.maxBlocks {
		return corruptf("journal of %d blocks that begins at %d with a log at %d", j.last, j.first, j.start)
	}
	return nil
}

// mapBlocks finds out where all blocks of the journal are. No two of them may be the
// same: a replay then never looks at more than the volume has.
func (j *journal) mapBlocks(in *inode) error {
	for b := uint64(0); b < uint64(j.maxBlocks); {
		r, err := j.fs.mapBlock(in, b)
		if err != nil {
			return err
		}
		if r.kind != runData {
			return corruptf("the journal has a hole at its block %d", b)
		}
		n := min(r.blocks, uint64(j.maxBlocks)-b)
		if k := len(j.runs) - 1; k >= 0 && j.runs[k].block+uint64(j.runs[k].blocks) == r.block {
			j.runs[k].blocks += uint32(n)
		} else {
			j.runs = append(j.runs, journalRun{uint32(b), uint32(n), r.block})
		}
		b += n
	}
	sorted := slices.Clone(j.runs)
	slices.SortFunc(sorted, func(a, b journalRun) int { return cmp.Compare(a.block, b.block) })
	for i := 1; i < len(sorted); i++ {
		if a := sorted[i-1]; a.block+uint64(a.blocks) > sorted[i].block {
			return corruptf("the journal has block %d twice", sorted[i].block)
		}
	}
	return nil
}

// run finds where the journal's block b is and how many follow it there.
func (j *journal) run(b uint32) (block uint64, n uint32) {
	i, found := slices.BinarySearchFunc(j.runs, b, func(r journalRun, b uint32) int { return cmp.Compare(r.logical, b) })
	if !found {
		i--
	}
	r := j.runs[i]
	return r.block + uint64(b-r.logical), r.blocks - (b - r.logical)
}

// windowBytes is how much of the log is read at once. Most of a log are the blocks
// between two descriptors, 250 of 4 KiB, or three or four where each fsync commits.
const windowBytes = 128 << 10

// window is the part of the log that was read last.
type window struct {
	first uint32
	p     []byte
}

// block is the journal's block b < maxBlocks. It is valid until the next call.
func (j *journal) block(b uint32) ([]byte, error) {
	bits := j.fs.super.blockBits
	w := &j.log
	if n := uint32(len(w.p) >> bits); b < w.first || b-w.first >= n {
		limit := max(1, uint32(windowBytes)>>bits)
		at, n := j.run(b)
		n = min(n, limit)
		p := w.p[:cap(w.p)]
		if len(p) < int(n)<<bits {
			p = make([]byte, int(limit)<<bits)
		}
		w.p = nil
		p = p[:int(n)<<bits]
		if err := j.fs.readFull(p, int64(at)<<bits); err != nil {
			return nil, fmt.Errorf("read block %d of the journal: %w", b, err)
		}
		w.first, w.p = b, p
	}
	return w.p[int(b-w.first)<<bits:][:1<<bits], nil
}

// next is the block of the log n blocks behind b.
func (j *journal) next(b, n uint32) (uint32, error) {
	at := uint64(b) + uint64(n)
	if at >= uint64(j.last) {
		at -= uint64(j.last - j.first)
	}
	if at >= uint64(j.last) {
		return 0, corruptf("a transaction is longer than the journal")
	}
	return uint32(at), nil
}
