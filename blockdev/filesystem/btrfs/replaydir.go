package btrfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// name is a name of an inode: a reference to a directory.
type name struct {
	parent, index uint64
	name          []byte
	raw           []byte // the reference as stored
}

// parseNames reads an item of references: struct btrfs_inode_ref, whose parent is in
// the key, or struct btrfs_inode_extref.
func parseNames(k key, p []byte) ([]name, error) {
	le := binary.LittleEndian
	var out []name
	for len(p) > 0 {
		n, size := name{parent: k.offset}, refSize
		if k.kind == typeInodeExtref {
			size = extrefSize
		}
		if len(p) < size {
			return nil, corruptf("reference of %d bytes", len(p))
		}
		if k.kind == typeInodeExtref {
			n.parent = le.Uint64(p)
		}
		n.index = le.Uint64(p[size-10:])
		length := int(le.Uint16(p[size-2:]))
		if length == 0 || length > maxNameLen || length > len(p)-size {
			return nil, corruptf("reference with a name of %d bytes", length)
		}
		n.name, n.raw = p[size:][:length], p[:size+length]
		out = append(out, n)
		p = p[size+length:]
	}
	return out, nil
}

// hasName looks for a name in the references at a key.
func (r *replay) hasName(t *tree, k key, parent uint64, want []byte) (bool, error) {
	data, ok, err := r.getFrom(t, k)
	if err != nil || !ok {
		return false, err
	}
	names, err := parseNames(k, data)
	if err != nil {
		return false, err
	}
	for _, n := range names {
		if n.parent == parent && bytes.Equal(n.name, want) {
			return true, nil
		}
	}
	return false, nil
}

// logged: the log has this name of an inode (backref_in_log).
func (r *replay) logged(object, parent uint64, want []byte) (bool, error) {
	ok, err := r.hasName(r.log, key{object, typeInodeRef, parent}, parent, want)
	if ok || err != nil {
		return ok, err
	}
	return r.hasName(r.log, key{object, typeInodeExtref, extrefHash(parent, want)}, parent, want)
}

// deleteEntries takes away the entries of a directory in the ranges of positions that
// the log knows completely, unless it has them; or all (replay_dir_deletes).
func (r *replay) deleteEntries(dir uint64, all bool) error {
	if _, err := r.readInode(dir); err != nil {
		if isNotExist(err) {
			return nil // new
		}
		return err
	}
	if all {
		return r.deleteRange(dir, 0, m64, true)
	}
	from := uint64(0)
	return r.each(r.log, dir, typeDirLogIndex, 0, m64, func(it item) error {
		if len(it.data) < 8 {
			return corruptf("range of positions of %d bytes", len(it.data))
		}
		start, last := max(from, it.key.offset), binary.LittleEndian.Uint64(it.data)
		if last < start || from == m64 {
			return nil
		}
		from = max(last, last+1)
		return r.deleteRange(dir, start, last, false)
	})
}

func (r *replay) deleteRange(dir, from, last uint64, all bool) error {
	return r.each(r.root, dir, typeDirIndex, from, last, func(it item) error {
		e, err := parseEntry(it.data)
		if err != nil {
			return err
		}
		if !all {
			if logged, err := r.entryAt(r.log, it.key, e.name); err != nil || logged != nil {
				return err
			}
		}
		return r.drop(dir, &e)
	})
}

// entryAt is the entry of this name at a position or hash, or nil.
func (r *replay) entryAt(t *tree, k key, want []byte) (*entry, error) {
	data, ok, err := r.getFrom(t, k)
	if err != nil || !ok {
		return nil, err
	}
	e, ok, err := findEntry(data, want)
	if err != nil || !ok {
		return nil, err
	}
	return &e, nil
}

// drop takes an entry away, whose inode loses a link (drop_one_dir_item).
func (r *replay) drop(dir uint64, e *entry) error {
	if e.location.kind != typeInode {
		return unsupportedf("entry %q of a subvolume is to be deleted", e.name)
	}
	if err := r.needsFixup(e.location.object); err != nil {
		return err
	}
	return r.unlink(dir, e.location.object, e.name)
}

// needsFixup has the links of an inode counted in the end (link_to_fixup_dir).
func (r *replay) needsFixup(object uint64) error {
	_, err := r.readInode(object)
	if err == nil {
		r.fixup.add(object)
	}
	return err
}

// unlink takes a name of an inode away: entry by hash, reference, entry by position
// (btrfs_unlink_inode). The kernel changes times, too, to those of the mount; what
// the log and the subvolume have stays here.
func (r *replay) unlink(dir, object uint64, what []byte) error {
	k := key{dir, typeDirItem, nameHash(what)}
	data, ok, err := r.get(k)
	if err != nil {
		return err
	}
	found := false
	kept := make([]byte, 0, len(data))
	if ok {
		err = eachEntry(data, func(e entry) error {
			if !found && bytes.Equal(e.name, what) {
				found = true
			} else {
				kept = append(kept, e.raw...)
			}
			return nil
		})
	}
	if err == nil && !found {
		err = corruptf("directory %d has no entry %q", dir, what)
	}
	if err != nil {
		return err
	}
	r.putOrRemove(k, kept, len(data))
	index, err := r.dropReference(object, dir, what)
	if err != nil {
		return err
	}
	r.remove(key{dir, typeDirIndex, index})
	return r.addSize(dir, -2*len(what))
}

// dropReference takes the reference of a name away and gives its position.
func (r *replay) dropReference(object, dir uint64, what []byte) (index uint64, err error) {
	for _, k := range []key{{object, typeInodeRef, dir}, {object, typeInodeExtref, extrefHash(dir, what)}} {
		data, ok, err := r.get(k)
		if err != nil {
			return 0, err
		}
		if !ok {
			continue
		}
		names, err := parseNames(k, data)
		if err != nil {
			return 0, err
		}
		found := false
		kept := make([]byte, 0, len(data))
		for _, n := range names {
			if !found && n.parent == dir && bytes.Equal(n.name, what) {
				found, index = true, n.index
			} else {
				kept = append(kept, n.raw...)
			}
		}
		if found {
			r.putOrRemove(k, kept, len(data))
			return index, nil
		}
	}
	return 0, corruptf("inode %d has no reference %q in directory %d", object, what, dir)
}

// errExists: a name or position is taken.
var errExists = errors.New("there is such an entry")

// link makes a name of an inode, with reference the reference, too (btrfs_add_link).
func (r *replay) link(dir, object uint64, what []byte, index uint64, reference bool) error {
	p, err := r.readInode(object)
	if err != nil {
		return err
	}
	byHash, byIndex := key{dir, typeDirItem, nameHash(what)}, key{dir, typeDirIndex, index}
	data, _, err := r.get(byHash)
	if err != nil {
		return err
	}
	if _, ok, err := findEntry(data, what); err != nil || ok {
		return errors.Join(err, errExists)
	}
	if _, ok, err := r.get(byIndex); err != nil || ok {
		return errors.Join(err, errExists)
	}
	if reference {
		k := key{object, typeInodeRef, dir}
		refs, _, err := r.get(k)
		if err != nil {
			return err
		}
		if ok, err := r.hasName(r.root, k, dir, what); err != nil || ok {
			return errors.Join(err, errExists)
		}
		refs = binary.LittleEndian.AppendUint64(bytes.Clone(refs), index)
		refs = binary.LittleEndian.AppendUint16(refs, uint16(len(what)))
		r.put(k, append(refs, what...))
	}
	e := makeEntry(object, r.f.super.generation+1, filesystem.Type(binary.LittleEndian.Uint32(p[52:])>>12&0xF), what)
	r.put(byHash, append(bytes.Clone(data), e...))
	r.put(byIndex, e)
	return r.addSize(dir, 2*len(what))
}

// makeEntry makes a struct btrfs_dir_item.
func makeEntry(object, generation uint64, kind filesystem.Type, what []byte) []byte {
	le := binary.LittleEndian
	p := le.AppendUint64(nil, object)
	p = append(p, typeInode)
	p = le.AppendUint64(p, 0)
	p = le.AppendUint64(p, generation)
	p = le.AppendUint16(p, 0)
	p = le.AppendUint16(p, uint16(len(what)))
	code := byte(0)
	for i, t := range dirTypes {
		if t == kind {
			code = byte(i)
		}
	}
	return append(append(p, code), what...)
}

// entry replays an entry of a directory, unless its inode brings its name with it
// (replay_one_dir_item, replay_one_name).
func (r *replay) entry(it item) error {
	e, err := parseEntry(it.data)
	if err != nil {
		return err
	}
	if err := checkEntry(&e); err != nil {
		return err
	}
	dir := it.key.object
	if _, err := r.readInode(dir); err != nil {
		return err
	}
	exists := false
	if e.location.kind == typeInode {
		_, err := r.readInode(e.location.object)
		if exists = err == nil; err != nil && !isNotExist(err) {
			return err
		}
	} else {
		_, err := r.f.rootItem(e.location.object)
		if exists = err == nil; err != nil && !isNotExist(err) {
			return err
		}
	}
	same := 0
	for _, k := range []key{{dir, typeDirItem, nameHash(e.name)}, it.key} {
		old, err := r.entryAt(r.root, k, e.name)
		if err != nil {
			return err
		}
		switch {
		case old == nil:
		case old.location == e.location && old.kind == e.kind:
			same++
		case exists:
			if err := r.drop(dir, old); err != nil {
				return err
			}
		}
	}
	if same == 2 {
		return nil
	}
	if e.location.kind != typeInode {
		return unsupportedf("entry %q of a new subvolume", e.name)
	}
	if logged, err := r.logged(e.location.object, dir, e.name); err != nil || logged {
		return err // the reference makes the entry
	}
	if !exists {
		return nil
	}
	err = r.link(dir, e.location.object, e.name, it.key.offset, true)
	if errors.Is(err, errExists) {
		return nil
	}
	if err == nil && e.kind&fileTypeMask != 2 { // a directory has one link
		err = r.needsFixup(e.location.object)
	}
	return err
}

// reference replays the names that an item of references has (add_inode_ref).
func (r *replay) reference(it item) error {
	names, err := parseNames(it.key, it.data)
	if err != nil {
		return err
	}
	object := it.key.object
	if _, err := r.readInode(object); err != nil {
		return nil // the count of links does the rest
	}
	if it.key.kind == typeInodeRef && object == it.key.offset {
		r.put(it.key, it.data) // the root directory
		return nil
	}
	for _, n := range names {
		if _, err := r.readInode(n.parent); isNotExist(err) {
			if it.key.kind == typeInodeRef {
				return nil
			}
			continue
		} else if err != nil {
			return err
		}
		there, err := r.inDirectory(object, &n)
		if err == nil && !there {
			err = r.replaceName(object, &n)
		}
		if err != nil {
			return fmt.Errorf("name %q: %w", n.name, err)
		}
	}
	if err := r.unlinkOthers(it.key, names); err != nil {
		return err
	}
	r.put(it.key, it.data)
	return nil
}

// inDirectory: the entry of a name is there, in both forms (inode_in_dir).
func (r *replay) inDirectory(object uint64, n *name) (bool, error) {
	for _, k := range []key{{n.parent, typeDirIndex, n.index}, {n.parent, typeDirItem, nameHash(n.name)}} {
		e, err := r.entryAt(r.root, k, n.name)
		if err != nil || e == nil || e.location.object != object {
			return false, err
		}
	}
	return true, nil
}

// replaceName makes a name of an inode, and takes away what contradicts it
// (__add_inode_ref).
func (r *replay) replaceName(object uint64, n *name) error {
	// Names in this directory that the inode has no more.
	for _, k := range []key{{object, typeInodeRef, n.parent}, {object, typeInodeExtref, extrefHash(n.parent, n.name)}} {
		data, _, err := r.get(k)
		if err != nil {
			return err
		}
		old, err := parseNames(k, data)
		if err != nil {
			return err
		}
		for _, o := range old {
			if o.parent != n.parent {
				continue
			}
			logged, err := r.logged(object, o.parent, o.name)
			if err == nil && !logged {
				err = r.unlink(o.parent, object, o.name)
			}
			if err != nil {
				return err
			}
		}
	}
	// Other inodes of this name.
	for _, k := range []key{{n.parent, typeDirIndex, n.index}, {n.parent, typeDirItem, nameHash(n.name)}} {
		e, err := r.entryAt(r.root, k, n.name)
		if err == nil && e != nil {
			err = r.drop(n.parent, e)
		}
		if err != nil {
			return err
		}
	}
	return r.link(n.parent, object, n.name, n.index, false)
}

// unlinkOthers takes away the names that the subvolume has at a key and the log has
// not (unlink_old_inode_refs).
func (r *replay) unlinkOthers(k key, logged []name) error {
	data, ok, err := r.get(k)
	if err != nil || !ok {
		return err
	}
	old, err := parseNames(k, data)
	if err != nil {
		return err
	}
	known := make(map[string]bool, len(logged))
	for _, n := range logged {
		known[fmt.Sprint(n.parent, "/", string(n.name))] = true
	}
	for _, o := range old {
		if known[fmt.Sprint(o.parent, "/", string(o.name))] {
			continue
		}
		if err := r.unlink(o.parent, k.object, o.name); err != nil {
			return err
		}
	}
	return nil
}
