package server_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/localdisk"
	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// loopFS is a file system in a file, mounted by the test.
type loopFS struct {
	t        *testing.T
	dir, dev string
	mounted  bool
}

// newLoopFS makes and mounts a file system, or skips the test with the reason.
func newLoopFS(t *testing.T, size int64, mkfs ...string) *loopFS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a loop mount needs root")
	}
	base := t.TempDir()
	backing := filepath.Join(base, "backing")
	if err := localdisk.Create(backing, size); err != nil {
		t.Fatal(err)
	}
	fs := &loopFS{t: t, dir: filepath.Join(base, "mnt")}
	fs.dev = fs.orSkip("losetup", "-f", "--show", backing)
	t.Cleanup(func() { fs.must("losetup", "-d", fs.dev) })
	fs.orSkip(mkfs[0], append(mkfs[1:], fs.dev)...)
	if err := os.Mkdir(fs.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	fs.orSkip("mount", fs.dev, fs.dir)
	fs.mounted = true
	t.Cleanup(fs.unmount)
	return fs
}

// orSkip runs a command; the test is skipped when that is not possible here.
func (fs *loopFS) orSkip(name string, args ...string) string {
	fs.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		fs.t.Skipf("%s %s: %v: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return strings.TrimSpace(string(out))
}

func (fs *loopFS) must(name string, args ...string) {
	fs.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		fs.t.Errorf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

func (fs *loopFS) unmount() {
	if fs.mounted {
		fs.must("umount", fs.dir)
		fs.mounted = false
	}
}

// powerCut stops the file system so that nothing in memory reaches the disk any
// more: EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN are the same number, and 2 is
// NOLOGFLUSH for both (fs/ext4/ext4.h, fs/xfs/libxfs/xfs_fs.h).
func (fs *loopFS) powerCut() {
	fs.t.Helper()
	f, err := os.Open(fs.dir)
	if err != nil {
		fs.t.Fatal(err)
	}
	defer f.Close()
	flags := uint32(2)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), 0x8004587D, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		fs.t.Skipf("the file system cannot be shut down: %v", errno)
	}
}

// powerOn mounts the file system again after powerCut; its journal is replayed.
func (fs *loopFS) powerOn() {
	fs.t.Helper()
	fs.unmount()
	fs.must("mount", fs.dev, fs.dir)
	fs.mounted = true
}

var fileSystems = map[string][]string{
	"ext4": {"mkfs.ext4", "-q", "-F"},
	"xfs":  {"mkfs.xfs", "-q", "-f"},
}

// What was acknowledged with FUA, or before a FLUSH on any connection, is there
// after a power cut. What was not is lost here, which shows that the cut is one.
func TestDemand36FlushAndFUASurviveAPowerCut(t *testing.T) {
	for name, mkfs := range fileSystems {
		for _, way := range []string{"inline", "workers"} {
			t.Run(name+" "+way, func(t *testing.T) {
				fs := newLoopFS(t, 400<<20, mkfs...)
				path := filepath.Join(fs.dir, "disk.raw")
				want := cutAfterWrites(t, fs, path, way)
				fs.powerOn()
				got, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range []struct {
					what   string
					off, n int
				}{
					{"a write with FUA", 0, 4096},
					{"a large write with FUA", 1<<20 + 512, 900_000},
					{"zeroes with FUA", 8 << 20, 64 << 10},
					{"a write before a FLUSH of its connection", 4 << 20, 8192},
					{"a write before a FLUSH of another connection", 5 << 20, 8192},
				} {
					if !bytes.Equal(got[r.off:r.off+r.n], want[r.off:r.off+r.n]) {
						t.Errorf("%s is lost", r.what)
					}
				}
				if bytes.Contains(got, bytes.Repeat([]byte{0xEE}, 512)) {
					t.Error("the power cut lost nothing, so this test proves nothing")
				}
			})
		}
	}
}

// cutAfterWrites writes through a server, cuts the power, and returns what must be
// on the disk.
func cutAfterWrites(t *testing.T, fs *loopFS, path, way string) []byte {
	t.Helper()
	const size = 16 << 20
	if err := localdisk.Create(path, size); err != nil {
		t.Fatal(err)
	}
	disk, err := localdisk.Open(path, localdisk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	var d blockdev.Device = disk
	if way == "workers" {
		d = plain{disk}
	}
	s := server.New(server.Options{})
	if err := s.Add(server.Export{Name: "disk", Device: d}); err != nil {
		t.Fatal(err)
	}
	r := &running{s, filepath.Join(t.TempDir(), "s")}
	serve(t, s, listen(t, r.socket))
	a, b := r.open(t, "disk", false), r.open(t, "disk", true)
	want := make([]byte, size)
	write := func(w *wire, flags uint16, off, n int) {
		t.Helper()
		for i := off; i < off+n; i++ {
			want[i] = byte(i>>9) | 1
		}
		w.works(nbd.Request{Type: nbd.CmdWrite, Flags: flags, Offset: uint64(off), Length: uint32(n)}, want[off:off+n])
	}
	write(a, 0, 8<<20, 64<<10)
	write(a, 0, 4<<20, 8192)
	a.works(nbd.Request{Type: nbd.CmdFlush}, nil)
	write(b, 0, 5<<20, 8192)
	a.works(nbd.Request{Type: nbd.CmdFlush}, nil) // another connection than the write's
	write(a, nbd.CmdFlagFUA, 1<<20+512, 900_000)
	clear(want[8<<20 : 8<<20+64<<10])
	a.works(nbd.Request{Type: nbd.CmdWriteZeroes, Flags: nbd.CmdFlagFUA, Offset: 8 << 20, Length: 64 << 10}, nil)
	write(b, nbd.CmdFlagFUA, 0, 4096)
	b.works(nbd.Request{Type: nbd.CmdWrite, Offset: 12 << 20, Length: 1 << 20}, bytes.Repeat([]byte{0xEE}, 1<<20))
	fs.powerCut()
	b.fails(nbd.Request{Type: nbd.CmdFlush}, nil, nbd.EIO) // honest about what is gone
	if err := s.Shutdown(within(t, 5e9)); err == nil {
		t.Error("Shutdown after the power cut reports no error")
	}
	return want
}

// A full file system under the disk is an ENOSPC for the write that needs space,
// and nothing else.
func TestFullFileSystemUnderTheDisk(t *testing.T) {
	fs := newLoopFS(t, 400<<20, "mkfs.ext4", "-q", "-F", "-m", "0")
	other := newDisk(t, fs.dir, 8<<20)
	path := filepath.Join(fs.dir, "big.raw")
	if err := localdisk.Create(path, 1<<30); err != nil {
		t.Fatal(err)
	}
	big, err := localdisk.Open(path, localdisk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { big.Close() })
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "big", Device: big})
	s.add(t, server.Export{Name: "other", Device: other})
	w, o := s.open(t, "big", true), s.open(t, "other", false)
	o.works(writeAt(0, 8<<20), bytes.Repeat([]byte{0x77}, 8<<20))

	stripe := func(i int) []byte { return bytes.Repeat([]byte{byte(i) | 1, byte(i >> 7)}, 512<<10) }
	full := -1
	for i := range 1024 {
		got := w.do(writeAt(uint64(i)<<20, 1<<20), stripe(i))
		if got.errno == nbd.OK {
			continue
		}
		if got.errno != nbd.ENOSPC || got.text == "" {
			t.Fatalf("write %d: %v %q, want ENOSPC with a text", i, got.errno, got.text)
		}
		full = i
		break
	}
	if full < 300 {
		t.Fatalf("a file system of 400 MB was full after %d MiB", full)
	}
	w.fails(writeAt(900<<20, 1<<20), stripe(0), nbd.ENOSPC)
	for i := range full {
		got := w.works(nbd.Request{Type: nbd.CmdRead, Offset: uint64(i) << 20, Length: 1 << 20}, nil)
		if !bytes.Equal(got.data, stripe(i)) {
			t.Fatalf("MiB %d was acknowledged and is lost", i)
		}
	}
	w.works(writeAt(5<<20, 1<<20), stripe(5)) // an overwrite needs no space
	w.works(nbd.Request{Type: nbd.CmdFlush}, nil)
	if got := o.works(nbd.Request{Type: nbd.CmdRead, Length: 8 << 20}, nil); !bytes.Equal(got.data, bytes.Repeat([]byte{0x77}, 8<<20)) {
		t.Error("the disk beside it has lost data")
	}
	o.alive()
	w.works(nbd.Request{Type: nbd.CmdTrim, Flags: nbd.CmdFlagFUA, Offset: 100 << 20, Length: 50 << 20}, nil)
	w.works(writeAt(900<<20, 1<<20), stripe(9))
	if got := w.works(nbd.Request{Type: nbd.CmdRead, Offset: 900 << 20, Length: 1 << 20}, nil); !bytes.Equal(got.data, stripe(9)) {
		t.Error("what was written after a trim had made room is not there")
	}
}

// The user at the other end of a unix socket is known, and what he may not use he
// does not even see.
func TestNobodySeesOnlyWhatHeMayUse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("becoming nobody needs root")
	}
	const nobody = 65534
	s := start(t, server.Options{Authorize: func(p server.Peer, name string) error {
		if p.UID == nobody && name != "public" {
			return errors.New("not for you")
		}
		return nil
	}})
	d := newDisk(t, t.TempDir(), 1<<20)
	s.add(t, server.Export{Name: "public", Device: d, ReadOnly: true})
	s.add(t, server.Export{Name: "private", Device: d})
	for dir := filepath.Dir(s.socket); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(s.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	asNobody := func(args ...string) (string, error) {
		if _, err := exec.LookPath("nbdinfo"); err != nil {
			t.Skip("nbdinfo is not installed")
		}
		cmd := exec.CommandContext(within(t, 20e9), "nbdinfo", args...)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := asNobody("--list", s.uri("")); err != nil || !strings.Contains(out, `"public"`) || strings.Contains(out, "private") {
		t.Errorf("nobody lists %v:\n%s", err, out)
	}
	if out, err := asNobody("--size", s.uri("public")); err != nil || strings.TrimSpace(out) != "1048576" {
		t.Errorf("nobody opens what he may use: %v %s", err, out)
	}
	if out, err := asNobody("--size", s.uri("private")); err == nil || !strings.Contains(out, "policy") {
		t.Errorf("nobody opens what he may not use: %v %s", err, out)
	}
}
