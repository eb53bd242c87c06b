package btrfs

import (
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/lru"
)

const (
	maxNameLen = 255 // BTRFS_NAME_LEN
	// cacheBytes bounds the metadata that an FS keeps. 20 000 entries of one directory
	// with their inodes are about 10 MiB. dataBytes is for extents that were
	// decompressed, of which a reader often takes a part after the other.
	cacheBytes = 24 << 20
	dataBytes  = 8 << 20
)

// The classes of what the cache keeps, with the rest of its key.
const (
	classNode      uint8 = iota // A = logical address: *node
	classSubvolume              // A = code: *subvolume
	classExtent                 // A = logical address, B = length of the whole: []byte, in FS.data
)

// FS is one btrfs file system.
type FS struct {
	r     io.ReaderAt
	super *superblock
	// superDamaged is what is wrong with the superblock at 64 KiB, when a copy is used.
	superDamaged error
	chunks       []chunk // in order
	rootTree     *tree
	csumTree     *tree
	// mounted is the subvolume that a mount shows, the default one.
	mounted uint64
	// logs are the log trees, changed what their replay made of subvolumes.
	logs    []*tree
	changed map[uint64]*changes
	cache   *lru.Cache // metadata
	data    *lru.Cache // decompressed extents
	zstd    *zstd.Decoder
	info    filesystem.Info

	mu sync.Mutex
	// lost remembers in which directories subvolumes were met that are no more.
	lost map[filesystem.Inode]filesystem.Inode
}

var _ filesystem.FS = (*FS)(nil)

// Open reads superblock, chunks and the root tree of the volume r of size bytes and
// replays its log in memory. r must stay open while the FS is used; the FS itself
// needs no closing. The root directory's inode is read too, so that a volume whose
// root is unreadable is refused here.
//
// Errors: ErrUnknown when there is no btrfs, ErrUnsupported with the name of a
// feature, ErrCorrupt.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	f := &FS{r: r, cache: lru.New(cacheBytes), data: lru.New(dataBytes)}
	if err := f.open(size); err != nil {
		return nil, fmt.Errorf("open btrfs: %w", err)
	}
	return f, nil
}

func (f *FS) open(size int64) error {
	if err := f.readSuperblock(size); err != nil {
		return err
	}
	var err error
	if f.zstd, err = newZstd(); err != nil {
		return err
	}
	if err := f.systemChunks(); err != nil {
		return err
	}
	if err := f.readChunks(); err != nil {
		return err
	}
	f.rootTree = &tree{id: treeRoot, root: f.super.root}
	if f.csumTree, err = f.readTree(treeCsum); err != nil {
		return fmt.Errorf("checksum tree: %w", err)
	}
	if f.mounted, err = f.defaultSubvolume(); err != nil {
		return fmt.Errorf("default subvolume: %w", err)
	}
	f.describe(f.replayLog())
	root, err := f.inode(f.Root())
	if err != nil {
		return fmt.Errorf("root directory: %w", err)
	}
	if root.kind() != filesystem.TypeDir {
		return corruptf("root directory: mode %#o", root.mode)
	}
	return nil
}

// describe fills what Info gives.
func (f *FS) describe(state filesystem.State) {
	s := f.super
	note := func(clean bool, format string, args ...any) {
		if state.Reason != "" {
			state.Reason += "; "
		}
		state.Clean = state.Clean && clean
		state.Reason += fmt.Sprintf(format, args...)
	}
	if f.superDamaged != nil {
		why := strings.TrimSuffix(f.superDamaged.Error(), ": "+filesystem.ErrCorrupt.Error())
		note(false, "%s; its copy at %d was used, which does not know of files that were synced since the last commit", why, s.place)
	}
	if s.devices > 1 {
		note(false, "this is one of %d devices; whether it is the newest was not seen, and what lies only on others cannot be read", s.devices)
	}
	if f.mounted != treeFS {
		note(true, "shown is the default subvolume, of id %d; the top-level subvolume with all others is at %s in it, which is not listed", f.mounted, topLevelName)
	}
	sector := uint64(s.sectorSize)
	f.info = filesystem.Info{
		Format:     "btrfs",
		Label:      s.label,
		UUID:       uuidString(s.fsid),
		State:      state,
		BlockSize:  int64(s.sectorSize),
		Blocks:     s.totalBytes / sector,
		BlocksFree: (s.totalBytes - min(s.usedBytes, s.totalBytes)) / sector,
		MaxNameLen: maxNameLen,
		SizeBytes:  int64(s.totalBytes),
	}
}

// Info describes the volume. Inodes are not counted, as they are not by the kernel;
// what second copies take counts as free.
func (f *FS) Info() filesystem.Info { return f.info }

// Root is the inode of the root directory of the default subvolume.
func (f *FS) Root() filesystem.Inode { return objectRootDir }

// readFull fills p from off or returns an error.
func (f *FS) readFull(p []byte, off int64) error {
	n, err := f.r.ReadAt(p, off)
	if n == len(p) { // io.ReaderAt may say io.EOF with the last byte
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
