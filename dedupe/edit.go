package dedupe

// Edit is a block that is known by some of its grains: the others are those of another
// block, its base. GrainPatches.Lay finds out which block it is without reading them.
type Edit struct {
	// Base is the digest of a block that the Store holds, or zero: of a hole.
	Base Digest
	// Content is BlockSize bytes, of which only the grains of Given are looked at. It
	// must stay as it is until the edit is put.
	Content []byte
	Given   Grains
	// Err is set by Lay: why the base's grains are not known. The edit cannot be put; the
	// block can, once its content is complete.
	Err error

	whole  *Summed // the whole block is given, and its digest is known
	list   []Digest
	digest Digest
	differ Grains
}

// EditOf is the edit that gives all grains of a block.
func EditOf(b *Summed, base Digest) Edit {
	return Edit{Base: base, Content: b.content, Given: FirstGrains(len(b.content) / GrainSize), whole: b}
}

// Laid reports whether Lay has found out which block it is.
func (e *Edit) Laid() bool { return e.list != nil && e.Err == nil }

// Digest is the block's digest, once it is laid.
func (e *Edit) Digest() Digest { return e.digest }

// Differ are the grains in which it differs from the base, once it is laid: all of them
// are among Given.
func (e *Edit) Differ() Grains { return e.differ }

// Zero reports whether the block is all zeros, once it is laid: such a block is a hole, and
// is not put.
func (e *Edit) Zero() bool {
	for i := range e.list {
		if e.list[i] != zeroGrain {
			return false
		}
	}
	return true
}

// List is the list of its grains' digests, once it is laid; it is only read.
func (e *Edit) List() []Digest { return e.list }
