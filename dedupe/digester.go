package dedupe

import (
	"slices"
	"sync"

	"github.com/minio/sha256-simd"
)

// Digester makes the digests of one key domain: of its blocks and its notes. The zero
// Digester is that of an unencrypted domain of the first id scheme. It is compared by ==,
// and all methods may be called from any number of goroutines.
//
// There are two ways to make the digest of a block. In the id schemes of the first vaults
// it is the hash of all bytes. In those of new ones it is the hash of the list of the
// digests of its grains, so that whoever has the list of a block, and some new grains, has
// the digest of the block that they make without the block's other bytes: the list is a
// node more, of 4 KiB children, below each leaf of a disk's tree.
type Digester struct {
	key    *IDKey // nil: not encrypted
	grains bool
}

// WholeDigests makes the digest of a block of all its bytes, under a key or, with nil, in
// an unencrypted domain.
func WholeDigests(key *IDKey) Digester { return Digester{key: key} }

// GrainDigests makes the digest of a block of those of its grains, under a key or, with
// nil, in an unencrypted domain.
func GrainDigests(key *IDKey) Digester { return Digester{key: key, grains: true} }

// Grains reports whether the digest of a block is made of those of its grains.
func (g Digester) Grains() bool { return g.grains }

// Note is the digest of a note.
func (g Digester) Note(p []byte) Digest { return g.key.Sum(p) }

// Block is the digest of a block, of whole grains.
func (g Digester) Block(p []byte) Digest {
	var sums [1]Digest
	g.Blocks(sums[:], [][]byte{p})
	return sums[0]
}

// Blocks is Block of each: sums[i] is the digest of blocks[i]. Several take little more
// than half the time, see SumAll.
func (g Digester) Blocks(sums []Digest, blocks [][]byte) {
	if !g.grains {
		g.key.SumAll(sums, blocks)
		return
	}
	s := lists.Get().(*listScratch)
	defer lists.Put(s)
	g.sumGrains(s.room(blocks), blocks)
	for i := range blocks {
		sums[i] = g.key.listSum(s, s.lists[i])
	}
}

// SumBlocks fills summed[i] with blocks[i] and its digest. The blocks are not copied: they
// must stay as they are.
func (g Digester) SumBlocks(summed []Summed, blocks [][]byte) {
	if !g.grains {
		g.key.sumBlocks(summed, blocks)
		return
	}
	s := lists.Get().(*listScratch)
	defer lists.Put(s)
	own := make([]Digest, grainsOf(blocks))
	all := make([][]Digest, len(blocks))
	for i, b := range blocks {
		n := len(b) / GrainSize
		all[i], own = own[:n:n], own[n:]
	}
	g.sumGrains(all, blocks)
	for i, b := range blocks {
		summed[i] = Summed{content: b, digest: g.key.listSum(s, all[i]), list: all[i]}
	}
}

// List is the digest of the block with this list of its grains' digests.
func (g Digester) List(list []Digest) Digest {
	s := lists.Get().(*listScratch)
	defer lists.Put(s)
	return g.key.listSum(s, list)
}

// Lay lays the given grains of each edit over a block of which bases[i] is the list of
// grains, verified; the lists become the edits'. An edit with an error, or without a list,
// is left as it is.
func (g Digester) Lay(edits []Edit, bases [][]Digest) {
	s := lists.Get().(*listScratch)
	defer lists.Put(s)
	var l lanes
	for k := range edits {
		e := &edits[k]
		if e.Err != nil || bases[k] == nil || e.whole != nil {
			continue
		}
		e.list = slices.Clone(bases[k])
		for i := range e.list {
			if e.Given.Has(i) {
				l.add(e.Content[i*GrainSize:][:GrainSize], &e.list[i])
			}
		}
	}
	l.end()
	for k := range edits {
		e := &edits[k]
		if e.Err != nil || bases[k] == nil {
			continue
		}
		if e.whole != nil {
			e.list, e.digest = e.whole.list, e.whole.digest
		} else {
			e.digest = g.key.listSum(s, e.list)
		}
		e.differ = DifferingGrains(e.list, bases[k])
	}
}

// DifferingGrains are the grains in which two lists of one length differ.
func DifferingGrains(a, b []Digest) (set Grains) {
	for i := range a {
		if a[i] != b[i] {
			set.Add(i)
		}
	}
	return set
}

// GrainDigest is the digest of one grain. It is not keyed: lists stand sealed in encrypted
// domains, and their digest is.
func GrainDigest(grain []byte) Digest {
	if allZero(grain) {
		return zeroGrain
	}
	return sha256.Sum256(grain)
}

// ZeroList is the list of n grains of zeros.
func ZeroList(n int) []Digest {
	list := make([]Digest, n)
	for i := range list {
		list[i] = zeroGrain
	}
	return list
}

var zeroGrain = Digest(sha256.Sum256(make([]byte, GrainSize)))

// sumGrains fills the lists of blocks.
func (g Digester) sumGrains(into [][]Digest, blocks [][]byte) {
	var l lanes
	for k, b := range blocks {
		for i := range into[k] {
			l.add(b[i*GrainSize:][:GrainSize], &into[k][i])
		}
	}
	l.end()
}

// lanes collects grains until there are enough to hash them side by side.
type lanes struct {
	n      int
	grains [sumLanes][]byte
	sums   [sumLanes]*Digest
}

// add has the digest of a grain written to sum, now or by end. Zeros, of which disks are
// full, are known.
func (l *lanes) add(grain []byte, sum *Digest) {
	if allZero(grain) {
		*sum = zeroGrain
		return
	}
	l.grains[l.n], l.sums[l.n] = grain, sum
	if l.n++; l.n == sumLanes {
		l.end()
	}
}

// end hashes what was collected.
func (l *lanes) end() {
	if l.n == 0 {
		return
	}
	var sums [sumLanes]Digest
	SumAll(sums[:l.n], l.grains[:l.n])
	for i, sum := range l.sums[:l.n] {
		*sum = sums[i]
	}
	l.n = 0
}

// listPrefix tells the content of a list from that of a note.
const listPrefix = "grains"

// listScratch is room for what is hashed.
type listScratch struct {
	digests []Digest
	lists   [][]Digest // parts of digests
	b       []byte
}

var lists = sync.Pool{New: func() any { return new(listScratch) }}

// room is room for the lists of some blocks.
func (s *listScratch) room(blocks [][]byte) [][]Digest {
	n := grainsOf(blocks)
	if cap(s.digests) < n {
		s.digests = make([]Digest, n)
	}
	s.lists = s.lists[:0]
	left := s.digests[:n]
	for _, b := range blocks {
		n := len(b) / GrainSize
		s.lists = append(s.lists, left[:n])
		left = left[n:]
	}
	return s.lists
}

func grainsOf(blocks [][]byte) (n int) {
	for _, b := range blocks {
		n += len(b) / GrainSize
	}
	return n
}

// listSum is the digest of a block by its list.
func (k *IDKey) listSum(s *listScratch, list []Digest) Digest {
	s.b = append(s.b[:0], listPrefix...)
	for i := range list {
		s.b = append(s.b, list[i][:]...)
	}
	return k.Sum(s.b)
}

// allZero compares a grain with itself one word on, which the runtime does at memory
// speed, once its first word is zero: that of most is not.
func allZero(p []byte) bool {
	for i := range min(8, len(p)) {
		if p[i] != 0 {
			return false
		}
	}
	return len(p) <= 8 || string(p[8:]) == string(p[:len(p)-8])
}
