package dedupe

const (
	// sumLanes is how many messages sum8 hashes at once, and minLanes from how many on
	// it beats one after the other: it takes as long for one as for eight. Eight blocks
	// of 64 KiB take 210 µs, and 371 µs one by one with the processor's SHA
	// instructions (best of 3000, Xeon of family 6, model 207, 2026-11-22).
	sumLanes = 8
	minLanes = 5
)

// SumAll is Sum of each message, sums[i] that of messages[i]. Messages of one length,
// a multiple of 64 bytes, as blocks are, take little more than half the time where the
// processor has AVX-512: eight are hashed side by side. SHA-256 of one message is a
// chain in which each step waits for the one before, so that even the instructions that
// processors have for it leave most of the core idle.
func SumAll(sums []Digest, messages [][]byte) { (*IDKey)(nil).SumAll(sums, messages) }

// SumAll is Sum of each message under the key, as fast as the package's SumAll.
func (k *IDKey) SumAll(sums []Digest, messages [][]byte) {
	sums = sums[:len(messages)]
	for wide && len(messages) >= minLanes {
		n := min(len(messages), sumLanes)
		size := len(messages[0])
		if size == 0 || size%64 != 0 || !sameLength(messages[:n], size) {
			break
		}
		sum8(k, sums[:n], messages[:n], size)
		sums, messages = sums[n:], messages[n:]
	}
	for i, m := range messages {
		sums[i] = k.Sum(m)
	}
}

func sameLength(messages [][]byte, n int) bool {
	for _, m := range messages {
		if len(m) != n {
			return false
		}
	}
	return true
}

// Summed is a block with the digest that was computed of it. Only SumBlocks pairs the
// two, so that no block can be put under a digest that is not its own.
type Summed struct {
	content []byte
	digest  Digest
	list    []Digest // of its grains, where the digest is made of them
}

// Content is the block.
func (s Summed) Content() []byte { return s.content }

// Digest is the block's digest.
func (s Summed) Digest() Digest { return s.digest }

// List is the digests of the block's grains, which are only read; nil where the digest is
// not made of them.
func (s Summed) List() []Digest { return s.list }

// sumBlocks fills summed[i] with blocks[i] and its digest under the key, as SumAll
// computes them.
func (k *IDKey) sumBlocks(summed []Summed, blocks [][]byte) {
	for len(blocks) > 0 {
		n := min(len(blocks), sumLanes)
		var sums [sumLanes]Digest
		k.SumAll(sums[:n], blocks[:n])
		for i := range n {
			summed[i] = Summed{content: blocks[i], digest: sums[i]}
		}
		summed, blocks = summed[n:], blocks[n:]
	}
}
