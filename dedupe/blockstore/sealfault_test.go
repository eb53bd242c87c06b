package blockstore_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
)

// A full pack that cannot be sealed fails its batch and leaves no file that the index does
// not know, without an unclean stop: not of a new pack, and not of one that has committed
// records, which stay. What is dead in it is collected.
func TestPackThatCannotBeSealedIsRolledBack(t *testing.T) {
	t.Parallel()
	for _, op := range []string{"truncate", "sync", "index"} {
		for _, fresh := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, fresh %v", op, fresh), func(t *testing.T) {
				t.Parallel()
				var armed atomic.Bool
				o := crashOptions
				o.Compression = blockstore.CompressionNone
				dir := newVault(t, o)
				hooked := o.WithHook(func(what, name string) error {
					if armed.Load() && what == op && strings.HasSuffix(name, ".pack") {
						return unix.EIO
					}
					return nil
				})
				s := mustOpen(t, dir, hooked)
				want := make(map[dedupe.Digest]bool)
				if !fresh {
					id, err := writeTree(t.Context(), s, "before", []uint64{1, 2, 3})
					if err != nil {
						t.Fatal(err)
					}
					want[id] = true
				}
				armed.Store(true)
				if op == "index" {
					s.OnIndexWrite(func() error { return unix.EIO })
				}
				b := dedupetest.Begin(t, s)
				p := make([]byte, s.BlockSize())
				var err error
				for i := uint64(0); err == nil && i < 2000; i++ {
					dedupetest.FillBlock(p, 1<<40+i)
					_, err = b.PutBlock(t.Context(), p)
				}
				if err == nil {
					_, err = b.Commit(t.Context(), dedupe.Publication{})
				}
				if !errors.Is(err, unix.EIO) {
					t.Fatalf("the batch: %v", err)
				}
				if err := b.Abort(); err != nil && op != "truncate" {
					t.Errorf("abort: %v", err)
				}
				armed.Store(false)
				s.OnIndexWrite(nil)
				id, err := writeTree(t.Context(), s, "after", []uint64{4, 5, 6})
				if err != nil {
					t.Fatal(err)
				}
				want[id] = true
				if _, err := collectTrees(t.Context(), s, blockstore.CollectOptions{}, nil); err != nil {
					t.Fatal(err)
				}
				mustClose(t, s)
				s = openVault(t, dir, o)
				known, err := s.PackIDs()
				if err != nil {
					t.Fatal(err)
				}
				for _, path := range glob(t, dir, "packs/*.pack") {
					if id := strings.TrimSuffix(filepath.Base(path), ".pack"); !slices.Contains(known, id) {
						t.Errorf("pack %s is left, and the index does not know it", id)
					}
				}
				limit := int64(512 << 10)
				if op == "truncate" && !fresh {
					limit += o.PackBytes // it is retired as it is, until nothing in it is live
				}
				if total, err := s.PackFileBytes(); err != nil || total > limit {
					t.Errorf("%d bytes in packs of few blocks: %v", total, err)
				}
				if err := errors.Join(checkTrees(s, want), s.CheckIndex()); err != nil {
					t.Error(err)
				}
			})
		}
	}
}
