package pack

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/keelblock/keelblock/dedupe"
)

// Limits of patches and of the bundles that hold them.
const (
	// GrainSize is the unit of a patch, in bytes.
	GrainSize = dedupe.GrainSize
	// MaxBundleMembers bounds the patches of one bundle.
	MaxBundleMembers = 64
	// MaxPatchDepth bounds the patches that lie over one another. It is what a reader
	// accepts; a writer has narrower bounds.
	MaxPatchDepth = 16

	maxGrains           = dedupe.MaxGrains
	directoryHeaderSize = 8
	memberSize          = 2*dedupe.DigestSize + 4 // and the bitmap
	patchSize           = 2*dedupe.DigestSize + 8
)

// Member is one patch of a bundle: the block Digest is the block Base with Grains
// laid over it; without a base it is zeros with the grains laid over them.
type Member struct {
	Digest, Base dedupe.Digest
	// Depth is the number of patches down to a whole block, from 1.
	Depth uint8
	// Total is the number of grains that they lay over it, this patch's included.
	Total  uint8
	Grains dedupe.Grains
}

// Bundle is the directory of a bundle record: the patches whose grains, one patch
// after the other and each in ascending order, are the record's content.
type Bundle struct {
	BlockSize int
	Members   []Member // 1 .. MaxBundleMembers
}

// DirectorySize is the length of the directory of n patches of blocks of blockSize
// bytes.
func DirectorySize(blockSize, n int) int {
	return directoryHeaderSize + n*(memberSize+bitmapSize(blockSize))
}

func bitmapSize(blockSize int) int { return (blockSize/GrainSize + 7) / 8 }

// Append appends the encoded directory to b.
func (bu *Bundle) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint16(b, uint16(len(bu.Members)))
	b = append(b, 0, 0)
	b = le.AppendUint32(b, uint32(bu.BlockSize))
	for i := range bu.Members {
		m := &bu.Members[i]
		b = append(b, m.Digest[:]...)
		b = append(b, m.Base[:]...)
		b = append(b, m.Depth, m.Total, 0, 0)
		for j := range bitmapSize(bu.BlockSize) {
			b = append(b, byte(m.Grains[j/8]>>(j%8*8)))
		}
	}
	return b
}

// DecodeBundle is the inverse of Bundle.Append, with every value checked.
func DecodeBundle(b []byte) (*Bundle, error) {
	if len(b) < directoryHeaderSize {
		return nil, fmt.Errorf("bundle directory of %d bytes: %w", len(b), dedupe.ErrCorrupt)
	}
	le := binary.LittleEndian
	n, blockSize := int(le.Uint16(b)), int(le.Uint32(b[4:]))
	if err := CheckBlockSize(blockSize); err != nil {
		return nil, fmt.Errorf("bundle directory: %w: %w", err, dedupe.ErrCorrupt)
	}
	if n < 1 || n > MaxBundleMembers || len(b) != DirectorySize(blockSize, n) {
		return nil, fmt.Errorf("bundle directory of %d patches in %d bytes: %w", n, len(b), dedupe.ErrCorrupt)
	}
	bu := &Bundle{BlockSize: blockSize, Members: make([]Member, n)}
	b = b[directoryHeaderSize:]
	for i := range bu.Members {
		m := &bu.Members[i]
		m.decode(b, blockSize)
		if err := m.check(blockSize); err != nil {
			return nil, fmt.Errorf("patch %d of a bundle: %w", i, err)
		}
		b = b[memberSize+bitmapSize(blockSize):]
	}
	return bu, nil
}

func (m *Member) decode(b []byte, blockSize int) {
	m.Digest, m.Base = dedupe.Digest(b[:32]), dedupe.Digest(b[32:64])
	m.Depth, m.Total = b[64], b[65]
	for j, x := range b[memberSize:][:bitmapSize(blockSize)] {
		m.Grains[j/8] |= uint64(x) << (j % 8 * 8)
	}
}

func (m *Member) check(blockSize int) error {
	if err := checkPatch(m.Digest, m.Base, m.Depth); err != nil {
		return err
	}
	n := m.Grains.Count()
	for i := blockSize / GrainSize; i < maxGrains; i++ {
		if m.Grains.Has(i) {
			return fmt.Errorf("patch of %v has grain %d of %d: %w", m.Digest, i, blockSize/GrainSize, dedupe.ErrCorrupt)
		}
	}
	if n == 0 || int(m.Total) < n {
		return fmt.Errorf("patch of %v with %d grains of %d: %w", m.Digest, n, m.Total, dedupe.ErrCorrupt)
	}
	return nil
}

func checkPatch(d, base dedupe.Digest, depth uint8) error {
	if d.IsZero() || d == base || depth < 1 || depth > MaxPatchDepth || base.IsZero() && depth != 1 {
		return fmt.Errorf("patch of %v over %v with depth %d: %w", d, base, depth, dedupe.ErrCorrupt)
	}
	return nil
}

// ContentSize is the length of the grains of all patches, in bytes.
func (bu *Bundle) ContentSize() (n int) {
	for i := range bu.Members {
		n += bu.Members[i].Grains.Count() * GrainSize
	}
	return n
}

// Offset is where the grains of patch i begin in the record's content.
func (bu *Bundle) Offset(i int) (n int) {
	for j := range i {
		n += bu.Members[j].Grains.Count() * GrainSize
	}
	return n
}

// BundleDigest is the digest of a bundle record: SHA-256 of its directory. The
// digests there are those of the key domain, so it tells nothing about the grains.
func BundleDigest(directory []byte) dedupe.Digest { return sha256.Sum256(directory) }

// Patch is what a footer says about one patch of a bundle.
type Patch struct {
	Digest, Base dedupe.Digest
	Depth, Total uint8 // as in Member
	// Share is the patch's part of the record's size, by its grains; the parts of all
	// patches of a bundle are its size, exactly.
	Share uint32
}

// patches are the footer's entries of a bundle whose record takes size bytes.
func (bu *Bundle) patches(size int64) []Patch {
	list := make([]Patch, len(bu.Members))
	all, left := int64(bu.ContentSize()/GrainSize), size
	for i := range bu.Members {
		m := &bu.Members[i]
		share := size * int64(m.Grains.Count()) / all
		list[i] = Patch{Digest: m.Digest, Base: m.Base, Depth: m.Depth, Total: m.Total, Share: uint32(share)}
		left -= share
	}
	list[0].Share += uint32(left)
	return list
}

// patchesOf are the patches of a record, none unless it is a bundle. They are read
// from the directory in its payload.
func patchesOf(r *Record, payload []byte) ([]Patch, error) {
	if r.Kind != KindBundle {
		return nil, nil
	}
	bu, err := BundleOf(r, payload)
	if err != nil {
		return nil, err
	}
	return bu.patches(r.Size()), nil
}

// BundleOf is the directory of a bundle record, which its payload begins with in
// clear. What follows it, compressed and sealed as the header says, is the content.
func BundleOf(r *Record, payload []byte) (*Bundle, error) {
	if r.Kind != KindBundle || int64(r.HeadLength) > int64(len(payload)) {
		return nil, fmt.Errorf("record of kind %d, %d bytes, is no bundle: %w", r.Kind, len(payload), dedupe.ErrCorrupt)
	}
	directory := payload[:r.HeadLength]
	if BundleDigest(directory) != r.Digest {
		return nil, fmt.Errorf("bundle directory has digest %v: %w", BundleDigest(directory), dedupe.ErrCorrupt)
	}
	bu, err := DecodeBundle(directory)
	if err != nil {
		return nil, err
	}
	if bu.ContentSize() != int(r.LogicalLength) {
		return nil, fmt.Errorf("bundle of %d bytes of grains, its directory says %d: %w", r.LogicalLength, bu.ContentSize(), dedupe.ErrCorrupt)
	}
	return bu, nil
}

// appendPatches appends a bundle's part of a footer entry.
func appendPatches(b []byte, list []Patch) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, uint32(len(list)))
	for i := range list {
		p := &list[i]
		b = append(b, p.Digest[:]...)
		b = append(b, p.Base[:]...)
		b = le.AppendUint32(b, p.Share)
		b = append(b, p.Depth, p.Total, 0, 0)
	}
	return b
}

// decodePatches reads a bundle's part of a footer entry from the start of b, for a
// record that takes size bytes, and returns its length.
func decodePatches(b []byte, size int64) ([]Patch, int, error) {
	le := binary.LittleEndian
	if len(b) < 4 {
		return nil, 0, fmt.Errorf("%d bytes left: %w", len(b), dedupe.ErrCorrupt)
	}
	n := le.Uint32(b)
	if n < 1 || n > MaxBundleMembers || int(n)*patchSize > len(b)-4 {
		return nil, 0, fmt.Errorf("bundle of %d patches in %d bytes: %w", n, len(b), dedupe.ErrCorrupt)
	}
	list, sum := make([]Patch, n), int64(0)
	for i := range list {
		p := b[4+i*patchSize:]
		list[i] = Patch{Digest: dedupe.Digest(p[:32]), Base: dedupe.Digest(p[32:64]), Share: le.Uint32(p[64:]), Depth: p[68], Total: p[69]}
		if err := checkPatch(list[i].Digest, list[i].Base, list[i].Depth); err != nil {
			return nil, 0, err
		}
		sum += int64(list[i].Share)
	}
	if sum != size {
		return nil, 0, fmt.Errorf("patches share %d bytes of a record of %d: %w", sum, size, dedupe.ErrCorrupt)
	}
	return list, 4 + int(n)*patchSize, nil
}
