package ext

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// rootInode is EXT4_ROOT_INO.
const rootInode = 2

// FS is one ext2, ext3 or ext4 file system.
type FS struct {
	r     io.ReaderAt
	super *superblock
	cache *cache
	info  filesystem.Info
	// hints are directories without a hash tree, by their inode modulo the length,
	// in which a name was found: inode << 32 | logical block.
	hints [64]atomic.Uint64
}

var _ filesystem.FS = (*FS)(nil)

// Open reads the superblock of the volume r of size bytes. r must stay open while
// the FS is used; the FS itself needs no closing. The root directory's inode is
// read too, so that a volume whose root is unreadable is refused here.
//
// Errors: ErrUnknown when there is no ext file system, ErrUnsupported with the
// name of a feature, ErrCorrupt.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	if size < superOffset+superSize {
		return nil, fmt.Errorf("open ext: volume of %d bytes: %w", size, filesystem.ErrUnknown)
	}
	p := make([]byte, superSize)
	f := &FS{r: r, cache: newCache(cacheBytes)}
	if err := f.readFull(p, superOffset); err != nil {
		return nil, fmt.Errorf("open ext: read superblock: %w", err)
	}
	super, err := parseSuperblock(p, size)
	if err != nil {
		return nil, fmt.Errorf("open ext: %w", err)
	}
	f.super = super
	root, err := f.inode(rootInode)
	if err != nil {
		return nil, fmt.Errorf("open ext: root directory: %w", err)
	}
	if root.kind() != filesystem.TypeDir {
		return nil, fmt.Errorf("open ext: %w", corruptf("root directory: mode %#o", root.mode))
	}
	f.info = filesystem.Info{
		Format:     super.format(),
		Label:      super.label,
		UUID:       uuidString(super.uuid),
		State:      f.state(),
		BlockSize:  super.blockSize,
		Blocks:     super.blocks,
		BlocksFree: min(super.freeBlocks, super.blocks),
		Inodes:     uint64(super.inodes),
		InodesFree: uint64(min(super.freeInodes, super.inodes)),
		MaxNameLen: maxNameLen,
		SizeBytes:  int64(super.blocks) << super.blockBits,
	}
	if super.overhead < super.blocks {
		f.info.Blocks -= super.overhead
	}
	return f, nil
}

// Info describes the volume.
func (f *FS) Info() filesystem.Info { return f.info }

// Root is inode 2.
func (f *FS) Root() filesystem.Inode { return rootInode }

// state tells whether what is shown is the newest state of the volume.
func (f *FS) state() filesystem.State {
	s := f.super
	switch {
	case s.has(incompatRecover) && !f.journalEmpty():
		return filesystem.State{Reason: "state as of the last commit; the journal has not been replayed, " +
			"so the newest changes are missing and some of what is shown may be older than its directory says"}
	case s.state&stateError != 0 || s.errorCount != 0:
		return filesystem.State{Reason: fmt.Sprintf("the guest's kernel recorded errors in this file system (%d); "+
			"it is shown as it is, e2fsck has not been run", s.errorCount)}
	case s.compat&compatHasJournal == 0 && s.state&stateValid == 0:
		return filesystem.State{Reason: "the file system has no journal and was not unmounted; " +
			"it is shown as it is, e2fsck has not been run"}
	}
	return filesystem.State{Clean: true}
}

// journalEmpty: the journal's superblock says that there is nothing to replay
// (s_start is 0, jbd2_journal_recover). A running guest that has just written
// everything home leaves the flag needs_recovery with an empty journal.
func (f *FS) journalEmpty() bool {
	const (
		jbd2Magic   = 0xC03B3998
		superV1     = 3
		superV2     = 4
		offsetStart = 0x1C
	)
	if f.super.journalInode == 0 {
		return false // an external journal, which is not here
	}
	in, err := f.inode(f.super.journalInode)
	if err != nil || in.kind() != filesystem.TypeRegular {
		return false
	}
	p := make([]byte, 1024)
	if n, err := f.readFile(in, p, 0); n != len(p) || (err != nil && err != io.EOF) {
		return false
	}
	be := binary.BigEndian
	if kind := be.Uint32(p[4:]); be.Uint32(p) != jbd2Magic || (kind != superV1 && kind != superV2) {
		return false
	}
	return be.Uint32(p[offsetStart:]) == 0
}

// readFull fills p from off or returns an error.
func (f *FS) readFull(p []byte, off int64) error {
	n, err := f.r.ReadAt(p, off)
	if n == len(p) {
		return nil // io.ReaderAt may say io.EOF with the last byte
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// readBlock reads block b, which the caller has checked.
func (f *FS) readBlock(b uint64) ([]byte, error) {
	return f.readBlocks(b, 1)
}

func (f *FS) readBlocks(b, n uint64) ([]byte, error) {
	p := make([]byte, n<<f.super.blockBits)
	if err := f.readFull(p, int64(b)<<f.super.blockBits); err != nil {
		return nil, fmt.Errorf("read block %d: %w", b, err)
	}
	return p, nil
}
