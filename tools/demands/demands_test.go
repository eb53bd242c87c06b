package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestTableHasAllDemandsOnce(t *testing.T) {
	sections, err := parseTable(table)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, s := range sections {
		for _, d := range s.demands {
			seen[d.name]++
		}
	}
	for i := 1; i <= 98; i++ {
		if seen[strconv.Itoa(i)] != 1 {
			t.Errorf("demand %d stands there %d times", i, seen[strconv.Itoa(i)])
		}
	}
	for i := 1; i <= 14; i++ {
		if seen["N"+strconv.Itoa(i)] != 1 {
			t.Errorf("N%d stands there %d times", i, seen["N"+strconv.Itoa(i)])
		}
	}
	if len(seen) != 98+14 {
		t.Errorf("%d demands, want %d", len(seen), 98+14)
	}
}

func TestTestBelongsToItsDemand(t *testing.T) {
	tests := []struct{ test, demand string }{
		{"TestDemand05OnDemandExpiry", "5"},
		{"TestDemand5", "5"},
		{"TestDemand42_onlyChanges", "42"},
		{"TestN3Audit", "N3"},
		{"TestN14", "N14"},
		{"TestDemand421", "421"},
		{"TestNotAtAll", ""},
		{"TestDemandingUser", ""},
		{"TestN", ""},
	}
	for _, tt := range tests {
		got := ""
		if m := testOf.FindStringSubmatch(tt.test); m != nil {
			got = m[1] + m[2]
		}
		if got != tt.demand {
			t.Errorf("%s belongs to %q, want %q", tt.test, got, tt.demand)
		}
	}
}

// The verdict of a demand, by running real tests of a small module.
func TestRunTellsPassSkipAndFail(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "go.mod", "module example.org/m\n\ngo 1.26\n")
	write(t, dir, "a/a_test.go", `package a

import "testing"

func TestDemand01Good(t *testing.T)     {}
func TestDemand01AlsoGood(t *testing.T) { t.Skip("no tool") }
func TestDemand02Bad(t *testing.T)      { t.Error("bad") }
func TestDemand03Lacks(t *testing.T)    { t.Skip("no tool") }
func TestOther(t *testing.T)            { t.Error("must not run") }
`)
	write(t, dir, "b/b_test.go", "package b\n\nimport \"testing\"\n\nfunc TestN4Broken(t *testing.T) { undefined() }\n")
	tests, err := findTests(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(tests) != 5 {
		t.Fatalf("found %v, want five tests", tests)
	}
	results, err := run(dir, tests)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]result{"1": pass, "2": fail, "3": skip, "N4": fail, "7": none} {
		if got := verdictOf(demand{name: name}.of(tests), results, true); got != want {
			t.Errorf("demand %s: %s, want %s", name, got, want)
		}
	}
	if got := verdictOf(demand{name: "1"}.of(tests), nil, false); got != exists {
		t.Errorf("listed only: %s, want %s", got, exists)
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(strings.TrimLeft(text, "\n")), 0o644); err != nil {
		t.Fatal(err)
	}
}
