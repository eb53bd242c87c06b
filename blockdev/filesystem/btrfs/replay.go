package btrfs

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// Rounds of a replay.
type stage int

const (
	stageInodes stage = 1 + iota
	stageEntries
	stageAll
)

// maxReplaySteps bounds the items and names that a replay looks at: of all logs
// together, some seconds of work of a guest. stepBytes of an item count as one.
const (
	maxReplaySteps = 3 << 20
	stepBytes      = 64
)

// replay replays the log of one subvolume.
type replay struct {
	f    *FS
	log  *tree
	root *tree // the subvolume, with changes
	left *int  // steps
	// ignore: the inode whose items are being replayed had no name any more.
	ignore bool
	fixup  *fixups
}

// step counts work.
func (r *replay) step(n int) error {
	if *r.left -= n; *r.left < 0 {
		return unsupportedf("over %d steps", maxReplaySteps)
	}
	if r.root.changes.bytes > maxChangedBytes {
		return unsupportedf("over %d bytes of changes", maxChangedBytes)
	}
	return nil
}

// walk replays all items of the log in one round and tells how many there are.
func (r *replay) walk(s stage) (int, error) {
	items := 0
	err := r.f.scan(r.log, key{}, func(it item) (bool, error) {
		items++
		if err := r.step(1); err != nil {
			return false, err
		}
		if err := r.item(s, it); err != nil {
			return false, fmt.Errorf("item of type %d of inode %d: %w", it.key.kind, int64(it.key.object), notExistIsCorrupt(err))
		}
		return true, nil
	})
	return items, err
}

// item replays one item (replay_one_buffer).
func (r *replay) item(s stage, it item) error {
	switch it.key.kind {
	case typeInode:
		in, err := parseInode(it.data)
		if err != nil {
			return err
		}
		// A file that was deleted while it was open, or never had a name.
		if r.ignore = in.nlink == 0; !r.ignore && s == stageInodes {
			return r.inode(it, in)
		}
		return nil
	case typeDirIndex:
		if !r.ignore && s == stageEntries {
			return r.entry(it)
		}
		return nil
	case typeXattr, typeInodeRef, typeInodeExtref, typeExtentData:
		if r.ignore || s != stageAll {
			return nil
		}
		switch it.key.kind {
		case typeXattr:
			r.put(it.key, it.data)
			return nil
		case typeExtentData:
			return r.extent(it)
		}
		return r.reference(it)
	case typeDirItem, typeDirLogItem, typeDirLogIndex, typeExtentCsum:
		// Entries by hash are made from those by position; ranges and checksums are
		// looked up.
		return nil
	}
	return unsupportedf("type %d is not known in a log", it.key.kind)
}

func (r *replay) put(k key, data []byte) { r.root.changes.set(k, append([]byte{}, data...)) }

func (r *replay) remove(k key) { r.root.changes.set(k, nil) }

// get is an item of the subvolume.
func (r *replay) get(k key) ([]byte, bool, error) { return r.getFrom(r.root, k) }

// getFrom is an item of the subvolume or its log. What is looked for in it counts as
// work, too.
func (r *replay) getFrom(t *tree, k key) ([]byte, bool, error) {
	data, ok, err := r.f.get(t, k)
	if err == nil {
		err = r.step(1 + len(data)/stepBytes)
	}
	return data, ok, err
}

// batch is how many items are held at once.
const batch = 512

// each gives fn the items of one type of an inode, with offsets from to last. fn may
// change them.
func (r *replay) each(t *tree, object uint64, kind uint8, from, last uint64, fn func(item) error) error {
	for {
		items := make([]item, 0, 8)
		err := r.f.scan(t, key{object, kind, from}, func(it item) (bool, error) {
			if it.key.object != object || it.key.kind != kind || it.key.offset > last {
				return false, nil
			}
			items = append(items, it)
			return len(items) < batch, r.step(1 + len(it.data)/stepBytes)
		})
		if err != nil {
			return err
		}
		for _, it := range items {
			if err := fn(it); err != nil {
				return err
			}
		}
		if len(items) < batch || items[batch-1].key.offset == last {
			return nil
		}
		from = items[batch-1].key.offset + 1
	}
}

// readInode is an inode item of the subvolume, of the caller's own.
func (r *replay) readInode(object uint64) (data []byte, err error) {
	data, ok, err := r.get(key{object, typeInode, 0})
	if err == nil && !ok {
		err = fmt.Errorf("inode %d: %w", object, filesystem.ErrNotExist)
	}
	if err == nil && len(data) < inodeSize {
		err = corruptf("inode %d: item of %d bytes", object, len(data))
	}
	return bytes.Clone(data), err
}

func (r *replay) writeInode(object uint64, data []byte) { r.put(key{object, typeInode, 0}, data) }

// addSize changes the size of a directory.
func (r *replay) addSize(dir uint64, n int) error {
	p, err := r.readInode(dir)
	if err != nil {
		return err
	}
	binary.LittleEndian.PutUint64(p[16:], binary.LittleEndian.Uint64(p[16:])+uint64(n))
	r.writeInode(dir, p)
	return nil
}

// addBytes changes how much an inode has allocated.
func (r *replay) addBytes(object uint64, add, drop uint64) error {
	p, err := r.readInode(object)
	if err != nil {
		return err
	}
	n := binary.LittleEndian.Uint64(p[24:])
	binary.LittleEndian.PutUint64(p[24:], n-min(n, drop)+add)
	r.writeInode(object, p)
	return nil
}

// inode replays an inode item, and what the log says is no more in the inode.
func (r *replay) inode(it item, in *inode) error {
	object := it.key.object
	if err := r.deleteXattrs(object); err != nil {
		return err
	}
	if in.kind() == filesystem.TypeDir {
		if err := r.deleteEntries(object, false); err != nil {
			return err
		}
	}
	if err := r.overwriteInode(it); err != nil {
		return err
	}
	if in.kind() == filesystem.TypeRegular {
		// What was preallocated behind the end comes again with the extents.
		p, err := r.readInode(object)
		if err != nil {
			return err
		}
		sector := uint64(r.f.super.sectorSize)
		size := binary.LittleEndian.Uint64(p[16:])
		if size > maxExtentEnd {
			return corruptf("size %d", size)
		}
		dropped, err := r.dropExtents(object, (size+sector-1)/sector*sector, m64)
		if err != nil {
			return err
		}
		if err := r.addBytes(object, 0, dropped); err != nil {
			return err
		}
	}
	r.fixup.add(object)
	return nil
}

// overwriteInode puts an inode item in place. Of what the log does not know, that of
// the subvolume stays: what is allocated, and the size of a directory, which follows
// its entries (overwrite_item).
func (r *replay) overwriteInode(it item) error {
	le := binary.LittleEndian
	n := bytes.Clone(it.data)
	old, exists, err := r.get(it.key)
	if err != nil {
		return err
	}
	if exists && len(old) < inodeSize {
		return corruptf("item of %d bytes", len(old))
	}
	kind := func(p []byte) filesystem.Type { return filesystem.Type(le.Uint32(p[52:]) >> 12 & 0xF) }
	allocated, size := uint64(0), uint64(0)
	if exists {
		allocated, size = le.Uint64(old[24:]), le.Uint64(old[16:])
		if le.Uint64(n) == 0 {
			// The log has the inode only so that its names lead somewhere.
			if s := le.Uint64(n[16:]); s != 0 && kind(n) == filesystem.TypeRegular && kind(old) == filesystem.TypeRegular {
				p := bytes.Clone(old)
				le.PutUint64(p[16:], s)
				r.put(it.key, p)
			}
			return nil
		}
		if kind(old) != filesystem.TypeDir {
			size = 0
		}
	}
	if kind(n) == filesystem.TypeDir {
		le.PutUint64(n[16:], size)
	}
	le.PutUint64(n[24:], allocated)
	if le.Uint64(n) == 0 {
		le.PutUint64(n, r.f.super.generation+1)
	}
	r.put(it.key, n)
	return nil
}

// deleteXattrs takes away the attributes that the log does not have
// (replay_xattr_deletes).
func (r *replay) deleteXattrs(object uint64) error {
	return r.each(r.root, object, typeXattr, 0, m64, func(it item) error {
		logged, _, err := r.getFrom(r.log, it.key)
		if err != nil {
			return err
		}
		kept := make([]byte, 0, len(it.data))
		err = eachEntry(it.data, func(e entry) error {
			_, ok, err := findEntry(logged, e.name)
			if ok {
				kept = append(kept, e.raw...)
			}
			return err
		})
		if err != nil {
			return err
		}
		r.putOrRemove(it.key, kept, len(it.data))
		return nil
	})
}

// putOrRemove puts what is left of an item of a size.
func (r *replay) putOrRemove(k key, kept []byte, was int) {
	switch len(kept) {
	case was:
	case 0:
		r.remove(k)
	default:
		r.put(k, kept)
	}
}
