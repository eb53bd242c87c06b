package ext_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/ext"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// rounds is how many instants of each busy file system are judged; ROUNDS= sets it.
func rounds(t *testing.T, short int) int {
	if s := os.Getenv("ROUNDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("ROUNDS=%s: %v", s, err)
		}
		return n
	}
	return short
}

// busy is a file system at work, on a file system of its own that can be frozen:
// while it is, the image stands still.
type busy struct {
	t         *testing.T
	host, dir string
	image     string
	stop      chan struct{}
	done      chan error
	unmount   func()
}

// startBusy makes an image, lets prepare fill it, and then changes it without end.
func startBusy(t *testing.T, size int64, mkfs []string, data string, seed uint64) *busy {
	t.Helper()
	host := fstest.Image(t, size+(48<<20), "mkfs.ext4", "-q", "-F", "-O", "^has_journal")
	hostDir, _ := fstest.Mount(t, host, fstest.MountOptions{Type: "ext4"})
	b := &busy{t: t, host: hostDir, image: filepath.Join(hostDir, "image"), stop: make(chan struct{}), done: make(chan error, 1)}
	if err := os.WriteFile(b.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(b.image, size); err != nil {
		t.Fatal(err)
	}
	fstest.Run(t, append(mkfs[:len(mkfs):len(mkfs)], "-q", "-F", b.image)...)
	b.dir, b.unmount = fstest.Mount(t, b.image, fstest.MountOptions{Type: "ext4", Data: data})
	w := &worker{dir: b.dir, rnd: rand.New(rand.NewPCG(seed, 1))}
	if err := w.old(); err != nil {
		t.Fatal(err)
	}
	fstest.SyncFS(t, b.dir)
	go func() { b.done <- w.work(b.stop) }()
	t.Cleanup(b.end)
	return b
}

// end stops the work; the end of the test calls it too, before it unmounts.
func (b *busy) end() {
	if b.stop == nil {
		return
	}
	close(b.stop)
	b.stop = nil
	if err := <-b.done; err != nil {
		b.t.Errorf("the workload: %v", err)
	}
	b.unmount()
}

// snapshot copies the image as it is at one instant.
func (b *busy) snapshot(to string) {
	b.t.Helper()
	freeze(b.t, b.host, func() { copyImage(b.t, b.image, to) })
}

func copyImage(t *testing.T, from, to string) {
	t.Helper()
	fstest.Run(t, "cp", "--sparse=always", from, to)
}

// worker changes a file system as the plan says: 200 old files; then, over and over,
// 100 new directories with files, 67 unlinks, 67 renames and 66 rewrites, each
// followed by fsync.
type worker struct {
	dir   string
	rnd   *rand.Rand
	files []string
	next  int
}

func (w *worker) path(name string) string { return filepath.Join(w.dir, name) }

// content is text or, now and then, blocks that begin with the journal's magic, which
// a journal has to escape.
func (w *worker) content() []byte {
	n := w.rnd.IntN(20000)
	if w.rnd.IntN(3) == 0 {
		return []byte(strings.Repeat("\xC0\x3B\x39\x98\x00\x00\x00\x01"+strings.Repeat("x", 1016), n/1024+1))
	}
	return []byte(strings.Repeat(fmt.Sprint(w.rnd.Uint64(), " "), n/20+1))
}

func (w *worker) write(name string, flags int) error {
	f, err := os.OpenFile(w.path(name), flags|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(w.content(), w.rnd.Int64N(2)*w.rnd.Int64N(40000)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

func (w *worker) old() error {
	for i := range 200 {
		name := fmt.Sprint("old", i)
		if err := w.write(name, 0); err != nil {
			return err
		}
		w.files = append(w.files, name)
	}
	return nil
}

// syncDir makes what happened to a name durable: by fsync of its directory or of some
// file, which is a fast commit more often.
func (w *worker) syncDir(name string) error {
	if w.rnd.IntN(2) == 0 {
		return w.write("other", 0)
	}
	d, err := os.Open(filepath.Dir(w.path(name)))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// pick takes a file out of the list.
func (w *worker) pick() string {
	i := w.rnd.IntN(len(w.files))
	name := w.files[i]
	w.files[i] = w.files[len(w.files)-1]
	w.files = w.files[:len(w.files)-1]
	return name
}

func (w *worker) work(stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if err := w.step(); err != nil {
			return err
		}
	}
}

func (w *worker) step() error {
	if len(w.files) > 400 {
		return w.thin()
	}
	switch n := w.rnd.IntN(300); {
	case n < 100:
		dir := fmt.Sprint("dir", w.next)
		w.next++
		if err := os.Mkdir(w.path(dir), 0o755); err != nil {
			return err
		}
		name := filepath.Join(dir, fmt.Sprint("new", w.next))
		if err := w.write(name, 0); err != nil {
			return err
		}
		w.files = append(w.files, name)
	case n < 167:
		name := w.pick()
		if err := os.Remove(w.path(name)); err != nil {
			return err
		}
		return w.syncDir(name)
	case n < 234:
		from := w.pick()
		to := filepath.Join(filepath.Dir(from), fmt.Sprint("renamed", w.next))
		w.next++
		if err := os.Rename(w.path(from), w.path(to)); err != nil {
			return err
		}
		w.files = append(w.files, to)
		return w.syncDir(to)
	default:
		return w.rewrite(w.files[w.rnd.IntN(len(w.files))])
	}
	return nil
}

// rewrite writes a file anew or in part, cuts it, punches a hole into it, or gives it
// one more name.
func (w *worker) rewrite(name string) error {
	switch w.rnd.IntN(6) {
	case 0:
		if err := os.Truncate(w.path(name), w.rnd.Int64N(20000)); err != nil {
			return err
		}
	case 1:
		f, err := os.OpenFile(w.path(name), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, w.rnd.Int64N(20000), 1+w.rnd.Int64N(9000))
		if err != nil && err != unix.EOPNOTSUPP { // a map without extents
			return err
		}
	case 2:
		link := filepath.Join(filepath.Dir(name), fmt.Sprint("link", w.next))
		w.next++
		if err := os.Link(w.path(name), w.path(link)); err != nil {
			return err
		}
		w.files = append(w.files, link)
		return w.syncDir(link)
	}
	return w.write(name, []int{0, os.O_TRUNC}[w.rnd.IntN(2)])
}

// thin removes files and their directories: blocks of directories become free, are
// revoked and used for data.
func (w *worker) thin() error {
	for len(w.files) > 200 {
		name := w.pick()
		if err := os.Remove(w.path(name)); err != nil {
			return err
		}
		if dir := filepath.Dir(name); dir != "." {
			if err := os.Remove(w.path(dir)); err != nil && !strings.Contains(err.Error(), "not empty") {
				return err
			}
		}
	}
	return w.syncDir("x")
}

// judge compares what the reader shows of an image, which it does not change, with
// what the kernel shows after it replayed a copy. It tells the reader's state or
// error, and the kernel's manifest unless both refused the image. fast allows what
// fastCommits says of fast commits.
func judge(t *testing.T, image string, fast bool) (string, fstest.Manifest, bool) {
	t.Helper()
	copied := image + ".kernel"
	copyImage(t, image, copied)
	defer os.Remove(copied)
	_, unmount, kernelErr := fstest.TryMount(t, copied, fstest.MountOptions{Type: "ext4"})
	f, size := fstest.Open(t, image)
	fs, err := ext.Open(f, size)
	switch {
	case kernelErr != nil && err != nil:
		return err.Error(), nil, false
	case kernelErr != nil && fast && strings.Contains(fs.Info().State.Reason, "fast commits behind it have not been replayed"):
		return fs.Info().State.Reason, nil, false
	case kernelErr != nil || err != nil:
		t.Fatalf("the kernel: %v; the reader: %v", kernelErr, err)
	}
	unmount()
	state := fs.Info().State
	dir, unmount := fstest.Mount(t, copied, fstest.MountOptions{Type: "ext4", ReadOnly: true})
	defer unmount()
	want, kernelErr := fstest.FromDir(dir)
	got, err := fstest.FromFS(fs)
	switch {
	case kernelErr != nil && err != nil:
		return fmt.Sprintf("damaged: %v", err), nil, false
	case kernelErr != nil || err != nil:
		t.Fatalf("manifest of the kernel: %v; of the reader: %v (state: %+v)", kernelErr, err, state)
	}
	ignore := fstest.Fields(0)
	if fast && strings.Contains(state.Reason, "fast commits") {
		ignore = fstest.FieldBlocks
		forgiveFastCommits(t, want, got)
	}
	diffs := fstest.Diff(want, got, ignore)
	for _, d := range diffs[:min(20, len(diffs))] {
		t.Error(d)
	}
	if len(diffs) > 0 || t.Failed() || !state.Clean {
		t.Fatalf("%d differences; state: %+v", len(diffs), state)
	}
	return state.Reason, want, true
}

// forgiveFastCommits takes for right what the kernel's replay of fast commits leaves
// to the moment or leaves wrong (see fastCommits), after a check of its own: it does
// not count directories, and sets the times of directories to now.
func forgiveFastCommits(t *testing.T, want, got fstest.Manifest) {
	t.Helper()
	subdirs := make(map[string]uint32)
	for path, e := range got {
		if e.Attr.Type == filesystem.TypeDir && path != "" {
			parent := filepath.Dir(path)
			if parent == "." {
				parent = ""
			}
			subdirs[parent]++
		}
	}
	for path, e := range got {
		w, ok := want[path]
		if e.Attr.Type != filesystem.TypeDir || !ok {
			continue
		}
		if e.Attr.Nlink != 2+subdirs[path] {
			t.Errorf("%q has %d links and %d directories", path, e.Attr.Nlink, subdirs[path])
		}
		if e.Attr.Mtime.After(w.Attr.Mtime) {
			t.Errorf("%q was changed at %v, which is later than the replay", path, e.Attr.Mtime)
		}
		w.Attr.Nlink, w.Attr.Mtime, w.Attr.Ctime = e.Attr.Nlink, e.Attr.Mtime, e.Attr.Ctime
		want[path] = w
	}
}

// replayLayouts are the kinds of journals.
var replayLayouts = []struct {
	name string
	size int64
	mkfs []string
	data string
}{
	{name: "csum v3", size: 64 << 20, mkfs: []string{"mkfs.ext4"}},
	{name: "csum v3 wrapping", size: 64 << 20, mkfs: []string{"mkfs.ext4", "-J", "size=4"}},
	{name: "1k wrapping", size: 48 << 20, mkfs: []string{"mkfs.ext4", "-b", "1024", "-J", "size=1"}},
	{name: "no csum 32 bits", size: 48 << 20, mkfs: []string{"mkfs.ext4", "-O", "^metadata_csum,^64bit", "-J", "size=4"}},
	{name: "no csum 64 bits", size: 48 << 20, mkfs: []string{"mkfs.ext4", "-O", "^metadata_csum,64bit", "-J", "size=4"}},
	{name: "csum v1", size: 48 << 20, mkfs: []string{"mkfs.ext4", "-O", "^metadata_csum"}, data: "journal_checksum"},
	{name: "csum v1 async", size: 48 << 20, mkfs: []string{"mkfs.ext4", "-O", "^metadata_csum,^64bit", "-J", "size=4"}, data: "journal_async_commit,data=writeback"},
	{name: "csum v3 async", size: 48 << 20, mkfs: []string{"mkfs.ext4", "-J", "size=4"}, data: "journal_async_commit,data=writeback"},
	{name: "fast commits", size: 64 << 20, mkfs: []string{"mkfs.ext4", "-b", "4096", "-O", "fast_commit", "-J", "size=8"}},
	{name: "fast commits 1k", size: 64 << 20, mkfs: []string{"mkfs.ext4", "-b", "1024", "-O", "fast_commit,^metadata_csum", "-J", "size=16"}},
	{name: "fast commits inline", size: 64 << 20, mkfs: []string{"mkfs.ext4", "-b", "4096", "-O", "fast_commit,inline_data", "-J", "size=8"}},
	{name: "ext3", size: 48 << 20, mkfs: []string{"mkfs.ext3", "-J", "size=4"}},
	{name: "data", size: 64 << 20, mkfs: []string{"mkfs.ext4", "-J", "size=8"}, data: "data=journal"},
	{name: "data 1k no csum", size: 48 << 20, mkfs: []string{"mkfs.ext4", "-b", "1024", "-O", "^metadata_csum"}, data: "data=journal"},
}

// TestReplayEqualsTheKernels: at random instants of a busy file system, what the
// reader shows is what the kernel shows after its own replay.
func TestReplayEqualsTheKernels(t *testing.T) {
	for i, l := range replayLayouts {
		t.Run(l.name, func(t *testing.T) {
			b := startBusy(t, l.size, l.mkfs, l.data, uint64(i))
			rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
			image := filepath.Join(t.TempDir(), "snapshot")
			replayed := 0
			for n := range rounds(t, 1) {
				time.Sleep(time.Duration(100+rnd.IntN(300)) * time.Millisecond)
				b.snapshot(image)
				state, _, ok := judge(t, image, strings.HasPrefix(l.name, "fast"))
				if !ok {
					t.Fatalf("an image that stood still was refused: %s", state)
				}
				t.Logf("%d: %s", n, state)
				if strings.Contains(state, "replayed") {
					replayed++
				}
			}
			b.end()
			if replayed == 0 {
				t.Error("no instant had anything to replay")
			}
		})
	}
}

// TestReplayOfACopyMadeWhileMounted is the plan's case: 200 old files, sync, then 100
// new directories with files, 67 unlinks, 67 renames and 66 rewrites, each fsynced, and
// a copy of the image. One copy is made in the end, when nothing moves; others on the
// way, while the image changes under the copier, and those both may refuse.
func TestReplayOfACopyMadeWhileMounted(t *testing.T) {
	for _, l := range replayLayouts {
		if l.name != "csum v3" && l.name != "ext3" && l.name != "fast commits" {
			continue
		}
		t.Run(l.name, func(t *testing.T) {
			fast := strings.HasPrefix(l.name, "fast")
			path := fstest.Image(t, l.size, append(l.mkfs[:len(l.mkfs):len(l.mkfs)], "-q", "-F")...)
			dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "ext4", Data: l.data})
			w := &worker{dir: dir, rnd: rand.New(rand.NewPCG(1, 1))}
			if err := w.old(); err != nil {
				t.Fatal(err)
			}
			fstest.SyncFS(t, dir)
			copied := filepath.Join(t.TempDir(), "copy")
			done := make(chan error, 1)
			go func() {
				for range 300 {
					if err := w.step(); err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
			for running := true; running; {
				select {
				case err := <-done:
					if err != nil {
						t.Fatal(err)
					}
					running = false
				case <-time.After(150 * time.Millisecond):
					copyImage(t, path, copied)
					state, _, ok := judge(t, copied, fast)
					t.Logf("busy: %v %s", ok, state)
				}
			}
			copyImage(t, path, copied)
			live, err := fstest.FromDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			unmount()
			state, after, ok := judge(t, copied, fast)
			if !ok {
				t.Fatal(state)
			}
			t.Logf("%d names: %s", len(after), state)
			ignore := fstest.FieldAtime | fstest.FieldCtime | fstest.FieldBlocks | fstest.FieldData
			if fast {
				forgiveFastCommits(t, after, live)
			}
			for _, d := range fstest.Diff(live, after, ignore) {
				t.Errorf("fsynced, and lost: %s", d)
			}
		})
	}
}
