package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The tests run the program itself, built once, since it reaps every child of its
// process.
func build(t *testing.T) string {
	t.Helper()
	t.Setenv("HYGIENE", "") // whatever the run around us was given
	bin := filepath.Join(t.TempDir(), "hygiene")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

func TestExitStatusIsTheCommands(t *testing.T) {
	bin := build(t)
	cmd := exec.Command(bin, "-settle", "1s", "--", "sh", "-c", "exit 7")
	cmd.Env = append(os.Environ(), "HYGIENE=report")
	err := cmd.Run()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 7 {
		t.Errorf("exit status: %v, want 7", err)
	}
}

func TestDetachedProcessIsFoundAndEnded(t *testing.T) {
	bin := build(t)
	pidFile := filepath.Join(t.TempDir(), "pid")
	// A daemon as daemons are: its own session, its parent gone.
	script := "setsid sh -c 'echo $$ > " + pidFile + "; exec sleep 600' >/dev/null 2>&1 & while ! [ -s " + pidFile + " ]; do sleep 0.05; done"
	out, err := exec.Command(bin, "-settle", "1s", "--", "sh", "-c", script).CombinedOutput()
	if err == nil {
		t.Errorf("succeeded with a process left behind:\n%s", out)
	}
	if !strings.Contains(string(out), "sleep 600") {
		t.Errorf("output does not name the process:\n%s", out)
	}
	pid, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/proc/" + strings.TrimSpace(string(pid))); err == nil {
		t.Errorf("process %s still runs", pid)
	}
}

func TestDifferenceNamesWhatAppeared(t *testing.T) {
	before, err := takeSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "keelblock-hygiene-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	after, err := takeSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	want := "temporary file " + dir
	for _, l := range after.minus(before) {
		if l == want {
			return
		}
	}
	t.Errorf("%q is not among %q", want, after.minus(before))
}

func TestMountIsListed(t *testing.T) {
	before, err := takeSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "hygiene-test", dir).CombinedOutput(); err != nil {
		t.Skipf("cannot mount a tmpfs here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	after, err := takeSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, l := range after.minus(before) {
		found = found || l == "mount "+dir+" (tmpfs of hygiene-test)"
	}
	if !found {
		t.Errorf("the mount is not among %q", after.minus(before))
	}
}

func TestLeftoversMayGoAwayByThemselves(t *testing.T) {
	before, err := takeSnapshot()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "keelblock-hygiene-")
	if err != nil {
		t.Fatal(err)
	}
	gone := time.AfterFunc(300*time.Millisecond, func() { os.RemoveAll(dir) })
	defer gone.Stop()
	left, err := leftovers(before, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range left {
		if strings.Contains(l, dir) {
			t.Errorf("still listed: %s", l)
		}
	}
}

// A test that is ended by its time limit leaves a folder on tmpfs, and a loop mount with
// its device: they are found, and the commands come in an order that works.
func TestWhatAKilledTestLeaves(t *testing.T) {
	if st, err := os.Stat("/dev/shm"); err != nil || !st.IsDir() {
		t.Skip("there is no /dev/shm")
	}
	bin := build(t)
	out, err := exec.Command(bin, "-settle", "1s", "--", "mktemp", "-d", "/dev/shm/keelblock-test-XXXXXXXX").CombinedOutput()
	dir, _, _ := strings.Cut(string(out), "\n")
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err == nil || !strings.Contains(string(out), "test folder "+dir+"\n") || !strings.Contains(string(out), "rm -r "+dir+"\n") {
		t.Errorf("%v:\n%s", err, out)
	}
	got := remedies([]string{"listening TCP port 7", "loop device /dev/loop3 of /tmp/x/img", "mount /tmp/x/mnt (ext4 of /dev/loop3)", "test folder /dev/shm/keelblock-test-1"})
	if want := []string{"umount /tmp/x/mnt", "losetup -d /dev/loop3", "rm -r /dev/shm/keelblock-test-1"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
