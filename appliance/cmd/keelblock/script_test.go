package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs the transcripts in testdata. They are also examples of use.
//
// Beside the commands of testscript they have: "exits N command…" requires an exit
// status; "keep NAME" keeps the standard output of the last command as a variable;
// "same FILE FILE" compares files of any size.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			dir, err := os.MkdirTemp("", "kb")
			if err != nil {
				return err
			}
			e.Defer(func() { clean(e.T().(testing.TB), dir) })
			e.Setenv("KEELBLOCK_DATA", filepath.Join(dir, "d"))
			e.Setenv("KEELBLOCK_API", "")
			e.Setenv("DIR", dir)
			return nil
		},
		Condition: func(c string) (bool, error) {
			switch c {
			case "fuse":
				_, err := os.Stat("/dev/fuse")
				return err == nil && os.Geteuid() == 0, nil
			}
			return false, errors.New("unknown condition " + c)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) < 2 {
					ts.Fatalf("usage: exits N command…")
				}
				want, err := strconv.Atoi(args[0])
				ts.Check(err)
				err = ts.Exec(args[1], args[2:]...)
				got := 0
				var exit *exec.ExitError
				if errors.As(err, &exit) {
					got = exit.ExitCode()
				} else {
					ts.Check(err)
				}
				if got != want {
					ts.Fatalf("exit status %d, want %d", got, want)
				}
			},
			"keep": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) != 1 {
					ts.Fatalf("usage: keep NAME")
				}
				ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
			},
			"same": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) != 2 {
					ts.Fatalf("usage: same FILE FILE")
				}
				ts.Check(ts.Exec("cmp", args...))
			},
		},
	})
}
