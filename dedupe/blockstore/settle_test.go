package blockstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// killed is what a kill left of a vault: its locations, its options and what is committed.
type killed struct {
	root   string
	dirs   []string
	o      blockstore.Options
	points []dedupe.Digest
}

// newKilled makes a vault at n locations with two points and a batch that never ended. When
// sealed is set the packs were sealed by the process that was killed, and the index does not
// know yet.
func newKilled(t testing.TB, n int, sealed bool) *killed {
	t.Helper()
	origin := filepath.Join(memoryDir(t), "vault")
	k := &killed{root: filepath.Join(memoryDir(t), "killed"), o: crashOptions}
	k.dirs = folders(t, k.root, n)
	dirs, o := folders(t, origin, n), crashOptions
	newVaultAt(t, o, dirs)
	s, err := blockstore.Open(dirs[0], o)
	if err != nil {
		t.Fatal(err)
	}
	k.points = []dedupe.Digest{writePoint(t, s, "one", []uint64{1, 2, 3}), writePoint(t, s, "two", []uint64{4, 5})}
	if sealed {
		copyTree(t, origin, k.root)
		mustClose(t, s)
		for i := range dirs {
			copyTree(t, filepath.Join(dirs[i], "packs"), filepath.Join(k.dirs[i], "packs"))
		}
	} else {
		b := dedupetest.Begin(t, s)
		if _, err := putPoint(context.Background(), s, b, "never", []uint64{6, 7, 8}); err != nil {
			t.Fatal(err)
		}
		copyTree(t, origin, k.root)
		mustClose(t, s)
	}
	k.o.Locations = k.dirs[1:]
	return k
}

// again is a copy of k.
func (k *killed) again(t testing.TB) *killed {
	t.Helper()
	next := *k
	next.root = filepath.Join(memoryDir(t), "again")
	copyTree(t, k.root, next.root)
	next.dirs = folders(t, next.root, len(k.dirs))
	next.o.Locations = next.dirs[1:]
	return &next
}

func (k *killed) packs(t testing.TB) (list []string) {
	t.Helper()
	for _, dir := range k.dirs {
		list = append(list, glob(t, dir, "packs/*.pack")...)
	}
	return list
}

// check opens the vault and reads its points, with all copies and from each one alone.
func (k *killed) check() error {
	if err := reopen(k.dirs[0], k.o, k.points); err != nil {
		return err
	}
	return sameCopies(k.dirs)
}

// What stands in a pack that a start or a rebuilt index is to believe was synced by it, at
// every location: the process that wrote it, seal and all, may have been killed before that,
// and copies that are equal may be so in the page cache alone.
func TestFoundPacksAreSynced(t *testing.T) {
	t.Parallel()
	for _, sealed := range []bool{true, false} {
		for n := 1; n <= 2; n++ {
			for _, rebuild := range []bool{true, false} {
				t.Run(fmt.Sprintf("%d locations, sealed %v, rebuilt %v", n, sealed, rebuild), func(t *testing.T) {
					t.Parallel()
					k := newKilled(t, n, sealed)
					var mu sync.Mutex
					dirty := make(map[string]bool)
					for _, path := range k.packs(t) {
						dirty[path] = true
					}
					hooked := k.o.WithHook(func(op, name string) error {
						mu.Lock()
						defer mu.Unlock()
						switch op {
						case "write", "truncate", "create":
							dirty[name] = true
						case "sync", "remove":
							delete(dirty, name)
						case "rename": // what is renamed was synced before
							delete(dirty, name)
						}
						return nil
					})
					if rebuild {
						if err := blockstore.RebuildIndex(t.Context(), k.dirs[0], hooked, nil); err != nil {
							t.Fatal(err)
						}
					} else {
						mustClose(t, mustOpen(t, k.dirs[0], hooked))
					}
					for path := range dirty {
						if _, err := os.Stat(path); err == nil && strings.HasSuffix(path, ".pack") {
							t.Errorf("%s is believed and was not synced", path)
						}
					}
					if err := k.check(); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
}

// After a kill a rebuilt index has sealed packs, without the room that was allocated for
// more, at each location; also when the rebuild fails at any of its steps and is run again.
func TestRebuildSealsPacks(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 2; n++ {
		t.Run(fmt.Sprintf("%d locations", n), func(t *testing.T) {
			t.Parallel()
			origin := newKilled(t, n, false)
			fault := errors.New("stopped here")
			for at := 1; ; at += 1 + at/8 { // later ones are much the same
				k := origin.again(t)
				calls := 0
				var mu sync.Mutex
				err := blockstore.RebuildIndex(t.Context(), k.dirs[0], k.o.WithHook(func(string, string) error {
					mu.Lock()
					defer mu.Unlock()
					if calls++; calls == at {
						return fault
					}
					return nil
				}), nil)
				if err == nil && calls >= at && n == 1 {
					t.Errorf("call %d failed, and the rebuild did not", at)
				}
				if err := blockstore.RebuildIndex(t.Context(), k.dirs[0], k.o, nil); err != nil {
					t.Fatalf("call %d: again: %v", at, err)
				}
				if calls < at {
					k.wantSealed(t)
				}
				s := mustOpen(t, k.dirs[0], k.o)
				repair(t, s)
				mustClose(t, s)
				if err := k.check(); err != nil {
					t.Fatalf("call %d: %v", at, err)
				}
				if calls < at {
					t.Logf("%d calls", calls)
					return
				}
			}
		})
	}
}

// wantSealed compares the packs with what their footers list.
func (k *killed) wantSealed(t testing.TB) {
	t.Helper()
	for _, path := range k.packs(t) {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		footer, err := pack.ReadFooter(f, st.Size())
		_ = f.Close() // only read
		if err != nil || len(footer.Entries) == 0 {
			t.Errorf("%s of %d bytes: %v", path, st.Size(), err)
		}
	}
}

// A rebuild cuts nothing off: what stands behind the last record that verifies may be the
// rest of a damaged one, and good ones behind it.
func TestRebuildKeepsWhatIsBehindDamage(t *testing.T) {
	t.Parallel()
	k := newKilled(t, 2, false)
	path := k.packs(t)[0]
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	writeAt(t, path, st.Size()-1000, []byte("something"))
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := blockstore.RebuildIndex(t.Context(), k.dirs[0], k.o, nil); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("%s has %d bytes, want the %d it had: %v", path, len(after), len(before), err)
	}
	s := openVault(t, k.dirs[0], k.o)
	if err := checkStore(s, k.points); err != nil {
		t.Error(err)
	}
}

// A location whose sync failed may look whole, from the page cache: a repair takes its copies
// for whole only once they are synced, or writes them anew.
func TestRepairSyncsWhatLooksWhole(t *testing.T) {
	t.Parallel()
	dirs := folders(t, memoryDir(t), 2)
	o := crashOptions
	newVaultAt(t, o, dirs)
	o.Locations = dirs[1:]
	var mu sync.Mutex
	var failing atomic.Bool
	done := make(map[string]bool)
	hooked := o.WithHook(func(op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		if op != "sync" && op != "rename" || !strings.HasPrefix(name, dirs[1]) {
			return nil
		}
		if failing.Load() && strings.HasSuffix(name, ".pack") {
			return errors.New("the disk does not answer")
		}
		done[name] = true
		return nil
	})
	s := mustOpen(t, dirs[0], hooked)
	id := writePoint(t, s, "one", []uint64{1, 2, 3})
	failing.Store(true)
	mustClose(t, s) // which seals the packs
	failing.Store(false)
	alike := 0 // the first pack that was sealed
	for _, path := range glob(t, dirs[1], "packs/*.pack") {
		text, err := os.ReadFile(path)
		other, oerr := os.ReadFile(filepath.Join(dirs[0], "packs", filepath.Base(path)))
		if err := errors.Join(err, oerr); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(text, other) {
			alike++
		}
	}
	if alike == 0 {
		t.Fatal("no pack looks whole")
	}
	s = mustOpen(t, dirs[0], hooked)
	wantStates(t, s, "in out")
	clear(done)
	repair(t, s)
	for _, path := range glob(t, dirs[1], "packs/*.pack") {
		if !done[path] {
			t.Errorf("%s counts as whole and was not synced", path)
		}
	}
	wantStates(t, s, "in in")
	mustClose(t, s)
	if err := oneLocation(dirs[1], o, func(s *blockstore.Store) error { return checkStore(s, []dedupe.Digest{id}) }); err != nil {
		t.Error(err)
	}
}
