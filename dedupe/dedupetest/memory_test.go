package dedupetest_test

import (
	"context"
	"errors"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
)

func TestMemory(t *testing.T) {
	dedupetest.Run(t, func(t *testing.T) dedupe.Store { return dedupetest.NewMemory(dedupe.MinBlockSize) })
}

func TestMemoryCorrupt(t *testing.T) {
	m := dedupetest.NewMemory(dedupe.MinBlockSize)
	b := dedupetest.Begin(t, m)
	put := dedupetest.PutBlock(t, b, dedupetest.Block(m, 1))
	dedupetest.Commit(t, b, "one")
	m.Corrupt(dedupe.KindBlock, put.Digest)
	if _, err := m.Get(context.Background(), dedupe.KindBlock, put.Digest, nil); !errors.Is(err, dedupe.ErrCorrupt) {
		t.Errorf("get of a corrupt block: %v", err)
	}
	m.Remove(dedupe.KindBlock, put.Digest)
	if _, err := m.Get(context.Background(), dedupe.KindBlock, put.Digest, nil); !errors.Is(err, dedupe.ErrNotFound) {
		t.Errorf("get of a removed block: %v", err)
	}
}
