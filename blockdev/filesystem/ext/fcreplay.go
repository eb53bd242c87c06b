package ext

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// absent tells an inode that does not exist, which the kernel's replay passes over,
// from one that cannot be read.
func (r *fcReplay) absent(n uint32, err error) error {
	if errors.Is(err, filesystem.ErrNotExist) || errors.Is(err, filesystem.ErrCorrupt) {
		return nil
	}
	return fmt.Errorf("inode %d: %w", n, err)
}

const (
	inodeLinks      = 0x1A
	inodeGeneration = 0x64
	inodeFlags      = 0x20
)

func (c *fcInode) nlink() uint16     { return binary.LittleEndian.Uint16(c.raw[inodeLinks:]) }
func (c *fcInode) setNlink(n uint16) { binary.LittleEndian.PutUint16(c.raw[inodeLinks:], n) }
func (c *fcInode) flags() uint32     { return binary.LittleEndian.Uint32(c.raw[inodeFlags:]) }
func (c *fcInode) kind() filesystem.Type {
	return filesystem.Type(binary.LittleEndian.Uint16(c.raw) >> 12)
}

// clearMap empties the map of blocks: i_block becomes an empty tree.
func (c *fcInode) clearMap() {
	c.ranges = nil
	block := c.raw[inodeBlockOffset:][:inodeBlockSize]
	clear(block)
	if c.flags()&flagExtents != 0 {
		binary.LittleEndian.PutUint16(block, extentMagic)
		binary.LittleEndian.PutUint16(block[4:], inodeBlockSize/extentSize-1)
	}
}

// inode replays an inode (ext4_fc_replay_inode): all of it but the map of blocks,
// which the ranges change.
func (r *fcReplay) inode(n uint32, logged []byte) error {
	if n != rootInode && n < r.f.super.firstInode || n > r.f.super.inodes {
		return fmt.Errorf("inode %d, which is reserved: %w", n, errFastCommit)
	}
	c := r.c.inodes[n]
	if c == nil {
		raw, err := r.f.rawInode(n)
		if err != nil {
			return fmt.Errorf("inode %d: %w", n, err)
		}
		if r.budget -= len(raw) + 256; r.budget < 0 {
			return fmt.Errorf("fast commits of more than %d MiB: %w", fcBudget>>20, errFastCommit)
		}
		c = &fcInode{raw: raw}
		r.c.inodes[n] = c
	}
	copy(c.raw[:inodeBlockOffset], logged)
	copy(c.raw[inodeGeneration:], logged[inodeGeneration:])
	switch {
	case c.flags()&flagExtents != 0:
		if binary.LittleEndian.Uint16(c.raw[inodeBlockOffset:]) != extentMagic {
			c.clearMap()
		}
	case c.flags()&flagInlineData != 0:
		c.ranges = nil
		copy(c.raw[inodeBlockOffset:][:inodeBlockSize], logged[inodeBlockOffset:])
	}
	if c.kind() == filesystem.TypeDir {
		r.logged[n] = true
	}
	return nil
}

// setRange notes where blocks of a file are, or that they are not.
func (r *fcReplay) setRange(n uint32, g fcRange) error {
	c, err := r.known(n)
	if c == nil || err != nil {
		return err
	}
	if c.flags()&flagExtents == 0 || c.kind() != filesystem.TypeRegular {
		return fmt.Errorf("inode %d: a range of a file without extents: %w", n, errFastCommit)
	}
	g.blocks = min(g.blocks, maxLogical-g.first)
	if g.blocks == 0 {
		return nil
	}
	if g.kind != runHole && !r.f.super.validRange(g.block, g.blocks) {
		return fmt.Errorf("inode %d: %d blocks at %d: %w", n, g.blocks, g.block, errFastCommit)
	}
	c.ranges = append(c.ranges, g)
	return nil
}

// directory gives the changes of a directory that exists; nil when it does not.
func (r *fcReplay) directory(n uint32) (*fcDir, error) {
	c, err := r.known(n)
	if c == nil || err != nil {
		return nil, err
	}
	if c.kind() != filesystem.TypeDir || c.flags()&flagEncrypt != 0 {
		return nil, fmt.Errorf("inode %d is no directory that can be read: %w", n, errFastCommit)
	}
	d := r.c.dirs[n]
	if d == nil {
		d = &fcDir{entries: make(map[string]uint32)}
		r.c.dirs[n] = d
	}
	return d, nil
}

// lookup finds a name as the tags before left it; 0 when it is not there.
func (r *fcReplay) lookup(dir uint32, d *fcDir, name string) (uint32, error) {
	if n, ok := d.entries[name]; ok || d.fresh {
		return n, nil
	}
	in, err := r.f.parseInode(dir, r.c.inodes[dir].sealed(r.f, dir))
	if err != nil {
		return 0, err
	}
	n, err := r.f.lookup(in, []byte(name))
	if errors.Is(err, filesystem.ErrNotExist) {
		return 0, nil
	}
	return n, err
}

// add enters a name unless it is there, and counts a new directory in its parent,
// where the parent's logged number of links does not do so already. It tells whether
// the name is new.
func (r *fcReplay) add(parent uint32, d *fcDir, n uint32, c *fcInode, name string) (bool, error) {
	if err := checkName(dirent{name: []byte(name)}); err != nil || isDot([]byte(name)) || isDotDot([]byte(name)) {
		return false, fmt.Errorf("the name %q: %w", name, errFastCommit)
	}
	old, err := r.lookup(parent, d, name)
	if err != nil || old != 0 {
		return false, err
	}
	d.entries[name] = n
	if c.kind() == filesystem.TypeDir {
		r.countSubdir(parent, 1)
	}
	return true, nil
}

func (r *fcReplay) countSubdir(parent uint32, by int) {
	if p := r.c.inodes[parent]; !r.logged[parent] && p.nlink() > 1 { // 1: too many to count
		p.setNlink(uint16(max(2, min(int(p.nlink())+by, 65000))))
	}
}

// create follows ext4_fc_replay_create. The inode was logged before.
func (r *fcReplay) create(parent, n uint32, name string) error {
	c, err := r.known(n)
	if err != nil {
		return err
	}
	if c == nil {
		return fmt.Errorf("%q was created as inode %d, which does not exist: %w", name, n, errFastCommit)
	}
	d, err := r.directory(parent)
	if d == nil || err != nil {
		return err
	}
	if c.kind() == filesystem.TypeDir {
		r.c.dirs[n] = &fcDir{entries: make(map[string]uint32), fresh: true, parent: parent}
	}
	isNew, err := r.add(parent, d, n, c, name)
	if err == nil && isNew && c.kind() != filesystem.TypeDir {
		c.setNlink(1)
	}
	return err
}

// link follows ext4_fc_replay_link.
func (r *fcReplay) link(parent, n uint32, name string) error {
	c, err := r.known(n)
	if c == nil || err != nil {
		return err
	}
	d, err := r.directory(parent)
	if d == nil || err != nil {
		return err
	}
	isNew, err := r.add(parent, d, n, c, name)
	if err == nil && isNew && c.kind() != filesystem.TypeDir {
		c.setNlink(c.nlink() + 1)
	}
	return err
}

// unlink follows ext4_fc_replay_unlink and __ext4_unlink: the number of links falls
// also when the name stands for another inode by now.
func (r *fcReplay) unlink(parent, n uint32, name string) error {
	c, err := r.known(n)
	if c == nil || err != nil {
		return err
	}
	d, err := r.directory(parent)
	if d == nil || err != nil {
		return err
	}
	found, err := r.lookup(parent, d, name)
	if err != nil || found == 0 {
		return err
	}
	isDir := c.kind() == filesystem.TypeDir
	if found == n {
		d.entries[name] = 0
		if isDir {
			r.countSubdir(parent, -1)
		}
	}
	if c.setNlink(c.nlink() - 1); c.nlink() == 0 || isDir {
		c.setNlink(0)
		c.clearMap()
		delete(r.c.dirs, n)
	}
	return nil
}

// finish parses what the tags made and puts it in order.
func (r *fcReplay) finish() error {
	for n, c := range r.c.inodes {
		c.ranges = resolveRanges(c.ranges)
		in, err := r.f.parseInode(n, c.sealed(r.f, n))
		switch {
		case errors.Is(err, filesystem.ErrNotExist):
			continue // deleted; FS.inode says so
		case err != nil:
			return fmt.Errorf("inode %d: %w", n, err)
		}
		in.ranges = c.ranges
		c.parsed = in
	}
	for n, d := range r.c.dirs {
		for name, child := range d.entries {
			if child == 0 {
				continue
			}
			e := fcEntry{name: name, dirent: dirent{inode: child}}
			if in, err := r.f.inode(child); err == nil {
				e.kind = uint8(max(0, slices.Index(direntTypes[:], in.kind())))
			}
			d.added = append(d.added, e)
		}
		slices.SortFunc(d.added, func(a, b fcEntry) int { return cmp.Compare(a.name, b.name) })
		if len(d.entries) == 0 && !d.fresh {
			delete(r.c.dirs, n)
		}
	}
	return nil
}

// sealed are the bytes of inode n with a checksum that is right.
func (c *fcInode) sealed(f *FS, n uint32) []byte {
	if f.super.metadataCsum() {
		in := &inode{num: n, raw: c.raw}
		if f.super.inodeSize > goodOldInodeSize {
			in.extraSize = int(binary.LittleEndian.Uint16(c.raw[0x80:]))
		}
		in.seed = crc32cUint32(crc32cUint32(f.super.seed, n), binary.LittleEndian.Uint32(c.raw[inodeGeneration:]))
		in.setChecksum()
	}
	return c.raw
}

// fcRange says where some logical blocks of a file are.
type fcRange struct {
	first, blocks uint64
	kind          runKind
	block         uint64 // of the first one, for other kinds than runHole
}

// resolveRanges turns ranges in the order of the log into ranges in the order of the
// file that do not overlap: the later one counts. It goes through them from the last
// to the first and fills what is not filled yet; free[i] leads from the i-th piece,
// between two neighbouring ends of ranges, to the next that is not filled.
func resolveRanges(log []fcRange) []fcRange {
	if len(log) == 0 {
		return nil
	}
	ends := make([]uint64, 0, 2*len(log))
	for _, g := range log {
		ends = append(ends, g.first, g.first+g.blocks)
	}
	slices.Sort(ends)
	ends = slices.Compact(ends)
	free := make([]int, len(ends))
	owner := make([]int, len(ends))
	for i := range free {
		free[i], owner[i] = i, -1
	}
	next := func(i int) int {
		root := i
		for free[root] != root {
			root = free[root]
		}
		for free[i] != root {
			free[i], i = root, free[i]
		}
		return root
	}
	for k, g := range slices.Backward(log) {
		i, _ := slices.BinarySearch(ends, g.first)
		for i = next(i); ends[i] < g.first+g.blocks; i = next(i) {
			owner[i], free[i] = k, i+1
		}
	}
	var out []fcRange
	for i, k := range owner {
		if k < 0 {
			continue
		}
		g := log[k]
		piece := fcRange{first: ends[i], blocks: ends[i+1] - ends[i], kind: g.kind, block: g.block}
		if g.kind != runHole {
			piece.block += ends[i] - g.first
		}
		out = append(out, piece)
	}
	return out
}

// overRanges is the run at logical block b, of which ranges know, or of which base
// does.
func overRanges(ranges []fcRange, b uint64, base func() (run, error)) (run, error) {
	i, found := slices.BinarySearchFunc(ranges, b, func(g fcRange, b uint64) int { return cmp.Compare(g.first, b) })
	if !found {
		i--
	}
	if i >= 0 && b < ranges[i].first+ranges[i].blocks {
		g := ranges[i]
		r := run{kind: g.kind, blocks: g.first + g.blocks - b}
		if g.kind != runHole {
			r.block = g.block + b - g.first
		}
		return r, nil
	}
	r, err := base()
	if err == nil && i+1 < len(ranges) {
		r.blocks = min(r.blocks, ranges[i+1].first-b)
	}
	return r, err
}

// fcCookie is the first cookie of the names of a directory that are not on disk.
// Positions in a directory are smaller.
const fcCookie = 1 << 60

// readDir yields what base yields but the names that changed, and then those that
// fast commits added.
func (d *fcDir) readDir(cookie uint64, yield func(filesystem.Dirent) bool, base func(yield func(filesystem.Dirent) bool) error) error {
	if cookie < fcCookie {
		stopped := false
		if !d.fresh {
			err := base(func(e filesystem.Dirent) bool {
				if _, changed := d.entries[string(e.Name)]; changed {
					return true
				}
				stopped = !yield(e)
				return !stopped
			})
			if err != nil {
				return err
			}
		}
		if stopped {
			return nil
		}
		cookie = fcCookie
	}
	for i := cookie - fcCookie; i < uint64(len(d.added)); i++ {
		e := d.added[i]
		if !yield(filesystem.Dirent{Name: []byte(e.name), Inode: filesystem.Inode(e.inode), Type: direntTypes[e.kind], Next: fcCookie + i + 1}) {
			return nil
		}
	}
	return nil
}
