package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Tree is a repository as the rules see it.
type Tree struct {
	// Module is the module path of go.mod.
	Module string
	// Requires are the module paths that go.mod requires.
	Requires []string
	// Files are the paths of all files, slash-separated, relative to the root.
	Files []string
	// Go are the parsed Go files.
	Go []*GoFile

	root string
}

// GoFile is one parsed Go file.
type GoFile struct {
	Path      string // relative to the root
	Folder    string // the package's folder, "." at the root
	Test      bool   // *_test.go
	Generated bool
	Imports   []Import
	Syntax    *ast.File

	fset *token.FileSet
}

// Import is one import of a GoFile.
type Import struct {
	Path string
	Line int
	// Name is what the file calls it: the last element unless it says otherwise.
	Name string
}

// Violation is one breach of one rule, at a place.
type Violation struct {
	Place string // path or path:line
	Text  string
}

func (v Violation) String() string { return v.Place + ": " + v.Text }

// Load parses the tree below root. Inside a git work tree only files that git
// tracks, or would track, count: what builds and sessions leave there does not.
func Load(root string) (*Tree, error) {
	files, err := list(root)
	if err != nil {
		return nil, err
	}
	t := &Tree{Files: files, root: root}
	if err := t.readModule(); err != nil {
		return nil, err
	}
	for _, f := range files {
		if !strings.HasSuffix(f, ".go") || strings.Contains(f, "testdata/") {
			continue
		}
		g, err := parse(root, f)
		if err != nil {
			return nil, err
		}
		t.Go = append(t.Go, g)
	}
	return t, nil
}

func list(root string) ([]string, error) {
	var files []string
	if _, err := os.Stat(filepath.Join(root, ".git")); err == nil {
		cmd := exec.Command("git", "-c", "safe.directory=*", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
		if out, err := cmd.Output(); err == nil {
			for f := range strings.SplitSeq(string(out), "\x00") {
				if f == "" {
					continue
				}
				if _, err := os.Lstat(filepath.Join(root, f)); err == nil { // else removed, not yet committed
					files = append(files, f)
				}
			}
			slices.Sort(files)
			return files, nil
		}
	}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if rel == "bin" || rel == "dist" || rel == ".git" {
				return filepath.SkipDir
			}
			return nil
		}
		files = append(files, rel)
		return nil
	})
	return files, err
}

// readModule reads the two things that the rules need of go.mod.
func (t *Tree) readModule() error {
	text, err := os.ReadFile(filepath.Join(t.root, "go.mod"))
	if err != nil {
		return err
	}
	inRequire := false
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case f[0] == "module" && len(f) > 1:
			t.Module = f[1]
		case f[0] == "require" && len(f) > 1 && f[1] == "(":
			inRequire = true
		case f[0] == ")":
			inRequire = false
		case f[0] == "require" && len(f) > 2:
			t.Requires = append(t.Requires, f[1])
		case inRequire && len(f) > 1:
			t.Requires = append(t.Requires, f[0])
		}
	}
	if t.Module == "" {
		return fmt.Errorf("go.mod of %s names no module", t.root)
	}
	return nil
}

func parse(root, file string) (*GoFile, error) {
	fset := token.NewFileSet()
	syntax, err := parser.ParseFile(fset, filepath.Join(root, file), nil, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	g := &GoFile{
		Path:      file,
		Folder:    path.Dir(file),
		Test:      strings.HasSuffix(file, "_test.go"),
		Generated: ast.IsGenerated(syntax),
		Syntax:    syntax,
		fset:      fset,
	}
	for _, spec := range syntax.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", file, err)
		}
		name := path.Base(p)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		g.Imports = append(g.Imports, Import{p, fset.Position(spec.Pos()).Line, name})
	}
	return g, nil
}

// at is the place of a node, as file:line.
func (g *GoFile) at(n ast.Node) string { return g.line(g.fset.Position(n.Pos()).Line) }

func (g *GoFile) line(n int) string { return fmt.Sprintf("%s:%d", g.Path, n) }

// uses finds where the file mentions one of the names of an imported package.
func (g *GoFile) uses(imp Import, names []string) []*ast.SelectorExpr {
	var out []*ast.SelectorExpr
	if len(names) == 0 {
		return nil
	}
	ast.Inspect(g.Syntax, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok && slices.Contains(names, sel.Sel.Name) {
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == imp.Name {
				out = append(out, sel)
			}
		}
		return true
	})
	return out
}

// own returns the folder of an import of ours, and whether it is one.
func (t *Tree) own(importPath string) (folder string, ok bool) {
	if importPath == t.Module {
		return ".", true
	}
	return strings.CutPrefix(importPath, t.Module+"/")
}

// library returns the module that provides a third-party import, or "" for the
// standard library and ourselves.
func (t *Tree) library(importPath string) string {
	longest := ""
	for _, m := range t.Requires {
		if (importPath == m || strings.HasPrefix(importPath, m+"/")) && len(m) > len(longest) {
			longest = m
		}
	}
	return longest
}

// within reports whether folder is dir or lies below it.
func within(folder, dir string) bool {
	return folder == dir || strings.HasPrefix(folder, dir+"/")
}
