package dedupe_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
)

// listDigest is the digest of a block by its definition: of the word "grains" and the
// SHA-256 of each grain, under a key or not.
func listDigest(secret, block []byte) dedupe.Digest {
	h := sha256.New()
	if secret != nil {
		h = hmac.New(sha256.New, secret)
	}
	h.Write([]byte("grains"))
	for at := 0; at < len(block); at += dedupe.GrainSize {
		sum := sha256.Sum256(block[at : at+dedupe.GrainSize])
		h.Write(sum[:])
	}
	return dedupe.Digest(h.Sum(nil))
}

// sparseBlock is n grains, some of them zeros.
func sparseBlock(src *rand.Rand, n int) []byte {
	p := make([]byte, n*dedupe.GrainSize)
	for i := range n {
		if src.IntN(3) > 0 {
			fill(src, p[i*dedupe.GrainSize:][:dedupe.GrainSize])
		}
	}
	return p
}

func fill(src *rand.Rand, p []byte) {
	for i := range p {
		p[i] = byte(src.Uint32())
	}
	if src.IntN(4) == 0 { // zeros, but for one byte
		clear(p)
		p[src.IntN(len(p))] = 1
	}
}

// TestGrainDigests compares with the definition: blocks of all sizes, alone and several at
// once, with and without a key.
func TestGrainDigests(t *testing.T) {
	src := rand.New(rand.NewPCG(5, 6))
	secret := []byte("thirty-two bytes of a secret key")
	for _, n := range []int{4, 8, 16, 256} {
		var blocks [][]byte
		for range 11 {
			blocks = append(blocks, sparseBlock(src, n))
		}
		blocks[3] = make([]byte, len(blocks[3]))
		for _, key := range [][]byte{nil, secret} {
			g := dedupe.GrainDigests(nil)
			if key != nil {
				g = dedupe.GrainDigests(dedupe.NewIDKey(key))
			}
			sums, summed := make([]dedupe.Digest, len(blocks)), make([]dedupe.Summed, len(blocks))
			g.Blocks(sums, blocks)
			g.SumBlocks(summed, blocks)
			for i, b := range blocks {
				want := listDigest(key, b)
				if sums[i] != want || summed[i].Digest() != want || g.Block(b) != want || g.List(summed[i].List()) != want {
					t.Errorf("block %d of %d grains, keyed %v: %v, %v and %v, want %v", i, n, key != nil, sums[i], summed[i].Digest(), g.Block(b), want)
				}
			}
			if whole := dedupe.WholeDigests(nil).Block(blocks[0]); whole != dedupe.Sum(blocks[0]) {
				t.Errorf("digest of all bytes: %v", whole)
			}
		}
	}
}

// TestLay lays grains over blocks: the digest is that of the block with them, whatever else
// stands in the buffer, and those that differ are told.
func TestLay(t *testing.T) {
	src := rand.New(rand.NewPCG(7, 8))
	g := dedupe.GrainDigests(dedupe.NewIDKey([]byte("key")))
	const n = 16
	for round := range 200 {
		var edits []dedupe.Edit
		var bases [][]dedupe.Digest
		var want []dedupe.Digest
		var differ []dedupe.Grains
		var zero []bool
		for range 1 + src.IntN(8) {
			was, now := sparseBlock(src, n), make([]byte, n*dedupe.GrainSize)
			if src.IntN(10) == 0 {
				clear(was)
			}
			copy(now, was)
			e := dedupe.Edit{Content: sparseBlock(src, n)}
			var d dedupe.Grains
			for i := range n {
				if src.IntN(3) > 0 {
					continue
				}
				e.Given.Add(i)
				grain := now[i*dedupe.GrainSize:][:dedupe.GrainSize]
				switch src.IntN(3) {
				case 0:
					fill(src, grain)
				case 1:
					clear(grain)
				}
				copy(e.Content[i*dedupe.GrainSize:], grain)
				if string(grain) != string(was[i*dedupe.GrainSize:][:dedupe.GrainSize]) {
					d.Add(i)
				}
			}
			var summed [1]dedupe.Summed
			g.SumBlocks(summed[:], [][]byte{was})
			edits, bases = append(edits, e), append(bases, summed[0].List())
			want, differ = append(want, g.Block(now)), append(differ, d)
			zero = append(zero, string(now) == string(make([]byte, len(now))))
		}
		bases[src.IntN(len(bases))] = nil // its list is not known
		before := make([][]dedupe.Digest, len(bases))
		for i := range bases {
			before[i] = slices.Clone(bases[i])
		}
		g.Lay(edits, bases)
		for i := range edits {
			e := &edits[i]
			if !slices.Equal(bases[i], before[i]) {
				t.Fatalf("round %d: the list of the base was changed", round)
			}
			if bases[i] == nil {
				if e.Laid() {
					t.Fatalf("round %d: laid over a block whose list is not known", round)
				}
				continue
			}
			if !e.Laid() || e.Digest() != want[i] || e.Differ() != differ[i] || e.Zero() != zero[i] {
				t.Fatalf("round %d: laid %v, differing in %v, zeros %v; want %v, %v, %v", round, e.Digest(), e.Differ(), e.Zero(), want[i], differ[i], zero[i])
			}
		}
	}
}

// TestGrainsSet: sets of grains at the ends of their words.
func TestGrainsSet(t *testing.T) {
	for _, n := range []int{0, 1, 4, 16, 63, 64, 65, 128, 255, 256} {
		g := dedupe.FirstGrains(n)
		if g.Count() != n {
			t.Errorf("the first %d grains are %d", n, g.Count())
		}
		for i := range dedupe.MaxGrains {
			if g.Has(i) != (i < n) {
				t.Errorf("grain %d of the first %d: %v", i, n, g.Has(i))
			}
		}
		all := dedupe.FirstGrains(dedupe.MaxGrains)
		if !g.Within(&all) || n < dedupe.MaxGrains && all.Within(&g) {
			t.Errorf("the first %d grains within all", n)
		}
		for i := range n {
			g.Remove(i)
		}
		if g != (dedupe.Grains{}) {
			t.Errorf("%d grains removed, %v left", n, g)
		}
	}
}
