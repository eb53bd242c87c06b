package ingest_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/keyring"
)

// memStore is a store in memory that counts what is read.
type memStore struct {
	*dedupetest.Memory
	blockGets, nodeGets atomic.Int64
}

func newMemStore(blockSize int) *memStore { return &memStore{Memory: dedupetest.NewMemory(blockSize)} }

func (s *memStore) Get(ctx context.Context, kind dedupe.Kind, d dedupe.Digest, buf []byte) ([]byte, error) {
	switch kind {
	case dedupe.KindBlock:
		s.blockGets.Add(1)
	case dedupe.KindNode:
		s.nodeGets.Add(1)
	}
	return s.Memory.Get(ctx, kind, d, buf)
}

// damage makes content corrupt or missing.
func (s *memStore) damage(kind dedupe.Kind, d dedupe.Digest, how error) {
	if how == dedupe.ErrNotFound {
		s.Remove(kind, d)
	} else {
		s.Corrupt(kind, d)
	}
}

// stores are the stores that every test of content runs over.
var stores = map[string]func(t testing.TB, blockSize int) dedupe.Store{
	"memory": func(_ testing.TB, blockSize int) dedupe.Store { return newMemStore(blockSize) },
	"blockstore": func(t testing.TB, blockSize int) dedupe.Store {
		return openVault(t, blockstore.Options{BlockSize: blockSize})
	},
	"blockstore with ids of the first vaults": func(t testing.TB, blockSize int) dedupe.Store {
		return openVault(t, blockstore.Options{BlockSize: blockSize, Keys: []*keyring.Keys{keyring.NewWhole(dedupe.DomainID{1})}})
	},
	"encrypted blockstore": func(t testing.TB, blockSize int) dedupe.Store {
		return openVault(t, blockstore.Options{BlockSize: blockSize, Keys: []*keyring.Keys{keyring.New(dedupe.DomainID{1})}})
	},
}
