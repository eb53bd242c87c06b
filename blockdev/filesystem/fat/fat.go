package fat

import (
	"fmt"
	"io"
	"strings"
	"sync/atomic"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/pagecache"
)

// rootInode is the root directory, which has no entry of its own.
const rootInode = 1

// cacheBytes bounds the metadata that an FS keeps.
const cacheBytes = 16 << 20

// Classes of values in the cache.
const (
	classChain     = iota + 1 // A = first cluster, B = clusters needed and limit: *chain
	classDirectory            // A = first cluster: *directory
	classCompared             // A = page of the FAT: bool, the copies were compared there
)

// Flags in entry 1 of the FAT, as FAT32 has them; a clear bit means that something is
// wrong.
const (
	flagUnmounted = 1 << 27
	flagNoErrors  = 1 << 26
)

// FS is one FAT file system.
type FS struct {
	cache *pagecache.Cache
	boot  *boot
	flags uint32 // flagUnmounted and flagNoErrors
	free  uint64 // clusters
	info  filesystem.Info

	compared   bool // the whole FAT was compared with its copy by Open
	fatsDiffer atomic.Bool
}

var _ filesystem.FS = (*FS)(nil)

// Open reads the boot sector, the FAT's flags and the root directory of the volume r of
// size bytes; of a FAT of up to 1 MiB everything, with its copy. r must stay open while
// the FS is used; the FS itself needs no closing.
//
// Errors: ErrUnknown when there is no boot sector, ErrUnsupported for a version of
// FAT32 other than 0.0, ErrCorrupt.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	if size < bootSize {
		return nil, fmt.Errorf("open fat: volume of %d bytes: %w", size, filesystem.ErrUnknown)
	}
	f := &FS{cache: pagecache.New(r, size, cacheBytes)}
	p := make([]byte, bootSize)
	if err := f.cache.Read(p, 0); err != nil {
		return nil, fmt.Errorf("open fat: read boot sector: %w", err)
	}
	if p[0] != 0xEB && p[0] != 0xE9 && p[0] != 0 {
		return nil, fmt.Errorf("open fat: no boot sector: %w", filesystem.ErrUnknown)
	}
	var err error
	if f.boot, err = parseBoot(p, size); err != nil {
		return nil, fmt.Errorf("open fat: %w", err)
	}
	if err := f.openTable(); err != nil {
		return nil, fmt.Errorf("open fat: read FAT: %w", err)
	}
	root, err := f.directory(f.boot.rootCluster)
	if err != nil {
		return nil, fmt.Errorf("open fat: root directory: %w", err)
	}
	b := f.boot
	f.info = filesystem.Info{
		Format:     fmt.Sprintf("fat%d", b.bits),
		Label:      strings.TrimRight(root.label, " "),
		UUID:       fmt.Sprintf("%04X-%04X", b.serial>>16, b.serial&0xFFFF),
		BlockSize:  b.clusterSize,
		Blocks:     uint64(b.clusters),
		BlocksFree: f.free,
		MaxNameLen: maxNameLen,
		SizeBytes:  b.sizeBytes,
	}
	if f.info.Label == "" {
		f.info.Label = b.label
	}
	return f, nil
}

// Info describes the volume. Its State tells what was found so far: see the package
// comment on the copies of the FAT.
func (f *FS) Info() filesystem.Info {
	info := f.info
	info.State = f.state()
	return info
}

// Root is inode 1.
func (f *FS) Root() filesystem.Inode { return rootInode }

func (f *FS) state() filesystem.State {
	var why []string
	if f.boot.dirty || f.flags&flagUnmounted == 0 {
		why = append(why, "the volume was in use and not unmounted; FAT has no journal, so what was being written at that "+
			"moment may be missing or incomplete")
	}
	if f.flags&flagNoErrors == 0 {
		why = append(why, "the guest met errors of the disk on this volume")
	}
	if f.fatsDiffer.Load() {
		why = append(why, "the two copies of the FAT differ; each file is read by the copy in which it is whole, the first one first")
	}
	if len(why) == 0 {
		return filesystem.State{Clean: true}
	}
	return filesystem.State{Reason: strings.Join(why, "; ") + "; it is shown as it is, fsck has not been run"}
}
