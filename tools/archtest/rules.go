package archtest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Rule finds the places of a tree that break it.
type Rule struct {
	Name  string
	Check func(*Tree) []Violation
}

// Rules are all rules of the house.
var Rules = []Rule{
	{"imports run downward", ImportOrder},
	{"only cmd imports the daemon, and only the daemon wires", Wiring},
	{"a library is imported by one package", Libraries},
	{"one package comment in each folder", PackageComments},
	{"exported names are documented", ExportedNames},
	{"the top level is fixed", TopLevel},
	{"README: first command by line 20", FirstCommand},
	{"the tree stands alone", StandsAlone},
}

// order is the way of data; a folder imports itself and those before it.
var order = []string{"blockdev", "dedupe", "replicate", "appliance"}

// ImportOrder is the rule of the five folders.
func ImportOrder(t *Tree) []Violation {
	var out []Violation
	for _, g := range t.Go {
		from, _, _ := strings.Cut(g.Folder, "/")
		fromRank := slices.Index(order, from)
		for _, imp := range g.Imports {
			folder, ok := t.own(imp.Path)
			if !ok {
				continue
			}
			to, _, _ := strings.Cut(folder, "/")
			toRank := slices.Index(order, to)
			switch {
			case from == "tools": // stands aside: may look at everything
			case to == "tools":
				out = append(out, Violation{g.line(imp.Line), "imports " + folder + ": nothing imports tools"})
			case fromRank < 0 || toRank < 0:
				out = append(out, Violation{g.line(imp.Line), "imports " + folder + ": no package of ours belongs there"})
			case toRank > fromRank:
				out = append(out, Violation{g.line(imp.Line), fmt.Sprintf("%s imports %s: the order is %s", from, folder, strings.Join(order, ", "))})
			case g.Folder == from && !g.Test && from != "appliance":
				// blockdev, dedupe, replicate themselves: the contracts.
				out = append(out, Violation{g.line(imp.Line), "contract package " + from + " imports " + folder})
			}
		}
	}
	return out
}

const (
	daemon  = "appliance/daemon"
	command = "appliance/cmd"
)

// constructors make something that the running appliance owns: an open vault or
// catalog, a server, a tracked disk, a queue of jobs. Whoever calls one wires, and
// that is the daemon, save for those named here.
var constructors = map[string]struct {
	funcs []string
	by    []string
}{
	"appliance/backup":    {[]string{"New"}, nil},
	"appliance/catalog":   {[]string{"Open"}, nil},
	"appliance/disks":     {[]string{"Open"}, nil},
	"appliance/job":       {[]string{"New"}, nil},
	"appliance/keys":      {[]string{"New"}, []string{"appliance/keys"}},
	"appliance/machine":   {[]string{"NewSet"}, nil},
	"appliance/readers":   {[]string{"New"}, nil},
	"appliance/restore":   {[]string{"New"}, nil},
	"appliance/vault":     {[]string{"New"}, nil},
	"blockdev/cbt":        {[]string{"Open", "NewClock"}, []string{"appliance/disks"}}, // disks come and go
	"blockdev/nbd/server": {[]string{"New"}, []string{command, "appliance/readers"}},   // `keelblock nbd`; points.sock
	"dedupe/blockstore":   {[]string{"Open", "Create"}, []string{"appliance/vault"}},
}

// forTests are packages that no product code imports.
var forTests = []string{"blockdev/faultdev", "blockdev/blockdevtest", "blockdev/looptest", "blockdev/filesystem/fstest", "dedupe/dedupetest", "appliance/transit/transittest", "appliance/keys/keystest"}

// Wiring is the rule of the composition root. Tests may open what they test.
func Wiring(t *Tree) []Violation {
	var out []Violation
	for _, g := range t.Go {
		if g.Test || within(g.Folder, "tools") {
			continue
		}
		for _, imp := range g.Imports {
			folder, ok := t.own(imp.Path)
			if !ok {
				continue
			}
			if within(folder, daemon) && !within(g.Folder, daemon) && !within(g.Folder, command) {
				out = append(out, Violation{g.line(imp.Line), "imports " + folder + ": only cmd starts the daemon"})
			}
			if slices.Contains(forTests, folder) && !slices.Contains(forTests, g.Folder) {
				out = append(out, Violation{g.line(imp.Line), "imports " + folder + ": it is for tests"})
			}
			made := constructors[folder]
			if within(g.Folder, daemon) || g.Folder == folder ||
				slices.ContainsFunc(made.by, func(dir string) bool { return within(g.Folder, dir) }) {
				continue
			}
			for _, call := range g.uses(imp, made.funcs) {
				out = append(out, Violation{g.at(call), "calls " + folder + "." + call.Sel.Name + ": only the daemon wires"})
			}
		}
	}
	return out
}

// libraries names the package that a third-party module belongs to. A module
// that is missing here may be imported by any one package.
var libraries = map[string][]string{
	"github.com/hanwen/go-fuse/v2":   {"appliance/fusemount"},
	"github.com/dgraph-io/badger/v4": {"dedupe/blockstore", "appliance/catalog"},
	"github.com/minio/sha256-simd":   {"dedupe"},
	"github.com/pojntfx/go-nbd":      {"blockdev/nbd"}, // and below it
	"github.com/spf13/cobra":         {"appliance/cmd"},
	// The API's generated code, its server and its clients.
	"connectrpc.com/connect":     {"appliance"},
	"google.golang.org/protobuf": {"appliance"},
	// Argon2 and the like: our own keys, and those of LUKS; checksums of btrfs.
	"golang.org/x/crypto": {"appliance/keys", "blockdev/volume/luks", "blockdev/filesystem/btrfs"},
	// Compression of our blocks, and of files of btrfs.
	"github.com/klauspost/compress": {"dedupe/blockstore", "blockdev/filesystem/btrfs"},
	// The standard library's waiting rooms.
	"golang.org/x/sync": order,
	"golang.org/x/sys":  order,
	"golang.org/x/term": order,
}

// exact are libraries whose owner's subfolders do not share the right.
var exact = map[string]bool{"github.com/minio/sha256-simd": true}

// testLibraries may be imported by tests anywhere.
var testLibraries = []string{"github.com/google/go-cmp", "github.com/rogpeppe/go-internal"}

// Libraries is the rule of third-party imports. Tools may import any, since the
// experiments that decided against a library are among them.
func Libraries(t *Tree) []Violation {
	var out []Violation
	firstUser := map[string]string{}
	for _, g := range t.Go {
		if within(g.Folder, "tools") {
			continue
		}
		for _, imp := range g.Imports {
			lib := t.library(imp.Path)
			if lib == "" || g.Test && slices.Contains(testLibraries, lib) {
				continue
			}
			owners, named := libraries[lib]
			if !named {
				if firstUser[lib] == "" {
					firstUser[lib] = g.Folder
				}
				owners = []string{firstUser[lib]}
			}
			if !slices.ContainsFunc(owners, func(dir string) bool {
				return g.Folder == dir || !exact[lib] && within(g.Folder, dir)
			}) {
				out = append(out, Violation{g.line(imp.Line), lib + " belongs to " + strings.Join(owners, ", ")})
			}
		}
	}
	return out
}

// topLevel is all that stands at the root, dot files aside.
var topLevel = []string{
	"appliance/", "blockdev/", "dedupe/", "replicate/", "tools/", "go.mod", "go.sum", "Makefile",
	"README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE",
}

// TopLevel is the rule that the root holds exactly what it should.
func TopLevel(t *Tree) []Violation {
	var out []Violation
	seen := map[string]bool{}
	for _, f := range t.Files {
		name, _, deep := strings.Cut(f, "/")
		if strings.HasPrefix(name, ".") {
			continue
		}
		if deep {
			name += "/"
		}
		if !seen[name] && !slices.Contains(topLevel, name) {
			out = append(out, Violation{name, "does not belong at the top level"})
		}
		seen[name] = true
	}
	for _, name := range topLevel {
		if !seen[name] {
			out = append(out, Violation{name, "is missing"})
		}
	}
	return out
}

// FirstCommand is the rule that a reader sees what to type at once.
func FirstCommand(t *Tree) []Violation {
	text, err := os.ReadFile(filepath.Join(t.root, "README.md"))
	if err != nil {
		return []Violation{{"README.md", err.Error()}}
	}
	fenced := false
	for i, line := range strings.Split(string(text), "\n") {
		if i >= 20 {
			break
		}
		switch {
		case strings.HasPrefix(line, "```"):
			fenced = !fenced
		case fenced && strings.TrimSpace(line) != "" && !strings.HasPrefix(strings.TrimSpace(line), "#"):
			return nil
		}
	}
	return []Violation{{"README.md:20", "no command up to here"}}
}

// outside are paths that exist only where this repository was begun. They are put
// together here so that this file does not break its own rule.
var outside = []string{"/work" + "/", ".." + "/shared", "shared" + "/design", "/tmp" + "/kb/TEAM"}

// StandsAlone is the rule that no file refers to a path outside of the tree.
func StandsAlone(t *Tree) []Violation {
	var out []Violation
	for _, f := range t.Files {
		info, err := os.Lstat(filepath.Join(t.root, f))
		if err != nil {
			out = append(out, Violation{f, err.Error()})
			continue
		}
		if !info.Mode().IsRegular() || info.Size() > 1<<20 {
			continue
		}
		text, err := os.ReadFile(filepath.Join(t.root, f))
		if err != nil {
			out = append(out, Violation{f, err.Error()})
			continue
		}
		for i, line := range strings.Split(string(text), "\n") {
			for _, o := range outside {
				if strings.Contains(line, o) {
					out = append(out, Violation{fmt.Sprintf("%s:%d", f, i+1), "refers to " + o})
				}
			}
		}
	}
	return out
}
