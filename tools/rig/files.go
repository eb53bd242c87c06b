package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// PartitionOffset is where the only partition of MakeDisk begins, in bytes.
const PartitionOffset = 1 << 20

// gptTailBytes leaves room for the second header of a GPT.
const gptTailBytes = 1 << 20

// MakeDisk makes the sparse image file: a GPT with one ext4 partition that holds the
// files below stage. Both are paths below Dir. Nobody has to be root for it.
func (r *Rig) MakeDisk(ctx context.Context, image, stage string, sizeBytes int64) error {
	if _, err := r.Command(ctx, "truncate", "-s", fmt.Sprint(sizeBytes), image); err != nil {
		return err
	}
	if _, err := r.Shell(ctx, "echo 'start=2048, type=linux, name=root' | sfdisk -q --no-tell-kernel --label gpt "+image); err != nil {
		return err
	}
	blocks := (sizeBytes - PartitionOffset - gptTailBytes) / 1024
	_, err := r.Command(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "demo", "-d", stage,
		"-E", fmt.Sprintf("offset=%d", PartitionOffset), image, fmt.Sprintf("%dk", blocks))
	return err
}

// sources are where a machine keeps files that anyone may read, small folders
// first, so that the disk looks like one.
var sources = []string{"/etc", "/usr/share/doc", "/usr/bin", "/usr/lib/python3", "/usr/share", "/usr/lib", "/usr/local", "/opt", "/usr"}

// Gather copies this machine's own files below stage until they are wantBytes or
// a little more. It reports files and bytes.
func Gather(ctx context.Context, stage string, wantBytes int64) (files int, bytes int64, err error) {
	full := errors.New("enough")
	for _, source := range sources {
		err := filepath.WalkDir(source, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return fs.SkipDir // absent, or not for us
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			target := filepath.Join(stage, path)
			switch {
			case d.IsDir():
				return nil // made with its first file
			case d.Type()&fs.ModeSymlink != 0:
				link, err := os.Readlink(path)
				if err == nil && os.MkdirAll(filepath.Dir(target), 0o755) == nil {
					_ = os.Symlink(link, target) // there already: an earlier source held it
				}
				return nil
			case !d.Type().IsRegular():
				return nil
			}
			n, err := copyFile(path, target)
			if err != nil {
				return err
			}
			if n >= 0 {
				files++
				bytes += n
			}
			if bytes >= wantBytes {
				return full
			}
			return nil
		})
		if errors.Is(err, full) {
			return files, bytes, nil
		}
		if err != nil && !errors.Is(err, fs.SkipDir) {
			return files, bytes, err
		}
	}
	return files, bytes, fmt.Errorf("this machine has only %s of readable files, want %s", Size(bytes), Size(wantBytes))
}

// maxFileBytes keeps one huge file from being all there is.
const maxFileBytes = 48 << 20

// copyFile copies with permissions and time. It returns -1 for a file that is not
// taken: not readable, too large, or there already.
func copyFile(from, to string) (int64, error) {
	in, err := os.Open(from)
	if err != nil {
		return -1, nil
	}
	defer in.Close() // only read
	info, err := in.Stat()
	if err != nil || info.Size() > maxFileBytes {
		return -1, nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return -1, err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	n, err := io.Copy(out, in)
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return -1, fmt.Errorf("copy %s: %w", from, err)
	}
	if err := os.Chmod(to, info.Mode().Perm()); err != nil {
		return -1, err
	}
	return n, os.Chtimes(to, info.ModTime(), info.ModTime())
}

// DiskSize is the size of a disk with room to spare for the content, a multiple of
// 64 MiB.
func DiskSize(contentBytes int64) int64 {
	const step = 64 << 20
	return (contentBytes*5/2 + 128<<20 + step - 1) / step * step
}

// Size is a number of bytes as a person reads it.
func Size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}
