package xfs

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
)

// Long operations are chains of transactions. Each says in an intent what is still
// to be done, the next one that it is done and perhaps what then. Where the log ends
// inside a chain, the kernel carries out the rest. What of that shows to a reader:
//
//	EFI (free blocks), RUI (owners of blocks), CUI (how often blocks are shared): nothing
//	BUI (map blocks into a file, or unmap): the map of the file; done here in memory
//	XMI (exchange parts of two files): refused for both files
//	ATTRI (change an attribute): refused, but for pointers to the parent, which are
//	not shown
type intentID struct {
	kind uint16
	id   uint64
}

// intent is one that is not done, and its place in the order of the log.
type intent struct {
	item     *item
	sequence int
}

// remap is one change of the map of a file (struct xfs_map_extent).
type remap struct {
	unmap     bool
	unwritten bool
	first     uint64 // logical block
	block     uint64 // from the start of the volume
	blocks    uint64
}

const (
	remapSize      = 32
	remapMap       = 1
	remapUnmap     = 2
	remapTypeMask  = 0xFF
	remapAttr      = 1 << 31
	remapUnwritten = 1 << 30
	remapRealtime  = 1 << 29

	// maxRemapExtents bounds the maps that are changed in memory.
	maxRemapExtents = 1 << 20
)

// note keeps an intent, or that it is done.
func (rc *recovery) note(it *item) error {
	le := binary.LittleEndian
	p := it.regions[0]
	kind := it.kind()
	switch kind {
	case itemBUI, itemBUD, itemATTRI, itemATTRD, itemXMI, itemXMD:
	default:
		return nil
	}
	if len(p) < 16 {
		return corruptf("log item %#x of %d bytes", kind, len(p))
	}
	id := intentID{kind, le.Uint64(p[8:])}
	switch kind {
	case itemBUD, itemATTRD, itemXMD:
		id.kind--
		delete(rc.intents, id)
	default:
		rc.sequence++
		rc.intents[id] = intent{it, rc.sequence}
		if len(rc.intents) > maxNotes {
			return unsupportedf("log with over %d unfinished intents", maxNotes)
		}
	}
	return nil
}

// unfinished carries out the intents that nobody finished, in the order of the log.
func (rc *recovery) unfinished() error {
	le := binary.LittleEndian
	inOrder := slices.SortedFunc(maps.Keys(rc.intents), func(a, b intentID) int {
		return cmp.Compare(rc.intents[a].sequence, rc.intents[b].sequence)
	})
	for _, id := range inOrder {
		p := rc.intents[id].item.regions[0]
		switch id.kind {
		case itemBUI:
			if err := rc.remaps(p); err != nil {
				return err
			}
		case itemXMI:
			if len(p) < 32 {
				return corruptf("exchange of %d bytes", len(p))
			}
			for _, ino := range []uint64{le.Uint64(p[16:]), le.Uint64(p[24:])} {
				rc.done.refused[ino] = "an exchange of its contents with another file was under way"
			}
		case itemATTRI:
			if len(p) < 28 {
				return corruptf("change of an attribute of %d bytes", len(p))
			}
			if op := le.Uint32(p[24:]) & 0xFF; op < 4 { // above: pointers to the parent
				rc.done.refused[le.Uint64(p[16:])] = "a change of its attributes was under way"
			}
		}
	}
	return nil
}

// remaps notes the changes of a BUI (struct xfs_bui_log_format).
func (rc *recovery) remaps(p []byte) error {
	le := binary.LittleEndian
	n := int(le.Uint32(p[4:]))
	if n > (len(p)-16)/remapSize {
		return corruptf("change of a map with %d extents in %d bytes", n, len(p))
	}
	for i := range n {
		e := p[16+remapSize*i:]
		ino, flags := le.Uint64(e), le.Uint32(e[28:])
		m := remap{
			unmap: flags&remapTypeMask == remapUnmap, unwritten: flags&remapUnwritten != 0,
			first: le.Uint64(e[16:]), blocks: uint64(le.Uint32(e[24:])),
		}
		block, ok := rc.f.super.linear(le.Uint64(e[8:]), m.blocks)
		m.block = block
		switch {
		case flags&(remapAttr|remapRealtime) != 0 || (!m.unmap && flags&remapTypeMask != remapMap):
			rc.done.refused[ino] = "a change of its map that is not known here was under way"
		case !ok || m.first >= maxLogical || m.blocks > maxLogical-m.first:
			return corruptf("change of a map: %d blocks at %d", m.blocks, m.first)
		default:
			rc.done.remaps[ino] = append(rc.done.remaps[ino], m)
		}
	}
	return nil
}

// mapping is a run and the logical block that it begins with.
type mapping struct {
	run
	first uint64
}

// remap carries out the unfinished changes of the map of an inode.
func (f *FS) remap(in *inode) error {
	changes := f.replayed.remaps[in.num]
	if len(changes) == 0 {
		return nil
	}
	list := []mapping{}
	for b := uint64(0); b < maxLogical; {
		r, err := f.mapBlock(&in.data, b)
		if err != nil {
			return err
		}
		if r.kind != runHole {
			list = append(list, mapping{r, b})
		}
		if len(list) > maxRemapExtents {
			return unsupportedf("file of over %d extents, of which the log changes some", maxRemapExtents)
		}
		b += r.blocks
	}
	for _, m := range changes {
		before := blocksOf(list)
		list = cut(list, m.first, m.first+m.blocks)
		if !m.unmap {
			r := run{kind: runData, block: m.block, blocks: m.blocks}
			if m.unwritten {
				r.kind = runUnwritten
			}
			i, _ := slices.BinarySearchFunc(list, m.first, func(e mapping, b uint64) int {
				if e.first < b {
					return -1
				}
				return 1
			})
			list = slices.Insert(list, i, mapping{r, m.first})
		}
		in.blocks += blocksOf(list) - before
	}
	in.data.list = list
	return nil
}

func blocksOf(list []mapping) (n uint64) {
	for _, m := range list {
		n += m.blocks
	}
	return n
}

// cut removes the logical blocks [from, to).
func cut(list []mapping, from, to uint64) []mapping {
	out := make([]mapping, 0, len(list)+2)
	for _, m := range list {
		end := m.first + m.blocks
		if end <= from || m.first >= to {
			out = append(out, m)
			continue
		}
		if m.first < from {
			left := m
			left.blocks = from - m.first
			out = append(out, left)
		}
		if end > to {
			right := m
			right.first, right.block, right.blocks = to, m.block+to-m.first, end-to
			out = append(out, right)
		}
	}
	return out
}

// mapList looks for b in a changed map.
func mapList(list []mapping, b uint64) run {
	after, found := slices.BinarySearchFunc(list, b, func(e mapping, b uint64) int {
		switch {
		case e.first < b:
			return -1
		case e.first > b:
			return 1
		}
		return 0
	})
	if found {
		after++
	}
	high := uint64(maxLogical)
	if after < len(list) {
		high = list[after].first
	}
	if after > 0 {
		m := list[after-1]
		if skip := b - m.first; skip < m.blocks {
			return run{kind: m.kind, block: m.block + skip, blocks: m.blocks - skip}
		}
	}
	return run{kind: runHole, blocks: high - b}
}
