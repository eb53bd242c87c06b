package fusemount_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/appliance/fusemount"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %q: %v", path, err)
	}
	return st
}

func TestGuestFilesAreWhatTheyAreInTheGuest(t *testing.T) {
	fs := newFakeFS()
	fs.add(2, 12, "plain", filesystem.TypeRegular, 0o4755, "hello").xattrs = map[string]string{"user.colour": "blue", "user.empty": ""}
	fs.add(2, 12, "linked", filesystem.TypeRegular, 0, "")
	fs.add(2, 13, "link", filesystem.TypeSymlink, 0o777, "").target = "/etc/shadow"
	dev := fs.add(2, 14, "device", filesystem.TypeBlock, 0o660, "")
	dev.attr.RdevMajor, dev.attr.RdevMinor = 259, 70000
	fs.add(2, 15, "bad\xff\xfename\n", filesystem.TypeRegular, 0o644, "x")
	old := fs.add(2, 16, "old", filesystem.TypeRegular, 0o600, "")
	old.attr.Mtime = time.Unix(-2147483648, 5)
	fs.add(2, 1<<50+7, "large inode", filesystem.TypeRegular, 0o644, "big")
	dir := fs.add(2, 17, "dir", filesystem.TypeDir, 0o1777, "")
	dir.attr.Mtime = time.Unix(4102444800, 1)
	fs.add(17, 18, "inner", filesystem.TypeRegular, 0o644, string(pattern(300000)))
	sparse := fs.add(2, 19, "sparse", filesystem.TypeRegular, 0o644, string(append(make([]byte, 1<<20), pattern(4096)...)))
	sparse.dataFrom, sparse.attr.Blocks = 1<<20, 8
	vol := &fakeVolume{fs: fs}
	root := &fakeDir{}
	root.set(fusemount.Entry{Name: "v", Volume: vol})
	mnt := filepath.Join(start(t, root, fusemount.Options{AllowOther: true}), "v")

	st := stat(t, mnt+"/plain")
	if st.Mode != unix.S_IFREG|0o4755 || st.Uid != 70000 || st.Gid != 4000000000 || st.Nlink != 2 || st.Size != 5 ||
		st.Mtim.Sec != when.Unix() || st.Mtim.Nsec != 123456789 {
		t.Errorf("plain: %+v", st)
	}
	if st2 := stat(t, mnt+"/linked"); st2.Ino != st.Ino {
		t.Errorf("hard links have inode numbers %d and %d", st.Ino, st2.Ino)
	}
	if target, err := os.Readlink(mnt + "/link"); err != nil || target != "/etc/shadow" {
		t.Errorf("link: %q, %v", target, err)
	}
	if st := stat(t, mnt+"/device"); st.Mode != unix.S_IFBLK|0o660 || unix.Major(st.Rdev) != 259 || unix.Minor(st.Rdev) != 70000 {
		t.Errorf("device: %+v", st)
	}
	if st := stat(t, mnt+"/old"); st.Mtim.Sec != -2147483648 || st.Mtim.Nsec != 5 {
		t.Errorf("old: %+v", st.Mtim)
	}
	if st := stat(t, mnt+"/dir"); st.Mode != unix.S_IFDIR|0o1777 || st.Mtim.Sec != 4102444800 {
		t.Errorf("dir: %+v", st)
	}
	for name, want := range map[string]string{"plain": "hello", "linked": "hello", "large inode": "big", "bad\xff\xfename\n": "x", "dir/inner": string(pattern(300000))} {
		if got, err := os.ReadFile(mnt + "/" + name); err != nil || string(got) != want {
			t.Errorf("%q: %d bytes, %v", name, len(got), err)
		}
	}
	value := make([]byte, 10)
	if n, err := unix.Getxattr(mnt+"/plain", "user.colour", value); err != nil || string(value[:n]) != "blue" {
		t.Errorf("attribute: %q, %v", value[:max(n, 0)], err)
	}
	if n, err := unix.Getxattr(mnt+"/plain", "user.empty", value); err != nil || n != 0 {
		t.Errorf("empty attribute: %d, %v", n, err)
	}
	if _, err := unix.Getxattr(mnt+"/plain", "user.none", value); !errors.Is(err, unix.ENODATA) {
		t.Errorf("no attribute: %v", err)
	}
	names := make([]byte, 100)
	if n, err := unix.Listxattr(mnt+"/plain", names); err != nil || string(names[:n]) != "user.colour\x00user.empty\x00" {
		t.Errorf("attributes: %q, %v", names[:max(n, 0)], err)
	}
	f, err := os.Open(mnt + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if off, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA); err != nil || off != 1<<20 {
		t.Errorf("SEEK_DATA: %d, %v", off, err)
	}
	if off, err := unix.Seek(int(f.Fd()), 1<<20, unix.SEEK_HOLE); err != nil || off != 1<<20+4096 {
		t.Errorf("SEEK_HOLE: %d, %v", off, err)
	}
	if _, err := unix.Seek(int(f.Fd()), 1<<20+4096, unix.SEEK_DATA); !errors.Is(err, unix.ENXIO) {
		t.Errorf("SEEK_DATA at the end: %v", err)
	}
	var sf unix.Statfs_t
	if err := unix.Statfs(mnt, &sf); err != nil || sf.Blocks != 100 || sf.Bfree != 40 || sf.Namelen != 255 {
		t.Errorf("statfs: %+v, %v", sf, err)
	}
	var sx unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, mnt+"/plain", 0, unix.STATX_BTIME|unix.STATX_BASIC_STATS, &sx); err != nil {
		t.Error(err)
	} else if sx.Mask&unix.STATX_BTIME != 0 && (sx.Btime.Sec != when.Unix() || sx.Btime.Nsec != 123456789) {
		t.Errorf("birth: %+v", sx.Btime)
	}
	if r := vol.reported(); r != "" {
		t.Errorf("reported: %s", r)
	}
}

func TestMountIsReadOnlyAndHarmless(t *testing.T) {
	root := &fakeDir{}
	fs := newFakeFS()
	fs.add(2, 12, "suid", filesystem.TypeRegular, 0o4755, "#!/bin/sh\n")
	root.set(fusemount.Entry{Name: "v", Volume: &fakeVolume{fs: fs}})
	mnt := start(t, root, fusemount.Options{AllowOther: true})
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	var line string
	for l := range strings.Lines(string(mounts)) {
		if strings.Contains(l, " "+mnt+" ") {
			line = l
		}
	}
	f := strings.Fields(line)
	if len(f) < 4 || f[0] != "keelblock" || f[2] != "fuse.keelblock" {
		t.Fatalf("/proc/mounts: %q", line)
	}
	for _, option := range []string{"ro", "nosuid", "nodev", "noexec", "allow_other", "default_permissions"} {
		if !strings.Contains(","+f[3]+",", ","+option+",") {
			t.Errorf("option %s is missing in %s", option, f[3])
		}
	}
	if err := os.WriteFile(mnt+"/v/suid", nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v", err)
	}
	if err := os.Mkdir(mnt+"/v/x", 0o755); !errors.Is(err, unix.EROFS) {
		t.Errorf("mkdir: %v", err)
	}
	if err := exec.Command(mnt + "/v/suid").Run(); !errors.Is(err, unix.EACCES) {
		t.Errorf("execute: %v", err)
	}
}

func TestUnreadableIsAnErrorAndNeverZeros(t *testing.T) {
	fs := newFakeFS()
	fs.add(2, 12, "corrupt", filesystem.TypeRegular, 0o644, string(pattern(10000))).bad = "corrupt"
	fs.add(2, 13, "short", filesystem.TypeRegular, 0o644, string(pattern(10000))).bad = "short"
	fs.add(2, 14, "good", filesystem.TypeRegular, 0o644, string(pattern(10000)))
	vol := &fakeVolume{fs: fs}
	broken := &fakeVolume{err: filesystem.ErrCorrupt}
	root := &fakeDir{}
	root.set(fusemount.Entry{Name: "v", Volume: vol}, fusemount.Entry{Name: "broken", Volume: broken})
	mnt := start(t, root, fusemount.Options{})
	for _, name := range []string{"corrupt", "short"} {
		if p, err := os.ReadFile(mnt + "/v/" + name); !errors.Is(err, unix.EIO) || len(p) > 0 {
			t.Errorf("%s: %d bytes, %v", name, len(p), err)
		}
	}
	if p, err := os.ReadFile(mnt + "/v/good"); err != nil || !bytes.Equal(p, pattern(10000)) {
		t.Errorf("good: %v", err)
	}
	if r := vol.reported(); !strings.Contains(r, `"corrupt" (inode 12)`) || !strings.Contains(r, "extent tree") || !strings.Contains(r, "inode 13") {
		t.Errorf("reported: %s", r)
	}
	if _, err := os.ReadDir(mnt + "/broken"); !errors.Is(err, unix.EIO) {
		t.Errorf("a volume that cannot be opened: %v", err)
	}
	if r := broken.reported(); !strings.Contains(r, "open the volume") {
		t.Errorf("reported: %s", r)
	}
}

func TestPanicEndsOneVolumeOnly(t *testing.T) {
	bad, good := newFakeFS(), newFakeFS()
	bad.add(2, 12, "panic", filesystem.TypeRegular, 0o644, "x").bad = "panic"
	bad.add(2, 13, "other", filesystem.TypeRegular, 0o644, "x")
	good.add(2, 12, "file", filesystem.TypeRegular, 0o644, "fine")
	vol := &fakeVolume{fs: bad}
	root := &fakeDir{}
	root.set(fusemount.Entry{Name: "bad", Volume: vol}, fusemount.Entry{Name: "good", Volume: &fakeVolume{fs: good}})
	mnt := start(t, root, fusemount.Options{})
	if _, err := os.ReadFile(mnt + "/bad/panic"); !errors.Is(err, unix.EIO) {
		t.Errorf("panic: %v", err)
	}
	if _, err := os.ReadFile(mnt + "/bad/other"); !errors.Is(err, unix.EIO) {
		t.Errorf("after the panic: %v", err)
	}
	if p, err := os.ReadFile(mnt + "/good/file"); err != nil || string(p) != "fine" {
		t.Errorf("the other volume: %q, %v", p, err)
	}
	if r := vol.reported(); !strings.Contains(r, "stopped") {
		t.Errorf("reported: %s", r)
	}
}

func TestHangEndsAtItsDeadline(t *testing.T) {
	fs := newFakeFS()
	fs.add(2, 12, "hang", filesystem.TypeRegular, 0o644, "late").bad = "hang"
	vol := &fakeVolume{fs: fs}
	root := &fakeDir{}
	root.set(fusemount.Entry{Name: "v", Volume: vol})
	mnt := start(t, root, fusemount.Options{Deadline: 50 * time.Millisecond})
	began := time.Now()
	for range 5 {
		if _, err := os.ReadFile(mnt + "/v/hang"); !errors.Is(err, unix.EIO) {
			t.Errorf("hang: %v", err)
		}
	}
	// Four wait for their deadline and a second of grace, the fifth does not wait.
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %s", took)
	}
	if r := vol.reported(); !strings.Contains(r, "in time") || !strings.Contains(r, "hangs") {
		t.Errorf("reported: %s", r)
	}
	close(fs.hang)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if p, err := os.ReadFile(mnt + "/v/hang"); err == nil && string(p) == "late" {
			break
		} else if time.Now().After(end) {
			t.Fatalf("the volume did not come back: %v", err)
		}
	}
}

func TestMovingNameIsAskedForEachTime(t *testing.T) {
	point := func(id, text string, second bool) fusemount.Directory {
		fs := newFakeFS()
		fs.add(2, 12, "file", filesystem.TypeRegular, 0o644, text)
		fs.add(2, 13, "dir", filesystem.TypeDir, 0o755, "")
		d := &fakeDir{}
		d.set(fusemount.Entry{Name: "v", ID: "v" + id, Second: second, Volume: &fakeVolume{fs: fs}})
		return d
	}
	root := &fakeDir{}
	set := func(id, text string) {
		root.set(fusemount.Entry{Name: "one", ID: "p1", Directory: point("1", "one", false)},
			fusemount.Entry{Name: "two", ID: "p2", Directory: point("2", "two", false)},
			fusemount.Entry{Name: "latest", ID: "latest" + id, Moving: true, Directory: point(id, text, true)})
	}
	set("1", "one")
	mnt := start(t, root, fusemount.Options{})
	read := func(name string) string {
		t.Helper()
		p, err := os.ReadFile(mnt + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(p)
	}
	for i := range 3 {
		if got := read("latest/v/file"); got != "one" {
			t.Fatalf("latest: %q", got)
		}
		set("2", "two")
		if got := read("latest/v/file"); got != "two" {
			t.Fatalf("round %d: latest did not move: %q", i, got)
		}
		if read("one/v/file") != "one" || read("two/v/file") != "two" {
			t.Fatal("the points changed")
		}
		set("1", "one")
	}
	// A directory is reachable by both names at once, and a file is the same file.
	if _, err := os.ReadDir(mnt + "/one/v/dir"); err != nil {
		t.Error(err)
	}
	if _, err := os.ReadDir(mnt + "/latest/v/dir"); err != nil {
		t.Error(err)
	}
	if a, b := stat(t, mnt+"/one/v/dir"), stat(t, mnt+"/latest/v/dir"); a.Ino == b.Ino {
		t.Error("a directory with two parents has one inode number")
	}
	if a, b := stat(t, mnt+"/one/v/file"), stat(t, mnt+"/latest/v/file"); a.Ino != b.Ino {
		t.Error("a file has two inode numbers")
	}
	if a, b := stat(t, mnt+"/one/v/file"), stat(t, mnt+"/two/v/file"); a.Ino == b.Ino {
		t.Error("files of two volumes share an inode number")
	}
	out, err := exec.Command("find", mnt, "-type", "f").CombinedOutput()
	if err != nil || strings.Count(string(out), "/file\n") != 3 {
		t.Errorf("find: %v\n%s", err, out)
	}
}

func TestLargeDirectoryIsWhole(t *testing.T) {
	fs := newFakeFS()
	want := make(map[string]bool)
	for i := range 5000 {
		name := fmt.Sprintf("file-%d-%s", i, strings.Repeat("x", i%200))
		fs.add(2, filesystem.Inode(100+i), name, filesystem.TypeRegular, 0o644, "")
		want[name] = true
	}
	for _, name := range []string{"", ".", "..", "a/b", "nul\x00", strings.Repeat("y", 256)} {
		fs.add(2, 99, name, filesystem.TypeRegular, 0o644, "")
	}
	vol := &fakeVolume{fs: fs}
	root := &fakeDir{}
	root.set(fusemount.Entry{Name: "v", Volume: vol})
	mnt := start(t, root, fusemount.Options{})
	for range 2 { // the second time from the kernel's cache
		entries, err := os.ReadDir(mnt + "/v")
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) != len(want) {
			t.Fatalf("%d entries, want %d", len(entries), len(want))
		}
		for _, e := range entries {
			if !want[e.Name()] {
				t.Fatalf("%q should not be there", e.Name())
			}
		}
	}
	if !strings.Contains(vol.reported(), `"a/b"`) {
		t.Error("names that cannot be shown are not reported")
	}
	out, err := exec.Command("sh", "-c", "ls -la "+mnt+"/v | wc -l").Output()
	if err != nil || strings.TrimSpace(string(out)) != "5003" {
		t.Errorf("ls -la: %s, %v", out, err)
	}
}

func TestImageAndTextAreFiles(t *testing.T) {
	image := fakeImage{append(make([]byte, 8<<20), pattern(3<<20+512)...), 8 << 20}
	root := &fakeDir{}
	root.set(fusemount.Entry{Name: "disk.raw", Image: image, Time: when}, fusemount.Entry{Name: "STATUS", Text: fakeText("all is well\n")})
	mnt := start(t, root, fusemount.Options{})
	dst := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.Command("cp", "--sparse=auto", mnt+"/disk.raw", dst).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	got, err := os.ReadFile(dst)
	if err != nil || !bytes.Equal(got, image.content) {
		t.Fatalf("the copy differs (%v)", err)
	}
	if st := stat(t, dst); st.Blocks*512 > 4<<20 {
		t.Errorf("the copy takes %d bytes: cp did not see the hole", st.Blocks*512)
	}
	if st := stat(t, mnt+"/disk.raw"); st.Mode != unix.S_IFREG|0o400 || st.Size != image.Size() || !time.Unix(st.Mtim.Unix()).Equal(when) {
		t.Errorf("disk.raw: %+v", st)
	}
	if p, err := os.ReadFile(mnt + "/STATUS"); err != nil || string(p) != "all is well\n" {
		t.Errorf("STATUS: %q, %v", p, err)
	}
	if st := stat(t, mnt+"/STATUS"); st.Size != 12 {
		t.Errorf("STATUS has size %d", st.Size)
	}
}

func TestBrokenSourceIsAnErrorAndUnmounts(t *testing.T) {
	root := &fakeDir{}
	root.set(fusemount.Entry{Name: "STATUS", Text: fakeText("x")})
	mnt := start(t, root, fusemount.Options{})
	root.mu.Lock()
	root.err = errors.New("no daemon")
	root.mu.Unlock()
	if _, err := os.ReadDir(mnt); !errors.Is(err, unix.EIO) {
		t.Errorf("list: %v", err)
	}
}

func TestUnmountOfABusyMount(t *testing.T) {
	root := &fakeDir{}
	root.set(fusemount.Entry{Name: "STATUS", Text: fakeText("x")})
	mnt := start(t, root, fusemount.Options{})
	f, err := os.Open(mnt + "/STATUS")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := fusemount.Unmount(ctx, mnt, false); !errors.Is(err, unix.EBUSY) {
		t.Errorf("busy: %v", err)
	}
	if err := fusemount.Unmount(ctx, mnt, true); err != nil {
		t.Errorf("lazy: %v", err)
	}
	if err := fusemount.Unmount(ctx, mnt, false); !errors.Is(err, fusemount.ErrNotMounted) {
		t.Errorf("twice: %v", err)
	}
}
