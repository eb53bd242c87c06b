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

// sum8 hashes up to eight messages of size bytes, a multiple of 64.
func sum8(sums []Digest, messages [][]byte, size int) {
	var state [8][8]uint32
	var p, end [8]*byte
	padding := [64]byte{0: 0x80}
	binary.BigEndian.PutUint64(padding[56:], uint64(size)*8)
	for i := range 8 {
		p[i] = &messages[min(i, len(messages)-1)][0] // lanes without a message repeat the last
		end[i] = &padding[0]
		for lane := range 8 {
			state[i][lane] = initial[i]
		}
	}
	blocks8(&state, &p, size/64)
	blocks8(&state, &end, 1)
	for lane := range messages {
		for i := range 8 {
			binary.BigEndian.PutUint32(sums[lane][4*i:], state[i][lane])
		}
	}
}
