package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// console prints the tour, in colours on a terminal (unless NO_COLOR is set).
type console struct {
	out     *os.File
	colours bool
	step    int
	began   time.Time
}

func newConsole(out *os.File) *console {
	return &console{out: out, colours: term.IsTerminal(int(out.Fd())) && os.Getenv("NO_COLOR") == "", began: time.Now()}
}

const (
	bold  = "1"
	dim   = "2"
	green = "32"
	cyan  = "36"
)

func (c *console) paint(colour, text string) string {
	if !c.colours {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// heading begins a step.
func (c *console) heading(text string) {
	c.step++
	fmt.Fprintf(c.out, "\n%s\n", c.paint(bold, fmt.Sprintf("%d. %s", c.step, text)))
}

// say explains in a sentence.
func (c *console) say(format string, args ...any) {
	fmt.Fprintf(c.out, "   "+format+"\n", args...)
}

// command shows what is about to run.
func (c *console) command(line string) {
	fmt.Fprintln(c.out, "   "+c.paint(cyan, "$ "+line))
}

// output shows what a command printed, indented, at most max lines of it.
func (c *console) output(text string, max int) {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i, line := range lines {
		if i == max {
			fmt.Fprintln(c.out, c.paint(dim, fmt.Sprintf("     … %d more lines", len(lines)-max)))
			return
		}
		if line != "" {
			fmt.Fprintln(c.out, c.paint(dim, "     "+line))
		}
	}
}

// proved states what a comparison has shown.
func (c *console) proved(format string, args ...any) {
	fmt.Fprintln(c.out, "   "+c.paint(green, "✓ "+fmt.Sprintf(format, args...)))
}
