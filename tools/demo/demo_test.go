package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/tools/rig"
)

// product builds the binary, once per test that needs it.
func product(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "keelblock")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "./appliance/cmd/keelblock")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

func needTools(t *testing.T, tools ...string) {
	t.Helper()
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed; make deps installs it", tool)
		}
	}
}

// The tour on a small disk: all its comparisons hold, and the folder is gone.
func TestTour(t *testing.T) {
	needTools(t, append(needed, "nbdfuse", "fusermount3")...)
	if !rig.FUSE() {
		t.Skip("/dev/fuse cannot be opened")
	}
	bin := product(t)
	temp := t.TempDir()
	t.Setenv("TMPDIR", shortTemp(t))
	printed, err := os.Create(filepath.Join(temp, "printed"))
	if err != nil {
		t.Fatal(err)
	}
	defer printed.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	err = run(ctx, bin, 24<<20, newConsole(printed))
	text, readErr := os.ReadFile(printed.Name())
	if readErr != nil {
		t.Fatal(readErr)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if n := strings.Count(string(text), "✓"); n != 6 {
		t.Errorf("%d comparisons shown, want 6:\n%s", n, text)
	}
	if strings.Contains(string(text), "\x1b") {
		t.Error("colours although the output is no terminal")
	}
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		t.Errorf("left behind: %s", e.Name())
	}
}

// shortTemp is a temporary folder whose path leaves room for a socket's name.
func shortTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// An interrupt in the middle ends everything, too.
func TestInterruptedTourLeavesNothing(t *testing.T) {
	needTools(t, needed...)
	bin := product(t)
	t.Setenv("TMPDIR", shortTemp(t))
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// Interrupt once the daemon serves.
	go func() {
		for ctx.Err() == nil {
			if m, _ := filepath.Glob(os.Getenv("TMPDIR") + "/keelblock-demo-*/data/run/nbd.sock"); len(m) > 0 {
				cancel()
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	if err := run(ctx, bin, 8<<20, newConsole(null)); err == nil {
		t.Error("an interrupted tour succeeded")
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}
