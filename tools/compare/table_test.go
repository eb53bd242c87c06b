package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestVerdictFollowsTheGoal(t *testing.T) {
	for _, tt := range []struct {
		ratio, goal float64
		want        string
	}{{0.9, 0.9, "ok"}, {0.89, 0.9, "missed"}, {7, 0, "-"}} {
		if got := (row{ratio: tt.ratio, goal: tt.goal}).verdict(); got != tt.want {
			t.Errorf("ratio %v, goal %v: %s, want %s", tt.ratio, tt.goal, got, tt.want)
		}
	}
}

// The ratio of a row is the median of the rounds' ratios, so one bad round does
// not count, and it is above 1 when ours is better in either direction.
func TestRatioIsTheMedianOfRounds(t *testing.T) {
	p := pairs{}
	p.add(100, 50)
	p.add(100, 1000)
	p.add(90, 60)
	if got := p.faster(); got != 1.5 {
		t.Errorf("faster: %v, want 1.5", got)
	}
	p = pairs{}
	p.add(2, 8)
	p.add(4, 8)
	if got := p.smaller(); got != 3 {
		t.Errorf("smaller: %v, want 3", got)
	}
}

func TestRowsOfNBDSlicesAreRead(t *testing.T) {
	rows := parseRows("row ours peer ratio goal ok|missed\n# remark\nread-4k-qd32 120000/s 110000/s 1.09 1.00 ok\nwrite-4k-qd1 9 10 0.90 0.95 missed\nsyscalls 1.6 7.2 4.50 - -\n")
	if len(rows) != 3 {
		t.Fatalf("%d rows, want 3: %v", len(rows), rows)
	}
	if r := rows[0]; r.name != "read-4k-qd32" || r.ours != "120000/s" || r.ratio != 1.09 || r.goal != 1 || r.verdict() != "ok" {
		t.Errorf("first row %+v", r)
	}
	if rows[1].verdict() != "missed" || rows[2].verdict() != "-" {
		t.Errorf("verdicts %s, %s; want missed, -", rows[1].verdict(), rows[2].verdict())
	}
}

func TestMarkdownHoldsEveryRow(t *testing.T) {
	var out strings.Builder
	tab := newTable(&out)
	tab.add(row{"restore-file-cp", "500MB/s", "1000MB/s", 0.5, 0.8, "restore against cp"})
	path := filepath.Join(t.TempDir(), "RESULTS.md")
	if err := tab.writeMarkdown(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := "| restore-file-cp | 500MB/s | 1000MB/s | 0.50 | 0.80 | missed | restore against cp |"
	if !strings.Contains(string(text), want) {
		t.Errorf("no line %q in\n%s", want, text)
	}
}

// TestResultsKeepWhatIsWrittenByHand: profiles, and figures of hours, are not lost to a
// bench of minutes.
func TestResultsKeepWhatIsWrittenByHand(t *testing.T) {
	for _, kept := range []string{"\n## Long runs\nkept\n", "\n## Profiles\nkept\n", "\n## Profiles\nkept\n\n## Long runs\nas well\n"} {
		path := filepath.Join(t.TempDir(), "RESULTS.md")
		tb := newTable(io.Discard)
		for round := range 3 {
			if err := tb.writeMarkdown(t.Context(), path); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if round > 0 {
				if !strings.HasSuffix(string(text), kept) || strings.Count(string(text), "kept") != 1 {
					t.Errorf("what was written by hand became %q", text[max(0, len(text)-100):])
				}
				continue
			}
			if err := os.WriteFile(path, append(text, kept...), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestResultsKeepRowsOfOtherRuns: who measures one group again does not lose the others,
// and sees of when they are.
func TestResultsKeepRowsOfOtherRuns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "RESULTS.md")
	first := "# Results\n\n" + writtenOn + "2026-01-02 03:04 UTC. Nothing else.\n\n| row | ours | peer | ratio | goal | | what was compared |\n|---|---|---|---|---|---|---|\n" +
		"| a | 1/s | 2/s | 0.50 | 1.00 | missed | a against b |\n| b | 3/s | 2/s | 1.50 | 1.00 | ok | b; of 2025-12-24 18:00 UTC |\n| c | 3/s | 2/s | 1.50 | - | - | c |\n\n## Profiles\nkept | as | it | is | a | b | c\n"
	if err := os.WriteFile(path, []byte(first), 0o600); err != nil {
		t.Fatal(err)
	}
	tb := newTable(io.Discard)
	tb.add(row{"c", "9/s", "3/s", 3, 0, "c again"})
	tb.add(row{"d", "1/s", "1/s", 1, 1, "d"})
	if err := tb.writeMarkdown(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := "|---|---|---|---|---|---|---|\n| a | 1/s | 2/s | 0.50 | 1.00 | missed | a against b; of 2026-01-02 03:04 UTC |\n| b | 3/s | 2/s | 1.50 | 1.00 | ok | b; of 2025-12-24 18:00 UTC |\n" +
		"| c | 9/s | 3/s | 3.00 | - | - | c again |\n| d | 1/s | 1/s | 1.00 | 1.00 | ok | d |\n\n## Profiles\nkept"
	if !strings.Contains(string(text), want) {
		t.Errorf("no\n%s\nin\n%s", want, text)
	}
}
