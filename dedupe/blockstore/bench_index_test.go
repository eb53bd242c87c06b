package blockstore

import (
	"encoding/binary"
	"errors"
	"flag"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

var (
	indexEntries = flag.Int("index-entries", 10_000_000, "blocks in the index of BenchmarkIndexOfMany")
	indexSeconds = flag.Int("index-seconds", 180, "bound of the time to write them: then it has fewer")
)

// digestOf is the digest of the i-th block of a made-up vault.
func digestOf(i int) (d dedupe.Digest) {
	rng := rand.NewPCG(uint64(i), 1)
	for at := 0; at < len(d); at += 8 {
		binary.LittleEndian.PutUint64(d[at:], rng.Uint64())
	}
	return d
}

// BenchmarkIndexOfMany fills an index as packs of 64 MiB would, each of them durable by
// itself, opens it again and looks blocks up. It is run with -benchtime 1x; its metrics
// are what one run says.
func BenchmarkIndexOfMany(b *testing.B) {
	for b.Loop() {
		dir := filepath.Join(b.TempDir(), "index")
		x, err := newIndex(badgerOptions(dir), pack.VaultID{1}, 1)
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		n := fillIndex(b, x, start)
		b.ReportMetric(time.Since(start).Seconds(), "fill-s")
		if err := x.close(); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(n), "entries")
		b.ReportMetric(float64(treeBytes(b, dir)), "disk-B")

		anon, file := residentBytes(b)
		start = time.Now()
		if x, err = openIndex(badgerOptions(dir)); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(start).Seconds(), "open-s")
		for _, look := range []struct {
			from int
			unit string
		}{{0, "hit-ns"}, {1 << 40, "miss-ns"}} {
			const lookups = 50_000
			start = time.Now()
			for range lookups {
				if _, ok, err := x.lookup(dedupe.KindBlock, digestOf(look.from+rand.IntN(n))); err != nil || ok != (look.from == 0) {
					b.Fatalf("looked up: %v, %v", ok, err)
				}
			}
			b.ReportMetric(float64(time.Since(start).Nanoseconds())/lookups, look.unit)
		}
		anon2, file2 := residentBytes(b)
		b.ReportMetric(max(anon2-anon, 0), "anon-B")
		b.ReportMetric(max(file2-file, 0), "file-B")
		if err := x.close(); err != nil {
			b.Fatal(err)
		}
	}
}

// fillIndex enters packs of 1024 blocks until there are enough, or the time is over.
func fillIndex(b *testing.B, x *index, start time.Time) (n int) {
	const perPack, stored = 1024, 40 << 10
	for number := uint32(1); n < *indexEntries && time.Since(start) < time.Duration(*indexSeconds)*time.Second; number++ {
		entries := make([]pack.Entry, min(perPack, *indexEntries-n))
		for i := range entries {
			entries[i] = pack.Entry{Kind: dedupe.KindBlock, Offset: int64(pack.HeaderSize + i*stored), StoredLength: stored - pack.RecordHeaderSize,
				LogicalLength: 64 << 10, Digest: digestOf(n + i)}
		}
		var id pack.ID
		binary.BigEndian.PutUint32(id[:], number)
		row := packRow{number: number, id: id, class: pack.ClassData, state: packSealed, end: int64(pack.HeaderSize + len(entries)*stored)}
		if err := x.addEntries(row, 1, entries, false); err != nil {
			b.Fatal(err)
		}
		n += len(entries)
	}
	return n
}

// treeBytes is the sum of the files' lengths below a folder.
func treeBytes(b *testing.B, dir string) (n int64) {
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// residentBytes is this process's memory: of its own, and of files that it has mapped.
func residentBytes(b *testing.B) (anon, file float64) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	value := func(name string) float64 {
		_, rest, ok := strings.Cut(string(text), name+":")
		f := strings.Fields(rest)
		if !ok || len(f) == 0 {
			b.Fatal(errors.New("no " + name + " in /proc/self/status"))
		}
		kib, err := strconv.ParseFloat(f[0], 64)
		if err != nil {
			b.Fatal(err)
		}
		return kib * 1024
	}
	return value("RssAnon"), value("RssFile")
}
