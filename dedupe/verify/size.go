package verify

import (
	"context"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// Bytes is what Point will read of blocks, as Report.Bytes counts them, when everything
// is good. It reads the nodes only, one for 128 blocks; what lies below one that is not
// readable is not counted.
func Bytes(ctx context.Context, s dedupe.Store, m *recoverypoint.Manifest) (n int64, err error) {
	content := func(c recoverypoint.Content) {
		for i, d := range c.Blocks {
			if !d.IsZero() {
				n += min(int64(c.BlockSize), c.Length-int64(i)*int64(c.BlockSize))
			}
		}
	}
	for _, c := range m.Contents() {
		content(c)
	}
	for _, d := range m.Disks {
		err := hashtree.Visit(ctx, hashtree.Direct(s), d.Root, 0, d.Root.SizeBytes, func(e hashtree.Entry) (bool, error) {
			if e.Level < 0 {
				n += e.Length
			}
			return e.Err == nil, nil
		})
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
