package main

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNobodyCopiesFiles gets files as an ordinary user who may reach the daemon's
// sockets, and has neither root nor FUSE: the copies belong to that user.
func TestNobodyCopiesFiles(t *testing.T) {
	need(t, "setpriv")
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
		os.Chown(dir+"/mine", nobody, nogroup), copyFile("/proc/self/exe", dir+"/bin/keelblock"),
		os.MkdirAll(dir+"/tree/bin", 0o755), os.WriteFile(dir+"/tree/bin/su", []byte("su"), 0o755),
		os.Chmod(dir+"/tree/bin/su", 0o755|os.ModeSetuid), unix.Mkfifo(dir+"/tree/bin/pipe", 0o600),
		unix.Mknod(dir+"/tree/bin/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))); err != nil {
		t.Fatal(err)
	}
	protected(t, dir)
	t.Setenv("DIR", dir)
	as := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--", dir + "/bin/keelblock"}
	out := must(t, dir, append(as, "files", "ls", "-1", "web@latest:/")...)
	if out != "big\nbin\netc\nlost+found" {
		t.Errorf("ls: %q", out)
	}
	_, stderr, code := command(t, dir, append(as, "files", "cp", "web@latest:/", dir+"/mine/back")...)
	if code != 3 || !strings.Contains(stderr, "bin/null: only root can make a device") || !strings.Contains(stderr, "1 files could not be copied") {
		t.Errorf("cp: exit status %d\n%s", code, stderr)
	}
	if p, err := os.ReadFile(dir + "/mine/back/etc/shadow"); err != nil || string(p) != "secret\n" {
		t.Errorf("shadow: %q, %v", p, err)
	}
	for path, mode := range map[string]uint32{"etc/shadow": unix.S_IFREG | 0o600, "bin/su": unix.S_IFREG | 0o755, "bin/pipe": unix.S_IFIFO | 0o600, "bin": unix.S_IFDIR | 0o755} {
		var st unix.Stat_t
		if err := unix.Lstat(dir+"/mine/back/"+path, &st); err != nil || st.Uid != nobody || st.Mode != mode {
			t.Errorf("%s belongs to user %d, mode %o, want %o (%v)", path, st.Uid, st.Mode, mode, err)
		}
	}
	must(t, dir, append(as, "files", "find", "web@latest", "shadow")...)
	must(t, dir, append(as, "files", "versions", "web:/etc/shadow")...)
	// Where he may not write nothing is written, and he learns why.
	_, stderr, code = command(t, dir, append(as, "files", "cp", "web@latest:/etc/shadow", dir+"/tree")...)
	if code != 1 || !strings.Contains(stderr, "permission denied") {
		t.Errorf("cp to a folder of root: exit status %d\n%s", code, stderr)
	}
	must(t, dir, "keelblock", "stop")
}
