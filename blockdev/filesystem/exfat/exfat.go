package exfat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strings"
	"sync"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/pagecache"
)

// rootInode is the root directory, which has no entry of its own.
const rootInode = 1

// cacheBytes bounds the metadata that an FS keeps: more than the largest directory.
const cacheBytes = 96 << 20

// Classes of values in the cache.
const (
	classChain     = iota + 1 // A = first cluster, B = clusters needed and limit: *chain
	classDirectory            // A = first cluster, B = size and NoFatChain: *directory
)

// countBitmap is the size of the allocation bitmap up to which Open counts.
const countBitmap = 1 << 20

// FS is one exFAT file system.
type FS struct {
	cache  *pagecache.Cache
	boot   *boot
	info   filesystem.Info
	bitmap *chain
	backup bool // the boot region is the second one

	mu      sync.Mutex
	parents map[filesystem.Inode]filesystem.Inode // of the directories that were listed
}

var _ filesystem.FS = (*FS)(nil)

// Open reads the boot region, the root directory, the up-case table and, where it is
// small, the allocation bitmap of the volume r of size bytes. r must stay open while the
// FS is used; the FS itself needs no closing.
//
// Errors: ErrUnknown when there is no boot sector of exFAT, ErrUnsupported for another
// major revision than 1 and for critical entries that are not known, ErrCorrupt.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	f := &FS{cache: pagecache.New(r, size, cacheBytes), parents: make(map[filesystem.Inode]filesystem.Inode)}
	if err := f.open(size); err != nil {
		return nil, fmt.Errorf("open exfat: %w", err)
	}
	return f, nil
}

func (f *FS) open(size int64) error {
	if err := f.openBoot(size); err != nil {
		return err
	}
	root, err := f.directory(rootInode)
	if err != nil {
		return fmt.Errorf("root directory: %w", err)
	}
	if root.damage != nil {
		return fmt.Errorf("root directory: %w", root.damage)
	}
	if err := f.openUpCase(root.upcase); err != nil {
		return err
	}
	b := f.boot
	free, err := f.openBitmap(root.bitmaps)
	if err != nil {
		return err
	}
	f.info = filesystem.Info{
		Format:     "exfat",
		Label:      root.label,
		UUID:       fmt.Sprintf("%04X-%04X", b.serial>>16, b.serial&0xFFFF),
		State:      f.state(),
		BlockSize:  b.clusterSize,
		Blocks:     uint64(b.clusters),
		BlocksFree: free,
		MaxNameLen: maxNameLen,
		SizeBytes:  b.sizeBytes,
	}
	return nil
}

// openBoot reads the boot region, or its copy where it is damaged.
func (f *FS) openBoot(size int64) error {
	if size < minBootSize {
		return fmt.Errorf("volume of %d bytes: %w", size, filesystem.ErrUnknown)
	}
	p := make([]byte, 512)
	if err := f.cache.Read(p, 0); err != nil {
		return fmt.Errorf("boot sector: %w", err)
	}
	shift, err := sectorShift(p)
	if err != nil {
		return err
	}
	for i := range int64(2) {
		region := make([]byte, bootSectors<<shift)
		if readErr := f.cache.Read(region, i*bootSectors<<shift); readErr != nil {
			return errors.Join(err, fmt.Errorf("boot region %d: %w", i, readErr))
		}
		b, parseErr := parseBoot(region, size)
		if parseErr == nil {
			f.boot, f.backup = b, i == 1
			return nil
		}
		if i == 0 {
			err = parseErr
		}
		if !errors.Is(err, filesystem.ErrCorrupt) {
			return err
		}
	}
	return err
}

// openUpCase verifies the table of capitals. Names are found by their bytes, so it is not
// used any further.
func (f *FS) openUpCase(entry []byte) error {
	const maxTable = 2 << 16
	if entry == nil {
		return corruptf("no up-case table")
	}
	le := binary.LittleEndian
	size := le.Uint64(entry[24:])
	if size == 0 || size > maxTable {
		return corruptf("up-case table of %d bytes", size)
	}
	c, err := f.chain(le.Uint32(entry[20:]), f.need(int64(size)), false, 0)
	if err != nil {
		return fmt.Errorf("up-case table: %w", err)
	}
	p := make([]byte, size)
	if err := f.read(c, p, 0, f.cache.Read); err != nil {
		return fmt.Errorf("up-case table: %w", err)
	}
	if checksum32(0, p) != le.Uint32(entry[4:]) {
		return corruptf("up-case table: checksum is wrong")
	}
	return nil
}

// openBitmap finds the active allocation bitmap and counts the free clusters.
func (f *FS) openBitmap(entries [2][]byte) (free uint64, err error) {
	which := 0
	if f.boot.secondFAT {
		which = 1
	}
	entry := entries[which]
	if entry == nil {
		return 0, corruptf("no allocation bitmap")
	}
	le := binary.LittleEndian
	size := le.Uint64(entry[24:])
	if size != (uint64(f.boot.clusters)+7)/8 {
		return 0, corruptf("allocation bitmap of %d bytes for %d clusters", size, f.boot.clusters)
	}
	if f.bitmap, err = f.chain(le.Uint32(entry[20:]), f.need(int64(size)), false, 0); err != nil {
		return 0, fmt.Errorf("allocation bitmap: %w", err)
	}
	if size > countBitmap {
		return 0, nil
	}
	p := make([]byte, size)
	if err := f.read(f.bitmap, p, 0, f.cache.Read); err != nil {
		return 0, fmt.Errorf("allocation bitmap: %w", err)
	}
	if rest := f.boot.clusters % 8; rest != 0 {
		p[size-1] |= 0xFF << rest
	}
	for _, b := range p {
		free += uint64(8 - bits.OnesCount8(b))
	}
	return free, nil
}

// need is how many clusters size bytes need.
func (f *FS) need(size int64) uint32 {
	return uint32((size + f.boot.clusterSize - 1) / f.boot.clusterSize)
}

// checkAllocated requires that the first cluster of a file is marked in the bitmap. On a
// volume that was not unmounted the bitmap may lag behind.
func (f *FS) checkAllocated(first uint32) error {
	if f.boot.dirty || !f.boot.holds(first) {
		return nil
	}
	var p [1]byte
	i := first - firstCluster
	if err := f.read(f.bitmap, p[:], int64(i/8), f.cache.Read); err != nil {
		return err
	}
	if p[0]>>(i%8)&1 == 0 {
		return corruptf("cluster %d is free in the allocation bitmap", first)
	}
	return nil
}

// Info describes the volume.
func (f *FS) Info() filesystem.Info { return f.info }

// Root is inode 1.
func (f *FS) Root() filesystem.Inode { return rootInode }

func (f *FS) state() filesystem.State {
	var why []string
	if f.boot.dirty {
		why = append(why, "the volume was in use and not unmounted; exFAT has no journal, so what was being written at that "+
			"moment may be missing or incomplete")
	}
	if f.boot.failure {
		why = append(why, "the guest met errors of the disk on this volume")
	}
	if f.backup {
		why = append(why, "the boot region is damaged and its copy is used")
	}
	if len(why) == 0 {
		return filesystem.State{Clean: true}
	}
	return filesystem.State{Reason: strings.Join(why, "; ") + "; it is shown as it is, fsck has not been run"}
}
