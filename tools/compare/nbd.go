package main

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// nbdRows runs tools/compare/nbdslices, which measures servers in interleaved
// slices, and takes over its rows.
func nbdRows(ctx context.Context, t *table) error {
	cmd := exec.CommandContext(ctx, "go", "run", "-buildvcs=false", "./tools/compare/nbdslices")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("nbdslices: %w\n%s", err, stderr.String())
	}
	rows := parseRows(string(out))
	if len(rows) == 0 {
		return fmt.Errorf("nbdslices printed no row:\n%s", out)
	}
	for _, r := range rows {
		t.add(r)
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
		against := "nbdkit file plugin"
		if strings.HasPrefix(f[0], "tracked-") {
			against = "a tracked disk without snapshot against the same raw file"
		}
		rows = append(rows, row{name: f[0], ours: f[1], peer: f[2], ratio: ratio, goal: goal,
			command: "tools/compare/nbdslices: interleaved slices, " + against + ", unix socket"})
	}
	return rows
}
