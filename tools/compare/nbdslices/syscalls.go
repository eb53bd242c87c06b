package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// countSyscalls attaches strace to each server while a slice runs and prints how
// many system calls a request costs. Counts are free of noise; rates under strace
// mean nothing.
func countSyscalls(ctx context.Context, r row, peers [2]*peer) error {
	for _, p := range peers {
		cmd := exec.CommandContext(ctx, "strace", "-f", "-c", "-p", strconv.Itoa(p.pid))
		var out bytes.Buffer
		cmd.Stderr = &out
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("strace: %w", err)
		}
		time.Sleep(500 * time.Millisecond) // until it has attached
		n, _, err := p.load.slice(r, time.Second)
		cmd.Process.Signal(syscall.SIGINT)
		cmd.Wait()
		if err != nil {
			return err
		}
		total, detail := 0, []string{}
		for line := range strings.Lines(out.String()) {
			f := strings.Fields(line)
			if len(f) < 5 || f[0] == "%" || strings.HasPrefix(f[0], "-") {
				continue
			}
			calls, err := strconv.Atoi(f[3])
			if err != nil {
				continue
			}
			if name := f[len(f)-1]; name == "total" {
				total = calls
			} else if calls*20 >= n {
				detail = append(detail, fmt.Sprintf("%s %.2f", name, float64(calls)/float64(n)))
			}
		}
		fmt.Printf("# %-18s %-7s %.2f system calls per request: %s\n", r.name, p.name, float64(total)/float64(n), strings.Join(detail, ", "))
	}
	return nil
}
