package ntfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unicode/utf8"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/pagecache"
	"github.com/keelblock/keelblock/blockdev/filesystem/wtf8"
)

// indexName is the name of a directory's index attributes.
const indexName = "$I30"

// Flags of an index entry.
const (
	entryHasChild = 1
	entryLast     = 2
)

const (
	entryHeader = 16
	// fileNameHeader is what stands before the name in a FILE_NAME.
	fileNameHeader = 66
	// namespaceDOS: a name that only exists beside a longer one.
	namespaceDOS = 2
	// maxNameLen is that of 255 units of UTF-16 as bytes.
	maxNameLen = 255 * 3
	// maxIndexDepth bounds a descent; a directory of 2^32 files has fewer levels.
	maxIndexDepth = 20
)

// indexEntry is an entry of a directory as it stands in a node of its index.
type indexEntry struct {
	ref       uint64
	units     []byte // UTF-16 of the name
	namespace byte
	last      bool
	hasChild  bool
	child     uint64 // VCN, in units of the index
	next      int    // where the next entry begins
}

// directory is the index of a directory.
type directory struct {
	node      *node
	root      []byte // the index header of INDEX_ROOT and its entries
	alloc     *stream
	used      *stream // the bitmap of index blocks
	vcnBytes  int64   // unit of a child's VCN
	indexSize int64
}

// directory reads what a directory's index is made of.
func (f *FS) directory(ino filesystem.Inode) (*directory, error) {
	n, err := f.file(ino)
	if err != nil {
		return nil, err
	}
	if n.flags&recordDirectory == 0 {
		return nil, fmt.Errorf("inode %d: %w", ino, filesystem.ErrNotDir)
	}
	k := pagecache.Key{Class: classDirectory, A: n.number}
	if d, ok := pagecache.Get[*directory](f.cache, k); ok {
		return d, nil
	}
	d, err := f.openDirectory(n)
	if err != nil {
		return nil, fmt.Errorf("directory %d: %w", ino, err)
	}
	f.cache.Put(k, d, 300)
	return d, nil
}

func (f *FS) openDirectory(n *node) (*directory, error) {
	a, err := f.find(n, typeIndexRoot, indexName)
	if err != nil {
		return nil, err
	}
	if a == nil || !a.resident || len(a.value) < 32 {
		return nil, corruptf("no index root")
	}
	le := binary.LittleEndian
	d := &directory{node: n, root: a.value[16:], indexSize: int64(le.Uint32(a.value[8:]))}
	if le.Uint32(a.value) != typeFileName || le.Uint32(a.value[4:]) != 1 {
		return nil, corruptf("index of type %#x, collation %d", le.Uint32(a.value), le.Uint32(a.value[4:]))
	}
	if d.indexSize < minRecordSize || d.indexSize > maxRecordSize || d.indexSize&(d.indexSize-1) != 0 {
		return nil, corruptf("index blocks of %d bytes", d.indexSize)
	}
	// A block smaller than a cluster is addressed in units of 512 bytes.
	if d.vcnBytes = f.boot.clusterSize; d.indexSize < d.vcnBytes {
		d.vcnBytes = 512
	}
	if d.alloc, err = f.namedStream(n, typeIndexAlloc, indexName); err != nil {
		return nil, err
	}
	if d.used, err = f.namedStream(n, typeBitmap, indexName); err != nil || d.alloc == nil {
		return d, err
	}
	if d.used == nil || d.alloc.isResident || d.alloc.size > f.boot.sizeBytes {
		return nil, corruptf("index blocks without a bitmap, or of %d bytes", d.alloc.size)
	}
	return d, nil
}

// namedStream is the stream of an attribute, nil when there is none.
func (f *FS) namedStream(n *node, kind uint32, name string) (*stream, error) {
	a, err := f.find(n, kind, name)
	if err != nil || a == nil {
		return nil, err
	}
	return f.stream(n, a)
}

// blocks is how many index blocks there are.
func (d *directory) blocks() uint64 {
	if d.alloc == nil {
		return 0
	}
	return uint64(d.alloc.size / d.indexSize)
}

// block is index block number i: its index header and entries.
func (f *FS) indexBlock(d *directory, i uint64) ([]byte, error) {
	if i >= d.blocks() {
		return nil, corruptf("index block %d of %d", i, d.blocks())
	}
	k := pagecache.Key{Class: classIndex, A: d.node.number, B: i}
	if p, ok := pagecache.Get[[]byte](f.cache, k); ok {
		return p, nil
	}
	p := make([]byte, d.indexSize)
	if err := f.readRuns(d.alloc, p, int64(i)*d.indexSize, f.cache.Read); err != nil {
		return nil, fmt.Errorf("index block %d: %w", i, err)
	}
	if err := fixup(p, "INDX"); err != nil {
		return nil, fmt.Errorf("index block %d: %w", i, err)
	}
	if vcn := binary.LittleEndian.Uint64(p[16:]); vcn != i*uint64(d.indexSize/d.vcnBytes) && vcn*uint64(d.vcnBytes) != i*uint64(d.indexSize) {
		return nil, corruptf("index block %d says that it is at %d", i, vcn)
	}
	f.cache.Put(k, p[24:], len(p))
	return p[24:], nil
}

// entries is where the entries of a node begin and end in p, its index header.
func indexEntries(p []byte) (from, to int, err error) {
	le := binary.LittleEndian
	from, to = int(le.Uint32(p)), int(le.Uint32(p[4:]))
	if from < 16 || to < from || to > len(p) {
		return 0, 0, corruptf("index entries from %d to %d of %d", from, to, len(p))
	}
	return from, to, nil
}

func parseIndexEntry(p []byte, at, end int) (e indexEntry, err error) {
	le := binary.LittleEndian
	if end-at < entryHeader {
		return e, corruptf("index entry at %d is cut short", at)
	}
	length, key, flags := int(le.Uint16(p[at+8:])), int(le.Uint16(p[at+10:])), le.Uint16(p[at+12:])
	if length < entryHeader || length > end-at || length%8 != 0 {
		return e, corruptf("index entry at %d has length %d", at, length)
	}
	e = indexEntry{ref: le.Uint64(p[at:]), last: flags&entryLast != 0, hasChild: flags&entryHasChild != 0, next: at + length}
	if e.hasChild {
		if length -= 8; length < entryHeader {
			return e, corruptf("index entry at %d has no room for its child", at)
		}
		e.child = le.Uint64(p[at+length:])
	}
	if e.last {
		return e, nil
	}
	if key < fileNameHeader || key > length-entryHeader {
		return e, corruptf("index entry at %d has a key of %d bytes", at, key)
	}
	name := p[at+entryHeader:][:key]
	n := 2 * int(name[64])
	if n == 0 || fileNameHeader+n > key {
		return e, corruptf("index entry at %d has a name of %d bytes", at, n)
	}
	e.namespace, e.units = name[65], name[fileNameHeader:fileNameHeader+n]
	return e, nil
}

// shown: the entry is one that users see: no DOS name beside a longer one and none of the
// format's own files, which are the first 16 records (the root is not in itself).
func (e indexEntry) shown() bool {
	return !e.last && e.namespace != namespaceDOS && refNumber(e.ref) >= firstUserRecord
}

// name is the entry's name as bytes.
func (e indexEntry) name(dst []byte) ([]byte, error) {
	dst = wtf8.Append(dst, wtf8.Units(e.units))
	if bytes.IndexByte(dst, '/') >= 0 || bytes.IndexByte(dst, 0) >= 0 || string(dst) == "." || string(dst) == ".." {
		return nil, corruptf("index entry has the name %q", dst)
	}
	return dst, nil
}

// A cookie is the number of the node (0: the root, i+1: index block i), and where in it
// the next entry begins.
const cookieShift = 20

// ReadDir yields the entries in the order of the index blocks, not sorted. Cookies are
// places in the index.
func (f *FS) ReadDir(dir filesystem.Inode, cookie uint64, yield func(filesystem.Dirent) bool) error {
	d, err := f.directory(dir)
	if err != nil {
		return fmt.Errorf("read directory: %w", err)
	}
	for node := cookie >> cookieShift; ; node++ {
		p := d.root
		if node > 0 {
			block, ok, err := f.nextUsed(d, node-1)
			if err != nil {
				return fmt.Errorf("read directory %d: %w", dir, err)
			}
			if !ok {
				return nil
			}
			if p, err = f.indexBlock(d, block); err != nil {
				return fmt.Errorf("read directory %d: %w", dir, err)
			}
			node = block + 1
		}
		more, err := f.yieldEntries(p, node<<cookieShift, cookie, yield)
		if err != nil {
			return fmt.Errorf("read directory %d: %w", dir, err)
		}
		if !more {
			return nil
		}
	}
}

// bitmapPart is how much of a directory's bitmap is read at once, in bytes.
const bitmapPart = 4096

// nextUsed is the first index block from i on that the bitmap says is used.
func (f *FS) nextUsed(d *directory, i uint64) (block uint64, ok bool, err error) {
	for i < d.blocks() && int64(i/8) < d.used.size {
		p, err := f.bitmapPart(d, i/8/bitmapPart)
		if err != nil {
			return 0, false, err
		}
		if p == nil { // nothing is used in it
			i = (i/8/bitmapPart + 1) * bitmapPart * 8
			continue
		}
		if p[i/8%bitmapPart]>>(i%8)&1 != 0 {
			return i, true, nil
		}
		i++
	}
	return 0, false, nil
}

// bitmapPart is a part of a directory's bitmap, nil when it is all zero.
func (f *FS) bitmapPart(d *directory, number uint64) ([]byte, error) {
	k := pagecache.Key{Class: classIndexBitmap, A: d.node.number, B: number}
	if p, ok := pagecache.Get[[]byte](f.cache, k); ok {
		return p, nil
	}
	from := int64(number) * bitmapPart
	p := make([]byte, min(bitmapPart, d.used.size-from))
	if err := f.read(d.used, p, from); err != nil {
		return nil, err
	}
	if len(bytes.TrimLeft(p, "\x00")) == 0 {
		p = nil
	}
	f.cache.Put(k, p, len(p))
	return p, nil
}

// yieldEntries yields the entries of a node whose cookies begin at base, behind cookie.
func (f *FS) yieldEntries(p []byte, base, cookie uint64, yield func(filesystem.Dirent) bool) (more bool, err error) {
	at, end, err := indexEntries(p)
	if err != nil {
		return false, err
	}
	var buffer [maxNameLen]byte
	for {
		start := base + uint64(at)
		e, err := parseIndexEntry(p, at, end)
		if err != nil {
			return false, err
		}
		if e.last {
			return true, nil
		}
		at = e.next
		if start < cookie || !e.shown() {
			continue
		}
		name, err := e.name(buffer[:0])
		if err != nil {
			return false, err
		}
		ino, kind := f.target(e.ref)
		if !yield(filesystem.Dirent{Name: name, Inode: ino, Type: kind, Next: base + uint64(at)}) {
			return false, nil
		}
	}
}

// target is the inode that an entry refers to and its type, 0 when its record cannot be
// read: asked for it, Getattr will say why. A record that was used anew since belongs to
// another file; the inode of such an entry has staleInode set.
func (f *FS) target(ref uint64) (filesystem.Inode, filesystem.Type) {
	ino := filesystem.Inode(refNumber(ref))
	n, err := f.node(uint64(ino))
	if err != nil {
		return ino, 0
	}
	if n.sequence != refSequence(ref) || n.flags&recordInUse == 0 {
		return ino | staleInode, 0
	}
	kind, err := f.kind(n)
	if err != nil {
		return ino, 0
	}
	return ino, kind.typ
}

// Lookup finds name by its exact bytes; case is not folded, and DOS names of files with a
// longer one are not found. It descends the index, whose order is that of the names in
// capitals ($UpCase).
func (f *FS) Lookup(dir filesystem.Inode, name []byte) (filesystem.Inode, error) {
	d, err := f.directory(dir)
	if err != nil {
		return 0, fmt.Errorf("look up %q: %w", name, err)
	}
	e, err := f.search(d, unitsOf(name))
	if err != nil {
		return 0, fmt.Errorf("look up %q in directory %d: %w", name, dir, err)
	}
	if e == nil || !e.shown() {
		return 0, fmt.Errorf("look up %q in directory %d: %w", name, dir, filesystem.ErrNotExist)
	}
	ino, _ := f.target(e.ref)
	return ino, nil
}

// search descends to the entry with the given name, nil when there is none.
func (f *FS) search(d *directory, want []uint16) (*indexEntry, error) {
	if len(want) == 0 || len(want) > 255 {
		return nil, nil
	}
	p := d.root
	for range maxIndexDepth {
		at, end, err := indexEntries(p)
		if err != nil {
			return nil, err
		}
		var e indexEntry
		for {
			if e, err = parseIndexEntry(p, at, end); err != nil {
				return nil, err
			}
			if e.last {
				break
			}
			order := f.collate(want, wtf8.Units(e.units))
			if order == 0 {
				return &e, nil
			}
			if order < 0 {
				break
			}
			at = e.next
		}
		if !e.hasChild {
			return nil, nil
		}
		if e.child > 1<<53/uint64(d.vcnBytes) || e.child*uint64(d.vcnBytes)%uint64(d.indexSize) != 0 {
			return nil, corruptf("index entry leads to %d", e.child)
		}
		if p, err = f.indexBlock(d, e.child*uint64(d.vcnBytes)/uint64(d.indexSize)); err != nil {
			return nil, err
		}
	}
	return nil, corruptf("index is deeper than %d levels", maxIndexDepth)
}

// collate compares two names as the index sorts them: in capitals, and where these are
// equal as they are.
func (f *FS) collate(a, b []uint16) int {
	exact := 0
	for i := range min(len(a), len(b)) {
		if a[i] == b[i] {
			continue
		}
		if x, y := f.upper(a[i]), f.upper(b[i]); x != y {
			return int(x) - int(y)
		}
		if exact == 0 {
			exact = int(a[i]) - int(b[i])
		}
	}
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return exact
}

func (f *FS) upper(u uint16) uint16 {
	if int(u) < len(f.upcase) {
		return f.upcase[u]
	}
	return u
}

// unitsOf is a name of WTF-8 as UTF-16; what is not WTF-8 becomes U+FFFD, which then
// matches nothing else.
func unitsOf(name []byte) []uint16 {
	var out []uint16
	for len(name) > 0 {
		if len(name) >= 3 && name[0] == 0xED && name[1] >= 0xA0 && name[1] < 0xC0 && name[2]&0xC0 == 0x80 {
			out = append(out, 0xD000|uint16(name[1]&0x3F)<<6|uint16(name[2]&0x3F))
			name = name[3:]
			continue
		}
		r, n := utf8.DecodeRune(name)
		if r >= 0x10000 {
			r -= 0x10000
			out = append(out, 0xD800|uint16(r>>10), 0xDC00|uint16(r&0x3FF))
		} else {
			out = append(out, uint16(r))
		}
		name = name[n:]
	}
	return out
}
