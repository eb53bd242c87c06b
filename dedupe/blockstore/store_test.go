package blockstore_test

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/keyring"
)

// newVault makes a vault in a folder of its own.
func newVault(t testing.TB, o blockstore.Options) string {
	t.Helper()
	dir := t.TempDir()
	if err := blockstore.Create(dir, o); err != nil {
		t.Fatalf("create: %v", err)
	}
	return dir
}

// memoryDir is a folder that goes with the test, in memory where there is much of it: for
// tests that stop a vault by copying it, or by an error, which prove nothing about a disk
// and would mostly wait for one.
func memoryDir(t testing.TB) string {
	t.Helper()
	const memory, room = "/dev/shm", 4 << 30
	var st unix.Statfs_t
	if err := unix.Statfs(memory, &st); err != nil || st.Type != unix.TMPFS_MAGIC || int64(st.Bavail)*st.Bsize < room {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(memory, "keelblock-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// openVault opens a vault and closes it when the test ends.
func openVault(t testing.TB, dir string, o blockstore.Options) *blockstore.Store {
	t.Helper()
	s, err := blockstore.Open(dir, o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		o    blockstore.Options
	}{
		{"default", blockstore.Options{}},
		{"small blocks and packs", blockstore.Options{BlockSize: dedupe.MinBlockSize, PackBytes: blockstore.MinPackBytes}},
		{"large blocks, zstd", blockstore.Options{BlockSize: dedupe.MaxBlockSize, PackBytes: 2 * blockstore.MinPackBytes, Compression: blockstore.CompressionZstd}},
		{"encrypted", encrypted(blockstore.Options{})},
		{"encrypted, small blocks and packs, zstd", encrypted(blockstore.Options{BlockSize: dedupe.MinBlockSize, PackBytes: blockstore.MinPackBytes, Compression: blockstore.CompressionZstd})},
		{"encrypted, large blocks", encrypted(blockstore.Options{BlockSize: dedupe.MaxBlockSize, PackBytes: 2 * blockstore.MinPackBytes})},
		{"encrypted, raw", encrypted(blockstore.Options{BlockSize: dedupe.MinBlockSize, Compression: blockstore.CompressionNone})},
		{"ids of the first vaults", blockstore.Options{}.WithWholeDigests()},
		{"ids of the first vaults, encrypted", blockstore.Options{Keys: []*keyring.Keys{keyring.NewWhole(dedupe.DomainID{2})}}},
		{"raw", blockstore.Options{BlockSize: dedupe.MinBlockSize, Compression: blockstore.CompressionNone}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dedupetest.Run(t, func(t *testing.T) dedupe.Store { return openVault(t, newVault(t, tt.o), tt.o) })
		})
	}
}
