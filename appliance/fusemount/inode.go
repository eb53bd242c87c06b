package fusemount

import (
	"sync"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// The parts of an inode number, from the top: one free bit, so that the number stays
// positive as a signed one; the view bit; 22 bits of volume index; 40 bits of the
// guest's inode. Volume 0 is the tree of ours.
const (
	guestBits  = 40
	volumeBits = 22
	viewBit    = uint64(1) << (guestBits + volumeBits)
	guestMask  = uint64(1)<<guestBits - 1
	// Guest inodes from bigGuest up do not fit and are numbered as they are met.
	bigGuest = uint64(1) << (guestBits - 1)
)

// volume is a guest's file system in the table of the mount.
type volume struct {
	guarded
	index  uint64
	parent uint64 // node that lists it, for ".."
	second uint64 // the same on the second path
	entry  Entry
	names  names
	ahead  prefetch

	bigMu  sync.Mutex
	bigs   map[uint64]uint64 // guest inode → number
	bigInv []uint64
}

// node is the inode number of a guest's file. second asks for the view of the second
// path, which directories have.
func (v *volume) node(ino filesystem.Inode, dir, second bool) uint64 {
	n := uint64(ino)
	if n >= bigGuest {
		n = v.bigNode(n)
	}
	n |= v.index << guestBits
	if dir && second {
		n |= viewBit
	}
	return n
}

func (v *volume) bigNode(ino uint64) uint64 {
	v.bigMu.Lock()
	defer v.bigMu.Unlock()
	n, ok := v.bigs[ino]
	if !ok {
		if v.bigs == nil {
			v.bigs = make(map[uint64]uint64)
		}
		n = bigGuest | uint64(len(v.bigInv))
		v.bigs[ino] = n
		v.bigInv = append(v.bigInv, ino)
	}
	return n
}

// guest is the inverse of node.
func (v *volume) guest(node uint64) filesystem.Inode {
	n := node & guestMask
	if n >= bigGuest {
		v.bigMu.Lock()
		defer v.bigMu.Unlock()
		if i := n &^ bigGuest; i < uint64(len(v.bigInv)) {
			return filesystem.Inode(v.bigInv[i])
		}
		return 0
	}
	return filesystem.Inode(n)
}

// node is a file or directory of ours. It lives while the kernel knows it.
type node struct {
	guarded
	number  uint64
	parent  uint64
	entry   Entry
	lookups uint64
}

// table holds what has a number: nodes of ours, which come and go with the kernel's
// references, and volumes, which stay (there are as many as were looked at).
type table struct {
	mu      sync.Mutex
	next    uint64
	nodes   map[uint64]*node
	byID    map[string]*node
	volumes []*volume // [0] is nil
	volByID map[string]*volume
}

func newTable(root Directory) *table {
	t := &table{next: 2, nodes: make(map[uint64]*node), byID: make(map[string]*node),
		volumes: make([]*volume, 1), volByID: make(map[string]*volume)}
	t.nodes[1] = &node{number: 1, parent: 1, entry: Entry{Directory: root}, lookups: 1}
	return t
}

// node returns the node of that number, or nil.
func (t *table) node(number uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.nodes[number]
}

// volume returns the volume to which a number belongs, nil for the tree of ours.
func (t *table) volume(number uint64) *volume {
	i := number &^ viewBit >> guestBits
	if i == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if i >= uint64(len(t.volumes)) {
		return nil
	}
	return t.volumes[i]
}

// enter finds or makes the node of an entry and counts a reference of the kernel.
func (t *table) enter(parent uint64, e Entry) *node {
	id := entryID(parent, e)
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil {
		n = &node{number: t.next, parent: parent}
		t.next++
		t.byID[id] = n
		t.nodes[n.number] = n
	}
	n.entry = e
	n.lookups++
	return n
}

// forget takes back references of the kernel.
func (t *table) forget(number, count uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[number]
	if n == nil || number == 1 {
		return
	}
	n.lookups -= min(count, n.lookups)
	if n.lookups == 0 {
		delete(t.nodes, number)
		delete(t.byID, entryID(n.parent, n.entry))
	}
}

// enterVolume finds or makes the volume of an entry.
func (t *table) enterVolume(parent uint64, e Entry) *volume {
	id := entryID(parent, e)
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.volByID[id]
	if v == nil {
		if uint64(len(t.volumes)) >= 1<<volumeBits {
			return nil
		}
		v = &volume{index: uint64(len(t.volumes)), entry: e}
		t.volumes = append(t.volumes, v)
		t.volByID[id] = v
	}
	if e.Second {
		v.second = parent
	} else {
		v.parent = parent
	}
	return v
}

func entryID(parent uint64, e Entry) string {
	if e.ID != "" {
		return "i" + e.ID
	}
	var b [8]byte
	for i := range b {
		b[i] = byte(parent >> (8 * i))
	}
	return "n" + string(b[:]) + e.Name
}
