package guestfiles_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/appliance/guestfiles"
	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// notKept is what no copy keeps, and the sizes of folders, which are the target's.
const notKept = fstest.FieldInode | fstest.FieldBlocks | fstest.FieldCtime | fstest.FieldBirth | fstest.FieldDirSize | fstest.FieldAtime

// filled is an ext4 with everything in it that a copy may get wrong, mounted read-only,
// and an empty one to copy to.
func filled(t *testing.T) (image, source, dest string) {
	t.Helper()
	fstest.RequireRoot(t)
	image = fstest.Image(t, 192<<20, "mkfs.ext4", "-q", "-F")
	dir, unmount := fstest.Mount(t, image, fstest.MountOptions{Type: "ext4"})
	fstest.Populate(t, dir, fstest.Content{Entries: 300, HalfEntries: 60, BigBytes: 5 << 20, StripedParts: 200})
	unmount()
	source, _ = fstest.Mount(t, image, fstest.MountOptions{Type: "ext4", ReadOnly: true})
	target := fstest.Image(t, 256<<20, "mkfs.ext4", "-q", "-F")
	dest, _ = fstest.Mount(t, target, fstest.MountOptions{Type: "ext4"})
	return image, source, dest
}

func manifest(t *testing.T, dir string) fstest.Manifest {
	t.Helper()
	m, err := fstest.FromDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func noDifference(t *testing.T, want, got fstest.Manifest, ignore fstest.Fields) {
	t.Helper()
	for i, d := range fstest.Diff(want, got, ignore) {
		if i == 20 {
			t.Fatal("…")
		}
		t.Error(d)
	}
}

// TestCopyIsWhatCpMakes copies a volume as cp -a copies it from the kernel's mount.
func TestCopyIsWhatCpMakes(t *testing.T) {
	image, source, dest := filled(t)
	kernel := manifest(t, source) // before cp has read it: pages in memory are no holes
	run(t, "cp", "-a", source, dest+"/theirs")
	s := &images{}
	p := s.add(t, "aaaa0001", image)
	stats, bad := copyTo(t, dest, guestfiles.CopyOptions{}, map[string]guestfiles.Found{"ours": find(t, s.tree(t), p, "web0-0")})
	if len(bad) > 0 || stats.Failed > 0 {
		t.Fatalf("not copied: %v", bad)
	}
	theirs, ours := manifest(t, dest+"/theirs"), manifest(t, dest+"/ours")
	t.Logf("%d names, %d files and %d folders copied", len(ours), stats.Files, stats.Folders)
	noDifference(t, theirs, ours, notKept|fstest.FieldData)
	noDifference(t, kernel, ours, notKept)
	left, err := filepath.Glob(dest + "/ours/.keelblock-*")
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestArchiveIsWhatTarRestores gives an archive of a volume to GNU tar.
func TestArchiveIsWhatTarRestores(t *testing.T) {
	image, source, dest := filled(t)
	s := &images{}
	p := s.add(t, "aaaa0001", image)
	archive := dest + "/archive.tar"
	f, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	bad := failures{}
	if err := guestfiles.Archive(context.Background(), f, find(t, s.tree(t), p, "web0-0"), "back", guestfiles.ArchiveOptions{Failed: bad.add}); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	want := manifest(t, source)
	for path, why := range bad {
		below := strings.TrimPrefix(path, "volumes/web0-0/")
		if want[below].Attr.Type != filesystem.TypeSocket {
			t.Errorf("%s is not in the archive: %s", path, why)
		}
		delete(want, below)
	}
	run(t, "tar", "-C", dest, "-xpf", archive, "--numeric-owner", "--xattrs", "--xattrs-include=*")
	noDifference(t, want, manifest(t, dest+"/back"), notKept)
}

// plain is an image that needs no root.
func plain(t *testing.T) (image, tree string) {
	t.Helper()
	tree = t.TempDir()
	write(t, tree+"/etc/hostname", "keel\n")
	write(t, tree+"/etc/shadow", "secret\n")
	write(t, tree+"/large", strings.Repeat("0123456789abcdef", 20000))
	for _, l := range [][2]string{{"etc/hostname", "link"}, {"/etc", "absolute"}, {"../../../../..", "up"}, {"loop", "loop"}} {
		if err := os.Symlink(l[0], tree+"/"+l[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(tree+"/etc/hostname", tree+"/second"); err != nil {
		t.Fatal(err)
	}
	return makeImage(t, tree), tree
}

func TestLinksInAPathStayInTheVolume(t *testing.T) {
	image, _ := plain(t)
	s := &images{}
	p := s.add(t, "aaaa0001", image)
	tree := s.tree(t)
	for path, want := range map[string]string{
		"web0-0/absolute/hostname":         "volumes/web0-0/etc/hostname",
		"/absolute/hostname":               "volumes/web0-0/etc/hostname",
		"/up/etc/hostname":                 "volumes/web0-0/etc/hostname",
		"/up/up/":                          "volumes/web0-0",
		"/etc/../../../etc/hostname":       "volumes/web0-0/etc/hostname",
		"/link/":                           "volumes/web0-0/etc/hostname",
		"/link":                            "volumes/web0-0/link",
		"volumes//./web0-0/etc/./hostname": "volumes/web0-0/etc/hostname",
		"STATUS":                           "STATUS",
		"web0.raw":                         "web0.raw",
		"":                                 "",
	} {
		if f, err := tree.Find(context.Background(), p, path, false); err != nil || f.Path != want {
			t.Errorf("%q is %q, want %q (%v)", path, f.Path, want, err)
		}
	}
	for path, want := range map[string]string{
		"/loop/":             "more than 40 symbolic links",
		"/etc/hostnam":       "volumes/web0-0/etc has no hostnam; did you mean hostname?",
		"/etc/Hostname":      "did you mean hostname?",
		"/etc/x":             "it has hostname, shadow",
		"/etc/hostname/x":    "it is no folder",
		"etc/hostname":       "the point has no etc; it has STATUS, volumes, web0-0, web0.raw; /etc/hostname is looked for in all volumes",
		"volumes/../STATUS":  ".. is for paths inside a volume",
		"web0-0/etc/a\x1b[m": `has no $'a\033[m'`,
	} {
		_, err := tree.Find(context.Background(), p, path, false)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", path, err, want)
		}
	}
}

// TestCopyLeavesWhatIsThere copies over files, links and folders of the target.
func TestCopyLeavesWhatIsThere(t *testing.T) {
	image, _ := plain(t)
	s := &images{}
	p := s.add(t, "aaaa0001", image)
	tree := s.tree(t)
	dest, outside := t.TempDir(), t.TempDir()
	write(t, outside+"/shadow", "mine\n")
	write(t, dest+"/root/etc/hostname", "mine\n")
	write(t, dest+"/root/large/kept", "mine\n")
	if err := errors.Join(os.Symlink(outside+"/shadow", dest+"/root/etc/shadow"), os.Symlink(outside, dest+"/root/lost+found")); err != nil {
		t.Fatal(err)
	}
	nodes := map[string]guestfiles.Found{"root": find(t, tree, p, "web0-0")}
	_, bad := copyTo(t, dest, guestfiles.CopyOptions{}, nodes)
	for path, want := range map[string]string{"etc/hostname": "--force", "etc/shadow": "--force", "large": "is a folder", "lost+found": "not followed"} {
		if why := bad["volumes/web0-0/"+path]; !strings.Contains(why, want) {
			t.Errorf("%s: %q, want %q", path, why, want)
		}
	}
	if len(bad) != 4 || content(t, dest+"/root/etc/hostname") != "mine\n" || content(t, dest+"/root/second") != "keel\n" {
		t.Errorf("failures %v", bad)
	}
	_, bad = copyTo(t, dest, guestfiles.CopyOptions{Force: true}, nodes)
	if len(bad) != 2 || bad["volumes/web0-0/large"] == "" || bad["volumes/web0-0/lost+found"] == "" {
		t.Errorf("with force: %v", bad)
	}
	if content(t, dest+"/root/etc/hostname") != "keel\n" || content(t, dest+"/root/etc/shadow") != "secret\n" || content(t, dest+"/root/large/kept") != "mine\n" {
		t.Error("force did not replace the files, or took a folder")
	}
	if content(t, outside+"/shadow") != "mine\n" {
		t.Error("a link in the target was followed")
	}
	entries, err := os.ReadDir(outside)
	if err != nil || len(entries) != 1 {
		t.Errorf("outside of the target: %v, %v", entries, err)
	}
	var a, b unix.Stat_t
	if err := errors.Join(unix.Stat(dest+"/root/etc/hostname", &a), unix.Stat(dest+"/root/second", &b)); err != nil || a.Ino != b.Ino {
		t.Errorf("the hard link is a copy: inodes %d and %d, %v", a.Ino, b.Ino, err)
	}
	if left, _ := filepath.Glob(dest + "/root/*/.keelblock-*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestUnreadableFileDoesNotKeepTheOthers damages the contents of one file.
func TestUnreadableFileDoesNotKeepTheOthers(t *testing.T) {
	image, source := plain(t)
	large := content(t, source+"/large")
	p, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(p, []byte(large[:4096]))
	if at < 0 {
		t.Fatal("the file is not in the image")
	}
	s := &images{bad: map[string]blockdev.Extent{"aaaa0001": {Offset: int64(at) + 128<<10, Length: 1}}}
	point := s.add(t, "aaaa0001", image)
	root := find(t, s.tree(t), point, "web0-0")
	dest := t.TempDir()
	stats, bad := copyTo(t, dest, guestfiles.CopyOptions{}, map[string]guestfiles.Found{"root": root})
	if len(bad) != 1 || bad["volumes/web0-0/large"] == "" || stats.Failed != 1 {
		t.Errorf("failures: %v", bad)
	}
	if _, err := os.Lstat(dest + "/root/large"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a file was left: %v", err)
	}
	if content(t, dest+"/root/etc/hostname") != "keel\n" {
		t.Error("another file is missing")
	}
	// An archive has told the size by then: it ends, and is not whole.
	var b bytes.Buffer
	err = guestfiles.Archive(context.Background(), &b, root, "root", guestfiles.ArchiveOptions{})
	if err == nil || !strings.Contains(err.Error(), "large") || !strings.Contains(err.Error(), "not whole") {
		t.Errorf("archive: %v", err)
	}
	r := tar.NewReader(&b)
	for err = nil; err == nil; {
		if _, err = r.Next(); err == nil {
			_, err = io.Copy(io.Discard, r)
		}
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("who reads the archive sees %v", err)
	}
}

// TestArchiveIsReadByOthers reads an archive by archive/tar.
func TestArchiveIsReadByOthers(t *testing.T) {
	dir := t.TempDir()
	long := strings.Repeat("long/", 30) + strings.Repeat("n", 120)
	write(t, dir+"/"+long, "long")
	write(t, dir+"/bytes\xff\n", "bytes")
	write(t, dir+"/größe", "größe")
	if err := os.Truncate(dir+"/größe", 9<<20); err != nil {
		t.Fatal(err)
	}
	s := &images{}
	p := s.add(t, "aaaa0001", makeImage(t, dir, "set_inode_field /"+"größe"+" mtime 19601231235959", "set_inode_field /größe mtime_extra 2000000000"))
	var b bytes.Buffer
	bad := failures{}
	if err := guestfiles.Archive(context.Background(), &b, find(t, s.tree(t), p, "web0-0"), "root", guestfiles.ArchiveOptions{Failed: bad.add}); err != nil || len(bad) > 0 {
		t.Fatal(err, bad)
	}
	if b.Len() > 200<<10 {
		t.Errorf("the archive has %d bytes; holes are in it", b.Len())
	}
	got := map[string]string{}
	r := tar.NewReader(&b)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		p, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = string(bytes.TrimRight(p, "\x00"))
		if h.Name == "root/größe" && (len(p) != 9<<20 || h.Size != 9<<20) {
			t.Errorf("the sparse file has %d bytes", len(p))
		}
	}
	for name, want := range map[string]string{"root/" + long: "long", "root/bytes\xff\n": "bytes", "root/größe": "größe"} {
		if got[name] != want {
			t.Errorf("%q is %q, want %q", name, got[name], want)
		}
	}
}
