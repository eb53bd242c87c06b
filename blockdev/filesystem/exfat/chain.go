package exfat

import (
	"encoding/binary"

	"github.com/keelblock/keelblock/blockdev/filesystem/pagecache"
)

const (
	firstCluster = 2
	entryEnd     = 0xFFFFFFFF
	// markEvery: the number of every 256th cluster of a chain is kept.
	markEvery = 256
)

// chain is where a file or directory lies.
type chain struct {
	first    uint32
	clusters uint32   // that are needed and there
	noFAT    bool     // in one piece; the FAT says nothing of it
	marks    []uint32 // of one in the FAT
}

// next is the entry of cluster c in the FAT.
func (f *FS) next(c uint32) (uint32, error) {
	var p [4]byte
	if err := f.cache.Read(p[:], f.boot.fatStart+int64(c)*4); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(p[:]), nil
}

// chain finds need clusters from first on; need 0 is all up to the end, at most limit.
func (f *FS) chain(first, need uint32, noFAT bool, limit uint32) (*chain, error) {
	if noFAT {
		if !f.boot.holds(first) || need > f.boot.clusters-(first-firstCluster) {
			return nil, corruptf("%d clusters in one piece from cluster %d of %d", need, first, f.boot.clusters)
		}
		return &chain{first: first, clusters: need, noFAT: true}, nil
	}
	k := pagecache.Key{Class: classChain, A: uint64(first), B: uint64(need)<<32 | uint64(limit)}
	if c, ok := pagecache.Get[*chain](f.cache, k); ok {
		return c, nil
	}
	c, err := f.follow(first, need, limit)
	if err != nil {
		return nil, err
	}
	f.cache.Put(k, c, 4*len(c.marks))
	return c, nil
}

// follow walks a chain. One that never ends is found by Brent's algorithm: the walk goes
// on behind the clusters that are needed until it meets the end, or has gone so far
// (4*need) that a cycle among them would have shown.
func (f *FS) follow(first, need, limit uint32) (*chain, error) {
	c := &chain{first: first}
	steps := uint64(limit) + 1
	if need > 0 {
		steps = 4*uint64(need) + 16
	}
	tortoise, power := uint32(0), uint64(1)
	at := first
	for i := uint64(0); i < steps; i++ {
		if !f.boot.holds(at) {
			return nil, corruptf("chain of cluster %d leads to cluster %#x of %d", first, at, f.boot.clusters)
		}
		if at == tortoise {
			return nil, corruptf("chain of cluster %d is cyclic at cluster %d", first, at)
		}
		if i == power {
			tortoise, power = at, 2*power
		} else if i == 0 {
			tortoise = at
		}
		if need == 0 || i < uint64(need) {
			if i%markEvery == 0 {
				c.marks = append(c.marks, at)
			}
			c.clusters++
		}
		v, err := f.next(at)
		if err != nil {
			return nil, err
		}
		if v == entryEnd {
			if c.clusters < need {
				return nil, corruptf("chain of cluster %d ends after %d of %d clusters", first, c.clusters, need)
			}
			return c, nil
		}
		at = v
	}
	if need == 0 {
		return nil, corruptf("chain of cluster %d is longer than %d clusters", first, limit)
	}
	return c, nil
}

// cluster is number index of a chain, which has it.
func (f *FS) cluster(c *chain, index uint32) (uint32, error) {
	if c.noFAT {
		return c.first + index, nil
	}
	at := c.marks[index/markEvery]
	for range index % markEvery {
		v, err := f.next(at)
		if err != nil {
			return 0, err
		}
		if at = v; !f.boot.holds(at) { // it was one when the chain was followed
			return 0, corruptf("chain changed at cluster %d", at)
		}
	}
	return at, nil
}

// read fills p from offset off of a chain, within which it lies, by the given way of
// reading the volume. What lies in one piece is read at once.
func (f *FS) read(c *chain, p []byte, off int64, read func(p []byte, off int64) error) error {
	cs := f.boot.clusterSize
	for len(p) > 0 {
		index := uint32(off / cs)
		first, err := f.cluster(c, index)
		if err != nil {
			return err
		}
		within := off % cs
		length := cs - within
		last := first
		for length < int64(len(p)) && index+1 < c.clusters {
			if !c.noFAT {
				v, err := f.next(last)
				if err != nil {
					return err
				}
				if v != last+1 {
					break
				}
			}
			index, last, length = index+1, last+1, length+cs
		}
		part := p[:min(length, int64(len(p)))]
		if err := read(part, f.boot.at(first)+within); err != nil {
			return err
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}
