package ext

import "math/bits"

// Hash versions of a directory, fs/ext4/ext4.h DX_HASH_*.
const (
	hashLegacy          = 0
	hashHalfMD4         = 1
	hashTEA             = 2
	hashLegacyUnsigned  = 3
	hashHalfMD4Unsigned = 4
	hashTEAUnsigned     = 5
)

const flagCasefold = 0x40000000 // EXT4_CASEFOLD_FL

// dirHash is the hash of name in a directory whose root says version
// (ext4fs_dirhash). ok is false when it cannot be known: a version from the
// future, names that are folded before they are hashed, or a file system that does
// not say whether its hash takes characters as signed.
func (f *FS) dirHash(version byte, name []byte, in *inode) (hash uint32, ok bool) {
	if in.has(flagCasefold) || version > hashTEAUnsigned {
		return 0, false
	}
	unsigned := version >= hashLegacyUnsigned
	if unsigned {
		version -= hashLegacyUnsigned
	} else {
		switch f.super.flags & (flagSignedHash | flagUnsignedHash) {
		case flagSignedHash:
		case flagUnsignedHash:
			unsigned = true
		default:
			return 0, false
		}
	}
	buf := [4]uint32{0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476}
	if f.super.hashSeed != [4]uint32{} {
		buf = f.super.hashSeed
	}
	switch version {
	case hashLegacy:
		hash = legacyHash(name, unsigned)
	case hashHalfMD4:
		for p := name; ; p = p[32:] {
			var in [8]uint32
			packName(p, in[:], unsigned)
			halfMD4(&buf, &in)
			if len(p) <= 32 {
				break
			}
		}
		hash = buf[1]
	case hashTEA:
		for p := name; ; p = p[16:] {
			var in [4]uint32
			packName(p, in[:], unsigned)
			tea(&buf, &in)
			if len(p) <= 16 {
				break
			}
		}
		hash = buf[0]
	}
	hash &^= 1
	if hash == 0xFFFFFFFE { // EXT4_HTREE_EOF_32BIT << 1 is the end of the directory
		hash = 0xFFFFFFFC
	}
	return hash, true
}

// char is a byte as the hash takes it: sign-extended or not.
func char(b byte, unsigned bool) uint32 {
	if unsigned {
		return uint32(b)
	}
	return uint32(int32(int8(b)))
}

// legacyHash is dx_hack_hash_signed and dx_hack_hash_unsigned.
func legacyHash(name []byte, unsigned bool) uint32 {
	hash0, hash1 := uint32(0x12A3FE2D), uint32(0x37ABE8F9)
	for _, b := range name {
		hash := hash1 + (hash0 ^ char(b, unsigned)*7152373)
		if hash&0x80000000 != 0 {
			hash -= 0x7FFFFFFF
		}
		hash1, hash0 = hash0, hash
	}
	return hash0 << 1
}

// packName is str2hashbuf_signed and str2hashbuf_unsigned: the name as numbers,
// filled up with its length.
func packName(name []byte, buf []uint32, unsigned bool) {
	pad := uint32(len(name)) | uint32(len(name))<<8
	pad |= pad << 16
	val := pad
	if len(name) > len(buf)*4 {
		name = name[:len(buf)*4]
	}
	n := 0
	for i, b := range name {
		val = char(b, unsigned) + val<<8
		if i%4 == 3 {
			buf[n] = val
			val = pad
			n++
		}
	}
	for n < len(buf) {
		buf[n] = val
		val = pad
		n++
	}
}

// halfMD4 is half_md4_transform, fs/ext4/hash.c.
func halfMD4(buf *[4]uint32, in *[8]uint32) {
	const k2, k3 = 0x5A827999, 0x6ED9EBA1 // octal 013240474631 and 015666365641
	a, b, c, d := buf[0], buf[1], buf[2], buf[3]
	f := func(x, y, z uint32) uint32 { return z ^ x&(y^z) }
	g := func(x, y, z uint32) uint32 { return x&y + (x^y)&z }
	h := func(x, y, z uint32) uint32 { return x ^ y ^ z }
	round := func(fn func(x, y, z uint32) uint32, k uint32, order [8]int, shift [4]int) {
		for i := 0; i < 8; i += 4 {
			a = bits.RotateLeft32(a+fn(b, c, d)+in[order[i]]+k, shift[0])
			d = bits.RotateLeft32(d+fn(a, b, c)+in[order[i+1]]+k, shift[1])
			c = bits.RotateLeft32(c+fn(d, a, b)+in[order[i+2]]+k, shift[2])
			b = bits.RotateLeft32(b+fn(c, d, a)+in[order[i+3]]+k, shift[3])
		}
	}
	round(f, 0, [8]int{0, 1, 2, 3, 4, 5, 6, 7}, [4]int{3, 7, 11, 19})
	round(g, k2, [8]int{1, 3, 5, 7, 0, 2, 4, 6}, [4]int{3, 5, 9, 13})
	round(h, k3, [8]int{3, 7, 2, 6, 1, 5, 0, 4}, [4]int{3, 9, 11, 15})
	buf[0] += a
	buf[1] += b
	buf[2] += c
	buf[3] += d
}

// tea is TEA_transform, fs/ext4/hash.c.
func tea(buf *[4]uint32, in *[4]uint32) {
	const delta = 0x9E3779B9
	sum, b0, b1 := uint32(0), buf[0], buf[1]
	for range 16 {
		sum += delta
		b0 += (b1<<4 + in[0]) ^ (b1 + sum) ^ (b1>>5 + in[1])
		b1 += (b0<<4 + in[2]) ^ (b0 + sum) ^ (b0>>5 + in[3])
	}
	buf[0] += b0
	buf[1] += b1
}
