package ext

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"
)

// HashForTest is the hash of a name in a directory with half MD4.
func HashForTest(f *FS, name string) uint32 {
	h, _ := f.dirHash(hashHalfMD4, []byte(name), &inode{})
	return h
}

// CheckGroupsForTest reads and verifies the descriptors of all groups.
func CheckGroupsForTest(f *FS) error {
	for g := range f.super.groups {
		if _, err := f.inodeTable(g); err != nil {
			return err
		}
	}
	return nil
}

// An extent of 32 768 blocks is the longest written one, not an unwritten one.
func TestLongestExtentIsWritten(t *testing.T) {
	for _, c := range []struct {
		field     uint16
		length    uint64
		unwritten bool
	}{{1, 1, false}, {32767, 32767, false}, {32768, 32768, false}, {32769, 1, true}, {65535, 32767, true}} {
		entry := make([]byte, extentSize)
		entry[4], entry[5] = byte(c.field), byte(c.field>>8)
		if _, length, unwritten := decodeExtent(entry); length != c.length || unwritten != c.unwritten {
			t.Errorf("%d: %d, %v", c.field, length, unwritten)
		}
	}
}

// JournalBlocksForTest are the offsets of the blocks of a file system's journal in
// its image, and which of them is the first for fast commits.
func JournalBlocksForTest(r io.ReaderAt, size int64) (offsets []int64, firstFast int, err error) {
	f, err := openSuper(r, size)
	if err != nil {
		return nil, 0, err
	}
	j, err := f.openJournal()
	if err != nil {
		return nil, 0, err
	}
	for b := range j.maxBlocks {
		at, _ := j.run(b)
		offsets = append(offsets, int64(at)<<f.super.blockBits)
	}
	return offsets, int(j.firstFastCommit()), nil
}

// TestLaterRangesCount compares resolveRanges with an array of blocks.
func TestLaterRangesCount(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var log []fcRange
		var want [40]run
		known := [40]bool{}
		for range rnd.IntN(12) {
			g := fcRange{first: rnd.Uint64N(30), blocks: 1 + rnd.Uint64N(10), kind: runKind(rnd.IntN(3)), block: 1000 * (1 + rnd.Uint64N(9))}
			if g.kind == runHole {
				g.block = 0
			}
			log = append(log, g)
			for i := range g.blocks {
				r := run{kind: g.kind, block: g.block + i}
				if g.kind == runHole {
					r.block = 0
				}
				want[g.first+i], known[g.first+i] = r, true
			}
		}
		ranges := resolveRanges(log)
		for b := uint64(0); b < 40; {
			r, err := overRanges(ranges, b, func() (run, error) { return run{block: 7, blocks: 100}, nil })
			if err != nil || r.blocks == 0 {
				t.Fatalf("%+v: block %d: %+v, %v", log, b, r, err)
			}
			for i := uint64(0); i < r.blocks && b+i < 40; i++ {
				w, got := want[b+i], run{kind: r.kind, block: r.block}
				if got.kind != runHole {
					got.block += i
				}
				if !known[b+i] {
					w, got.block = run{}, 0
					if r.block != 7 {
						t.Fatalf("%+v: block %d is %+v, which no range has", log, b+i, r)
					}
				}
				if got != w {
					t.Fatalf("%+v: block %d is %+v, want %+v", log, b+i, got, w)
				}
			}
			b += r.blocks
		}
	}
}

// TestOverlayReadsLikePatchedVolume compares reads of any size with a volume in which
// the blocks were replaced.
func TestOverlayReadsLikePatchedVolume(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	const bits, blocks = 10, 64
	for range 300 {
		base := make([]byte, blocks<<bits)
		for i := range base {
			base[i] = byte(rnd.Uint32())
		}
		o := &overlay{base: bytes.NewReader(base), bits: bits}
		want := bytes.Clone(base)
		for home := uint64(0); home < 40; home++ {
			if rnd.IntN(3) > 0 {
				continue
			}
			log := 40 + rnd.Uint64N(24)
			if n := len(o.blocks); n > 0 && rnd.IntN(2) == 0 {
				log = min(o.blocks[n-1].log&^escaped+1, 63)
			}
			copy(want[home<<bits:][:1<<bits], base[log<<bits:])
			if rnd.IntN(2) == 0 {
				copy(want[home<<bits:], "\xC0\x3B\x39\x98")
				log |= escaped
			}
			o.blocks = append(o.blocks, replaced{home, log})
		}
		for range 100 {
			off := rnd.Int64N(blocks << bits)
			p := make([]byte, rnd.Int64N(blocks<<bits-off+1))
			if n, err := o.ReadAt(p, off); n != len(p) || (err != nil && err != io.EOF) {
				t.Fatalf("%d bytes at %d: %d, %v", len(p), off, n, err)
			}
			if !bytes.Equal(p, want[off:off+int64(len(p))]) {
				t.Fatalf("%d bytes at %d differ (%+v)", len(p), off, o.blocks)
			}
		}
		p := make([]byte, 5000)
		if n, err := o.ReadAt(p, blocks<<bits-1000); n != 1000 || err != io.EOF {
			t.Fatalf("over the end: %d, %v", n, err)
		}
	}
}
