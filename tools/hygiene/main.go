// Command hygiene runs a command and then looks for what it left behind: mounts,
// loop devices, network namespaces, processes, listening sockets, changed-block
// maps, folders of tests on tmpfs and temporary files. It says which commands take
// them away.
//
//	hygiene -- go test ./...
//
// Processes are attributed exactly: hygiene makes itself the subreaper of its
// descendants (prctl PR_SET_CHILD_SUBREAPER), so whatever outlives the command, a
// daemon that detached itself included, becomes a child of hygiene. Everything
// else is a difference between a snapshot before and one after; what goes away by
// itself within a few seconds does not count. Leftovers are listed and the exit
// status is 1, even when the command succeeded; leftover processes are ended.
//
// On a machine that others use at the same time HYGIENE=report turns leftovers
// into a warning.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	settle := flag.Duration("settle", 10*time.Second,
		"how long leftovers may take to go away by themselves: a lazy unmount, a loop device with autoclear, helpers of the go command")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: hygiene [-settle D] -- COMMAND [ARGUMENT...]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	status, err := run(flag.Args(), *settle, os.Getenv("HYGIENE") == "report")
	if err != nil {
		fmt.Fprintln(os.Stderr, "hygiene:", err)
		os.Exit(1)
	}
	os.Exit(status)
}

// run executes args and returns the exit status: the command's own when it failed,
// 1 when it succeeded but left something behind.
func run(args []string, settle time.Duration, reportOnly bool) (int, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 1, fmt.Errorf("become subreaper: %w", err)
	}
	before, err := takeSnapshot()
	if err != nil {
		return 1, err
	}

	// The terminal sends an interrupt to the whole group; the command decides.
	signal.Ignore(os.Interrupt)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	status := 0
	if err := cmd.Run(); err != nil {
		exit, ok := err.(*exec.ExitError)
		if !ok {
			return 1, fmt.Errorf("run %s: %w", args[0], err)
		}
		status = exit.ExitCode()
		if status < 0 { // ended by a signal
			status = 128 + int(exit.Sys().(syscall.WaitStatus).Signal())
		}
	}

	left, err := leftovers(before, settle)
	if err != nil {
		return 1, err
	}
	if len(left) == 0 {
		return status, nil
	}
	fmt.Fprintf(os.Stderr, "hygiene: %s left behind:\n", args[0])
	for _, l := range left {
		fmt.Fprintln(os.Stderr, "  "+l)
	}
	if commands := remedies(left); len(commands) > 0 && !reportOnly { // else it may be somebody else's
		fmt.Fprintln(os.Stderr, "hygiene: if nobody uses them, these take them away:")
		for _, c := range commands {
			fmt.Fprintln(os.Stderr, "  "+c)
		}
	}
	endChildren()
	if status == 0 && !reportOnly {
		status = 1
	}
	return status, nil
}

// leftovers compares the machine with the snapshot until nothing is left or the
// time is over.
func leftovers(before snapshot, patience time.Duration) ([]string, error) {
	deadline := time.Now().Add(patience)
	for {
		after, err := takeSnapshot()
		if err != nil {
			return nil, err
		}
		left := after.minus(before)
		children, err := liveChildren()
		if err != nil {
			return nil, err
		}
		for _, c := range children {
			left = append(left, "process "+c.String())
		}
		slices.Sort(left)
		if len(left) == 0 || time.Now().After(deadline) {
			return left, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// endChildren ends what is still there, gently first, so that a red run does not
// spoil the next one.
func endChildren() {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		for range 30 {
			children, err := liveChildren()
			if err != nil || len(children) == 0 {
				return
			}
			for _, c := range children {
				_ = syscall.Kill(c.pid, sig) // it may have ended meanwhile
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}
