package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"keelblock": main})
}

// home is an empty folder for a daemon, with a path that is short enough for sockets.
// At the end of the test everything that was started for it is ended, by pid, and
// everything mounted below it is unmounted.
func home(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { clean(t, dir) })
	return dir
}

func clean(t testing.TB, dir string) {
	t.Helper()
	for _, m := range mountsBelow(dir) {
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		for end := time.Now().Add(10 * time.Second); len(processesOf(dir)) > 0 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			for _, pid := range processesOf(dir) {
				_ = unix.Kill(pid, signal)
			}
		}
	}
	if p := processesOf(dir); len(p) > 0 {
		t.Errorf("processes %v are left behind", p)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}

// processesOf finds the processes that were started with KEELBLOCK_DATA below dir.
func processesOf(dir string) []int {
	var out []int
	entries, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, e := range entries {
		env, _ := os.ReadFile(e)
		if slices.ContainsFunc(bytes.Split(env, []byte{0}), func(v []byte) bool {
			return bytes.HasPrefix(v, []byte("KEELBLOCK_DATA="+dir)) || string(v) == "DIR="+dir
		}) {
			pid, _ := strconv.Atoi(strings.Split(e, "/")[2])
			if pid != os.Getpid() {
				out = append(out, pid)
			}
		}
	}
	return out
}

func mountsBelow(dir string) []string {
	var out []string
	mounts, _ := os.ReadFile("/proc/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			out = append(out, f[1])
		}
	}
	slices.Reverse(out)
	return out
}

// command runs a program for the daemon in dir. It gives standard output, standard
// error and the exit status.
func command(t testing.TB, dir string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "KEELBLOCK_DATA="+filepath.Join(dir, "d"), "KEELBLOCK_API=")
	cmd.Dir = dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must runs a program that has to succeed and gives its standard output.
func must(t testing.TB, dir string, args ...string) string {
	t.Helper()
	stdout, stderr, status := command(t, dir, args...)
	if status != 0 {
		t.Fatalf("%s: exit status %d\n%s%s", strings.Join(args, " "), status, stdout, stderr)
	}
	return strings.TrimSuffix(stdout, "\n")
}

func need(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
}

func needMount(t testing.TB) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("/dev/fuse is missing")
	}
	if os.Geteuid() != 0 {
		need(t, "fusermount3")
	}
}
