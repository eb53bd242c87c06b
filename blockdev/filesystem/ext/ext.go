package ext

import (
	"fmt"
	"io"
	"sync/atomic"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/lru"
)

// rootInode is EXT4_ROOT_INO.
const rootInode = 2

// FS is one ext2, ext3 or ext4 file system.
type FS struct {
	r     io.ReaderAt
	super *superblock
	cache *lru.Cache
	info  filesystem.Info
	// fast are the changes of fast commits, or nil.
	fast *fastCommits
	// hints are directories without a hash tree, by their inode modulo the length,
	// in which a name was found: inode << 32 | logical block.
	hints [64]atomic.Uint64
}

var _ filesystem.FS = (*FS)(nil)

// Open reads the superblock of the volume r of size bytes. r must stay open while
// the FS is used; the FS itself needs no closing. The root directory's inode is
// read too, so that a volume whose root is unreadable is refused here.
//
// Where the journal has to be replayed, Open reads it and puts the result over r;
// that takes as long as reading the used part of the journal. A journal that the
// kernel would not replay is an error.
//
// Errors: ErrUnknown when there is no ext file system, ErrUnsupported with the
// name of a feature, ErrCorrupt.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	if size < superOffset+superSize {
		return nil, fmt.Errorf("open ext: volume of %d bytes: %w", size, filesystem.ErrUnknown)
	}
	f, err := openSuper(r, size)
	if err != nil {
		return nil, fmt.Errorf("open ext: %w", err)
	}
	state := f.state()
	if f.needsReplay() {
		if f, state, err = f.replayed(size); err != nil {
			return nil, fmt.Errorf("open ext: journal: %w", err)
		}
	}
	root, err := f.inode(rootInode)
	if err != nil {
		return nil, fmt.Errorf("open ext: root directory: %w", err)
	}
	if root.kind() != filesystem.TypeDir {
		return nil, fmt.Errorf("open ext: %w", corruptf("root directory: mode %#o", root.mode))
	}
	f.info = f.super.describe(state)
	return f, nil
}

// openSuper gives an FS that has read nothing but its superblock.
func openSuper(r io.ReaderAt, size int64) (*FS, error) {
	p := make([]byte, superSize)
	f := &FS{r: r, cache: lru.New(cacheBytes)}
	if err := f.readFull(p, superOffset); err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	var err error
	f.super, err = parseSuperblock(p, size)
	return f, err
}

// describe is the Info of a file system with this superblock.
func (s *superblock) describe(state filesystem.State) filesystem.Info {
	info := filesystem.Info{
		Format:     s.format(),
		Label:      s.label,
		UUID:       uuidString(s.uuid),
		State:      state,
		BlockSize:  s.blockSize,
		Blocks:     s.blocks,
		BlocksFree: min(s.freeBlocks, s.blocks),
		Inodes:     uint64(s.inodes),
		InodesFree: uint64(min(s.freeInodes, s.inodes)),
		MaxNameLen: maxNameLen,
		SizeBytes:  int64(s.blocks) << s.blockBits,
	}
	if s.overhead < s.blocks {
		info.Blocks -= s.overhead
	}
	return info
}

// Info describes the volume.
func (f *FS) Info() filesystem.Info { return f.info }

// Root is inode 2.
func (f *FS) Root() filesystem.Inode { return rootInode }

// state tells how far what the superblock describes can be trusted to be current.
func (f *FS) state() filesystem.State {
	s := f.super
	switch {
	case s.state&stateError != 0 || s.errorCount != 0:
		return filesystem.State{Reason: fmt.Sprintf("the guest's kernel recorded errors in this file system (%d); "+
			"it is shown as it is, e2fsck has not been run", s.errorCount)}
	case s.compat&compatHasJournal == 0 && s.state&stateValid == 0:
		return filesystem.State{Reason: "the file system has no journal and was not unmounted; " +
			"it is shown as it is, e2fsck has not been run"}
	}
	return filesystem.State{Clean: true}
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
