package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// row is one comparison.
type row struct {
	name       string
	ours, peer string // with their units
	ratio      float64
	goal       float64 // 0: the row informs only
	command    string  // what was measured, in a few words
}

func (r row) goalText() string {
	if r.goal == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", r.goal)
}

func (r row) verdict() string {
	switch {
	case r.goal == 0:
		return "-"
	case r.ratio >= r.goal:
		return "ok"
	}
	return "missed"
}

// table prints rows as they come and remembers them.
type table struct {
	out  io.Writer
	rows []row
	load string // of the machine, over the minute before the first row
}

func newTable(out io.Writer) *table {
	t := &table{out: out, load: loadAverage()}
	fmt.Fprintf(out, "%-28s %14s %14s %7s %6s  %s\n", "row", "ours", "peer", "ratio", "goal", "ok|missed")
	return t
}

func (t *table) add(r row) {
	t.rows = append(t.rows, r)
	fmt.Fprintf(t.out, "%-28s %14s %14s %7.2f %6s  %s\n", r.name, r.ours, r.peer, r.ratio, r.goalText(), r.verdict())
}

// writeMarkdown writes the rows with what a reader needs to judge them. Rows of the file
// that were not measured now stay in their places and say of when they are.
func (t *table) writeMarkdown(ctx context.Context, path string) error {
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Results\n\n"+writtenOn+"%s. Nothing above the profiles is edited by hand.\n\n", time.Now().UTC().Format("2006-01-02 15:04 UTC"))
	fmt.Fprintf(&b, "Machine: %s, %d cores, %s, kernel %s. Load average when it began: %s.\n\n",
		cpuModel(), runtime.NumCPU(), memory(), firstLine(ctx, "uname", "-r"), t.load)
	b.WriteString("Versions:")
	for i, v := range []string{
		firstLine(ctx, "nbdkit", "--version"), firstLine(ctx, "restic", "version"), firstLine(ctx, "borg", "--version"), firstLine(ctx, "cp", "--version"),
		firstLine(ctx, "qemu-img", "--version"), "keelblock " + firstLine(ctx, "git", "describe", "--tags", "--always", "--dirty"),
		"built with " + runtime.Version(),
	} {
		if i > 0 {
			b.WriteByte(';')
		}
		b.WriteString(" " + v)
	}
	b.WriteString(".\n\nA ratio above 1 means that ours is better, whatever the unit. Each side ran in turn; the ratio is the median of the\nrounds' ratios, and the figures beside it are the medians of each side.\n\n")
	b.WriteString("| row | ours | peer | ratio | goal | | what was compared |\n|---|---|---|---|---|---|---|\n")
	for _, line := range t.lines(strings.TrimSuffix(string(old), byHand(string(old)))) {
		b.WriteString(line + "\n")
	}
	b.WriteString(byHand(string(old)))
	return os.WriteFile(path, b.Bytes(), 0o644)
}

// writtenOn is what stands before the time of a run.
const writtenOn = "Written by `make bench-results` on "

func (r row) line() string {
	return fmt.Sprintf("| %s | %s | %s | %.2f | %s | %s | %s |", r.name, r.ours, r.peer, r.ratio, r.goalText(), r.verdict(), r.command)
}

// lines are those of the table: old with the rows that were measured now.
func (t *table) lines(old string) (lines []string) {
	_, when, _ := strings.Cut(old, writtenOn)
	when, _, _ = strings.Cut(when, ".")
	have := map[string]int{}
	for line := range strings.Lines(old) {
		f := strings.Split(strings.TrimSpace(line), " | ")
		if len(f) != 7 || !strings.HasPrefix(f[0], "| ") || f[0] == "| row" {
			continue
		}
		name := strings.TrimPrefix(f[0], "| ")
		have[name] = len(lines)
		if !strings.Contains(f[6], ofAnotherRun) {
			f[6] = strings.TrimSuffix(f[6], " |") + ofAnotherRun + when + " |"
		}
		lines = append(lines, strings.Join(f, " | "))
	}
	for _, r := range t.rows {
		if i, ok := have[r.name]; ok {
			lines[i] = r.line()
		} else {
			lines = append(lines, r.line())
		}
	}
	return lines
}

// ofAnotherRun is what stands before the time of a row that is not of the file's run.
const ofAnotherRun = "; of "

// byHand are the last sections of the file: why rows miss their goals, and the loops that
// take hours, which are not part of a bench.
func byHand(text string) string {
	first := len(text)
	for _, heading := range []string{"\n## Profiles\n", "\n## Long runs\n"} {
		if i := strings.Index(text, heading); i >= 0 {
			first = min(first, i)
		}
	}
	return text[first:]
}

func firstLine(ctx context.Context, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return name + " (version unknown)"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

func cpuModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}

func memory() string {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return "unknown memory"
	}
	var kib int64
	if _, err := fmt.Sscanf(string(text), "MemTotal: %d kB", &kib); err != nil {
		return "unknown memory"
	}
	return fmt.Sprintf("%d GiB of memory", (kib+1<<19)>>20)
}

// loadAverage shows a reader whether the machine was busy with something else.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(text), " ")
	return first
}

// median of at least one value.
func median(values []float64) float64 {
	v := slices.Clone(values)
	slices.Sort(v)
	if len(v)%2 == 1 {
		return v[len(v)/2]
	}
	return (v[len(v)/2-1] + v[len(v)/2]) / 2
}

// pairs are rounds of ours and peer in one unit.
type pairs struct{ ours, peer []float64 }

func (p *pairs) add(ours, peer float64) {
	p.ours = append(p.ours, ours)
	p.peer = append(p.peer, peer)
}

// faster is the median of the rounds' ratios for figures where more is better;
// smaller where less is.
func (p *pairs) faster() float64 { return p.ratio(func(o, q float64) float64 { return o / q }) }

func (p *pairs) smaller() float64 { return p.ratio(func(o, q float64) float64 { return q / o }) }

func (p *pairs) ratio(of func(ours, peer float64) float64) float64 {
	ratios := make([]float64, len(p.ours))
	for i := range p.ours {
		ratios[i] = of(p.ours[i], p.peer[i])
	}
	return median(ratios)
}
