package main

import (
	"archive/zip"
	"compress/flate"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// imageScripts are the sets of images, one script NAME.sh each, behind common.sh. A
// script runs in the guest as root. It begins a case by `case_begin CASE`, leaves its
// files in the current folder (disk images, manifests by `fsguest manifest`, sums by
// `fsguest content`), and ends it by `case_end`. The host makes one zip of each.
//
//go:embed images
var imageScripts embed.FS

// outBytes is the size of the disk on which the guest leaves its files. It is sparse.
const outBytes = 4 << 30

// runImages makes the sets of images, all or only one.
func runImages(ctx context.Context, bin, accel, only, dir string, limit time.Duration) error {
	scripts, err := fs.Glob(imageScripts, "images/*.sh")
	if err != nil {
		return err
	}
	var sets []string
	for _, path := range scripts {
		name := strings.TrimSuffix(filepath.Base(path), ".sh")
		if name != "common" && (only == "" || only == name) {
			sets = append(sets, name)
		}
	}
	if len(sets) == 0 {
		return fmt.Errorf("there is no set of images %q", only)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	img, err := guestImage(ctx, imageRecipe)
	if err != nil {
		return fmt.Errorf("build the guest: %w", err)
	}
	if accel == "" {
		if accel, err = probe(ctx, img); err != nil {
			return err
		}
	}
	for _, set := range sets {
		if err := runOne(ctx, bin, accel, img, limit, func(l *lab) error { return l.makeImages(set, filepath.Join(dir, set)) }); err != nil {
			return fmt.Errorf("images %s: %w", set, err)
		}
	}
	return nil
}

// makeImages lets a guest make a set of images, and packs them below dir.
func (l *lab) makeImages(set, dir string) error {
	orders, err := l.imageOrders(set)
	if err != nil {
		return err
	}
	out := filepath.Join(l.r.Dir, "out.img")
	if _, err := l.command("truncate", "-s", fmt.Sprint(outBytes), out); err != nil {
		return err
	}
	if _, err := l.command("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", out); err != nil {
		return err
	}
	g, err := boot(l.ctx, l.image, l.accel, "if=virtio,format=raw,snapshot=on,file.filename="+l.image.disk, orders, l.r.Dir,
		"if=virtio,format=raw,file.filename="+out)
	if err != nil {
		return err
	}
	l.guests = append(l.guests, g)
	made := l.follow(g, nil)
	g.cutPower() // it has synced its disk, also when a case failed: the whole ones are kept
	files := filepath.Join(l.r.Dir, "files")
	if err := os.Mkdir(files, 0o755); err != nil {
		return err
	}
	if text, err := l.command("debugfs", "-R", "rdump /cases "+files, out); err != nil {
		return fmt.Errorf("%w\n%s", err, text)
	}
	return errors.Join(made, packCases(l, filepath.Join(files, "cases"), dir))
}

// imageOrders makes the disk from which the guest takes the script of a set.
func (l *lab) imageOrders(set string) (string, error) {
	stage := filepath.Join(l.r.Dir, "orders")
	if err := os.MkdirAll(stage, 0o755); err != nil {
		return "", err
	}
	for name, source := range map[string]string{"run": "common", "set": set} {
		text, err := imageScripts.ReadFile("images/" + source + ".sh")
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(stage, name), text, 0o755); err != nil {
			return "", err
		}
	}
	cmd := exec.CommandContext(l.ctx, "go", "build", "-buildvcs=false", "-o", filepath.Join(stage, "fsguest"), "github.com/keelblock/keelblock/tools/vmlab/fsguest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build tools/vmlab/fsguest: %w\n%s", err, out)
	}
	disk := filepath.Join(l.r.Dir, "orders.img")
	_, err := l.command("mke2fs", "-q", "-F", "-t", "ext4", "-L", "orders", "-d", stage, disk, "32M")
	return disk, err
}

// packCases makes dir/CASE.zip of each folder below from.
func packCases(l *lab, from, dir string) error {
	cases, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if len(cases) == 0 {
		return errors.New("the guest left no cases")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, c := range cases {
		path := filepath.Join(dir, c.Name()+".zip")
		size, err := packCase(filepath.Join(from, c.Name()), path)
		if err != nil {
			return fmt.Errorf("pack %s: %w", c.Name(), err)
		}
		l.say("%s: %d KiB", path, size>>10)
	}
	return nil
}

// packCase packs the files of a folder, in the order of their names and without times,
// so that equal files make an equal zip.
func packCase(from, path string) (int64, error) {
	names, err := os.ReadDir(from)
	if err != nil {
		return 0, err
	}
	slices.SortFunc(names, func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer f.Close() // closed below when all is well
	z := zip.NewWriter(f)
	z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriter(w, flate.BestCompression) })
	for _, n := range names {
		w, err := z.CreateHeader(&zip.FileHeader{Name: n.Name(), Method: zip.Deflate})
		if err != nil {
			return 0, err
		}
		if err := copyFile(w, filepath.Join(from, n.Name())); err != nil {
			return 0, err
		}
	}
	if err := z.Close(); err != nil {
		return 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), f.Close()
}

func copyFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}
