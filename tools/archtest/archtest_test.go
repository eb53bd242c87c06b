package archtest

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRepository applies every rule to this repository.
func TestRepository(t *testing.T) {
	tree, err := Load("../..")
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.Go) < 10 {
		t.Fatalf("only %d Go files seen: the test looks at the wrong folder", len(tree.Go))
	}
	for _, rule := range Rules {
		t.Run(rule.Name, func(t *testing.T) {
			for _, v := range rule.Check(tree) {
				t.Error(v)
			}
		})
	}
}

// house is a small tree that breaks no rule.
var house = map[string]string{
	"go.mod": "module example.org/house\n\ngo 1.26\n\nrequire (\n\tgithub.com/dgraph-io/badger/v4 v4.9.6\n" +
		"\tgithub.com/minio/sha256-simd v1.0.1\n\tgithub.com/acme/lib v1.0.0 // indirect\n\tgithub.com/google/go-cmp v0.7.0\n)\n",
	"go.sum": "", "Makefile": "", "ARCHITECTURE.md": "", "CHANGELOG.md": "", "CONTRIBUTING.md": "", "LICENSE": "",
	"README.md":                   "# House\n\nOne sentence.\n\n```\n# a remark\nmake\n```\n",
	".ci/run":                     "make test\n",
	"blockdev/doc.go":             "// Package blockdev is a contract.\npackage blockdev\n",
	"blockdev/cbt/cbt.go":         "// Package cbt tracks.\npackage cbt\n\nimport _ \"example.org/house/blockdev\"\n",
	"dedupe/doc.go":               "// Package dedupe is a contract.\npackage dedupe\n\nimport _ \"github.com/minio/sha256-simd\"\n",
	"dedupe/blockstore/store.go":  "// Package blockstore keeps.\npackage blockstore\n\nimport _ \"github.com/dgraph-io/badger/v4\"\n",
	"replicate/doc.go":            "// Package replicate is a contract.\npackage replicate\n",
	"appliance/daemon/daemon.go":  "// Package daemon wires.\npackage daemon\n\nimport _ \"example.org/house/dedupe/blockstore\"\n",
	"appliance/cmd/house/main.go": "// Command house is the product.\npackage main\n\nimport _ \"example.org/house/appliance/daemon\"\n\nfunc main() {}\n",
	"tools/look/look.go":          "// Command look sees all.\npackage main\n\nimport _ \"github.com/dgraph-io/badger/v4\"\n\nfunc main() {}\n",
}

func load(t *testing.T, files map[string]string) *Tree {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestSoundHouseBreaksNoRule(t *testing.T) {
	tree := load(t, house)
	for _, rule := range Rules {
		for _, v := range rule.Check(tree) {
			t.Errorf("%s: %s", rule.Name, v)
		}
	}
}

// Each case adds or replaces files of the sound house so that exactly one rule
// breaks, at a known place.
func TestBrokenHouseIsFound(t *testing.T) {
	tests := []struct {
		name  string
		rule  string
		files map[string]string
		want  string // in the violation; "" stands for a file that is removed below
	}{
		{"upward import", "imports run downward",
			map[string]string{"blockdev/cbt/up.go": "package cbt\n\nimport _ \"example.org/house/dedupe\"\n"},
			"blockdev/cbt/up.go:3: blockdev imports dedupe"},
		{"upward import from a test", "imports run downward",
			map[string]string{"dedupe/up_test.go": "package dedupe_test\n\nimport _ \"example.org/house/replicate\"\n"},
			"dedupe/up_test.go:3: dedupe imports replicate"},
		{"contract that imports", "imports run downward",
			map[string]string{"dedupe/use.go": "package dedupe\n\nimport _ \"example.org/house/blockdev\"\n"},
			"contract package dedupe imports blockdev"},
		{"product that imports a tool", "imports run downward",
			map[string]string{"appliance/daemon/tool.go": "package daemon\n\nimport _ \"example.org/house/tools/look\"\n"},
			"nothing imports tools"},
		{"daemon imported beside cmd", "only cmd imports the daemon, and only the daemon wires",
			map[string]string{"appliance/backup/backup.go": "// Package backup backs up.\npackage backup\n\nimport _ \"example.org/house/appliance/daemon\"\n"},
			"appliance/backup/backup.go:4: imports appliance/daemon"},
		{"vault opened beside the daemon", "only cmd imports the daemon, and only the daemon wires",
			map[string]string{"appliance/backup/backup.go": "// Package backup backs up.\npackage backup\n\nimport vault \"example.org/house/dedupe/blockstore\"\n\nvar s = vault.Open()\n"},
			"appliance/backup/backup.go:6: calls dedupe/blockstore.Open: only the daemon wires"},
		{"product that imports a test's device", "only cmd imports the daemon, and only the daemon wires",
			map[string]string{
				"blockdev/faultdev/f.go": "// Package faultdev fails.\npackage faultdev\n",
				"blockdev/cbt/f.go":      "package cbt\n\nimport _ \"example.org/house/blockdev/faultdev\"\n",
			},
			"blockdev/cbt/f.go:3: imports blockdev/faultdev: it is for tests"},
		{"library with an owner", "a library is imported by one package",
			map[string]string{"dedupe/pack/pack.go": "// Package pack packs.\npackage pack\n\nimport _ \"github.com/dgraph-io/badger/v4/options\"\n"},
			"dedupe/pack/pack.go:4: github.com/dgraph-io/badger/v4 belongs to"},
		{"library below its owner", "a library is imported by one package",
			map[string]string{"dedupe/pack/pack.go": "// Package pack packs.\npackage pack\n\nimport _ \"github.com/minio/sha256-simd\"\n"},
			"belongs to dedupe"},
		{"library without an owner, twice", "a library is imported by one package",
			map[string]string{
				"blockdev/cbt/a.go":     "package cbt\n\nimport _ \"github.com/acme/lib/part\"\n",
				"dedupe/pack/pack.go":   "// Package pack packs.\npackage pack\n\nimport _ \"github.com/acme/lib\"\n",
				"dedupe/pack/x_test.go": "package pack\n\nimport _ \"github.com/google/go-cmp/cmp\"\n",
			},
			"dedupe/pack/pack.go:4: github.com/acme/lib belongs to blockdev/cbt"},
		{"no package comment", "one package comment in each folder",
			map[string]string{"blockdev/cbt/cbt.go": "package cbt\n"},
			"blockdev/cbt: has no package comment"},
		{"two package comments", "one package comment in each folder",
			map[string]string{"blockdev/cbt/two.go": "// Package cbt is explained twice.\npackage cbt\n"},
			"blockdev/cbt: has several package comments"},
		{"undocumented function", "exported names are documented",
			map[string]string{"blockdev/cbt/f.go": "package cbt\n\nfunc Freeze() {}\n"},
			"blockdev/cbt/f.go:3: exported func Freeze"},
		{"undocumented method", "exported names are documented",
			map[string]string{"blockdev/cbt/f.go": "package cbt\n\n// T is.\ntype T[K any] struct{}\n\nfunc (t *T[K]) Freeze() {}\n"},
			"blockdev/cbt/f.go:6: exported func Freeze"},
		{"undocumented interface method", "exported names are documented",
			map[string]string{"blockdev/f.go": "package blockdev\n\n// T is.\ntype T interface {\n\t// A does.\n\tA()\n\n\tB()\n}\n"},
			"blockdev/f.go:8: exported method of interface T B"},
		{"undocumented constant", "exported names are documented",
			map[string]string{"blockdev/cbt/f.go": "package cbt\n\nconst Grain = 4096\n"},
			"exported const Grain"},
		{"undocumented type of a group", "exported names are documented",
			map[string]string{"blockdev/cbt/f.go": "package cbt\n\ntype (\n\tT int\n)\n"},
			"exported type T"},
		{"stranger at the top level", "the top level is fixed",
			map[string]string{"internal/x.go": "// Package x is.\npackage x\n"},
			"internal/: does not belong"},
		{"command too late in the README", "README: first command by line 20",
			map[string]string{"README.md": "# House\n" + strings.Repeat("words\n", 19) + "```\nmake\n```\n"},
			"README.md:20"},
		{"path outside of the tree", "the tree stands alone",
			map[string]string{"CONTRIBUTING.md": "See " + ".." + "/shared" + "/STYLE.md\n"},
			"CONTRIBUTING.md:1: refers to"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			files := maps.Clone(house)
			maps.Copy(files, tt.files)
			tree := load(t, files)
			var found []string
			for _, rule := range Rules {
				for _, v := range rule.Check(tree) {
					found = append(found, rule.Name+": "+v.String())
				}
			}
			if len(found) != 1 || !strings.HasPrefix(found[0], tt.rule) || !strings.Contains(found[0], tt.want) {
				t.Errorf("violations %q, want one of rule %q with %q", found, tt.rule, tt.want)
			}
		})
	}
}

func TestMissingFileAtTheTopLevelIsFound(t *testing.T) {
	files := maps.Clone(house)
	delete(files, "LICENSE")
	got := TopLevel(load(t, files))
	if len(got) != 1 || got[0].String() != "LICENSE: is missing" {
		t.Errorf("violations %v, want LICENSE missing", got)
	}
}

// Documented in these ways a name is documented.
func TestWaysToDocument(t *testing.T) {
	files := maps.Clone(house)
	files["blockdev/ways.go"] = `package blockdev

// The limits.
const (
	A = 1
	B = 2
)

const (
	C = 1 // behind the name
	// D above it.
	D = 2
)

// T is.
type T interface {
	// E and F belong together.
	E()
	F()
	G() // behind the name
}

type hidden struct{}

func (hidden) Exported() {}

// Bad is.
type Bad struct{}

func (Bad) Error() string { return "" }
`
	for _, v := range ExportedNames(load(t, files)) {
		t.Error(v)
	}
}
