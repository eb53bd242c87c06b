package dedupe

import "math/bits"

// GrainSize is the unit of changes and of patches, in bytes: blocks are made of grains.
const GrainSize = 4096

// MaxGrains is how many grains the largest block has.
const MaxGrains = MaxBlockSize / GrainSize

// Grains is a set of grains of a block: bit i%64 of word i/64 is grain i.
type Grains [MaxGrains / 64]uint64

// Add adds grain i.
func (g *Grains) Add(i int) { g[i/64] |= 1 << (i % 64) }

// Remove removes grain i.
func (g *Grains) Remove(i int) { g[i/64] &^= 1 << (i % 64) }

// Has reports whether grain i is in the set.
func (g *Grains) Has(i int) bool { return g[i/64]&(1<<(i%64)) != 0 }

// Count is the number of grains in the set.
func (g *Grains) Count() (n int) {
	for _, w := range g {
		n += bits.OnesCount64(w)
	}
	return n
}

// Within reports whether the set has no grain that is not in other.
func (g *Grains) Within(other *Grains) bool {
	for i, w := range g {
		if w&^other[i] != 0 {
			return false
		}
	}
	return true
}

// FirstGrains is the set of the first n grains.
func FirstGrains(n int) (g Grains) {
	for i := range g {
		switch left := n - 64*i; {
		case left >= 64:
			g[i] = ^uint64(0)
		case left > 0:
			g[i] = 1<<left - 1
		}
	}
	return g
}
