package dedupe

import "encoding/binary"

// blocks8 hashes n blocks of 64 bytes of eight messages; state[i] is word i of the
// states of all.
//
//go:noescape
func blocks8(state *[8][8]uint32, p *[8]*byte, n int)

func cpuid(leaf, sub uint32) (a, b, c, d uint32)

func xgetbv() uint32

// wide: the processor and the kernel have what blocks8 needs.
var wide = hasWide()

// hasWide reports AVX-512 F, BW and VL. See the Intel 64 and IA-32 Architectures
// Software Developer's Manual, volume 1, section 15.2 to 15.4.
func hasWide() bool {
	if leaves, _, _, _ := cpuid(0, 0); leaves < 7 {
		return false
	}
	const osxsave, f, bw, vl = 1 << 27, 1 << 16, 1 << 30, 1 << 31
	// The kernel keeps XMM, YMM, masks and both parts of ZMM.
	const kept = 1<<1 | 1<<2 | 1<<5 | 1<<6 | 1<<7
	if _, _, c, _ := cpuid(1, 0); c&osxsave == 0 || xgetbv()&kept != kept {
		return false
	}
	_, b, _, _ := cpuid(7, 0)
	return b&f != 0 && b&bw != 0 && b&vl != 0
}

// initial is the initial hash value of FIPS 180-4, section 5.3.3.
var initial = [8]uint32{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}

// stateAfter is the state of SHA-256 once it has read one block of 64 bytes.
func stateAfter(block *[64]byte) (state [8]uint32) {
	if !wide {
		return state
	}
	lanes := broadcast(&initial)
	var p [8]*byte
	for i := range p {
		p[i] = &block[0]
	}
	blocks8(&lanes, &p, 1)
	for i := range state {
		state[i] = lanes[i][0]
	}
	return state
}

// broadcast is one state in all lanes.
func broadcast(state *[8]uint32) (lanes [8][8]uint32) {
	for i := range lanes {
		for lane := range lanes[i] {
			lanes[i][lane] = state[i]
		}
	}
	return lanes
}

// sum8 hashes up to eight messages of size bytes, a multiple of 64; under k's key
// unless it is nil.
func sum8(k *IDKey, sums []Digest, messages [][]byte, size int) {
	if k == nil {
		hash8(&initial, sums, messages, size, size)
		return
	}
	// HMAC (RFC 2104): both hashes go on from the state after their pad. The outer one
	// reads a digest and the end of its message: one block.
	hash8(&k.inner, sums, messages, size, 64+size)
	var ends [sumLanes][64]byte
	var p [sumLanes]*byte
	for lane := range ends {
		end := &ends[lane]
		if lane < len(sums) {
			copy(end[:], sums[lane][:])
		}
		end[DigestSize] = 0x80
		binary.BigEndian.PutUint64(end[56:], (64+DigestSize)*8)
		p[lane] = &end[0]
	}
	state := broadcast(&k.outer)
	blocks8(&state, &p, 1)
	store8(sums[:len(messages)], &state)
}

// hash8 hashes up to eight messages of size bytes, going on from a state; with what it
// has read before, each is total bytes.
func hash8(from *[8]uint32, sums []Digest, messages [][]byte, size, total int) {
	var p, end [8]*byte
	padding := [64]byte{0: 0x80}
	binary.BigEndian.PutUint64(padding[56:], uint64(total)*8)
	for i := range 8 {
		p[i] = &messages[min(i, len(messages)-1)][0] // lanes without a message repeat the last
		end[i] = &padding[0]
	}
	state := broadcast(from)
	blocks8(&state, &p, size/64)
	blocks8(&state, &end, 1)
	store8(sums[:len(messages)], &state)
}

// store8 takes the digests out of their lanes.
func store8(sums []Digest, state *[8][8]uint32) {
	for lane := range sums {
		for i := range 8 {
			binary.BigEndian.PutUint32(sums[lane][4*i:], state[i][lane])
		}
	}
}
