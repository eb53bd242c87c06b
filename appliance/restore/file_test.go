package restore

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// What the daemon writes to is an empty file that is open for writing, and nothing else.
func TestUnsuitableFiles(t *testing.T) {
	dir := t.TempDir()
	full := filepath.Join(dir, "full")
	if err := os.WriteFile(full, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(name string, flags int) *os.File {
		t.Helper()
		f, err := os.OpenFile(name, flags, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	for name, f := range map[string]*os.File{
		"a file with content":          open(full, os.O_RDWR),
		"a file open for reading":      open(filepath.Join(dir, "read"), os.O_RDONLY|os.O_CREATE),
		"a file open for appending":    open(filepath.Join(dir, "append"), os.O_RDWR|os.O_CREATE|os.O_APPEND),
		"a folder":                     open(dir, os.O_RDONLY),
		"a device":                     open(os.DevNull, os.O_RDWR),
		"a file of no disk's, in proc": open("/proc/self/comm", os.O_RDWR),
	} {
		if err := suitable(f); !errors.Is(err, ErrUnsuitable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The temporary folder's own file system may be none of those that are written to.
	memory := "/dev/shm"
	if st, err := os.Stat(memory); err != nil || !st.IsDir() {
		t.Skipf("no %s here", memory)
	}
	f, err := os.CreateTemp(memory, "keelblock-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close(); _ = os.Remove(f.Name()) })
	if err := suitable(f); err != nil {
		t.Errorf("an empty file in memory: %v", err)
	}
}
