package btrfs

import (
	"container/heap"
	"encoding/binary"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// fixups are the inodes whose links are to be counted, the highest first.
type fixups struct {
	in    map[uint64]bool
	queue maxHeap
}

func newFixups() *fixups { return &fixups{in: make(map[uint64]bool)} }

func (x *fixups) add(object uint64) {
	if !x.in[object] {
		x.in[object] = true
		heap.Push(&x.queue, object)
	}
}

func (x *fixups) take() (object uint64, ok bool) {
	if len(x.queue) == 0 {
		return 0, false
	}
	object = heap.Pop(&x.queue).(uint64)
	delete(x.in, object)
	return object, true
}

// maxHeap is a heap.Interface.
type maxHeap []uint64

func (h maxHeap) Len() int           { return len(h) }
func (h maxHeap) Less(i, j int) bool { return h[i] > h[j] }
func (h maxHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *maxHeap) Push(x any)        { *h = append(*h, x.(uint64)) }
func (h *maxHeap) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*h = (*h)[:last]
	return x
}

// fixupLinks counts the names of inodes. A directory without one loses its entries,
// whose inodes are then counted, too (fixup_inode_link_counts).
func (r *replay) fixupLinks() error {
	for {
		object, ok := r.fixup.take()
		if !ok {
			return nil
		}
		p, err := r.readInode(object)
		if err != nil {
			return err
		}
		links := uint32(0)
		for _, kind := range []uint8{typeInodeRef, typeInodeExtref} {
			err := r.each(r.root, object, kind, 0, m64, func(it item) error {
				names, err := parseNames(it.key, it.data)
				links += uint32(len(names))
				return err
			})
			if err != nil {
				return err
			}
		}
		le := binary.LittleEndian
		if le.Uint32(p[40:]) != links {
			le.PutUint32(p[40:], links)
			r.writeInode(object, p)
		}
		if links == 0 && filesystem.Type(le.Uint32(p[52:])>>12&0xF) == filesystem.TypeDir {
			if err := r.deleteEntries(object, true); err != nil {
				return err
			}
		}
	}
}
