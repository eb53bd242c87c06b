package cbt

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
)

// layout says where things lie in the map file of a disk of one size.
type layout struct {
	words   int64 // 64-bit words of one map
	leaves  int64
	summary [2]int64 // offsets in the file, in bytes
	bits    [2]int64
	total   int64
}

const headerSlot = 2048 // distance of the two header slots in page 0

func layoutOf(sizeBytes int64) layout {
	page := func(n int64) int64 { return (n + leafBytes - 1) &^ (leafBytes - 1) }
	grains := (sizeBytes + blockdev.GrainSize - 1) >> grainShift
	l := layout{words: (grains + 63) >> 6}
	l.leaves = (l.words + leafWords - 1) >> leafShift
	l.summary[0] = leafBytes
	l.summary[1] = l.summary[0] + page((l.leaves+63)>>6*8)
	l.bits[0] = l.summary[1] + page((l.leaves+63)>>6*8)
	l.bits[1] = l.bits[0] + l.leaves*leafBytes
	l.total = l.bits[1] + l.leaves*leafBytes
	return l
}

// mapFile is the open map file: one shared mapping over page 0 with the two header
// slots, the two summaries and the two sparse maps.
type mapFile struct {
	layout
	path string // "" when the file has no name
	file *os.File
	mem  []byte
}

// createMapFile makes a map file in place of whatever path holds and writes h to
// it. The file gets its name only when it is complete.
//
// A tmpfs without room does not stop a disk from being served: the map then has no
// name and dies with the process, and named is false.
func createMapFile(path string, l layout) (m *mapFile, named bool, err error) {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		if m, err = mapOver(f, l); err == nil {
			m.path = path
			return m, true, nil
		}
		f.Close()
		os.Remove(tmp)
	}
	if !errors.Is(err, unix.ENOSPC) {
		return nil, false, fmt.Errorf("create map file %q: %w", path, err)
	}
	fd, err := unix.MemfdCreate("keelblock-cbt", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, false, fmt.Errorf("create map in memory: %w", err)
	}
	f = os.NewFile(uintptr(fd), "memfd")
	if m, err = mapOver(f, l); err != nil {
		f.Close()
		return nil, false, fmt.Errorf("create map in memory: %w", err)
	}
	return m, false, nil
}

// publish gives a created map file its name, in place of an older one.
func (m *mapFile) publish() error {
	if m.path == "" {
		return nil
	}
	if err := os.Rename(m.path+".new", m.path); err != nil {
		return fmt.Errorf("publish map file: %w", err)
	}
	return nil
}

func mapOver(f *os.File, l layout) (*mapFile, error) {
	if err := f.Truncate(l.total); err != nil {
		return nil, err
	}
	// The header and the summaries are touched freely, so they are backed now.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, l.bits[0]); err != nil {
		return nil, &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(l.total), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, &os.PathError{Op: "mmap", Path: f.Name(), Err: err}
	}
	return &mapFile{layout: l, file: f, mem: mem}, nil
}

// readMapHeader returns the newer good header of a map file and whether the file
// lies on tmpfs. A missing file is fs.ErrNotExist.
func readMapHeader(path string) (h header, onTmpfs bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return h, false, err
	}
	defer f.Close()
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &sfs); err != nil {
		return h, false, fmt.Errorf("statfs %q: %w", path, err)
	}
	buf := make([]byte, headerSlot+headerBytes)
	if _, err := io.ReadFull(f, buf); err != nil {
		return h, false, fmt.Errorf("read header of %q: %w", path, err)
	}
	a, errA := decodeHeader(mapMagic, buf)
	b, errB := decodeHeader(mapMagic, buf[headerSlot:])
	switch {
	case errA != nil && errB != nil:
		return h, false, fmt.Errorf("map file %q: %w", path, errA)
	case errA != nil || errB == nil && b.sequence > a.sequence:
		a = b
	}
	return a, int64(sfs.Type) == unix.TMPFS_MAGIC, nil
}

// openMapFile maps an existing map file whose header was accepted.
func openMapFile(path string, l layout) (*mapFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || st.Size() != l.total {
		f.Close()
		return nil, fmt.Errorf("map file %q: length is not %d: %w", path, l.total, errors.Join(err, errHeader))
	}
	m, err := mapOver(f, l)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("map file %q: %w", path, err)
	}
	m.path = path
	return m, nil
}

// attach points maps[i] into the mapping.
func (m *mapFile) attach(maps *[2]fineMap) {
	for i := range maps {
		maps[i].words = wordsOf(m.mem[m.bits[i] : m.bits[i]+m.words*8])
		maps[i].summary = wordsOf(m.mem[m.summary[i] : m.summary[i]+(m.leaves+63)>>6*8])
		maps[i].backed = make([]uint64, len(maps[i].summary))
		maps[i].file = m.file
		maps[i].offset = m.bits[i]
	}
}

// writeHeader stores h in the slot that the newest header does not occupy, so that
// a kill in the middle leaves that one.
func (m *mapFile) writeHeader(h *header) {
	h.sequence++
	h.encode(mapMagic, m.mem[h.sequence%2*headerSlot:])
}

// recover makes maps[live] the union of both maps, as they were when the process
// died, and empties the other. It believes the pages of the file, not the
// summaries. A kill in the middle loses nothing: the union is made before anything
// is cleared.
func (m *mapFile) recover(maps *[2]fineMap, live int) error {
	for i := range maps {
		clear(maps[i].summary)
		if err := m.eachBackedLeaf(i, func(leaf int64) { maps[i].adopt(leaf) }); err != nil {
			return fmt.Errorf("recover map file %q: %w", m.path, err)
		}
	}
	maps[live].merge(&maps[1-live])
	maps[1-live].clear()
	maps[1-live].reclaim()
	return nil
}

// adopt takes over a page that the file holds already.
func (m *fineMap) adopt(leaf int64) {
	m.backed[leaf>>6] |= 1 << (leaf & 63)
	m.summary[leaf>>6] |= 1 << (leaf & 63)
}

func (m *mapFile) eachBackedLeaf(i int, do func(leaf int64)) error {
	fd, end := int(m.file.Fd()), m.bits[i]+m.leaves*leafBytes
	for off := m.bits[i]; off < end; {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= end {
			return nil
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for off = data &^ (leafBytes - 1); off < min(hole, end); off += leafBytes {
			do((off - m.bits[i]) / leafBytes)
		}
	}
	return nil
}

// close unmaps the file; remove takes its name away first.
func (m *mapFile) close(remove bool) error {
	var errs []error
	if remove && m.path != "" {
		if err := os.Remove(m.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, unix.Munmap(m.mem), m.file.Close())...)
}

// bootID is the identity of the running kernel.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return string(b[:min(len(b), 36)]), nil
}

// syncDir makes the names in the folder of path durable.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
