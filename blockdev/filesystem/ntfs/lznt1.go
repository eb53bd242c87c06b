package ntfs

import "encoding/binary"

// chunkSize is what a chunk of LZNT1 holds when it is unpacked (MS-XCA section 2.5).
const chunkSize = 4096

// decompress unpacks chunks of LZNT1 into size bytes. Chunks that hold less than
// chunkSize, and a stream that ends early, are followed by zeros.
func decompress(p []byte, size int) ([]byte, error) {
	out := make([]byte, size)
	for at := 0; at < size; at += chunkSize {
		if len(p) < 2 {
			return out, nil
		}
		header := binary.LittleEndian.Uint16(p)
		if header == 0 {
			return out, nil
		}
		n := int(header&0xFFF) + 1
		if header>>12&7 != 3 || 2+n > len(p) {
			return nil, corruptf("chunk with header %#04x, %d bytes left", header, len(p))
		}
		chunk := p[2 : 2+n]
		p = p[2+n:]
		window := out[at:min(at+chunkSize, size)]
		if header&0x8000 == 0 {
			if n > len(window) {
				return nil, corruptf("chunk of %d bytes", n)
			}
			copy(window, chunk)
			continue
		}
		if err := decompressChunk(window, chunk); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// decompressChunk unpacks one chunk: groups of eight elements, each a byte or a
// reference backwards, told by a bit of the byte before the group. How the 16 bits of a
// reference are split into length and distance depends on how much is unpacked.
func decompressChunk(window, chunk []byte) error {
	done := 0
	for len(chunk) > 0 {
		flags := chunk[0]
		chunk = chunk[1:]
		for bit := 0; bit < 8 && len(chunk) > 0; bit++ {
			if flags>>bit&1 == 0 {
				if done >= len(window) {
					return corruptf("chunk unpacks to more than %d bytes", len(window))
				}
				window[done] = chunk[0]
				done, chunk = done+1, chunk[1:]
				continue
			}
			if len(chunk) < 2 || done == 0 {
				return corruptf("reference at %d", done)
			}
			lengthBits := 12
			for limit := 16; limit < done && lengthBits > 4; limit *= 2 {
				lengthBits--
			}
			v := int(binary.LittleEndian.Uint16(chunk))
			chunk = chunk[2:]
			length, distance := v&(1<<lengthBits-1)+3, v>>lengthBits+1
			if distance > done || length > len(window)-done {
				return corruptf("reference of %d bytes %d back at %d", length, distance, done)
			}
			for range length { // byte by byte: source and target may overlap
				window[done] = window[done-distance]
				done++
			}
		}
	}
	return nil
}
