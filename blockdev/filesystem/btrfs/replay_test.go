package btrfs_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem/btrfs"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// replaySeed is for a machine that may be restarted: a Linux 6.18.44 died in its own
// replay of a copy of seed 1 (nodes of 4k), and sync(2) did not return any more.
var replaySeed = flag.Uint64("replay-seed", 0, "the changes of TestReplay: another number, other changes; the kernel may not survive them")

// replayLayouts are file systems whose log is replayed.
var replayLayouts = []struct {
	name string
	mkfs []string
	data string
}{
	{"defaults", nil, ""},
	{"nodes of 4k, holes, lzo", []string{"-n", "4096", "-O", "^no-holes"}, "compress-force=lzo"},
	{"mixed, xxhash, no data checksums", []string{"-M", "--csum", "xxhash"}, "nodatasum"},
}

// TestReplay makes changes at random, syncs some files and directories, copies the
// image while it is mounted, lets the kernel replay the log of the copy, and requires
// that the reader shows the same. The image is a file of an XFS, where a reflinked
// copy is one moment, as a recovery point is.
func TestReplay(t *testing.T) {
	if !full() {
		t.Skip("make test-fs runs it: the machine's kernel replays logs of changes at random, in which one has died, and its sync(2) with it; TestCrash replays those of the conformance plan")
	}
	const rounds = 120
	for n, l := range replayLayouts {
		t.Run(l.name, func(t *testing.T) {
			outer, _ := fstest.Mount(t, fstest.Image(t, 4*gib, "mkfs.xfs", "-q", "-f", "-m", "reflink=1"), fstest.MountOptions{Type: "xfs"})
			w := newWork(t, filepath.Join(outer, "image"), l.mkfs, l.data)
			var copies []string
			for round := range rounds {
				copies = append(copies, w.crash(*replaySeed<<8|uint64(n), uint64(round)))
			}
			w.unmount() // since a copy has the same uuid
			replayed := 0
			for round, path := range copies {
				if compareReplayed(t, fmt.Sprintf("seed %d, round %d", *replaySeed, round), path, w.data) {
					replayed++
				}
			}
			t.Logf("%d of %d copies had a log", replayed, rounds)
			if replayed == 0 {
				t.Errorf("none of %d copies had a log", rounds)
			}
		})
	}
}

// TestCrash is the row of the conformance plan: files are made, removed, renamed and
// written over, each synced, and the image is copied while others go on; and again
// when the file system is frozen.
func TestCrash(t *testing.T) {
	outer, _ := fstest.Mount(t, fstest.Image(t, 4*gib, "mkfs.xfs", "-q", "-f", "-m", "reflink=1"), fstest.MountOptions{Type: "xfs"})
	w := newWork(t, filepath.Join(outer, "image"), nil, "")
	w.rnd = rand.New(rand.NewPCG(7, 7))
	at := func(name string, i int) string { return filepath.Join(w.dir, name, fmt.Sprint(i)) }
	write := func(path string, synced bool) {
		f, err := os.Create(path)
		w.must(err)
		_, err = f.Write(bytes.Repeat([]byte(path), w.rnd.IntN(2000)))
		w.must(err)
		if synced {
			w.must(f.Sync())
		}
		w.must(f.Close())
	}
	w.must(os.Mkdir(at("", 0), 0o755))
	for i := range 200 {
		write(at("0", i), false)
	}
	fstest.Run(t, "sync", "-f", w.dir)
	made := 20
	if full() {
		made = 100
	}
	for i := range made {
		w.must(os.Mkdir(at("b", 1000+i), 0o755))
		write(at("b", 1000+i)+"/file", true)
	}
	for i := range 200 {
		switch {
		case i < 67:
			w.must(os.Remove(at("0", i)))
		case i < 134:
			w.must(os.Rename(at("0", i), at("0", 1000+i)))
			if full() || i%5 == 0 {
				w.syncPath(at("0", 1000+i))
			}
		default:
			write(at("0", i), full() || i%5 == 0)
		}
	}
	w.syncPath(at("", 0))
	stop := make(chan struct{})
	var busy sync.WaitGroup
	busy.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				write(filepath.Join(w.dir, "b", fmt.Sprint("busy", i%50)), i%3 == 0)
			}
		}
	})
	time.Sleep(200 * time.Millisecond)
	fstest.Run(t, "cp", "--reflink=always", w.image, w.image+"-busy")
	close(stop)
	busy.Wait()
	fstest.Run(t, "fsfreeze", "--freeze", w.dir)
	fstest.Run(t, "cp", "--reflink=always", w.image, w.image+"-frozen")
	fstest.Run(t, "fsfreeze", "--unfreeze", w.dir)
	w.unmount()
	if !compareReplayed(t, "busy", w.image+"-busy", w.data) {
		t.Error("the copy of the busy image had no log")
	}
	if compareReplayed(t, "frozen", w.image+"-frozen", w.data) {
		t.Error("the copy of the frozen image had a log")
	}
}

func (w *work) syncPath(path string) {
	w.t.Helper()
	f, err := os.Open(path)
	w.must(err)
	w.must(f.Sync())
	w.must(f.Close())
}

// work changes a mounted file system at random.
type work struct {
	t          *testing.T
	dir, image string
	data       string
	unmount    func()
	rnd        *rand.Rand
	history    []string
	// calm: no renames, which often make an fsync commit all instead of writing a log.
	calm bool
}

func newWork(t *testing.T, image string, mkfs []string, data string) *work {
	t.Helper()
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 200<<20); err != nil {
		t.Fatal(err)
	}
	fstest.Run(t, append(append([]string{"mkfs.btrfs", "-q"}, mkfs...), image)...)
	w := &work{t: t, image: image, data: strings.Trim("commit=300,"+data, ",")}
	w.dir, w.unmount = fstest.Mount(t, image, fstest.MountOptions{Type: "btrfs", Data: w.data})
	fstest.Run(t, "btrfs", "subvolume", "create", w.dir+"/sub")
	for _, d := range []string{"a", "b", "sub/a", "sub/b", "many"} {
		w.must(os.Mkdir(filepath.Join(w.dir, d), 0o755))
	}
	writeFile(t, w.dir+"/many/one", 10)
	for i := range 40 {
		w.must(os.Link(w.dir+"/many/one", fmt.Sprintf("%s/many/%0100d", w.dir, i)))
	}
	return w
}

func (w *work) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// crash makes changes and gives the copy of an instant behind them.
func (w *work) crash(seed, round uint64) string {
	w.t.Helper()
	w.rnd = rand.New(rand.NewPCG(seed, round))
	w.calm = round%3 != 0
	for range w.rnd.IntN(60) {
		w.change()
	}
	w.history = nil
	fstest.Run(w.t, "sync", "-f", w.dir)
	for range 1 + w.rnd.IntN(8) {
		for range 1 + w.rnd.IntN(10) {
			w.change()
		}
		w.sync()
	}
	copied := fmt.Sprint(w.image, "-copy", round)
	fstest.Run(w.t, "cp", "--reflink=always", w.image, copied)
	w.must(os.WriteFile(copied+".history", []byte(strings.Join(w.history, "\n")), 0o600))
	return copied
}

// places are the directories in which names are made, some of which come and go.
var places = []string{"a", "b", "a/x", "b/y", "a/x/z", "sub/a", "sub/b", "sub/a/x", "many"}

func (w *work) place() string { return filepath.Join(w.dir, places[w.rnd.IntN(len(places))]) }

func (w *work) file() string { return filepath.Join(w.place(), fmt.Sprint("f", w.rnd.IntN(6))) }

// change makes one change; what cannot be done, as nothing is there, is left out.
func (w *work) change() {
	w.t.Helper()
	what, err := w.tryChange()
	for _, usual := range []error{unix.ENOENT, unix.EEXIST, unix.ENOTEMPTY, unix.EISDIR, unix.ENOTDIR, unix.EXDEV, unix.EINVAL, unix.ENODATA,
		unix.ENXIO, unix.EACCES, unix.ELOOP, unix.EPERM, unix.EOPNOTSUPP} {
		if errors.Is(err, usual) {
			return
		}
	}
	if err != nil {
		w.t.Fatalf("%s: %v", what, err)
	}
	w.history = append(w.history, strings.ReplaceAll(what, w.dir, ""))
}

func (w *work) tryChange() (string, error) {
	a, b := w.file(), w.file()
	what := w.rnd.IntN(20)
	if w.calm && (what == 7 || what == 8 || what == 9 || what == 14) {
		what = 0
	}
	switch what {
	case 0, 1, 2, 3:
		return w.writeAt(a)
	case 4:
		size := w.rnd.Int64N(300000)
		return fmt.Sprint("truncate ", a, size), os.Truncate(a, size)
	case 5, 6:
		return "remove " + a, os.Remove(a)
	case 7, 8:
		return "rename " + a + " " + b, os.Rename(a, b)
	case 9:
		return "exchange " + a + " " + b, unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	case 10, 11:
		return "link " + a + " " + b, os.Link(a, b)
	case 12:
		return "symlink " + a, os.Symlink("target of "+filepath.Base(a), a)
	case 13:
		d := w.place()
		return "mkdir " + d, os.Mkdir(d, 0o755)
	case 14:
		d := filepath.Join(w.dir, []string{"a/x", "b/y", "a/x/z", "sub/a/x"}[w.rnd.IntN(4)])
		if w.rnd.IntN(2) == 0 {
			to := filepath.Join(w.dir, []string{"a/x", "b/y", "a/x/z", "sub/a/x"}[w.rnd.IntN(4)])
			return "rename directory " + d + " " + to, os.Rename(d, to)
		}
		return "rmdir " + d, unix.Rmdir(d)
	case 15:
		name := fmt.Sprint("user.", w.rnd.IntN(4))
		if w.rnd.IntN(2) == 0 {
			return "removexattr " + a + " " + name, unix.Removexattr(a, name)
		}
		return "setxattr " + a + " " + name, unix.Setxattr(a, name, bytes.Repeat([]byte{'v'}, w.rnd.IntN(300)), 0)
	case 16:
		return "chmod " + a, os.Chmod(a, os.FileMode(w.rnd.IntN(0o777)))
	case 17:
		return "mknod " + a, unix.Mknod(a, unix.S_IFCHR|0o600, int(unix.Mkdev(7, uint32(w.rnd.IntN(1<<20)))))
	case 18:
		return w.allocate(a)
	}
	name := fmt.Sprintf("%s/many/%0100d", w.dir, w.rnd.IntN(60))
	if w.rnd.IntN(2) == 0 {
		return "remove " + name, os.Remove(name)
	}
	return "link " + name, os.Link(w.dir+"/many/one", name)
}

func (w *work) writeAt(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return "open", err
	}
	defer f.Close() // what was written is synced or not
	if s, err := f.Stat(); err != nil || !s.Mode().IsRegular() {
		return "open", errors.Join(err, unix.EINVAL)
	}
	p := make([]byte, w.rnd.IntN(1<<w.rnd.IntN(18)))
	fill := byte(w.rnd.Uint32())
	for i := range p {
		p[i] = fill + byte(i>>7)*byte(i%3)
	}
	off := int64(0)
	if w.rnd.IntN(2) == 0 {
		off = w.rnd.Int64N(200000)
	}
	_, err = f.WriteAt(p, off)
	return fmt.Sprint("write ", path, " ", len(p), " at ", off), err
}

func (w *work) allocate(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "open", err
	}
	defer f.Close() // as above
	mode := []uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE}[w.rnd.IntN(4)]
	off, n := w.rnd.Int64N(300000), 1+w.rnd.Int64N(100000)
	return fmt.Sprint("fallocate ", path, " mode ", mode, " ", n, " at ", off), unix.Fallocate(int(f.Fd()), mode, off, n)
}

// sync syncs a file or directory.
func (w *work) sync() {
	w.t.Helper()
	for range 20 { // many names are not there
		path := w.file()
		if w.rnd.IntN(3) == 0 {
			path = w.place()
		}
		s, err := os.Lstat(path)
		if err == nil && (s.IsDir() || s.Mode().IsRegular()) {
			w.syncPath(path)
			w.history = append(w.history, "fsync "+strings.ReplaceAll(path, w.dir, ""))
			return
		}
	}
}

// compareReplayed requires of the reader what the kernel shows of a copy whose log it
// replayed, and tells whether there was one.
func compareReplayed(t *testing.T, what, path, data string) bool {
	t.Helper()
	history := func() string {
		p, _ := os.ReadFile(path + ".history")
		return string(p)
	}
	f, size := fstest.Open(t, path)
	fs, err := btrfs.Open(f, size)
	if err != nil {
		t.Errorf("%s: %v\n%s", what, err, history())
		return false
	}
	state := fs.Info().State
	if !state.Clean {
		t.Errorf("%s: %s\n%s", what, state.Reason, history())
		return false
	}
	got, err := fstest.FromFS(fs)
	if err != nil {
		t.Errorf("%s: %v\n%s", what, err, history())
		return false
	}
	// The reader is done; the kernel may change the copy.
	mounted := time.Now().Add(-10 * time.Millisecond)
	dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "btrfs", Data: data})
	defer unmount()
	want, err := manifest(dir, 0, got)
	if err != nil {
		t.Fatal(err)
	}
	withoutMountTimes(want, got, mounted)
	diffs := fstest.Diff(want, got, fstest.FieldAtime)
	for i, d := range diffs {
		if i == 20 {
			t.Errorf("%s: and %d more", what, len(diffs)-i)
			break
		}
		t.Errorf("%s: %s", what, d)
	}
	if len(diffs) > 0 {
		t.Logf("%s: %s\n%s", what, state.Reason, history())
	}
	return strings.Contains(state.Reason, "replayed")
}

// withoutMountTimes takes over what the reader has where the kernel has the time at
// which it replayed the log: it unlinks names at that time.
func withoutMountTimes(want, got fstest.Manifest, mounted time.Time) {
	for path, e := range want {
		g := got[path].Attr
		fix := func(at *time.Time, ours time.Time) {
			if at.After(mounted) {
				*at = ours
			}
		}
		fix(&e.Attr.Mtime, g.Mtime)
		fix(&e.Attr.Ctime, g.Ctime)
		want[path] = e
	}
}
