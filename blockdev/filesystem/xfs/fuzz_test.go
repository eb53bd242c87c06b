package xfs_test

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// FuzzOpenAndWalk patches an image of testdata and calls everything. The input is the
// number of the image and then patches: which used block of 1 KiB (2 bytes), where
// in it (2 bytes), how many bytes (1 byte), the bytes. So the fuzzer works on the
// few kilobytes that are metadata and not on megabytes of zeros.
func FuzzOpenAndWalk(f *testing.F) {
	images := make([][]byte, len(smallImages))
	used := make([][]int, len(smallImages))
	for i, s := range smallImages {
		images[i] = smallImage(f, s.name)
		used[i] = usedBlocks(images[i])
		f.Add([]byte{byte(i)})
		for block := 0; block < len(used[i]); block += 8 { // so that patches of all kinds of blocks are known
			patch := binary.LittleEndian.AppendUint16([]byte{byte(i)}, uint16(block))
			at := used[i][block]
			patch = append(patch, 0, 0, 64)
			f.Add(append(patch, images[i][at:at+64]...))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 || len(in) > 4096 {
			return
		}
		i := int(in[0]) % len(images)
		image := images[i]
		type old struct {
			at int
			b  []byte
		}
		var olds []old
		defer func() {
			for i := len(olds) - 1; i >= 0; i-- {
				copy(image[olds[i].at:], olds[i].b)
			}
		}()
		for in = in[1:]; len(in) > 5; {
			block := int(binary.LittleEndian.Uint16(in)) % len(used[i])
			at := used[i][block] + int(binary.LittleEndian.Uint16(in[2:]))%1024
			n := min(int(in[4]), len(in)-5)
			n = min(n, len(image)-at)
			olds = append(olds, old{at, bytes.Clone(image[at : at+n])})
			copy(image[at:], in[5:5+n])
			in = in[5+n:]
		}
		if fs, err := open(image); err == nil {
			walk(t, fs, 3000)
		}
		checkHeap(t)
	})
}
