package fat

import (
	"github.com/keelblock/keelblock/blockdev/filesystem/pagecache"
)

// markEvery: the number of every 64th cluster of a chain is kept, so that the longest
// file, of 4 GiB in clusters of 512 bytes, takes half a megabyte.
const markEvery = 64

// chain is where a file or directory lies.
type chain struct {
	clusters uint32 // that are needed and there
	copyOf   int    // which FAT it was taken from
	marks    []uint32
}

// chain follows the clusters from first on and requires that there are at least need of
// them; for a directory need is 0: all up to the end, at most limit.
//
// Where the copies of the FAT differ, the copy is taken by which the chain is whole.
func (f *FS) chain(first, need, limit uint32) (*chain, error) {
	k := pagecache.Key{Class: classChain, A: uint64(first), B: uint64(need)<<32 | uint64(limit)}
	if c, ok := pagecache.Get[*chain](f.cache, k); ok {
		return c, nil
	}
	c, err := f.follow(0, first, need, limit)
	if err != nil && f.boot.otherFAT != 0 && f.fatsDiffer.Load() {
		if other, otherErr := f.follow(1, first, need, limit); otherErr == nil {
			c, err = other, nil
		}
	}
	if err != nil {
		return nil, err
	}
	f.cache.Put(k, c, 4*len(c.marks))
	return c, nil
}

// follow walks a chain in one copy of the FAT. A chain that never ends is found by
// Brent's algorithm: the walk goes on behind the clusters that are needed until it
// meets the end, or has gone so far (4*need) that a cycle among them would have shown.
// So clusters that were allocated ahead, which Windows and fallocate(2) leave behind
// the end of a file, do no harm.
func (f *FS) follow(copyOf int, first, need, limit uint32) (*chain, error) {
	c := &chain{copyOf: copyOf}
	t := f.table(copyOf)
	steps := uint64(limit) + 1
	if need > 0 {
		steps = 4*uint64(need) + 16
	}
	tortoise, power := uint32(0), uint64(1)
	at := first
	for i := uint64(0); i < steps; i++ {
		if !f.boot.holds(at) {
			return nil, corruptf("chain of cluster %d: cluster %d of %d", first, at, f.boot.clusters)
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
		v, err := t.next(at)
		if err != nil {
			return nil, err
		}
		switch {
		case v == entryEnd && c.clusters < need:
			return nil, corruptf("chain of cluster %d ends after %d of %d clusters", first, c.clusters, need)
		case v == entryEnd:
			return c, nil
		case v == entryFree || v == entryBad:
			return nil, corruptf("chain of cluster %d leads from cluster %d to a free or bad one", first, at)
		}
		at = v
	}
	if need == 0 {
		return nil, corruptf("chain of cluster %d is longer than the %d clusters that a directory may have", first, limit)
	}
	return c, nil
}

// walker goes through the clusters of a chain.
type walker struct {
	c     *chain
	t     *table
	index uint32
	at    uint32
}

// walk starts at cluster index of the chain, which is one that the chain has.
func (f *FS) walk(c *chain, index uint32) (*walker, error) {
	w := &walker{c: c, t: f.table(c.copyOf), index: index - index%markEvery, at: c.marks[index/markEvery]}
	for w.index < index {
		if err := w.step(); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// step goes to the next cluster, which the chain has.
func (w *walker) step() error {
	v, err := w.t.next(w.at)
	if err != nil {
		return err
	}
	if !w.t.f.boot.holds(v) { // it was one when the chain was followed
		return corruptf("chain changed at cluster %d", w.at)
	}
	w.index, w.at = w.index+1, v
	return nil
}

// run is how many bytes lie in one piece from the walker's cluster on, up to limit. It
// leaves the walker at the first cluster behind the piece, or at the chain's last.
func (w *walker) run(limit int64) (start, length int64, err error) {
	b := w.t.f.boot
	start, length = b.at(w.at), b.clusterSize
	for w.index+1 < w.c.clusters {
		before := w.at
		if err := w.step(); err != nil {
			return 0, 0, err
		}
		if w.at != before+1 || length >= limit {
			break
		}
		length += b.clusterSize
	}
	return start, length, nil
}
