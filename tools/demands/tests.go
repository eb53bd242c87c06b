package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// result is what is known of a demand or a test.
type result string

const (
	none   result = "none"
	exists result = "test"
	pass   result = "pass"
	skip   result = "skip"
	fail   result = "FAIL"
)

type section struct {
	title   string
	demands []demand
}

type demand struct{ name, title string }

// testName is one Go test function.
type testName struct {
	folder string // "./blockdev/cbt"
	name   string
}

// testOf takes the name of the demand out of the name of a test.
var testOf = regexp.MustCompile(`^Test(?:Demand0*([1-9][0-9]*)|(N[1-9][0-9]*))(?:[^0-9].*)?$`)

// of picks the tests of the demand.
func (d demand) of(tests []testName) []testName {
	var out []testName
	for _, t := range tests {
		if m := testOf.FindStringSubmatch(t.name); m != nil && d.name == m[1]+m[2] {
			out = append(out, t)
		}
	}
	return out
}

func parseTable(text string) ([]section, error) {
	var out []section
	for i, line := range strings.Split(text, "\n") {
		switch {
		case strings.HasPrefix(line, "## "):
			out = append(out, section{title: line[3:]})
		case line == "" || strings.HasPrefix(line, "#"):
		default:
			name, title, ok := strings.Cut(line, "\t")
			if !ok || len(out) == 0 || title == "" {
				return nil, fmt.Errorf("demands.txt:%d: want NAME, a tab and one line below a heading", i+1)
			}
			s := &out[len(out)-1]
			s.demands = append(s.demands, demand{name, title})
		}
	}
	return out, nil
}

// findTests lists the test functions below root that carry a demand's name.
func findTests(root string) ([]testName, error) {
	var out []testName
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && testOf.MatchString(f.Name.Name) {
				out = append(out, testName{"./" + filepath.ToSlash(rel), f.Name.Name})
			}
		}
		return nil
	})
	slices.SortFunc(out, func(a, b testName) int {
		return strings.Compare(a.folder+" "+a.name, b.folder+" "+b.name)
	})
	return out, err
}

// run executes the tests, folder by folder, and says how each ended.
func run(root string, tests []testName) (map[testName]result, error) {
	byFolder := map[string][]string{}
	var folders []string
	for _, t := range tests {
		if byFolder[t.folder] == nil {
			folders = append(folders, t.folder)
		}
		byFolder[t.folder] = append(byFolder[t.folder], t.name)
	}
	results := map[testName]result{}
	for _, folder := range folders {
		fmt.Fprintf(os.Stderr, "running %d in %s\n", len(byFolder[folder]), folder)
		cmd := exec.Command("go", "test", "-json", "-count=1", "-timeout", "10m",
			"-run", "^("+strings.Join(byFolder[folder], "|")+")$", folder)
		cmd.Dir = root
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		collect(folder, out, results)
		_ = cmd.Wait() // a failure shows in the events, or in their absence
	}
	return results, nil
}

// collect reads the events of go test -json.
func collect(folder string, events interface{ Read([]byte) (int, error) }, results map[testName]result) {
	var output []string
	sc := bufio.NewScanner(events)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var e struct{ Action, Test, Output string }
		if json.Unmarshal(sc.Bytes(), &e) != nil {
			continue
		}
		t := testName{folder, e.Test}
		switch e.Action {
		case "output":
			output = append(output, e.Output)
		case "pass":
			results[t] = pass
		case "skip":
			results[t] = skip
		case "fail", "build-fail":
			results[t] = fail
			if e.Test == "" {
				fmt.Fprint(os.Stderr, strings.Join(output, ""))
			}
		}
	}
}
