package filerestore_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keelblock/keelblock/appliance/filerestore"
	"github.com/keelblock/keelblock/appliance/fusemount"
	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// source is a daemon with points in memory.
type source struct {
	mu     sync.Mutex
	points []filerestore.Point
	disks  map[string]*memory // by "point/disk"
	opened int
	open   int
	err    error
}

func (s *source) Points(context.Context) ([]filerestore.Point, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]filerestore.Point(nil), s.points...), s.err
}

func (s *source) Open(_ context.Context, point, disk string) (filerestore.Reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	s.opened++
	s.open++
	return &reader{memory: s.disks[point+"/"+disk], source: s}, nil
}

func (s *source) counts() (opened, open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opened, s.open
}

// memory is the content of a disk.
type memory struct {
	p       []byte
	extents []blockdev.Extent // of data; nil: all is data
	bad     blockdev.Extent   // reads that touch it fail
}

// reader is a connection to a disk, which can break.
type reader struct {
	*memory
	source *source
	mu     sync.Mutex
	closed bool
	broken bool
}

var errBroken = errors.New("connection lost")

func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return 0, blockdev.ErrClosed
	case r.broken:
		return 0, errBroken
	case off < r.bad.End() && r.bad.Offset < off+int64(len(p)):
		return 0, blockdev.ErrCorrupt
	}
	return copy(p, r.p[off:]), nil
}
func (r *reader) WriteAt([]byte, int64) (int, error) { return 0, blockdev.ErrReadOnly }
func (r *reader) Size() int64                        { return int64(len(r.p)) }
func (r *reader) Flush() error                       { return nil }
func (r *reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.closed = true
		r.source.mu.Lock()
		r.source.open--
		r.source.mu.Unlock()
	}
	return nil
}
func (r *reader) Extents(off, n int64, yield func(blockdev.Extent, blockdev.ExtentStatus) bool) error {
	at := off
	for _, e := range r.extents {
		if e.Offset > at && !yield(blockdev.Extent{Offset: at, Length: e.Offset - at}, blockdev.ExtentStatus{Hole: true, Zero: true}) {
			return nil
		}
		if !yield(e, blockdev.ExtentStatus{}) {
			return nil
		}
		at = e.End()
	}
	if r.extents == nil {
		yield(blockdev.Extent{Offset: off, Length: n}, blockdev.ExtentStatus{})
	} else if at < off+n {
		yield(blockdev.Extent{Offset: at, Length: off + n - at}, blockdev.ExtentStatus{Hole: true, Zero: true})
	}
	return nil
}

var frozen = time.Date(2026, 11, 21, 19, 30, 0, 250e6, time.UTC)

// add makes a point of one disk.
func (s *source) add(id, machine string, at time.Time, name string, disks map[string]*memory) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := filerestore.Point{ID: id, Machine: machine, FrozenAt: at, Name: name, Consistency: "crash"}
	if s.disks == nil {
		s.disks = make(map[string]*memory)
	}
	for _, d := range []string{"web0", "web1"} {
		if m := disks[d]; m != nil {
			p.Disks = append(p.Disks, filerestore.Disk{Name: d, SizeBytes: int64(len(m.p))})
			s.disks[id+"/"+d] = m
		}
	}
	s.points = append(s.points, p)
}

// extImage makes an ext4 with one file, and lets debugfs change it.
func extImage(t *testing.T, commands ...string) []byte {
	t.Helper()
	for _, tool := range []string{"mke2fs", "debugfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "image")
	tree := filepath.Join(dir, "tree")
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(tree+"/file", []byte(strings.Repeat("content ", 20000)), 0o644); err != nil {
		t.Fatal(err)
	}
	run("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-L", "root", "-d", tree, path, "16M")
	if len(commands) > 0 {
		script := filepath.Join(dir, "commands")
		if err := os.WriteFile(script, []byte(strings.Join(commands, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		run("debugfs", "-w", "-f", script, path)
	}
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// partitioned puts volumes into the primary partitions of an MBR.
func partitioned(volumes ...[]byte) []byte {
	disk := make([]byte, 1<<20)
	disk[510], disk[511] = 0x55, 0xAA
	for i, v := range volumes {
		e := disk[446+16*i:]
		e[4] = 0x83
		binary.LittleEndian.PutUint32(e[8:], uint32(len(disk)/512))
		binary.LittleEndian.PutUint32(e[12:], uint32(len(v)/512))
		disk = append(disk, v...)
	}
	return disk
}

func names(list []fusemount.Entry) string {
	var out []string
	for _, e := range list {
		out = append(out, e.Name)
	}
	return strings.Join(out, " ")
}

// walk looks a path up.
func walk(t *testing.T, dir fusemount.Directory, path ...string) fusemount.Entry {
	t.Helper()
	var e fusemount.Entry
	for i, name := range path {
		var err error
		if e, err = dir.Lookup(context.Background(), name); err != nil {
			t.Fatalf("look up %s: %v", strings.Join(path[:i+1], "/"), err)
		}
		dir = e.Directory
	}
	return e
}

func list(t *testing.T, dir fusemount.Directory) string {
	t.Helper()
	l, err := dir.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return names(l)
}

func status(t *testing.T, tree *filerestore.Tree, path ...string) string {
	t.Helper()
	text, err := walk(t, tree, append(path, "STATUS")...).Text.Text(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func readFile(t *testing.T, v fusemount.Volume, name string) (string, error) {
	t.Helper()
	fs, err := v.Open(context.Background())
	if err != nil {
		return "", err
	}
	ino, err := fs.Lookup(fs.Root(), []byte(name))
	if err != nil {
		return "", err
	}
	a, err := fs.Getattr(ino)
	if err != nil {
		return "", err
	}
	p := make([]byte, a.Size)
	n, err := fs.ReadAt(ino, p, 0)
	return string(p[:n]), err
}

func TestPointShowsItsDisksAndVolumes(t *testing.T) {
	xfs := make([]byte, 1<<20)
	copy(xfs, "XFSB")
	s := &source{}
	s.add("aaaa", "web", frozen, "2026-11-21T19:30:00Z", map[string]*memory{
		"web0": {p: partitioned(extImage(t), xfs, make([]byte, 1<<20))},
		"web1": {p: extImage(t, "jo", "jw -b 3000 /etc/hostname", "jc")},
	})
	tree := filerestore.New(s, filerestore.Options{})
	if got := list(t, tree); got != "web" {
		t.Errorf("machines: %s", got)
	}
	if got := list(t, walk(t, tree, "web").Directory); got != "2026-11-21T19:30:00Z latest" {
		t.Errorf("points: %s", got)
	}
	if got := list(t, walk(t, tree, "web", "latest").Directory); got != "web0.raw web1.raw STATUS volumes" {
		t.Errorf("point: %s", got)
	}
	if opened, _ := s.counts(); opened != 0 {
		t.Errorf("%d disks were opened to list names", opened)
	}
	if got := list(t, walk(t, tree, "web", "latest", "volumes").Directory); got != "web0-1 web0-2.raw web1-0" {
		t.Errorf("volumes: %s", got)
	}
	got, err := readFile(t, walk(t, tree, "web", "latest", "volumes", "web0-1").Volume, "file")
	if err != nil || got != strings.Repeat("content ", 20000) {
		t.Errorf("file: %d bytes, %v", len(got), err)
	}
	raw := walk(t, tree, "web", "latest", "volumes", "web0-2.raw").Image
	p := make([]byte, 4)
	if err := raw.ReadAt(context.Background(), p, 0); err != nil || string(p) != "XFSB" || raw.Size() != 1<<20 {
		t.Errorf("raw volume: %q, %v", p, err)
	}
	text := status(t, tree, "web", "latest")
	for _, want := range []string{"point    aaaa", "frozen   2026-11-21T19:30:00.25Z, crash-consistent",
		`volumes/web0-1: ext4 "root"`, ", clean", "volumes/web0-2: holds xfs", "see volumes/web0-2.raw", "volumes/web0-3: holds nothing",
		`volumes/web1-0: ext4 "root"`, "NOT CLEAN: state as of the last commit", "no problems so far"} {
		if !strings.Contains(text, want) {
			t.Errorf("STATUS lacks %q:\n%s", want, text)
		}
	}
	// The same volume under both names is one volume, seen by two paths.
	a, b := walk(t, tree, "web", "latest", "volumes", "web0-1"), walk(t, tree, "web", "2026-11-21T19:30:00Z", "volumes", "web0-1")
	if a.ID != b.ID || !a.Second || b.Second {
		t.Errorf("latest %+v, by time %+v", a, b)
	}
}

func TestCorruptDiskIsReportedAndHarmsNoOther(t *testing.T) {
	image := extImage(t)
	s := &source{}
	s.add("aaaa", "web", frozen, "t", map[string]*memory{
		"web0": {p: image, bad: blockdev.Extent{Length: 4096}}, // partition table and superblock
		"web1": {p: image},
	})
	tree := filerestore.New(s, filerestore.Options{})
	if got := list(t, walk(t, tree, "web", "latest", "volumes").Directory); got != "web1-0" {
		t.Errorf("volumes: %s", got)
	}
	if got, err := readFile(t, walk(t, tree, "web", "latest", "volumes", "web1-0").Volume, "file"); err != nil || len(got) != 160000 {
		t.Errorf("the sound disk: %d bytes, %v", len(got), err)
	}
	if err := walk(t, tree, "web", "latest", "web0.raw").Image.ReadAt(context.Background(), make([]byte, 8192), 0); !errors.Is(err, blockdev.ErrCorrupt) {
		t.Errorf("the corrupt disk: %v", err)
	}
	text := status(t, tree, "web", "latest")
	if !strings.Contains(text, "UNREADABLE") || !strings.Contains(text, "disk web0: read 8192 bytes at 0 of disk \"web0\": content is corrupt (1 times)") {
		t.Errorf("STATUS:\n%s", text)
	}
	s.mu.Lock()
	s.points[0].Disks = s.points[0].Disks[:1] // nothing is readable at all
	s.mu.Unlock()
	time.Sleep(30 * time.Millisecond)
	if _, err := walk(t, tree, "web", "latest", "volumes").Directory.List(context.Background()); !errors.Is(err, blockdev.ErrCorrupt) {
		t.Errorf("no readable disk: %v", err)
	}
}

func TestBrokenConnectionIsMadeAnew(t *testing.T) {
	s := &source{}
	m := &memory{p: make([]byte, 1<<20)}
	m.p[5000] = 7
	s.add("aaaa", "web", frozen, "t", map[string]*memory{"web0": m})
	var current *reader
	broken := &breaking{source: s, last: func(r *reader) { current = r }}
	tree := filerestore.New(broken, filerestore.Options{})
	image := walk(t, tree, "web", "latest", "web0.raw").Image
	p := make([]byte, 1)
	for range 3 {
		if err := image.ReadAt(context.Background(), p, 5000); err != nil || p[0] != 7 {
			t.Fatalf("%v, %v", p, err)
		}
		current.mu.Lock()
		current.broken = true
		current.mu.Unlock()
	}
	if opened, open := s.counts(); opened != 3 || open != 1 {
		t.Errorf("opened %d times, %d are open", opened, open)
	}
	s.mu.Lock()
	s.err = errors.New("no daemon")
	s.mu.Unlock()
	if err := image.ReadAt(context.Background(), p, 5000); err == nil {
		t.Error("a read without a daemon succeeded")
	}
	if _, err := tree.List(context.Background()); err != nil {
		time.Sleep(30 * time.Millisecond)
	}
}

// breaking tells the test of each connection.
type breaking struct {
	*source
	last func(*reader)
}

func (b *breaking) Open(ctx context.Context, point, disk string) (filerestore.Reader, error) {
	r, err := b.source.Open(ctx, point, disk)
	if err == nil {
		b.last(r.(*reader))
	}
	return r, err
}

func TestIdleDisksAreClosedAndOpenedAgain(t *testing.T) {
	s := &source{}
	s.add("aaaa", "web", frozen, "t", map[string]*memory{"web0": {p: extImage(t)}})
	tree := filerestore.New(s, filerestore.Options{IdleAfter: 40 * time.Millisecond})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tree.Run(ctx)
	}()
	vol := walk(t, tree, "web", "latest", "volumes", "web0-0").Volume
	for round := 1; round <= 2; round++ {
		if got, err := readFile(t, vol, "file"); err != nil || len(got) != 160000 {
			t.Fatalf("round %d: %d bytes, %v", round, len(got), err)
		}
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, open := s.counts(); open == 0 {
				break
			} else if time.Now().After(end) {
				t.Fatal("an idle disk stays open")
			}
		}
	}
	if _, err := readFile(t, vol, "file"); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
	if _, open := s.counts(); open != 0 {
		t.Errorf("%d disks are open at the end", open)
	}
}

func TestHolesAreWhereTheDiskSaysByModel(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 0))
	const grains, grain = 512, 4096
	m := &memory{p: make([]byte, grains*grain), extents: []blockdev.Extent{}}
	data := make([]bool, grains)
	for i := range data {
		data[i] = rnd.IntN(3) == 0
		if n := len(m.extents); data[i] && n > 0 && m.extents[n-1].End() == int64(i*grain) && rnd.IntN(2) == 0 {
			m.extents[n-1].Length += grain
		} else if data[i] {
			m.extents = append(m.extents, blockdev.Extent{Offset: int64(i * grain), Length: grain})
		}
	}
	s := &source{}
	s.add("aaaa", "web", frozen, "t", map[string]*memory{"web0": m})
	image := walk(t, filerestore.New(s, filerestore.Options{}), "web", "latest", "web0.raw").Image
	next := func(off int64, want bool) int64 {
		for off < grains*grain && data[off/grain] != want {
			off = (off/grain + 1) * grain
		}
		return off
	}
	var allocated int64
	for _, d := range data {
		if d {
			allocated += grain
		}
	}
	if n, exact := image.AllocatedBytes(context.Background()); n != allocated || !exact {
		t.Errorf("seed %d: %d bytes are allocated (exact: %t), want %d", seed, n, exact, allocated)
	}
	for range 2000 {
		off := rnd.Int64N(grains * grain)
		got, err := image.NextData(context.Background(), off)
		if want := next(off, true); want == grains*grain {
			if !errors.Is(err, filesystem.ErrNoData) {
				t.Fatalf("seed %d: data behind %d: %d, %v; there is none", seed, off, got, err)
			}
		} else if err != nil || got != want {
			t.Fatalf("seed %d: data behind %d: %d, %v, want %d", seed, off, got, err, want)
		}
		if got, err := image.NextHole(context.Background(), off); err != nil || got != next(off, false) {
			t.Fatalf("seed %d: hole behind %d: %d, %v, want %d", seed, off, got, err, next(off, false))
		}
	}
}

func TestNamesFollowThePoints(t *testing.T) {
	s := &source{}
	disk := map[string]*memory{"web0": {p: make([]byte, 4096)}}
	s.add("aaaa1111", "web", frozen, "2026-11-21T19:30:00Z", disk)
	s.add("bbbb", "db", frozen, "2026-11-21T19:30:00Z", disk)
	tree := filerestore.New(s, filerestore.Options{Machine: "web"})
	if got := list(t, tree); got != "web" {
		t.Errorf("narrowed to a machine: %s", got)
	}
	latest := walk(t, tree, "web", "latest")
	if !latest.Moving || latest.ID != "latest:aaaa1111" {
		t.Errorf("latest: %+v", latest)
	}
	// A neighbour appears in the same second: both names get milliseconds, and the
	// old name, which could mean either, means none.
	s.mu.Lock()
	s.points[0].Name = "2026-11-21T19:30:00.250Z"
	s.mu.Unlock()
	s.add("cccc3333", "web", frozen.Add(400*time.Millisecond), "2026-11-21T19:30:00.650Z", disk)
	time.Sleep(30 * time.Millisecond)
	web := walk(t, tree, "web").Directory
	if got := list(t, web); got != "2026-11-21T19:30:00.250Z 2026-11-21T19:30:00.650Z latest" {
		t.Errorf("points: %s", got)
	}
	if got := walk(t, tree, "web", "latest").ID; got != "latest:cccc3333" {
		t.Errorf("latest: %s", got)
	}
	if _, err := web.Lookup(context.Background(), "2026-11-21T19:30:00Z"); !errors.Is(err, filesystem.ErrNotExist) {
		t.Errorf("a name of two points: %v", err)
	}
	if got := walk(t, web, "2026-11-21T19:30:00.250000Z").ID; got != "point:aaaa1111" {
		t.Errorf("by a longer form: %s", got)
	}
	// The clock was set back: two points of one name are both reachable.
	s.add("dddd4444", "web", frozen, "2026-11-21T19:30:00.250Z", disk)
	time.Sleep(30 * time.Millisecond)
	if got := list(t, web); !strings.Contains(got, "2026-11-21T19:30:00.250Z-dddd4444") {
		t.Errorf("points: %s", got)
	}
	one := filerestore.New(s, filerestore.Options{PointID: "aaaa1111"})
	if got := list(t, walk(t, one, "web").Directory); got != "2026-11-21T19:30:00.250Z latest" {
		t.Errorf("narrowed to a point: %s", got)
	}
	if _, err := tree.Lookup(context.Background(), "db"); !errors.Is(err, filesystem.ErrNotExist) {
		t.Errorf("a machine that is not listed: %v", err)
	}
}

func TestManyReadersShareOneConnection(t *testing.T) {
	s := &source{}
	s.add("aaaa", "web", frozen, "t", map[string]*memory{"web0": {p: extImage(t)}})
	tree := filerestore.New(s, filerestore.Options{CacheBytes: 1 << 20})
	vol := walk(t, tree, "web", "latest", "volumes", "web0-0").Volume
	var wg sync.WaitGroup
	errs := make(chan error, 16)
	for range 16 {
		wg.Go(func() {
			if got, err := readFile(t, vol, "file"); err != nil || len(got) != 160000 {
				errs <- fmt.Errorf("%d bytes: %w", len(got), err)
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	if opened, _ := s.counts(); opened != 1 {
		t.Errorf("opened %d times", opened)
	}
}
