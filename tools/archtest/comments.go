package archtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"slices"
	"strings"
)

// PackageComments is the rule that each folder with Go files has one package
// comment, no less and no more. A folder of only generated files is exempt.
func PackageComments(t *Tree) []Violation {
	comments := map[string][]string{} // folder → places
	written := map[string]bool{}      // folders with files written by hand
	for _, g := range t.Go {
		if g.Generated {
			continue
		}
		external := g.Test && strings.HasSuffix(g.Syntax.Name.Name, "_test")
		if !external {
			written[g.Folder] = true
		}
		if g.Syntax.Doc != nil && strings.TrimSpace(g.Syntax.Doc.Text()) != "" {
			comments[g.Folder] = append(comments[g.Folder], g.line(g.fset.Position(g.Syntax.Doc.Pos()).Line))
		}
	}
	var out []Violation
	for folder := range written {
		switch places := comments[folder]; {
		case len(places) == 0:
			out = append(out, Violation{folder, "has no package comment"})
		case len(places) > 1:
			out = append(out, Violation{folder, "has several package comments: " + strings.Join(places, ", ")})
		}
	}
	slices.SortFunc(out, func(a, b Violation) int { return strings.Compare(a.Place, b.Place) })
	return out
}

// contracts are the packages whose interfaces are promises to many: there each
// method is explained. Elsewhere the comment on the interface may be enough.
var contracts = []string{"blockdev", "blockdev/filesystem", "dedupe", "replicate", "appliance"}

// known are methods whose meaning the standard library has fixed.
var known = []string{"Error", "Unwrap"}

// ExportedNames is the rule that each exported type, function, method, constant
// and variable of an importable package has a doc comment, and in a contract
// package each method of an interface. A comment on a group, or behind a name of
// a group, counts.
func ExportedNames(t *Tree) []Violation {
	var out []Violation
	for _, g := range t.Go {
		if g.Test || g.Generated || g.Syntax.Name.Name == "main" || within(g.Folder, "tools") {
			continue
		}
		for _, decl := range g.Syntax.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && exportedReceiver(d) && d.Doc == nil && !(d.Recv != nil && slices.Contains(known, d.Name.Name)) {
					out = append(out, undocumented(g, d.Name, "func"))
				}
			case *ast.GenDecl:
				out = append(out, undocumentedSpecs(g, d)...)
			}
		}
	}
	return out
}

func undocumentedSpecs(g *GoFile, d *ast.GenDecl) []Violation {
	var out []Violation
	for _, spec := range d.Specs {
		switch s := spec.(type) {
		case *ast.TypeSpec:
			if !s.Name.IsExported() {
				continue
			}
			if d.Doc == nil && s.Doc == nil && s.Comment == nil {
				out = append(out, undocumented(g, s.Name, "type"))
			}
			i, ok := s.Type.(*ast.InterfaceType)
			if !ok || !slices.Contains(contracts, g.Folder) {
				continue
			}
			for _, m := range i.Methods.List {
				for _, name := range m.Names { // none for an embedded interface
					if name.IsExported() && m.Doc == nil && m.Comment == nil && !underDocumented(g, i, m) {
						out = append(out, undocumented(g, name, "method of interface "+s.Name.Name))
					}
				}
			}
		case *ast.ValueSpec:
			if d.Doc != nil || s.Doc != nil || s.Comment != nil {
				continue
			}
			for _, name := range s.Names {
				if name.IsExported() {
					out = append(out, undocumented(g, name, d.Tok.String()))
				}
			}
		}
	}
	return out
}

// underDocumented reports whether m follows a documented method in an unbroken
// group of lines, as with "NextData and NextHole are lseek(2)…" above both.
func underDocumented(g *GoFile, i *ast.InterfaceType, m *ast.Field) bool {
	line := func(p token.Pos) int { return g.fset.Position(p).Line }
	last := 0
	documented := false
	for _, f := range i.Methods.List {
		if f.Doc != nil {
			documented = true
		} else if line(f.Pos()) > last+1 {
			documented = false
		}
		if f == m {
			return documented
		}
		last = line(f.End())
	}
	return false
}

// exportedReceiver is true for functions and for methods of exported types.
func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return true
	}
	typ := d.Recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr:
			typ = x.X
		case *ast.IndexListExpr:
			typ = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return false
		}
	}
}

func undocumented(g *GoFile, name *ast.Ident, kind string) Violation {
	return Violation{g.at(name), fmt.Sprintf("exported %s %s has no doc comment", kind, name.Name)}
}
