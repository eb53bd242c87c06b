// Command demands shows which of the demands on the product have a test, and with
// -run whether it passes.
//
//	demands          which have a test
//	demands -run     run them
//
// The demands stand in demands.txt. A test belongs to demand 30 when its name
// begins with TestDemand30 and to N3 when it begins with TestN3, with no digit
// behind. The exit status is 1 when a test failed; a demand without a test is no
// failure but a line that says so.
package main

import (
	_ "embed"
	"flag"
	"fmt"
	"os"
	"strings"
)

//go:embed demands.txt
var table string

func main() {
	runTests := flag.Bool("run", false, "run the tests")
	root := flag.String("root", ".", "root of the repository")
	flag.Parse()
	if err := report(*root, *runTests); err != nil {
		fmt.Fprintln(os.Stderr, "demands:", err)
		os.Exit(1)
	}
}

func report(root string, runTests bool) error {
	sections, err := parseTable(table)
	if err != nil {
		return err
	}
	tests, err := findTests(root)
	if err != nil {
		return err
	}
	results := map[testName]result{}
	if runTests {
		if results, err = run(root, tests); err != nil {
			return err
		}
	}
	var count struct{ all, tested, passed, skipped, failed int }
	for _, s := range sections {
		fmt.Printf("\n%s\n", s.title)
		for _, d := range s.demands {
			count.all++
			mine := d.of(tests)
			if len(mine) > 0 {
				count.tested++
			}
			verdict := verdictOf(mine, results, runTests)
			switch verdict {
			case pass:
				count.passed++
			case skip:
				count.skipped++
			case fail:
				count.failed++
			}
			fmt.Printf("  %-5s %-3s %s\n", verdict, d.name, d.title)
			for _, t := range mine {
				fmt.Printf("            %s.%s\n", strings.TrimPrefix(t.folder, "./"), t.name)
			}
		}
	}
	fmt.Printf("\n%d demands, %d with a test", count.all, count.tested)
	if runTests {
		fmt.Printf(": %d pass, %d skipped, %d fail", count.passed, count.skipped, count.failed)
	}
	fmt.Println()
	if count.failed > 0 {
		return fmt.Errorf("%d demands have a failing test", count.failed)
	}
	return nil
}

// verdictOf is the worst of the tests, except that one that passed outweighs those
// that were skipped.
func verdictOf(tests []testName, results map[testName]result, ran bool) result {
	if len(tests) == 0 {
		return none
	}
	if !ran {
		return exists
	}
	worst := skip
	for _, t := range tests {
		switch results[t] {
		case pass:
			worst = pass
		case skip:
		default: // also a test of which nothing was heard: it did not compile
			return fail
		}
	}
	return worst
}
