package xfs

import (
	"fmt"
	"io"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/lru"
)

// maxNameLen is MAXNAMELEN - 1.
const maxNameLen = 255

// FS is one XFS file system.
type FS struct {
	r     io.ReaderAt
	super *superblock
	cache *lru.Cache
	info  filesystem.Info
	// log is what the log holds that is not yet in its place; nil for nothing.
	log *overlay
	// replayed is what recovery of the log knows beside that.
	replayed replayed
}

var _ filesystem.FS = (*FS)(nil)

// Open reads the superblock of the volume r of size bytes and replays its log in
// memory. r must stay open while the FS is used; the FS itself needs no closing. The
// root directory's inode is read too, so that a volume whose root is unreadable is
// refused here.
//
// Errors: ErrUnknown when there is no XFS, ErrUnsupported with the name of a
// feature, ErrCorrupt.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	f := &FS{r: r, cache: lru.New(cacheBytes)}
	p := make([]byte, max(0, min(size, maxSectorSize)))
	if err := f.readFull(p, 0); err != nil {
		return nil, fmt.Errorf("open xfs: read superblock: %w", err)
	}
	var err error
	if f.super, err = parseSuperblock(p, size, false); err != nil {
		return nil, fmt.Errorf("open xfs: %w", err)
	}
	state := f.replayLog()
	if f.recovered(0, 1) { // the volume may have been grown
		if err := f.readFull(p, 0); err != nil {
			return nil, fmt.Errorf("open xfs: read superblock: %w", err)
		}
		if f.super, err = parseSuperblock(p, size, true); err != nil {
			return nil, fmt.Errorf("open xfs: after the log was replayed: %w", err)
		}
	}
	if f.log != nil {
		f.countFree()
	}
	root, err := f.inode(f.super.root)
	if err != nil {
		return nil, fmt.Errorf("open xfs: root directory: %w", err)
	}
	if root.kind() != filesystem.TypeDir {
		return nil, fmt.Errorf("open xfs: %w", corruptf("root directory: mode %#o", root.mode))
	}
	f.describe(state)
	return f, nil
}

// describe fills what Info gives.
func (f *FS) describe(state filesystem.State) {
	s := f.super
	f.info = filesystem.Info{
		Format:     "xfs",
		Label:      s.label,
		UUID:       uuidString(s.uuid),
		State:      state,
		BlockSize:  s.blockSize,
		Blocks:     s.blocks,
		BlocksFree: min(s.blocksFree, s.blocks),
		InodesFree: min(s.inodesFree, s.inodes),
		Inodes:     s.inodes,
		MaxNameLen: maxNameLen,
		SizeBytes:  int64(s.blocks) << s.blockBits,
	}
	if s.logStart != 0 {
		f.info.Blocks -= min(uint64(s.logBlocks), s.blocks)
	}
}

// Info describes the volume.
func (f *FS) Info() filesystem.Info { return f.info }

// Root is the inode of the root directory.
func (f *FS) Root() filesystem.Inode { return filesystem.Inode(f.super.root) }

// readFull fills p from off or returns an error.
func (f *FS) readFull(p []byte, off int64) error {
	n, err := f.r.ReadAt(p, off)
	if n == len(p) { // io.ReaderAt may say io.EOF with the last byte
		f.log.patch(p, off)
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// readBlocks reads n blocks from block b of the volume, which the caller has checked.
func (f *FS) readBlocks(b, n uint64) ([]byte, error) {
	p := make([]byte, n<<f.super.blockBits)
	if err := f.readFull(p, int64(b)<<f.super.blockBits); err != nil {
		return nil, fmt.Errorf("read block %d: %w", b, err)
	}
	return p, nil
}

// recovered: some of the n blocks from block b of the volume come out of the log.
func (f *FS) recovered(b, n uint64) bool {
	return f.log.covers(int64(b)<<f.super.blockBits, int64(n)<<f.super.blockBits)
}
