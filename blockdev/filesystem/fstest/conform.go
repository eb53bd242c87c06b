package fstest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// Plan says how thoroughly Conform tests. The zero value suits a short run.
type Plan struct {
	// Reads is how many reads at random offsets are compared; 1 000.
	Reads int
	// Ignore are fields that the reader cannot know.
	Ignore Fields
	// MaxCookies bounds at how many cookies of one directory ReadDir is resumed,
	// evenly spread; 300.
	MaxCookies int
	// Seed of the random offsets; 1.
	Seed uint64
	// Manifest is what the kernel shows at dir; FromDir. It is given what the reader
	// showed, for what the two cannot agree on.
	Manifest func(dir string, got Manifest) (Manifest, error)
}

func (p Plan) withDefaults() Plan {
	if p.Reads == 0 {
		p.Reads = 1000
	}
	if p.MaxCookies == 0 {
		p.MaxCookies = 300
	}
	if p.Seed == 0 {
		p.Seed = 1
	}
	if p.Manifest == nil {
		p.Manifest = func(dir string, _ Manifest) (Manifest, error) { return FromDir(dir) }
	}
	return p
}

// concurrentReaders is how many goroutines read at once in Conform.
const concurrentReaders = 8

// Conform requires that fs shows what the kernel shows at dir, where the same image
// is mounted read-only: no difference in the manifests; equal bytes at random
// offsets, by one reader and by eight at once; seeks that agree with the holes; and
// directories that can be resumed at every cookie.
func Conform(t *testing.T, dir string, fs filesystem.FS, p Plan) {
	t.Helper()
	p = p.withDefaults()
	got, err := FromFS(fs)
	if err != nil {
		t.Fatal(err)
	}
	want, err := p.Manifest(dir, got)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d names", len(want))
	diffs := Diff(want, got, p.Ignore)
	for i, d := range diffs {
		if i == 50 {
			t.Errorf("... and %d more differences", len(diffs)-i)
			break
		}
		t.Error(d)
	}
	if len(diffs) > 0 {
		return
	}
	files := regularFiles(got)
	if err := compareReads(dir, fs, files, got, p.Reads, p.Seed); err != nil {
		t.Error(err)
	}
	compareConcurrently(t, dir, fs, files, got, p)
	for _, path := range slices.Sorted(maps.Keys(got)) {
		if got[path].Attr.Type == filesystem.TypeDir {
			if err := checkCookies(fs, got[path].Attr.Inode, p.MaxCookies); err != nil {
				t.Errorf("%q: %v", path, err)
			}
		}
	}
}

func regularFiles(m Manifest) []string {
	var out []string
	for path, e := range m {
		if e.Attr.Type == filesystem.TypeRegular && e.Attr.Size > 0 {
			out = append(out, path)
		}
	}
	slices.Sort(out)
	return out
}

func compareConcurrently(t *testing.T, dir string, fs filesystem.FS, files []string, m Manifest, p Plan) {
	var wg sync.WaitGroup
	for i := range concurrentReaders {
		wg.Go(func() {
			if err := compareReads(dir, fs, files, m, p.Reads/4+1, p.Seed+1+uint64(i)); err != nil {
				t.Errorf("reader %d of %d: %v", i, concurrentReaders, err)
			}
		})
	}
	wg.Wait()
}

// compareReads compares n reads, most of them in the few largest files, at offsets
// near the ends of data and holes and anywhere.
func compareReads(dir string, fs filesystem.FS, files []string, m Manifest, n int, seed uint64) error {
	if len(files) == 0 {
		return nil
	}
	rnd := rand.New(rand.NewPCG(seed, 0))
	large := slices.Clone(files)
	slices.SortFunc(large, func(a, b string) int {
		return len(m[b].Data)*1000 + int(min(m[b].Attr.Size>>10, 1<<20)) - len(m[a].Data)*1000 - int(min(m[a].Attr.Size>>10, 1<<20))
	})
	large = large[:min(12, len(large))]
	open := make(map[string]*os.File)
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	want, got := make([]byte, 256<<10), make([]byte, 256<<10)
	for range n {
		path := large[rnd.IntN(len(large))]
		if rnd.IntN(4) == 0 {
			path = files[rnd.IntN(len(files))]
		}
		e := m[path]
		off := randomOffset(rnd, e)
		length := 1 + rnd.IntN(1<<rnd.IntN(19))
		f := open[path]
		if f == nil && len(open) < 64 {
			var err error
			if f, err = os.Open(dir + "/" + path); err != nil {
				return err
			}
			open[path] = f
		}
		if f == nil {
			continue
		}
		wn, werr := f.ReadAt(want[:length], off)
		gn, gerr := fs.ReadAt(e.Attr.Inode, got[:length], off)
		if wn != gn || !errors.Is(gerr, werr) || !bytes.Equal(want[:wn], got[:gn]) {
			return fmt.Errorf("%q: ReadAt of %d at %d: %d bytes and %v, the kernel %d and %v (equal: %v)",
				path, length, off, gn, gerr, wn, werr, bytes.Equal(want[:wn], got[:min(wn, gn)]))
		}
		if err := checkSeeks(fs, e, off); err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
	}
	return nil
}

func randomOffset(rnd *rand.Rand, e Entry) int64 {
	if len(e.Data) > 0 && rnd.IntN(2) == 0 {
		d := e.Data[rnd.IntN(len(e.Data))]
		edge := d.Offset
		if rnd.IntN(2) == 0 {
			edge = d.End()
		}
		return max(0, edge+rnd.Int64N(20000)-10000)
	}
	return rnd.Int64N(e.Attr.Size + 10)
}

// checkSeeks requires of NextData and NextHole at off what the list of data says.
func checkSeeks(fs filesystem.FS, e Entry, off int64) error {
	wantData, wantHole, none := int64(0), off, true
	for _, d := range e.Data {
		if d.End() > off {
			wantData, none = max(off, d.Offset), false
			break
		}
	}
	for _, d := range e.Data {
		if d.Offset <= wantHole && wantHole < d.End() {
			wantHole = d.End()
		}
	}
	data, err := fs.NextData(e.Attr.Inode, off)
	if none != errors.Is(err, filesystem.ErrNoData) || (!none && (err != nil || data != wantData)) {
		return fmt.Errorf("NextData(%d) is %d and %v, want %d (no data: %v)", off, data, err, wantData, none)
	}
	hole, err := fs.NextHole(e.Attr.Inode, off)
	switch {
	case off >= e.Attr.Size:
		if !errors.Is(err, filesystem.ErrNoData) {
			return fmt.Errorf("NextHole(%d) behind the end gives %d and %v", off, hole, err)
		}
	case err != nil || hole != wantHole:
		return fmt.Errorf("NextHole(%d) is %d and %v, want %d", off, hole, err, wantHole)
	}
	return nil
}

// checkCookies resumes ReadDir behind entries and requires the rest of the list.
func checkCookies(fs filesystem.FS, dir filesystem.Inode, limit int) error {
	all, err := list(fs, dir)
	if err != nil {
		return err
	}
	step := max(1, len(all)/limit)
	for i := 0; i < len(all); i += step {
		rest := all[i+1:]
		j := 0
		err := fs.ReadDir(dir, all[i].next, func(d filesystem.Dirent) bool {
			if j >= len(rest) || string(d.Name) != rest[j].name || d.Inode != rest[j].inode || d.Next != rest[j].next {
				j = -1
				return false
			}
			j++
			return len(all) < 1000 || j < 200 // enough to see that it is the right place
		})
		if err != nil || j < 0 || (j < len(rest) && len(all) < 1000) {
			return fmt.Errorf("resumed behind entry %d of %d (cookie %d): entry %d differs, %v", i, len(all), all[i].next, j, err)
		}
	}
	if len(all) > 0 {
		more, err := listFrom(fs, dir, all[len(all)-1].next)
		if err != nil || len(more) != 0 {
			return fmt.Errorf("resumed at the end: %d entries, %v", len(more), err)
		}
	}
	return nil
}

// File is the whole content of one file, for tests that look at a few.
func File(fs filesystem.FS, path ...string) ([]byte, error) {
	ino := fs.Root()
	for _, name := range path {
		var err error
		if ino, err = fs.Lookup(ino, []byte(name)); err != nil {
			return nil, err
		}
	}
	a, err := fs.Getattr(ino)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(readerAt{fs, ino}, 0, a.Size))
}

type readerAt struct {
	fs  filesystem.FS
	ino filesystem.Inode
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return r.fs.ReadAt(r.ino, p, off) }

// Open opens an image file and gives its size; the end of the test closes it.
func Open(t testing.TB, path string) (*os.File, int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	s, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, s.Size()
}
