package btrfs

import (
	"cmp"
	"encoding/binary"
)

// Trees (include/uapi/linux/btrfs_tree.h).
const (
	treeRoot   = 1
	treeChunk  = 3
	treeFS     = 5 // the top-level subvolume
	treeCsum   = 7
	treeLog    = ^uint64(5) // BTRFS_TREE_LOG_OBJECTID, -6
	treeReloc  = ^uint64(7) // BTRFS_TREE_RELOC_OBJECTID, -8
	firstFree  = 256        // BTRFS_FIRST_FREE_OBJECTID
	lastFree   = m64 - 255  // BTRFS_LAST_FREE_OBJECTID
	m64        = 1<<64 - 1
	objectCsum = m64 - 9 // BTRFS_EXTENT_CSUM_OBJECTID, -10

	objectFirstChunk = 256
)

// Types of items.
const (
	typeInode       = 1
	typeInodeRef    = 12
	typeInodeExtref = 13
	typeXattr       = 24
	typeDirLogItem  = 60
	typeDirLogIndex = 72
	typeDirItem     = 84
	typeDirIndex    = 96
	typeExtentData  = 108
	typeExtentCsum  = 128
	typeRoot        = 132
	typeRootBackref = 144
	typeRootRef     = 156
	typeChunk       = 228
)

// key addresses an item in a tree; trees are in the order of keys.
type key struct {
	object uint64
	kind   uint8
	offset uint64
}

const keySize = 17

func parseKey(p []byte) key {
	le := binary.LittleEndian
	return key{le.Uint64(p), p[8], le.Uint64(p[9:])}
}

func (k key) compare(l key) int {
	if c := cmp.Compare(k.object, l.object); c != 0 {
		return c
	}
	if c := cmp.Compare(k.kind, l.kind); c != 0 {
		return c
	}
	return cmp.Compare(k.offset, l.offset)
}

// item is what a leaf holds. data must not be changed.
type item struct {
	key  key
	data []byte
}

// isSubvolume: a tree of files (is_fstree).
func isSubvolume(id uint64) bool { return id == treeFS || (id >= firstFree && id <= lastFree) }
