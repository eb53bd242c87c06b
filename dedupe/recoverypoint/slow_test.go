package recoverypoint_test

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
)

// slowStore counts the blocks that are read and takes a millisecond for each.
type slowStore struct {
	*dedupetest.Memory
	blocks atomic.Int64
}

func (s *slowStore) Get(ctx context.Context, kind dedupe.Kind, d dedupe.Digest, buf []byte) ([]byte, error) {
	if kind == dedupe.KindBlock {
		s.blocks.Add(1)
		time.Sleep(time.Millisecond)
	}
	return s.Memory.Get(ctx, kind, d, buf)
}

func (s *slowStore) gets() int64 { return s.blocks.Load() }
