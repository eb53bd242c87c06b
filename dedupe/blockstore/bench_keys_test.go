package blockstore_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/keyring"
)

// BenchmarkEncryption puts new blocks into a plain and into an encrypted vault by turns,
// and reads them all back in groups, from the page cache. ratio is the median of the
// encrypted throughput over the plain one.
func BenchmarkEncryption(b *testing.B) {
	for _, tt := range contents {
		data := makeContent(tt.c, dedupe.DefaultBlockSize)[:benchBytes/4]
		b.Run(tt.name, func(b *testing.B) {
			var puts, gets [2][]float64 // plain, encrypted
			for b.Loop() {
				for i, o := range []blockstore.Options{{}, {Keys: []*keyring.Keys{keyring.New(dedupe.DomainID{1})}}} {
					put, get, err := putAndGet(filepath.Join(b.TempDir(), "vault"), o, data)
					if err != nil {
						b.Fatal(err)
					}
					puts[i], gets[i] = append(puts[i], put), append(gets[i], get)
				}
			}
			median := func(list []float64) float64 {
				slices.Sort(list)
				return list[len(list)/2]
			}
			for what, list := range map[string]*[2][]float64{"put": &puts, "get": &gets} {
				plain, sealed := median(list[0]), median(list[1])
				b.ReportMetric(plain, "plain-"+what+"-MB/s")
				b.ReportMetric(sealed, "encrypted-"+what+"-MB/s")
				b.ReportMetric(sealed/plain, what+"-ratio")
			}
		})
	}
}

// putAndGet stores data in a new vault and reads it back; it returns MB/s of both.
func putAndGet(dir string, o blockstore.Options, data []byte) (put, get float64, err error) {
	if err := blockstore.Create(dir, o); err != nil {
		return 0, 0, err
	}
	s, err := blockstore.Open(dir, o)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, s.Close(), os.RemoveAll(dir)) }()
	t0 := time.Now()
	if err := ingest(s, data, "new"); err != nil {
		return 0, 0, err
	}
	put = float64(len(data)) / 1e6 / time.Since(t0).Seconds()
	const group = 8
	var digests [group]dedupe.Digest
	var bufs [group][]byte
	var errs [group]error
	for i := range bufs {
		bufs[i] = make([]byte, s.BlockSize())
	}
	spent := time.Duration(0)
	for off := 0; off < len(data); off += group * s.BlockSize() {
		for i := range digests {
			digests[i] = s.BlockDigest(data[off+i*s.BlockSize():][:s.BlockSize()])
		}
		t1 := time.Now()
		s.GetBlocks(context.Background(), digests[:], bufs[:], errs[:])
		spent += time.Since(t1)
		if err := errors.Join(errs[:]...); err != nil {
			return 0, 0, err
		}
	}
	return put, float64(len(data)) / 1e6 / spent.Seconds(), nil
}
