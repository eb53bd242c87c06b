package exfat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sort"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/pagecache"
	"github.com/keelblock/keelblock/blockdev/filesystem/wtf8"
)

const (
	entrySize = 32
	// maxDirSize bounds what is read of a directory, in bytes: 150 000 files with long
	// names. The format's own limit is 256 MiB.
	maxDirSize = 48 << 20
	// maxNameLen is that of 255 units of UTF-16 as bytes.
	maxNameLen   = 255 * 3
	unitsPerName = 15
	// maxSetEntries is how many entries a file can have, with itself.
	maxSetEntries = 256
	// maxParents bounds how many directories are remembered.
	maxParents = 1 << 20
)

// Types of entries, with the bit that says "in use".
const (
	inUse        = 0x80
	benign       = 0x20
	typeBitmap   = 0x81
	typeUpCase   = 0x82
	typeLabel    = 0x83
	typeFile     = 0x85
	typeStream   = 0xC0
	typeName     = 0xC1
	secondaryBit = 0x40
)

// Attributes of a file.
const (
	attrReadOnly  = 0x01
	attrDirectory = 0x10
)

// flagNoFAT: the clusters lie in one piece, and the FAT says nothing of them.
const flagNoFAT = 2

// file is what the entries of a file say.
type file struct {
	name       string
	attributes uint16
	first      uint32
	noFAT      bool
	size       int64
	valid      int64     // zeros are behind
	times      [3]uint32 // birth, change, access
	hundredths [2]byte   // of birth and change
	zones      [3]byte
}

func (x *file) dir() bool { return x.attributes&attrDirectory != 0 }

// dirEntry is a file in a directory.
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
	damage  error // what ended the parsing, behind entries
	size    int64
	subs    uint32
	// Of the root directory:
	label   string
	upcase  []byte
	bitmaps [2][]byte
}

// directory is the one of an inode.
func (f *FS) directory(ino filesystem.Inode) (*directory, error) {
	first, size, noFAT := f.boot.rootCluster, int64(0), false
	if ino != rootInode {
		x, err := f.file(ino)
		if err != nil {
			return nil, err
		}
		if !x.dir() {
			return nil, fmt.Errorf("inode %d: %w", ino, filesystem.ErrNotDir)
		}
		first, size, noFAT = x.first, x.size, x.noFAT
		if size%f.boot.clusterSize != 0 || x.valid != size || size == 0 {
			return nil, corruptf("directory %d has %d bytes, %d of them valid", ino, size, x.valid)
		}
	}
	k := pagecache.Key{Class: classDirectory, A: uint64(first), B: uint64(size)}
	if noFAT {
		k.B |= 1
	}
	if d, ok := pagecache.Get[*directory](f.cache, k); ok {
		f.remember(ino, d)
		return d, nil
	}
	if size > maxDirSize {
		return nil, unsupportedf("directory %d of %d MiB, the limit is %d", ino, size>>20, maxDirSize>>20)
	}
	c, err := f.chain(first, f.need(size), noFAT, uint32(max(1, maxDirSize/f.boot.clusterSize)))
	if err != nil {
		return nil, fmt.Errorf("directory %d: %w", ino, err)
	}
	p := make([]byte, int64(c.clusters)*f.boot.clusterSize)
	if err := f.read(c, p, 0, f.cache.Read); err != nil {
		return nil, fmt.Errorf("directory %d: %w", ino, err)
	}
	d, err := f.parseDirectory(p, c)
	if err != nil {
		return nil, fmt.Errorf("directory %d: %w", ino, err)
	}
	weight := 0
	for _, e := range d.entries {
		weight += 2*len(e.name) + 100
	}
	f.cache.Put(k, d, weight)
	f.remember(ino, d)
	return d, nil
}

// remember keeps the parent of the directories in d: the format has no "..".
func (f *FS) remember(ino filesystem.Inode, d *directory) {
	if d.subs == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range d.entries {
		if e.dir && len(f.parents) < maxParents {
			if _, known := f.parents[e.inode]; known {
				return // so are the others
			}
			f.parents[e.inode] = ino
		}
	}
}

// parseDirectory reads the entries of p, which is all of a directory.
func (f *FS) parseDirectory(p []byte, c *chain) (*directory, error) {
	d := &directory{byName: make(map[string]int32), size: int64(len(p))}
	cs := int(f.boot.clusterSize)
	cluster, err := f.cluster(c, 0)
	if err != nil {
		return nil, err
	}
	index := uint32(0)
	for at := 0; at < len(p); {
		entry := p[at : at+entrySize]
		kind := entry[0]
		if kind == 0 { // nothing behind it was ever used
			return d, nil
		}
		if kind != typeFile {
			if err := d.special(entry); err != nil {
				d.damage = fmt.Errorf("entry %d: %w", at/entrySize, err)
				return d, nil
			}
			at += entrySize
			continue
		}
		x, n, err := parseFile(p[at:])
		if err != nil {
			d.damage = fmt.Errorf("entry %d: %w", at/entrySize, err)
			return d, nil
		}
		for ; index < uint32(at/cs); index++ { // where the entry lies
			if c.noFAT {
				cluster++
			} else if cluster, err = f.next(cluster); err != nil || !f.boot.holds(cluster) {
				return nil, corruptf("chain changed at cluster %d: %v", cluster, err)
			}
		}
		place := (f.boot.at(cluster) + int64(at%cs)) / entrySize
		at += n
		d.add(dirEntry{name: x.name, inode: filesystem.Inode(place), next: uint64(at / entrySize), dir: x.dir()})
	}
	return d, nil
}

func (d *directory) add(e dirEntry) {
	if e.dir {
		d.subs++
	}
	if _, twice := d.byName[e.name]; !twice {
		d.byName[e.name] = int32(len(d.entries))
	}
	d.entries = append(d.entries, e)
}

// special takes an entry that is no file. Unknown ones that the format calls benign are
// left out; a critical one means that the directory cannot be understood.
func (d *directory) special(entry []byte) error {
	switch kind := entry[0]; {
	case kind&inUse == 0, kind&benign != 0:
	case kind == typeBitmap:
		d.bitmaps[entry[1]&1] = bytes.Clone(entry)
	case kind == typeUpCase:
		d.upcase = bytes.Clone(entry)
	case kind == typeLabel:
		if n := int(entry[1]); n <= 11 {
			d.label = string(wtf8.Append(nil, wtf8.Units(entry[2:2+2*n])))
		}
	case kind&secondaryBit != 0:
		return corruptf("entry of type %#x belongs to no file", kind)
	default:
		return unsupportedf("critical entry of unknown type %#x", kind)
	}
	return nil
}

// setChecksum is that of the entries of a file.
func setChecksum(p []byte) (sum uint16) {
	for i, b := range p {
		if i == 2 || i == 3 {
			continue
		}
		sum = sum<<15 | sum>>1
		sum += uint16(b)
	}
	return sum
}

// parseFile reads the entries of the file at the start of p and tells their length.
func parseFile(p []byte) (x *file, n int, err error) {
	le := binary.LittleEndian
	count := int(p[1]) + 1
	if n = count * entrySize; count < 3 || n > len(p) {
		return nil, 0, corruptf("file of %d entries", count)
	}
	p = p[:n]
	if setChecksum(p) != le.Uint16(p[2:]) {
		return nil, 0, corruptf("checksum of a file's entries is wrong")
	}
	stream := p[entrySize : 2*entrySize]
	if stream[0] != typeStream {
		return nil, 0, corruptf("file without a stream extension")
	}
	x = &file{
		attributes: le.Uint16(p[4:]), first: le.Uint32(stream[20:]), noFAT: stream[1]&flagNoFAT != 0,
		valid: int64(le.Uint64(stream[8:])), size: int64(le.Uint64(stream[24:])),
		times:      [3]uint32{le.Uint32(p[8:]), le.Uint32(p[12:]), le.Uint32(p[16:])},
		hundredths: [2]byte{p[20], p[21]}, zones: [3]byte{p[22], p[23], p[24]},
	}
	if x.size < 0 || x.valid < 0 || x.valid > x.size || (x.size > 0 && x.first == 0) {
		return nil, 0, corruptf("file of %d bytes, %d of them valid, from cluster %d", x.size, x.valid, x.first)
	}
	length := int(stream[3])
	units := make([]uint16, 0, 255)
	for at := 2 * entrySize; at < n; at += entrySize {
		switch kind := p[at]; {
		case kind == typeName && len(units) < length:
			units = append(units, wtf8.Units(p[at+2 : at+entrySize])[:min(unitsPerName, length-len(units))]...)
		case kind == typeName, kind&(inUse|secondaryBit) != inUse|secondaryBit:
			return nil, 0, corruptf("file with an entry of type %#x", kind)
		case kind&benign == 0:
			return nil, 0, unsupportedf("file with a critical entry of unknown type %#x", kind)
		}
	}
	name := wtf8.Append(nil, units)
	if len(units) != length || length == 0 || bytes.IndexByte(name, '/') >= 0 || bytes.IndexByte(name, 0) >= 0 ||
		string(name) == "." || string(name) == ".." {
		return nil, 0, corruptf("file has the name %q of %d units", name, length)
	}
	x.name = string(name)
	return x, n, nil
}

// file reads the entries at the place that an inode number is. They may go on in the
// directory's next cluster, which is that in the FAT or, where the directory lies in one
// piece, the one behind: the checksum tells which.
func (f *FS) file(ino filesystem.Inode) (*file, error) {
	b := f.boot
	at := int64(ino) * entrySize
	if ino > filesystem.Inode(b.sizeBytes/entrySize) || at < b.heapStart || at >= b.at(firstCluster+b.clusters-1)+b.clusterSize {
		return nil, fmt.Errorf("inode %d: %w", ino, filesystem.ErrNotExist)
	}
	cluster := uint32((at-b.heapStart)/b.clusterSize) + firstCluster
	p := make([]byte, min(maxSetEntries*entrySize, b.at(cluster)+b.clusterSize-at), maxSetEntries*entrySize)
	if err := f.cache.Read(p, at); err != nil {
		return nil, fmt.Errorf("inode %d: %w", ino, err)
	}
	if p[0] != typeFile {
		return nil, fmt.Errorf("inode %d: no file's entry is there: %w", ino, filesystem.ErrNotExist)
	}
	x, _, err := parseFile(p)
	if missing := (int(p[1])+1)*entrySize - len(p); missing > 0 {
		x, err = f.fileAcross(p, cluster, missing)
	}
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", ino, err)
	}
	return x, nil
}

// fileAcross reads the missing bytes of a file's entries from the clusters behind the one
// in which p ends.
func (f *FS) fileAcross(p []byte, cluster uint32, missing int) (x *file, err error) {
	whole := len(p) + missing
	for _, byFAT := range []bool{true, false} {
		q, at := bytes.Clone(p), cluster
		for len(q) < whole {
			next := at + 1
			if byFAT {
				if next, err = f.next(at); err != nil {
					return nil, err
				}
			}
			if !f.boot.holds(next) {
				err = corruptf("a file's entries end with cluster %d", at)
				break
			}
			part := make([]byte, min(int64(whole-len(q)), f.boot.clusterSize))
			if err := f.cache.Read(part, f.boot.at(next)); err != nil {
				return nil, err
			}
			q, at = append(q, part...), next
		}
		if len(q) == whole {
			if x, _, err = parseFile(q); err == nil {
				return x, nil
			}
		}
	}
	return nil, err
}

// Lookup finds name by its exact bytes; case is not folded.
func (f *FS) Lookup(dir filesystem.Inode, name []byte) (filesystem.Inode, error) {
	d, err := f.directory(dir)
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
	d, err := f.directory(dir)
	if err != nil {
		return fmt.Errorf("read directory: %w", err)
	}
	from := sort.Search(len(d.entries), func(i int) bool { return d.entries[i].next > cookie })
	for _, e := range d.entries[from:] {
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

// Parent is the directory in which dir was found: by Lookup or ReadDir of this FS, which
// is how inode numbers are come by. The format has no way back.
func (f *FS) Parent(dir filesystem.Inode) (filesystem.Inode, error) {
	if dir == rootInode {
		return rootInode, nil
	}
	if _, err := f.directory(dir); err != nil {
		return 0, fmt.Errorf("parent: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	parent, ok := f.parents[dir]
	if !ok {
		return 0, fmt.Errorf("parent of directory %d: it was not looked up: %w", dir, filesystem.ErrNotExist)
	}
	return parent, nil
}
