package cbt

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// goldenHeader has every field set.
func goldenHeader() header {
	return header{
		flags: flagClean | flagWitness, state: TrackingCompare, sequence: 5, serial: 7,
		session: [16]byte{1, 2, 3}, sizeBytes: 300*mib + 512, base: PointID{0xba, 5}, candidate: PointID{0xca, 6},
		witness: Witness{Inode: 11, Size: 12, MtimeNanos: -13, CtimeNanos: 14},
		diskID:  "4b1f8a52-disk", bootID: "0d7f5a43-boot", reason: "flush failed: EIO",
	}
}

// goldenMaps has grains in the first and the last leaf, in both maps.
func goldenMaps(t *testing.T) (*mapFile, *[2]fineMap) {
	t.Helper()
	m, _, err := createMapFile(filepath.Join(t.TempDir(), "map"), layoutOf(300*mib+512))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.close(true) })
	maps := new([2]fineMap)
	m.attach(maps)
	maps[0].set(1, 3)
	maps[1].set(3, 70)
	maps[1].set(300*256, 300*256)
	return m, maps
}

func TestFormatIsTheGoldenOne(t *testing.T) {
	mf, maps := goldenMaps(t)
	h := goldenHeader()
	path := filepath.Join(t.TempDir(), "saved")
	if err := writeSaved(path, h, maps); err != nil {
		t.Fatal(err)
	}
	saved, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h.flags = 0
	mf.writeHeader(&h)
	mapBytes := slices.Clone(mf.mem[:headerSlot+headerBytes])
	for name, got := range map[string][]byte{"saved-v1": saved, "map-header-v1": mapBytes} {
		golden := filepath.Join("testdata", name)
		if *update {
			if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(golden, got, 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs from its golden file (-update rewrites it)", name)
		}
	}
}

func TestGoldenFilesOpen(t *testing.T) {
	f, h, err := openSaved(filepath.Join("testdata", "saved-v1"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := goldenHeader()
	want.leaves, want.bodySum = h.leaves, h.bodySum
	if h != want || h.leaves != 2 {
		t.Errorf("header %+v, want %+v", h, want)
	}
	mf, _, err := createMapFile(filepath.Join(t.TempDir(), "map"), layoutOf(h.sizeBytes))
	if err != nil {
		t.Fatal(err)
	}
	defer mf.close(true)
	var maps [2]fineMap
	mf.attach(&maps)
	if err := loadBody(f, h, &maps[0], 300*256+1); err != nil {
		t.Fatal(err)
	}
	_, golden := goldenMaps(t)
	for i := range mf.words {
		if maps[0].load(i) != golden[0].load(i)|golden[1].load(i) {
			t.Fatalf("word %d is %x", i, maps[0].load(i))
		}
	}
	// The same body for a disk that ends before its last grain.
	if err := loadBody(f, h, &maps[1], 300*256); !errors.Is(err, errHeader) {
		t.Errorf("a grain past the end: %v", err)
	}
	mh, _, err := readMapHeader(filepath.Join("testdata", "map-header-v1"))
	want = goldenHeader()
	want.flags, want.sequence = 0, 6
	if err != nil || mh != want {
		t.Errorf("map header %+v, %v", mh, err)
	}
}

func TestReaderRefusesWhatItDoesNotKnow(t *testing.T) {
	var good [headerBytes]byte
	h := goldenHeader()
	h.encode(savedMagic, good[:])
	for at := range good {
		bad := good
		bad[at] ^= 0x40
		if _, err := decodeHeader(savedMagic, bad[:]); err == nil {
			t.Fatalf("a flipped bit in byte %d was accepted", at)
		}
	}
	if _, err := decodeHeader(savedMagic, good[:511]); !errors.Is(err, errHeader) {
		t.Errorf("a short header: %v", err)
	}
	if _, err := decodeHeader(mapMagic, good[:]); !errors.Is(err, errHeader) {
		t.Errorf("the other file's header: %v", err)
	}
}

func FuzzSavedMap(f *testing.F) {
	golden, err := os.ReadFile(filepath.Join("testdata", "saved-v1"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	f.Add(golden[:headerBytes])
	f.Add([]byte{})
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(dir, "fuzz")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		file, h, err := openSaved(path)
		if file != nil {
			defer file.Close()
		}
		if err != nil || h.sizeBytes < 0 || h.sizeBytes > 1<<32 {
			return
		}
		mf, _, err := createMapFile(filepath.Join(dir, "map"), layoutOf(h.sizeBytes))
		if err != nil {
			t.Fatal(err)
		}
		defer mf.close(false)
		var maps [2]fineMap
		mf.attach(&maps)
		loadBody(file, h, &maps[0], (h.sizeBytes+4095)>>grainShift)
	})
}
