package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A loop that was renamed would otherwise pass for ever, since `go test -run` of
// no test succeeds.
func TestLoopsExist(t *testing.T) {
	for _, l := range loops {
		files, err := filepath.Glob(filepath.Join("../..", l.folder, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			found = found || strings.Contains(string(text), "func "+l.test+"(t *testing.T)")
		}
		if !found {
			t.Errorf("%s has no %s", l.folder, l.test)
		}
	}
}

func TestDigestKeepsRemarks(t *testing.T) {
	out := "=== RUN   TestKill\n=== RUN   TestKill/SEED=4\n    crash_test.go:256: rounds=3 seed=4 lost=0\n--- PASS: TestKill (0.1s)\n    --- PASS: TestKill/SEED=4 (0.1s)\nPASS\n"
	if got, want := digest(out), "       crash_test.go:256: rounds=3 seed=4 lost=0\n"; got != want {
		t.Errorf("digest %q, want %q", got, want)
	}
}

func TestRoundsOfARun(t *testing.T) {
	for _, c := range []struct {
		l    loop
		out  string
		want int
	}{
		{loop{}, "    x_test.go:1: rounds=7 seed=1 lost=0 (3 kills)\n", 7},
		{loop{each: 6}, "    x_test.go:1: seed 5\n", 6},
		{loop{once: true}, "", 1},
		{loop{variable: "CUTS"}, "cuts=20 violations=0\n", 20},
	} {
		if got := c.l.rounds(c.out, 20); got != c.want {
			t.Errorf("%q: %d rounds, want %d", c.out, got, c.want)
		}
	}
}
