package filerestore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keelblock/keelblock/appliance/filerestore"
	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

func TestPointShowsItsDisksAndVolumes(t *testing.T) {
	squashfs := make([]byte, 1<<20)
	copy(squashfs, "hsqs")
	s := &source{}
	s.add("aaaa", "web", frozen, "2026-11-21T19:30:00Z", map[string]*memory{
		"web0": {p: partitioned(extImage(t), squashfs, make([]byte, 1<<20))},
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
	if err := raw.ReadAt(context.Background(), p, 0); err != nil || string(p) != "hsqs" || raw.Size() != 1<<20 {
		t.Errorf("raw volume: %q, %v", p, err)
	}
	text := status(t, tree, "web", "latest")
	for _, want := range []string{"point    aaaa", "frozen   2026-11-21T19:30:00.25Z, crash-consistent",
		`volumes/web0-1: ext4 "root"`, ", clean", "volumes/web0-2: holds squashfs", "see volumes/web0-2.raw", "volumes/web0-3: holds nothing",
		`volumes/web1-0: ext4 "root"`, ", clean; its journal was replayed in memory (", "no problems so far"} {
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
	// By id, as a script has it from backup, and by the time as JSON has it; neither is listed.
	for name, want := range map[string]string{"aaaa1111": "point:aaaa1111", "cccc": "point:cccc3333", "2026-11-21T19:30:00.25Z": "point:aaaa1111",
		"2026-11-21T19:30:00.6Z": "point:cccc3333", "2026-11-21T19:30:00.650000000Z": "point:cccc3333"} {
		if got := walk(t, web, name).ID; got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	for _, name := range []string{"aaa", "aaaa11112", "bbbb", "", ".", "2026-11-21T19:30:00.65", "2026-11-21T19:30:00.66Z", "2026-11-21T19:30:00.6500000000Z", "2026-11-21"} {
		if _, err := web.Lookup(context.Background(), name); !errors.Is(err, filesystem.ErrNotExist) {
			t.Errorf("%q: %v", name, err)
		}
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
