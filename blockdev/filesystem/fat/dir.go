package fat

import (
	"encoding/binary"
	"fmt"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/pagecache"
)

// maxDirSize is what a directory may have, in bytes (FAT_MAX_DIR_SIZE).
const maxDirSize = 65536 * entrySize

const deleted = 0xE5

// dirEntry is a file or directory in a directory.
type dirEntry struct {
	name  string
	inode filesystem.Inode
	next  uint64 // the cookie behind it
	dir   bool
}

// directory is a parsed directory.
type directory struct {
	entries []dirEntry
	byName  map[string]int32
	// damage is what ended the parsing, behind entries.
	damage error
	label  string // of the volume, in the root directory
	size   int64  // as stat(2) shows it
	parent uint32 // the cluster that ".." names
	subs   uint32 // directories in it
}

// directory is the one that begins at a cluster; 0 is the root directory of FAT12 and
// FAT16, which lies before the clusters.
func (f *FS) directory(first uint32) (*directory, error) {
	k := pagecache.Key{Class: classDirectory, A: uint64(first)}
	if d, ok := pagecache.Get[*directory](f.cache, k); ok {
		return d, nil
	}
	p, places, err := f.directoryBytes(first)
	if err != nil {
		return nil, err
	}
	d := f.parseDirectory(p, places)
	bytes := 0
	for _, e := range d.entries {
		bytes += 2*len(e.name) + 100 // two strings, entry, map slot
	}
	f.cache.Put(k, d, bytes)
	return d, nil
}

// places tells where in the volume the bytes of a directory lie.
type places struct {
	starts []int64 // of each cluster, or of the whole
	unit   int64
}

func (p places) inode(at int) filesystem.Inode {
	return filesystem.Inode((p.starts[int64(at)/p.unit] + int64(at)%p.unit) / entrySize)
}

func (f *FS) directoryBytes(first uint32) ([]byte, places, error) {
	b := f.boot
	if first == 0 {
		if b.bits == 32 {
			return nil, places{}, corruptf("directory without a cluster")
		}
		p := make([]byte, b.rootEntries*entrySize)
		return p, places{[]int64{b.rootStart}, int64(len(p))}, f.cache.Read(p, b.rootStart)
	}
	c, err := f.chain(first, 0, uint32(max(1, maxDirSize/b.clusterSize)))
	if err != nil {
		return nil, places{}, err
	}
	w, err := f.walk(c, 0)
	if err != nil {
		return nil, places{}, err
	}
	p := make([]byte, int64(c.clusters)*b.clusterSize)
	where := places{unit: b.clusterSize}
	for done := int64(0); done < int64(len(p)); {
		start, length, err := w.run(int64(len(p)))
		if err != nil {
			return nil, places{}, err
		}
		if err := f.cache.Read(p[done:done+length], start); err != nil {
			return nil, places{}, err
		}
		for at := int64(0); at < length; at += b.clusterSize {
			where.starts = append(where.starts, start+at)
		}
		done += length
	}
	return p, where, nil
}

// isDots: the entry is "." or "..".
func isDots(entry []byte) (dots int) {
	switch {
	case string(entry[:11]) == ".          ":
		return 1
	case string(entry[:11]) == "..         ":
		return 2
	}
	return 0
}

func (f *FS) parseDirectory(p []byte, where places) *directory {
	d := &directory{byName: make(map[string]int32), size: int64(len(p))}
	var long longName
	for at := 0; at < len(p); at += entrySize {
		entry := p[at : at+entrySize]
		attr := entry[11]
		switch {
		case entry[0] == 0: // nothing behind it was ever used
			return d
		case entry[0] == deleted:
			long.slots = 0
			continue
		case attr == attrLongName:
			long.add(entry)
			continue
		case attr&attrVolume != 0:
			if d.label == "" {
				d.label = string(appendPart(nil, entry[:11], false))
			}
			long.slots = 0
			continue
		case isDots(entry) != 0:
			if isDots(entry) == 2 {
				d.parent = f.start(entry)
			}
			long.slots = 0
			continue
		}
		name := long.take(entry)
		if name == nil {
			if name = shortName(entry); !validName(name) {
				d.damage = corruptf("entry %d has the name %q", at/entrySize, entry[:11])
				return d
			}
		}
		e := dirEntry{name: string(name), inode: where.inode(at), next: uint64(at/entrySize) + 1, dir: attr&attrDirectory != 0}
		if e.dir {
			d.subs++
		}
		if _, twice := d.byName[e.name]; !twice {
			d.byName[e.name] = int32(len(d.entries))
		}
		d.entries = append(d.entries, e)
	}
	return d
}

// start is the first cluster that an entry names, 0 for none.
func (f *FS) start(entry []byte) uint32 {
	low := uint32(binary.LittleEndian.Uint16(entry[26:]))
	if f.boot.bits != 32 {
		return low
	}
	return low | uint32(binary.LittleEndian.Uint16(entry[20:]))<<16
}

// entry is the directory entry that an inode number is the place of.
func (f *FS) entry(ino filesystem.Inode) ([]byte, error) {
	b := f.boot
	first := b.rootStart
	if b.bits == 32 {
		first = b.dataStart
	}
	at := int64(ino) * entrySize
	if ino > filesystem.Inode(b.sizeBytes/entrySize) || at < first || at > b.sizeBytes-entrySize {
		return nil, fmt.Errorf("inode %d: %w", ino, filesystem.ErrNotExist)
	}
	p := make([]byte, entrySize)
	if err := f.cache.Read(p, at); err != nil {
		return nil, fmt.Errorf("inode %d: %w", ino, err)
	}
	if p[0] == 0 || p[0] == deleted || p[11]&attrVolume != 0 || isDots(p) != 0 {
		return nil, fmt.Errorf("inode %d: no directory entry is there: %w", ino, filesystem.ErrNotExist)
	}
	return p, nil
}

// openDir is the directory of an inode.
func (f *FS) openDir(ino filesystem.Inode) (*directory, error) {
	if ino == rootInode {
		return f.directory(f.boot.rootCluster)
	}
	entry, err := f.entry(ino)
	if err != nil {
		return nil, err
	}
	if entry[11]&attrDirectory == 0 {
		return nil, fmt.Errorf("inode %d: %w", ino, filesystem.ErrNotDir)
	}
	first := f.start(entry)
	if first == 0 {
		return nil, corruptf("directory %d has no cluster", ino)
	}
	d, err := f.directory(first)
	if err != nil {
		return nil, fmt.Errorf("directory %d: %w", ino, err)
	}
	return d, nil
}

// Lookup finds name by its exact bytes: no folding of case, no 8.3 alias.
func (f *FS) Lookup(dir filesystem.Inode, name []byte) (filesystem.Inode, error) {
	d, err := f.openDir(dir)
	if err != nil {
		return 0, fmt.Errorf("look up %q: %w", name, err)
	}
	i, ok := d.byName[string(name)]
	switch {
	case ok:
		return d.entries[i].inode, nil
	case d.damage != nil: // it may stand behind the damage
		return 0, fmt.Errorf("look up %q in directory %d: %w", name, dir, d.damage)
	}
	return 0, fmt.Errorf("look up %q in directory %d: %w", name, dir, filesystem.ErrNotExist)
}

// ReadDir yields the entries of dir in the order in which they are stored. A cookie is
// the number of the slot behind the entry.
func (f *FS) ReadDir(dir filesystem.Inode, cookie uint64, yield func(filesystem.Dirent) bool) error {
	d, err := f.openDir(dir)
	if err != nil {
		return fmt.Errorf("read directory: %w", err)
	}
	for _, e := range d.entries[d.after(cookie):] {
		kind := filesystem.TypeRegular
		if e.dir {
			kind = filesystem.TypeDir
		}
		if !yield(filesystem.Dirent{Name: []byte(e.name), Inode: e.inode, Type: kind, Next: e.next}) {
			return nil
		}
	}
	if d.damage != nil {
		return fmt.Errorf("read directory %d: %w", dir, d.damage)
	}
	return nil
}

// after is the index of the first entry behind a cookie.
func (d *directory) after(cookie uint64) int {
	low, high := 0, len(d.entries)
	for low < high {
		middle := (low + high) / 2
		if d.entries[middle].next > cookie {
			high = middle
		} else {
			low = middle + 1
		}
	}
	return low
}

// Parent is what ".." of dir names. An entry ".." has the parent's first cluster; whose
// entry that is stands in the parent's own parent.
func (f *FS) Parent(dir filesystem.Inode) (filesystem.Inode, error) {
	d, err := f.openDir(dir)
	if err != nil {
		return 0, fmt.Errorf("parent: %w", err)
	}
	if dir == rootInode || f.isRoot(d.parent) {
		return rootInode, nil
	}
	up, err := f.directory(d.parent)
	if err != nil {
		return 0, fmt.Errorf("parent of directory %d: %w", dir, err)
	}
	first := up.parent
	if f.isRoot(first) {
		first = f.boot.rootCluster
	}
	grand, err := f.directory(first)
	if err != nil {
		return 0, fmt.Errorf("parent of directory %d: %w", dir, err)
	}
	for _, e := range grand.entries {
		if !e.dir {
			continue
		}
		entry, err := f.entry(e.inode)
		if err != nil {
			return 0, fmt.Errorf("parent of directory %d: %w", dir, err)
		}
		if f.start(entry) == d.parent {
			return e.inode, nil
		}
	}
	return 0, fmt.Errorf("parent of directory %d: %w", dir, corruptf("no directory begins at cluster %d, which .. names", d.parent))
}

// isRoot: the first cluster in an entry ".." means the root directory.
func (f *FS) isRoot(first uint32) bool { return first == 0 || first == f.boot.rootCluster }
