package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// maxSyscalls is the most that a request may cost with 32 of them under way.
const maxSyscalls = 2.0

// countSyscalls prints how many system calls a request costs. Counts are free of
// noise, but not of load: a server that waits for a processor finds more requests at
// once.
func (p plan) countSyscalls(ctx context.Context, at places) error {
	var chosen []shape
	for _, s := range small {
		if s.depth > 1 && p.wanted("syscalls-"+s.name) {
			chosen = append(chosen, s)
		}
	}
	if len(chosen) == 0 {
		return nil
	}
	peers, stop, err := at.start(ctx, stages[0])
	if err != nil {
		return err
	}
	defer stop()
	for _, s := range chosen {
		var each [sides]float64
		for i, q := range peers {
			if each[i], err = q.syscalls(ctx, s); err != nil {
				fmt.Printf("# syscalls-%s: %v\n", s.name, err)
				return nil // neither perf nor strace may count here
			}
		}
		print("syscalls-"+s.name, fmt.Sprintf("%.2f", each[tracked]), fmt.Sprintf("%.2f", maxSyscalls), maxSyscalls/each[tracked], 1)
		fmt.Printf("# syscalls-%s: nbdkit %.2f\n", s.name, each[nbdkit])
	}
	return nil
}

// syscalls counts those of a server while a slice runs: by perf, which hardly slows it
// down, or by strace, under which rates mean nothing.
func (p *peer) syscalls(ctx context.Context, s shape) (float64, error) {
	pid := strconv.Itoa(p.pid)
	perf, err := p.count(ctx, s, exec.CommandContext(ctx, "perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", pid), perfCount)
	if err == nil {
		return perf, nil
	}
	strace, straceErr := p.count(ctx, s, exec.CommandContext(ctx, "strace", "-f", "-c", "-p", pid), straceCount)
	if straceErr != nil {
		return 0, fmt.Errorf("%w; %w", err, straceErr)
	}
	return strace, nil
}

func (p *peer) count(ctx context.Context, s shape, counter *exec.Cmd, parse func(string) (int, error)) (float64, error) {
	var out bytes.Buffer
	counter.Stderr = &out
	if err := counter.Start(); err != nil {
		return 0, err
	}
	time.Sleep(500 * time.Millisecond) // until it has attached
	n, _, err := p.loads[0].slice(s, 500*time.Millisecond)
	counter.Process.Signal(syscall.SIGINT)
	counter.Wait() // says that it was interrupted
	if err != nil {
		return 0, err
	}
	calls, err := parse(out.String())
	if err != nil {
		return 0, fmt.Errorf("%s: %w", counter.Path, err)
	}
	return float64(calls) / float64(n), nil
}

var errNoCount = errors.New("it counted nothing")

// perfCount reads "CALLS,,raw_syscalls:sys_enter,…".
func perfCount(text string) (int, error) {
	for line := range strings.Lines(text) {
		if f := strings.Split(line, ","); len(f) > 2 && strings.HasPrefix(f[2], "raw_syscalls") {
			return strconv.Atoi(f[0])
		}
	}
	return 0, errNoCount
}

// straceCount reads the last line of a table, "100.00 SECONDS USECS CALLS [ERRORS] total".
func straceCount(text string) (int, error) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) >= 5 && f[len(f)-1] == "total" {
			return strconv.Atoi(f[3])
		}
	}
	return 0, errNoCount
}
