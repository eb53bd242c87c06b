package main

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// nbdRows runs tools/compare/nbdslices, which measures servers in interleaved
// slices, and takes over its rows. They take minutes, so they are shown as they come.
func nbdRows(ctx context.Context, bin, pick string, t *table) error {
	cmd := exec.CommandContext(ctx, "go", "run", "-buildvcs=false", "./tools/compare/nbdslices", "-bin", bin, "-row", pick)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	before := len(t.rows)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "#") {
			fmt.Fprintln(t.out, lines.Text())
		}
		for _, r := range parseRows(lines.Text()) {
			t.add(r)
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("nbdslices: %w\n%s", err, stderr.String())
	}
	if len(t.rows) == before {
		return fmt.Errorf("nbdslices printed no row\n%s", stderr.String())
	}
	return nil
}

// parseRows reads lines `row ours peer ratio goal ok|missed`; other lines are
// headings and remarks.
func parseRows(text string) []row {
	var rows []row
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 6 || f[5] != "ok" && f[5] != "missed" && f[5] != "-" {
			continue
		}
		ratio, err := strconv.ParseFloat(f[3], 64)
		if err != nil {
			continue
		}
		goal, err := strconv.ParseFloat(f[4], 64)
		if err != nil && f[4] != "-" {
			continue
		}
		rows = append(rows, row{name: f[0], ours: f[1], peer: f[2], ratio: ratio, goal: goal, command: "tools/compare/nbdslices: " + nbdComparison(f[0])})
	}
	return rows
}

// nbdComparison says what a row of nbdslices compares.
func nbdComparison(name string) string {
	kind, _, _ := strings.Cut(name, "-")
	text := map[string]string{
		"nbd":      "interleaved slices, a tracked disk against nbdkit's file plugin",
		"tracked":  "interleaved slices, a tracked disk without snapshot against the same file untracked",
		"control":  "interleaved slices, the untracked file against itself by another export of the same process: what noise there is",
		"syscalls": "system calls per request with 32 under way, against the bar of two",
		"freeze":   "8 disks of 1 TiB under writes, against the bar of 1 ms",
		"capture":  "writes as fast as they go while a backup runs, against the moments before it",
		"guest":    "p99 of 1000 random writes/s of 4 KiB beside backups, against an untracked disk in the seconds before each; the median of the backups",
	}[kind]
	for _, part := range strings.Split(name, "-") {
		switch part {
		case "tcp":
			text += ", TCP"
		case "tls":
			text += ", TLS over TCP"
		case "disk":
			text += ", files on a disk"
		case "4conn":
			text += ", four connections"
		case "untracked":
			text += "; here the writes go to the untracked disk, too"
		}
	}
	return text
}
