package volume_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/volume"
)

// FuzzList: whatever the table says, every volume lies inside the disk, the number
// of volumes and warnings is bounded, and it is quick.
func FuzzList(f *testing.F) {
	seed := func(m *image) {
		p := make([]byte, m.size)
		for n, s := range m.data {
			copy(p[n*512:], s)
		}
		f.Add(p)
	}
	for _, ss := range []int64{512, 4096} {
		g := newImage(128 << 10)
		g.gpt(ss, gptPart{"root", 40, 50})
		seed(g)
		delete(g.data, 1)
		seed(g)
	}
	m := newImage(32 << 10)
	m.bootRecord(0, entry{0x83, 2, 4}, entry{0x0F, 8, 50})
	m.bootRecord(8, entry{0x83, 2, 4}, entry{0x05, 10, 20})
	m.bootRecord(18, entry{0x83, 2, 4}, entry{0x05, 0, 20})
	seed(m)
	f.Fuzz(func(t *testing.T, p []byte) {
		start := time.Now()
		size := int64(len(p))
		volumes, warnings, err := volume.List(bytes.NewReader(p), size)
		if d := time.Since(start); d > 2*time.Second {
			t.Fatalf("took %v", d)
		}
		if err != nil {
			return
		}
		if len(volumes) > volume.MaxPartitions || len(warnings) > 1000 {
			t.Fatalf("%d volumes, %d warnings", len(volumes), len(warnings))
		}
		for _, v := range volumes {
			if v.Offset < 0 || v.Size <= 0 || v.Offset > size || v.Size > size-v.Offset {
				t.Fatalf("%+v is outside %d bytes", v, size)
			}
		}
	})
}
