package xfs_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
	"github.com/keelblock/keelblock/blockdev/filesystem/xfs"
)

// crashLayouts are file systems whose log is recovered.
var crashLayouts = []struct {
	name string
	mkfs []string
}{
	{"defaults", []string{"-m", "rmapbt=1"}},
	{"1k, directory blocks of 8k, nrext64", []string{"-b", "size=1024", "-n", "size=8192", "-i", "nrext64=1", "-m", "rmapbt=1"}},
	{"log stripe of 256k", []string{"-l", "size=64m,su=262144", "-d", "agcount=2,su=65536,sw=2"}},
	{"sectors of 4k, no reflink", []string{"-s", "size=4096", "-m", "reflink=0,bigtime=0,finobt=0", "-i", "sparse=0"}},
}

// TestRecovery copies an image while it is mounted and busy, lets the kernel recover
// the copy, and requires that the reader shows the same. The image is a file of
// another XFS, where a reflinked copy is one moment, as a recovery point is.
func TestRecovery(t *testing.T) {
	rounds := 1
	if full() {
		rounds = 8
	}
	for _, l := range crashLayouts {
		t.Run(l.name, func(t *testing.T) {
			outer, _ := fstest.Mount(t, fstest.Image(t, 4*gib, "mkfs.xfs", "-q", "-f", "-m", "reflink=1"), fstest.MountOptions{Type: "xfs"})
			path := filepath.Join(outer, "image")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, shortSize); err != nil {
				t.Fatal(err)
			}
			fstest.Run(t, append(append([]string{"mkfs.xfs", "-q", "-f"}, l.mkfs...), path)...)
			dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "xfs"})
			w := &work{t: t, dir: dir, image: path, rnd: rand.New(rand.NewPCG(1, 2))}
			w.old()
			for round := range rounds {
				copied := w.crash(round)
				compareRecovered(t, fmt.Sprint("round ", round), copied)
				if err := os.Remove(copied); err != nil {
					t.Fatal(err)
				}
			}
			unmount()
		})
	}
}

// work changes a mounted file system.
type work struct {
	t          *testing.T
	dir, image string
	rnd        *rand.Rand
}

func (w *work) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *work) path(parts ...any) string {
	var names []string
	for _, p := range parts {
		names = append(names, fmt.Sprint(p))
	}
	return filepath.Join(append([]string{w.dir}, names...)...)
}

func (w *work) write(path string, n int, synced bool) {
	w.t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	w.must(err)
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(w.rnd.Uint32())
	}
	_, err = f.Write(p)
	w.must(err)
	if synced {
		w.must(f.Sync())
	}
	w.must(f.Close())
}

// old makes what is there before.
func (w *work) old() {
	w.must(os.Mkdir(w.path("old"), 0o755))
	for i := range 200 {
		w.write(w.path("old", i), w.rnd.IntN(20000), false)
	}
	fstest.SyncFS(w.t, w.path("old"))
}

// crash does the work of a round and copies the image while more is going on.
func (w *work) crash(round int) string {
	w.t.Helper()
	for i := range 100 {
		d := w.path(fmt.Sprint("new", round, "-", i))
		w.must(os.Mkdir(d, 0o755))
		for j := range 3 {
			w.write(filepath.Join(d, fmt.Sprint(j)), w.rnd.IntN(9000), full() || i%8+j == 0)
		}
	}
	for i := range 67 {
		n := w.path("old", i+round)
		if err := os.Remove(n); err != nil && !os.IsNotExist(err) {
			w.t.Fatal(err)
		}
	}
	for i := 67; i < 134; i++ {
		n := w.path("old", i)
		if _, err := os.Stat(n); err == nil {
			w.must(os.Rename(n, w.path(fmt.Sprint("renamed", round, "-", i))))
		}
	}
	for i := 134; i < 200; i++ {
		w.write(w.path("old", i), w.rnd.IntN(30000), full() || i%8 == 0)
	}
	w.special(round)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for k := range 2 {
		wg.Go(func() { w.busy(k, round, stop) })
	}
	time.Sleep(200 * time.Millisecond)
	copied := fmt.Sprint(w.image, "-copy", round)
	fstest.Run(w.t, "cp", "--reflink=always", w.image, copied)
	close(stop)
	wg.Wait()
	return copied
}

// special makes what needs other items and forms: trees of extents and attributes,
// large directories, links, shared extents, freed directories.
func (w *work) special(round int) {
	w.t.Helper()
	f, err := os.Create(w.path(fmt.Sprint("tree", round)))
	w.must(err)
	for i := range 300 {
		_, err := f.WriteAt([]byte("some data"), int64(i)*8192)
		w.must(err)
	}
	w.must(f.Sync())
	w.must(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 80000, 300000))
	w.must(f.Sync())
	w.must(f.Close())
	big := w.path(fmt.Sprint("dir", round))
	w.must(os.Mkdir(big, 0o755))
	for i := range 900 {
		w.must(os.WriteFile(filepath.Join(big, fmt.Sprintf("%s%04d", strings.Repeat("n", 60), i)), nil, 0o600))
	}
	for i := range 700 {
		w.must(os.Remove(filepath.Join(big, fmt.Sprintf("%s%04d", strings.Repeat("n", 60), i))))
	}
	x := w.path(fmt.Sprint("attributes", round))
	w.write(x, 100, false)
	for i := range 50 {
		w.must(unix.Setxattr(x, fmt.Sprint("user.", i), bytes.Repeat([]byte{byte(i)}, 150), 0))
	}
	w.must(unix.Setxattr(x, "user.remote", bytes.Repeat([]byte("r"), 12000), 0))
	for _, n := range []int{10, 300, 1000} {
		w.must(os.Symlink(strings.Repeat("s", n), w.path(fmt.Sprint("link", round, "-", n))))
	}
	w.must(unix.Mknod(w.path(fmt.Sprint("node", round)), unix.S_IFCHR|0o600, int(unix.Mkdev(5, 6))))
	if out, err := exec.Command("cp", "--reflink=auto", w.path(fmt.Sprint("tree", round)), w.path(fmt.Sprint("shared", round))).CombinedOutput(); err != nil {
		w.t.Fatalf("cp: %v %s", err, out)
	}
	w.write(w.path(fmt.Sprint("last", round)), 5000, true)
}

// busy works until stop is closed.
func (w *work) busy(k, round int, stop chan struct{}) {
	rnd := rand.New(rand.NewPCG(uint64(k), uint64(round)))
	dir := w.path(fmt.Sprint("busy", round, "-", k))
	if err := os.Mkdir(dir, 0o755); err != nil {
		w.t.Error(err)
		return
	}
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		name := filepath.Join(dir, fmt.Sprint(rnd.IntN(200)))
		var err error
		switch rnd.IntN(5) {
		case 0:
			if err = os.Remove(name); os.IsNotExist(err) {
				err = nil
			}
		case 1:
			if err = os.Rename(name, filepath.Join(dir, fmt.Sprint(rnd.IntN(200)))); os.IsNotExist(err) {
				err = nil
			}
		default:
			var f *os.File
			if f, err = os.Create(name); err == nil {
				_, err = f.Write(bytes.Repeat([]byte{byte(n)}, rnd.IntN(50000)))
				if err == nil && rnd.IntN(4) == 0 {
					err = f.Sync()
				}
				f.Close()
			}
		}
		if err != nil {
			w.t.Error(err)
			return
		}
	}
}

// compareRecovered requires of the reader what the kernel shows of a copy that it
// recovered.
func compareRecovered(t *testing.T, what, path string) {
	t.Helper()
	f, size := fstest.Open(t, path)
	fs, err := xfs.Open(f, size)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	state := fs.Info().State
	if !state.Clean {
		t.Errorf("%s: %s", what, state.Reason)
		return
	}
	got, err := fstest.FromFS(fs)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	// The reader is done; the kernel may change the copy.
	dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "xfs", Data: "nouuid"})
	defer unmount()
	want, err := fstest.FromDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	// The kernel keeps some blocks back, of a small file system many, and frees files
	// that were open when they were removed.
	if free, kernel := fs.Info().BlocksFree, st.Bfree; st.Blocks > 1<<15 && (free < kernel*9/10 || free > kernel+kernel/10+st.Blocks/20) {
		t.Errorf("%s: %d blocks free, the kernel has %d of %d", what, free, kernel, st.Blocks)
	}
	diffs := fstest.Diff(want, got, fstest.FieldAtime)
	t.Logf("%s: %d names, %d differences; %s", what, len(want), len(diffs), state.Reason)
	for i, d := range diffs {
		if i == 20 {
			t.Errorf("%s: and %d more", what, len(diffs)-i)
			break
		}
		t.Errorf("%s: %s", what, d)
	}
}
