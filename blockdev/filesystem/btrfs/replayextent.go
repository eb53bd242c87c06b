package btrfs

import (
	"bytes"
	"encoding/binary"
)

// extent replays an extent of a file (replay_one_extent).
func (r *replay) extent(it item) error {
	e, err := r.f.parseExtent(it.key.offset, it.data)
	if err != nil {
		return err
	}
	old, ok, err := r.get(it.key)
	if err != nil {
		return err
	}
	if ok && e.kind != extentInline && bytes.Equal(old, it.data) {
		return nil
	}
	dropped, err := r.dropExtents(it.key.object, e.start, e.end())
	if err != nil {
		return err
	}
	added := e.length
	switch {
	case e.kind == extentInline:
		added = e.ram
	case e.disk == 0:
		added = 0
	}
	if e.kind == extentInline || e.disk != 0 || r.f.super.incompat&incompatNoHoles == 0 {
		r.put(it.key, it.data)
	}
	return r.addBytes(it.key.object, added, dropped)
}

// dropExtents cuts a range out of a file and tells how many bytes were allocated in it
// (btrfs_drop_extents).
func (r *replay) dropExtents(object, start, end uint64) (dropped uint64, err error) {
	from := uint64(0)
	it, ok, err := r.f.floor(r.root, key{object, typeExtentData, start})
	if err != nil {
		return 0, err
	}
	if ok && it.key.object == object && it.key.kind == typeExtentData {
		from = it.key.offset
	}
	err = r.each(r.root, object, typeExtentData, from, end-1, func(it item) error {
		e, err := r.f.parseExtent(it.key.offset, it.data)
		if err != nil || e.end() <= start {
			return err
		}
		if e.kind == extentInline {
			if start > e.start || end < e.end() {
				return unsupportedf("a part of an inline extent is to be replaced")
			}
			r.remove(it.key)
			dropped += e.ram
			return nil
		}
		r.cut(it, &e, start, end)
		if e.disk != 0 {
			dropped += min(end, e.end()) - max(start, e.start)
		}
		return nil
	})
	return dropped, err
}

// cut leaves of an extent what is before start and from end on.
func (r *replay) cut(it item, e *extent, start, end uint64) {
	le := binary.LittleEndian
	r.remove(it.key)
	if e.start < start {
		p := bytes.Clone(it.data)
		le.PutUint64(p[45:], start-e.start)
		r.put(it.key, p)
	}
	if e.end() > end {
		p := bytes.Clone(it.data)
		if e.disk != 0 {
			le.PutUint64(p[37:], e.within+end-e.start)
		}
		le.PutUint64(p[45:], e.end()-end)
		r.put(key{it.key.object, it.key.kind, end}, p)
	}
}
