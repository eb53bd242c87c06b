package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// On a sound file system nothing is found.
func TestSoundFilePasses(t *testing.T) {
	dir := t.TempDir()
	paths := []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
	if err := run(t.Context(), options{seed: 3, ops: 2000, size: 1 << 20}, paths); err != nil {
		t.Error(err)
	}
	if err := run(t.Context(), options{seed: 4, ops: 500, size: 128 << 10, fixed: true}, paths[:1]); err != nil {
		t.Error(err)
	}
	if err := run(t.Context(), options{seed: 5, duration: 10 * time.Millisecond, size: 128 << 10}, paths[:1]); err != nil {
		t.Error(err)
	}
}

// Damage is found, and said where.
func TestDamageIsFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a")
	x, err := open(path, options{size: 1 << 20}, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer x.close()
	for range 300 {
		if err := x.step(); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{x.want[1000] ^ 1}, 1000); err != nil {
		t.Fatal(err)
	}
	if err := x.check(); err == nil || !strings.Contains(err.Error(), "WRONG DATA: 1 bytes differ, the first at 1000") {
		t.Errorf("error %v, want that one byte at 1000 differs", err)
	}
	if err := f.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	if err := x.check(); err == nil || !strings.Contains(err.Error(), "has 4096 bytes") {
		t.Errorf("error %v, want the size", err)
	}
}
