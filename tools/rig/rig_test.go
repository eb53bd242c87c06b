package rig

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSizeForPeople(t *testing.T) {
	for n, want := range map[int64]string{0: "0 bytes", 4096: "4 KiB", 3 << 19: "1.5 MiB", 320 << 20: "320 MiB", 5 << 29: "2.50 GiB"} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestParsePoint(t *testing.T) {
	p, err := ParsePoint(`{"id":"ab","frozenAt":"2026-11-21T19:30:00Z","readBytes":5,"tracking":"enabled"}`, time.Second)
	if err != nil || p.ID != "ab" || p.ReadBytes != 5 || p.Tracking != "enabled" || p.Took != time.Second || p.FrozenAt.Year() != 2026 {
		t.Errorf("point %+v, error %v", p, err)
	}
	for _, bad := range []string{"", "{}", `{"id":""}`, "ab"} {
		if _, err := ParsePoint(bad, 0); err == nil {
			t.Errorf("%q was taken for a point", bad)
		}
	}
}

// A line that outlives its context is ended with everything that it started.
func TestShellEndsWithItsContext(t *testing.T) {
	r := &Rig{Bin: "/bin/true", Dir: t.TempDir(), Data: "/nonexistent"}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := r.Shell(ctx, "sleep 60 & echo $! > pid; wait"); err == nil {
		t.Error("succeeded although its context ended")
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	pid, err := os.ReadFile(filepath.Join(r.Dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		cmdline, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/cmdline")
		if err != nil || len(cmdline) == 0 { // gone, or a zombie
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Error("the background command still runs")
}

func TestGatherTakesEnough(t *testing.T) {
	stage := t.TempDir()
	files, bytes, err := Gather(t.Context(), stage, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if files == 0 || bytes < 1<<20 {
		t.Errorf("%d files, %d bytes; want at least 1 MiB", files, bytes)
	}
}
