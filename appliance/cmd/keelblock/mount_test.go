package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/appliance/keys/keystest"
)

// protected starts a daemon with one machine whose disk holds an ext4 with a file that
// only root of the guest may read, and backs it up.
func protected(t *testing.T, dir string) {
	t.Helper()
	need(t, "mke2fs", "truncate")
	must(t, dir, "keelblock", "serve", "-d", "--map-dir", dir+"/maps")
	if err := os.MkdirAll(dir+"/tree/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/tree/etc/shadow", []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/tree/big", randomBytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "truncate", "-s", "64M", "rootfs.img")
	must(t, dir, "mke2fs", "-q", "-t", "ext4", "-d", "tree", "rootfs.img")
	must(t, dir, "keelblock", "disk", "import", "web0", "rootfs.img")
	must(t, dir, "keelblock", "machine", "create", "web", "--disk", "web0")
	must(t, dir, "keelblock", "backup", "web")
}

// randomBytes is a content that no compression makes smaller, the same each time.
func randomBytes() []byte {
	p := make([]byte, 24<<20)
	r := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r.Uint64())
	}
	return p
}

// TestCorruptBlockIsAnErrorWithALineInSTATUS flips a bit of a pack: the file above it is
// an error, in the volume and in the raw disk, never wrong bytes and never zeros; the
// rest of the point is readable; STATUS, verify and restore say so.
func TestCorruptBlockIsAnErrorWithALineInSTATUS(t *testing.T) {
	needMount(t)
	if os.Geteuid() != 0 {
		t.Skip("mounting here needs root")
	}
	dir := home(t)
	protected(t, dir)
	must(t, dir, "keelblock", "stop") // its cache may hold the block
	big := randomBytes()
	const at = 10<<20 + 100
	disk, err := os.ReadFile(dir + "/d/disks/web0.raw")
	if err != nil {
		t.Fatal(err)
	}
	i := bytes.Index(disk, big[at:at+64])
	if i < 0 {
		t.Fatal("the file is not on the disk")
	}
	block := disk[i&^(64<<10-1):][:64<<10]
	if n := keystest.FlipBlock(t, dir+"/d", block); n != 1 {
		t.Fatalf("the block was found in %d packs", n)
	}
	// The live disk has other content by now, else verify heals the block from there.
	clear(disk[i : i+64])
	if err := os.WriteFile(dir+"/d/disks/web0.raw", disk, 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, dir, "keelblock", "serve", "-d", "--map-dir", dir+"/maps")
	mnt := dir + "/mnt"
	must(t, dir, "keelblock", "mount", mnt, "-d")
	latest := mnt + "/web/latest"
	f, err := os.Open(latest + "/volumes/web0-0/big")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 4096)
	if n, err := f.ReadAt(p, at); !errors.Is(err, unix.EIO) {
		t.Errorf("the corrupt block: %d bytes, %v", n, err)
	}
	if _, err := f.ReadAt(p, 0); err != nil || !bytes.Equal(p, big[:4096]) {
		t.Errorf("a sound block of the same file: %v", err)
	}
	if _, err := f.ReadAt(p, 20<<20); err != nil || !bytes.Equal(p, big[20<<20:20<<20+4096]) {
		t.Errorf("a sound block behind it: %v", err)
	}
	if s, err := os.ReadFile(latest + "/volumes/web0-0/etc/shadow"); err != nil || string(s) != "secret\n" {
		t.Errorf("another file: %q, %v", s, err)
	}
	if _, err := os.ReadFile(latest + "/web0.raw"); !errors.Is(err, unix.EIO) {
		t.Errorf("the raw disk: %v", err)
	}
	status, err := os.ReadFile(latest + "/STATUS")
	if err != nil || !strings.Contains(string(status), "web0-0: read ") || !strings.Contains(string(status), "I/O error:") {
		t.Errorf("STATUS (%v):\n%s", err, status)
	}
	t.Logf("STATUS:\n%s", status)
	stdout, stderr, code := command(t, dir, "keelblock", "recovery-point", "verify", "web@latest")
	if code != 1 || !strings.Contains(stdout+stderr, "web0") {
		t.Errorf("verify: exit status %d\n%s%s", code, stdout, stderr)
	}
	t.Logf("verify:\n%s%s", stdout, stderr)
	_, stderr, code = command(t, dir, "keelblock", "restore", "file", "web@latest", "back.raw")
	if code != 1 {
		t.Errorf("restore: exit status %d\n%s", code, stderr)
	}
	t.Logf("restore: %s", stderr)
	if left, _ := filepath.Glob(dir + "/*back.raw*"); len(left) > 0 {
		t.Errorf("the failed restore left %v", left)
	}
	f.Close()
	must(t, dir, "keelblock", "umount", mnt)
	must(t, dir, "keelblock", "stop")
}

// TestNobodyMounts mounts as an ordinary user who may reach the daemon's sockets and
// use FUSE, and needs nothing else.
func TestNobodyMounts(t *testing.T) {
	needMount(t)
	need(t, "setpriv", "unshare", "fusermount3")
	if os.Geteuid() != 0 {
		t.Skip("becoming nobody needs root")
	}
	dir := home(t)
	const nobody, nogroup = 65534, 65534
	for _, d := range []string{dir, dir + "/d", dir + "/d/run", dir + "/bin", dir + "/mine"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// As keelblock help single-files says.
	if err := errors.Join(os.Chown(dir+"/d/run", 0, nogroup), os.Chmod(dir+"/d/run", 0o750|os.ModeSetgid),
		os.Chown(dir+"/mine", nobody, nogroup), copyFile("/proc/self/exe", dir+"/bin/keelblock")); err != nil {
		t.Fatal(err)
	}
	protected(t, dir)
	if err := os.Chmod(dir+"/rootfs.img", 0o644); err != nil {
		t.Fatal(err)
	}
	// Machines usually let all users open /dev/fuse. On one that does not, the script
	// has a device of its own, in a mount namespace of its own.
	script := `set -eu
if [ "$(stat -c %a /dev/fuse)" != 666 ]; then
  mknod -m 666 "$DIR/fuse" c 10 229
  mount --bind "$DIR/fuse" /dev/fuse
fi
exec setpriv --reuid=65534 --regid=65534 --clear-groups -- sh -euc '
  cd $DIR/mine
  $DIR/bin/keelblock mount mnt -d
  # Who may read the raw disk may read each file of it.
  cat mnt/web/latest/volumes/web0-0/etc/shadow
  cmp mnt/web/latest/web0.raw $DIR/rootfs.img && echo same
  grep " $DIR/mine/mnt " /proc/mounts
  $DIR/bin/keelblock restore file web@latest back.raw
  $DIR/bin/keelblock umount mnt
  ! grep " $DIR/mine/mnt " /proc/mounts && echo gone
'`
	t.Setenv("DIR", dir)
	out := must(t, dir, "unshare", "-m", "--propagation", "private", "sh", "-c", script)
	lines := strings.Split(out, "\n")
	if len(lines) != 4 || lines[0] != "secret" || lines[1] != "same" || lines[3] != "gone" {
		t.Fatalf("output:\n%s", out)
	}
	if m := lines[2]; !strings.HasPrefix(m, "keelblock ") || !strings.Contains(m, "ro,nosuid,nodev,noexec") || strings.Contains(m, "allow_other") {
		t.Errorf("/proc/mounts: %s", m)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir+"/mine/back.raw", &st); err != nil || st.Uid != nobody {
		t.Errorf("the restored file belongs to user %d (%v)", st.Uid, err)
	}
	must(t, dir, "keelblock", "stop")
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// TestKilledDaemonIsAnErrorAndComesBack kills the daemon below a mount: what is read
// is an error and never zeros, the mount lives on, works again with the next daemon,
// and unmounts.
func TestKilledDaemonIsAnErrorAndComesBack(t *testing.T) {
	needMount(t)
	if os.Geteuid() != 0 {
		t.Skip("mounting here needs root")
	}
	dir := home(t)
	protected(t, dir)
	mnt := dir + "/mnt"
	must(t, dir, "keelblock", "mount", mnt, "-d")
	points, err := filepath.Glob(mnt + "/web/2*")
	if err != nil || len(points) != 1 {
		t.Fatalf("points: %v, %v", points, err)
	}
	file, err := os.Open(points[0] + "/volumes/web0-0/big")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	status := must(t, dir, "keelblock", "status", "--json")
	_, after, _ := strings.Cut(status, `"pid": `)
	pid, err := strconv.Atoi(after[:strings.IndexByte(after, ',')])
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	waitFor(t, "an error", func() bool {
		_, err := file.ReadAt(p, 20<<20)
		return errors.Is(err, unix.EIO)
	})
	if _, err := os.ReadFile(mnt + "/web/latest/volumes/web0-0/etc/shadow"); !errors.Is(err, unix.EIO) {
		t.Errorf("read without a daemon: %v", err)
	}
	must(t, dir, "keelblock", "serve", "-d", "--map-dir", dir+"/maps")
	waitFor(t, "the mount to come back", func() bool {
		p, err := os.ReadFile(mnt + "/web/latest/volumes/web0-0/etc/shadow")
		return err == nil && string(p) == "secret\n"
	})
	want, err := os.ReadFile(dir + "/tree/big")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(points[0] + "/volumes/web0-0/big")
	if err != nil || string(got) != string(want) {
		t.Errorf("big: %d bytes, %v", len(got), err)
	}
	file.Close()
	must(t, dir, "keelblock", "umount", mnt)
	mountsAgain(t, dir, mnt)
	must(t, dir, "keelblock", "stop")
}

// mountsAgain mounts at a place that had a mount before, reads, and unmounts.
func mountsAgain(t *testing.T, dir, mnt string) {
	t.Helper()
	must(t, dir, "keelblock", "mount", mnt, "-d")
	if p, err := os.ReadFile(mnt + "/web/latest/volumes/web0-0/etc/shadow"); err != nil || string(p) != "secret\n" {
		t.Errorf("mounted again: %q, %v", p, err)
	}
	must(t, dir, "keelblock", "umount", mnt)
}

// TestKilledMountUnmountsAndMountsAgain kills the process of a mount. The kernel answers
// for it with an error; umount takes it away, and the place can be used again.
func TestKilledMountUnmountsAndMountsAgain(t *testing.T) {
	needMount(t)
	dir := home(t)
	protected(t, dir)
	mnt := dir + "/mnt"
	if out := killMount(t, dir, mnt); out != "" {
		t.Errorf("a read from a killed mount gave %q", out)
	}
	if _, _, status := command(t, dir, "keelblock", "mount", mnt, "-d"); status != 1 {
		t.Errorf("mount over a dead mount: status %d", status)
	}
	must(t, dir, "keelblock", "umount", mnt)
	if m := mountsBelow(dir); len(m) > 0 {
		t.Errorf("%v are still mounted", m)
	}
	mountsAgain(t, dir, mnt)
	must(t, dir, "keelblock", "stop")
}

// killMount mounts, reads a file, kills the mount's process, and gives what a read gives
// then.
func killMount(t *testing.T, dir, mnt string) string {
	t.Helper()
	var mounted struct{ Pid int }
	if err := json.Unmarshal([]byte(must(t, dir, "keelblock", "mount", mnt, "-d", "--json")), &mounted); err != nil || mounted.Pid <= 1 {
		t.Fatalf("mount: %+v, %v", mounted, err)
	}
	shadow := mnt + "/web/latest/volumes/web0-0/etc/shadow"
	if p, err := os.ReadFile(shadow); err != nil || string(p) != "secret\n" {
		t.Fatalf("%q, %v", p, err)
	}
	if err := unix.Kill(mounted.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the kernel to notice", func() bool {
		_, err := os.ReadFile(mnt + "/web/latest/STATUS")
		return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
	})
	p, _ := os.ReadFile(shadow)
	return string(p)
}

// TestMountPinsItsPoint: what is being looked at is not purged, and the error says who
// looks; after the end of the mount it is.
func TestMountPinsItsPoint(t *testing.T) {
	needMount(t)
	dir := home(t)
	protected(t, dir)
	mnt := dir + "/mnt"
	must(t, dir, "keelblock", "mount", mnt, "-d")
	var point struct{ ID string }
	if err := json.Unmarshal([]byte(must(t, dir, "keelblock", "recovery-point", "show", "web@latest", "--json")), &point); err != nil || point.ID == "" {
		t.Fatalf("%+v, %v", point, err)
	}
	id := point.ID
	file, err := os.Open(mnt + "/web/latest/volumes/web0-0/big")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	_, stderr, status := command(t, dir, "keelblock", "recovery-point", "delete", id, "--purge", "--yes")
	if status != 1 || !strings.Contains(stderr, "a reader of user") {
		t.Errorf("purge of a mounted point: status %d, %s", status, stderr)
	}
	p := make([]byte, 1<<20)
	if _, err := file.ReadAt(p, 20<<20); err != nil || !bytes.Equal(p, randomBytes()[20<<20:21<<20]) {
		t.Errorf("read after the refusal: %v", err)
	}
	file.Close()
	must(t, dir, "keelblock", "umount", mnt)
	must(t, dir, "keelblock", "recovery-point", "delete", id, "--purge", "--yes")
	must(t, dir, "keelblock", "stop")
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestSignalEndsAMount ends a mount in the foreground as systemd or Ctrl-C would.
func TestSignalEndsAMount(t *testing.T) {
	needMount(t)
	dir := home(t)
	protected(t, dir)
	mnt := dir + "/mnt"
	cmd := exec.Command("keelblock", "mount", mnt)
	cmd.Env = append(os.Environ(), "KEELBLOCK_DATA="+dir+"/d")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the mount", func() bool {
		_, err := os.Stat(mnt + "/web")
		return err == nil
	})
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("mount ended by SIGTERM: %v", err)
	}
	if m := mountsBelow(dir); len(m) > 0 {
		t.Errorf("%v are still mounted", m)
	}
	must(t, dir, "keelblock", "stop")
}
