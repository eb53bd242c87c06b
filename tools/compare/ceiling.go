package main

import (
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/minio/sha256-simd"
)

func blocksOf(info os.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}

// ceiling is what these cores and this disk allow for a first backup: the slower of
// reading, hashing and compressing every block of the image in memory, on all cores,
// and appending as many bytes as we store to a file and syncing it.
func (b *bench) ceiling(storedBytes int64) (time.Duration, error) {
	compute, err := hashAndCompress(b.image)
	if err != nil {
		return 0, err
	}
	appending, err := appendAndSync(filepath.Join(b.r.Dir, "append"), storedBytes)
	if err != nil {
		return 0, err
	}
	return max(compute, appending), nil
}

const blockBytes = 64 << 10

// hashAndCompress reads the data of the image and takes SHA-256 and s2, a vault's default,
// of each block that is not zero.
func hashAndCompress(image string) (time.Duration, error) {
	f, err := os.Open(image)
	if err != nil {
		return 0, err
	}
	defer f.Close() // only read
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	blocks := (info.Size() + blockBytes - 1) / blockBytes
	start := time.Now()
	next := make(chan int64, 64)
	var wg sync.WaitGroup
	errs := make(chan error, runtime.NumCPU())
	for range runtime.NumCPU() {
		wg.Go(func() {
			buf, out := make([]byte, blockBytes), make([]byte, blockBytes*2)
			zero := make([]byte, blockBytes)
			for i := range next {
				n, err := f.ReadAt(buf, i*blockBytes)
				if err != nil && err != io.EOF {
					errs <- err
					return
				}
				if string(buf[:n]) == string(zero[:n]) {
					continue
				}
				sha256.Sum256(buf[:n])
				s2.Encode(out, buf[:n])
			}
		})
	}
	for i := range blocks {
		next <- i
	}
	close(next)
	wg.Wait()
	took := time.Since(start)
	select {
	case err := <-errs:
		return 0, err
	default:
		return took, nil
	}
}

func appendAndSync(path string, n int64) (time.Duration, error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer os.Remove(path)
	buf := make([]byte, 1<<20)
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	start := time.Now()
	for n > 0 {
		w, err := f.Write(buf[:min(n, int64(len(buf)))])
		if err != nil {
			return 0, err
		}
		n -= int64(w)
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	took := time.Since(start)
	return took, f.Close()
}
