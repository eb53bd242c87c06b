package main

import (
	"archive/tar"
	"compress/gzip"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/keelblock/keelblock/blockdev/filesystem/detect"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

//go:embed windows.sh
var windowsOrders string

// judged is an image that the guest's kernel fills and judges.
type judged struct {
	name    string // folder below blockdev/filesystem and name in its testdata
	kind    string // the kernel's name of the file system
	size    int64
	entries int // of the large directory; 0: the contents of the golden images
	mkfs    []string
}

// golden are small: with -update they become the test data of the readers.
var golden = []judged{
	{"fat/fat12", "vfat", 4 << 20, 0, []string{"mkfs.vfat", "--invariant", "-F", "12", "-s", "2", "-n", "TWELVE"}},
	{"fat/fat16", "vfat", 16 << 20, 0, []string{"mkfs.vfat", "--invariant", "-F", "16", "-s", "4"}},
	{"fat/fat32", "vfat", 36 << 20, 0, []string{"mkfs.vfat", "--invariant", "-F", "32", "-s", "1", "-n", "Thirty two"}},
	{"fat/fat12-128k", "vfat", 128 << 20, 0, []string{"mkfs.vfat", "--invariant", "-F", "12", "-S", "1024", "-s", "128"}},
	{"exfat/exfat-512", "exfat", 8 << 20, 0, []string{"mkfs.exfat", "-c", "512", "-L", "Stück"}},
	{"exfat/exfat-128k", "exfat", 192 << 20, 0, []string{"mkfs.exfat", "-c", "128K"}},
}

// large have the sizes of the conformance plan.
var large = []judged{
	{"fat/large12", "vfat", 32 << 20, 1000, []string{"mkfs.vfat", "-F", "12", "-s", "16"}},
	{"fat/large16", "vfat", 512 << 20, 3000, []string{"mkfs.vfat", "-F", "16"}},
	{"fat/large32", "vfat", 512 << 20, 5000, []string{"mkfs.vfat", "-F", "32"}},
	{"exfat/large", "exfat", 512 << 20, 5000, []string{"mkfs.exfat"}},
}

// manifestBytes is the size of the disk on which the guest hands over its manifests.
const manifestBytes = 64 << 20

// windows is the scenario of Windows' file systems that the build machine's kernel may lack:
// the guest's fills images and says what it shows, and the readers must show the same.
func (l *lab) windows() error {
	images := golden
	if !l.update {
		images = append(images[:len(images):len(images)], large...)
	}
	var disks, list []string
	device := func(i int) string { return "vd" + string(rune('c'+i)) }
	for i, j := range images {
		path, err := l.blank(fmt.Sprintf("judged%d.img", i), j.size)
		if err != nil {
			return err
		}
		if _, err := l.command(j.mkfs[0], append(j.mkfs[1:len(j.mkfs):len(j.mkfs)], path)...); err != nil {
			return err
		}
		entry := fmt.Sprintf("%s:%s:", j.kind, device(i))
		if j.entries > 0 {
			entry += fmt.Sprint(j.entries)
		}
		disks, list = append(disks, path), append(list, entry)
	}
	out, err := l.blank("manifests.tar", manifestBytes)
	if err != nil {
		return err
	}
	orders, err := l.ordersDisk(windowsOrders, fmt.Sprintf("images='%s'\nout=%s\n", strings.Join(list, " "), device(len(images))))
	if err != nil {
		return err
	}
	root := "if=virtio,format=raw,snapshot=on,file.filename=" + l.image.disk
	var drives []string
	for _, d := range append(disks, out) {
		drives = append(drives, "if=virtio,format=raw,file.filename="+d)
	}
	g, err := boot(l.ctx, l.image, l.accel, root, orders, l.r.Dir, drives...)
	if err != nil {
		return err
	}
	l.guests = append(l.guests, g)
	if err := l.follow(g, nil); err != nil {
		return err
	}
	g.cutPower()
	manifests, err := readManifests(out)
	if err != nil {
		return err
	}
	var bad []error
	for i, j := range images {
		bad = append(bad, l.compare(j, disks[i], manifests[fmt.Sprint(i)]))
	}
	return errors.Join(bad...)
}

// blank makes a sparse file in the lab's folder.
func (l *lab) blank(name string, size int64) (string, error) {
	path := filepath.Join(l.r.Dir, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return "", err
	}
	return path, os.Truncate(path, size)
}

// readManifests takes the guest's manifests from the disk that it wrote.
func readManifests(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // it was only read
	out := make(map[string]string)
	for in := tar.NewReader(f); ; {
		h, err := in.Next()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("manifests of the guest: %w", err)
		}
		text, err := io.ReadAll(in)
		if err != nil {
			return nil, fmt.Errorf("manifests of the guest: %w", err)
		}
		out[filepath.Base(h.Name)] = string(text)
	}
}

// compare holds the reader against the guest's manifest and, for -update, keeps both.
func (l *lab) compare(j judged, path, want string) error {
	if want == "" {
		return fmt.Errorf("%s: the guest gave no manifest", j.name)
	}
	if l.update {
		if err := keep(j.name, path, want); err != nil {
			return err
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() // it was only read
	fs, err := detect.Open(f, j.size)
	if err != nil {
		return fmt.Errorf("%s: %w", j.name, err)
	}
	m, err := fstest.FromFS(fs)
	if err != nil {
		return fmt.Errorf("%s: %w", j.name, err)
	}
	if d := differences(want, m.Text(fstest.FieldInode)); len(d) > 0 {
		return fmt.Errorf("%s: %d lines differ from what the guest's kernel shows:\n%s", j.name, len(d), strings.Join(d[:min(len(d), 20)], "\n"))
	}
	l.say("%s: %d names, no difference", j.name, strings.Count(want, "\n"))
	return nil
}

// differences are the lines of one manifest that are not in the other.
func differences(want, got string) []string {
	var out []string
	missing := make(map[string]bool)
	for line := range strings.Lines(want) {
		missing[line] = true
	}
	for line := range strings.Lines(got) {
		if !missing[line] {
			out = append(out, "+ "+line)
		}
		delete(missing, line)
	}
	for line := range missing {
		out = append(out, "- "+line)
	}
	return out
}

// keep writes an image and its manifest as test data of its reader.
func keep(name, path, manifest string) error {
	folder, base := filepath.Split(name)
	dir := filepath.Join("blockdev/filesystem", folder, "testdata")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	image, err := os.Open(path)
	if err != nil {
		return err
	}
	defer image.Close() // it was only read
	if err := writeGzip(filepath.Join(dir, base+".img.gz"), image); err != nil {
		return err
	}
	return writeGzip(filepath.Join(dir, base+".manifest.gz"), strings.NewReader(manifest))
}

func writeGzip(path string, r io.Reader) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close() // a second time, after an error
	w, err := gzip.NewWriterLevel(f, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, r); err != nil {
		return err
	}
	return errors.Join(w.Close(), f.Close())
}
