package guestfiles_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/appliance/guestfiles"
)

// twoPoints are the same volume before and after a few changes.
func twoPoints(t *testing.T) (s *images, p, q guestfiles.Point) {
	t.Helper()
	dir := t.TempDir()
	write(t, dir+"/big", strings.Repeat("0123456789abcdef", 1<<18)) // 4 MiB
	write(t, dir+"/same", strings.Repeat("the same", 1<<14))
	write(t, dir+"/mode", "mode")
	write(t, dir+"/dir/gone", "gone")
	write(t, dir+"/dir/below/x", "x")
	write(t, dir+"/becomes", "a file")
	before := makeImage(t, dir)
	after := copyFile(t, before)
	write(t, dir+"/fresh", "new content")
	// The contents of big change in one place, with the attributes as they were.
	p0 := []byte(content(t, after))
	i := strings.Index(string(p0), strings.Repeat("0123456789abcdef", 4096))
	if i < 0 {
		t.Fatal("the file is not in the image")
	}
	p0[i+300<<10] ^= 1
	if err := os.WriteFile(after, p0, 0o600); err != nil {
		t.Fatal(err)
	}
	debugfs(t, after, "set_inode_field /mode mode 0100600", "set_inode_field /mode ctime 20261122100000", "rm /dir/gone",
		"cd /dir", "write "+dir+"/fresh fresh", "cd /", "rm /becomes", "mkdir /becomes", "ea_set /same user.x y", "set_inode_field /same ctime 20261122100000")
	s = &images{}
	return s, s.add(t, "aaaa0001", before), s.add(t, "bbbb0002", after)
}

func compare(t *testing.T, tree *guestfiles.Tree, p, q guestfiles.Point, o guestfiles.CompareOptions) []string {
	t.Helper()
	var out []string
	o.Failed = func(path string, err error) { t.Errorf("%s: %v", path, err) }
	err := guestfiles.Compare(context.Background(), find(t, tree, p, "web0-0"), find(t, tree, q, "web0-0"), o, func(c guestfiles.Change) error {
		what := slices.DeleteFunc(c.What, func(s string) bool { return s == "time" }) // debugfs sets some
		if c.Path == "" || c.Path == "dir" || c.Path == "lost+found" {
			return nil
		}
		out = append(out, fmt.Sprintf("%c %s %s", c.Kind, c.Path, strings.Join(what, ",")))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestCompareFindsWhatTheBlocksSay changes a file below its attributes: the difference
// of the disks finds it and reads little, attributes alone do not, reading all does.
func TestCompareFindsWhatTheBlocksSay(t *testing.T) {
	s, p, q := twoPoints(t)
	all := []string{"T becomes type", "M big content", "+ dir/fresh ", "- dir/gone ", "U mode mode", "U same attributes"}
	tree := s.tree(t)
	if got := compare(t, tree, p, q, guestfiles.CompareOptions{Changes: s.changes(t, "aaaa0001", "bbbb0002")}); !slices.Equal(got, all) {
		t.Errorf("by blocks: %q, want %q", got, all)
	}
	if read := s.read.Load(); read > 3<<20 {
		t.Errorf("%d bytes were read", read)
	}
	if got := compare(t, tree, p, q, guestfiles.CompareOptions{Contents: true}); !slices.Equal(got, all) {
		t.Errorf("by contents: %q, want %q", got, all)
	}
	byAttributes := slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s == "M big content" })
	if got := compare(t, tree, p, q, guestfiles.CompareOptions{}); !slices.Equal(got, byAttributes) {
		t.Errorf("by attributes: %q, want %q", got, byAttributes)
	}
	if got := compare(t, s.tree(t), p, p, guestfiles.CompareOptions{Changes: guestfiles.Changes{"web0": nil}}); len(got) > 0 {
		t.Errorf("a point with itself: %q", got)
	}
}

// points opens the trees of a machine's points for Versions.
type points struct {
	t       *testing.T
	s       *images
	changes bool
	open    int
}

func (v *points) Open(context.Context, guestfiles.Point) (*guestfiles.Tree, func(), error) {
	if v.open++; v.open > 2 {
		v.t.Errorf("%d points are open", v.open)
	}
	return v.s.tree(v.t), func() { v.open-- }, nil
}

func (v *points) Changes(_ context.Context, from, to guestfiles.Point) guestfiles.Changes {
	if !v.changes {
		return nil
	}
	return v.s.changes(v.t, from.ID, to.ID)
}

func TestVersions(t *testing.T) {
	s, p, q := twoPoints(t)
	r := s.add(t, "cccc0003", copyFile(t, s.paths["bbbb0002"]))
	for _, known := range []bool{true, false} {
		for path, want := range map[string]string{
			"/big":         "= M +",
			"/dir/fresh":   "= + absent",
			"/dir/gone":    "absent - +",
			"/mode":        "= U +",
			"/becomes":     "= T +",
			"/not/there":   "absent absent absent",
			"/dir/below/x": "= = +",
		} {
			v := &points{t: t, s: s, changes: known}
			var got []string
			var digests []string
			err := guestfiles.Versions(context.Background(), v, []guestfiles.Point{r, q, p}, path, false, func(v guestfiles.Version) error {
				word := "absent"
				switch {
				case v.Err != nil:
					word = v.Err.Error()
				case v.Kind != 0:
					word = string(byte(v.Kind))
				case v.Found != nil:
					word = "="
				}
				got = append(got, word)
				digests = append(digests, fmt.Sprintf("%x", v.Digest))
				return nil
			})
			if err != nil || strings.Join(got, " ") != want {
				t.Errorf("%s: %q, want %q (%v)", path, got, want, err)
			}
			if sum := sha256.Sum256([]byte("x")); path == "/dir/below/x" && (digests[0] != fmt.Sprintf("%x", sum) || digests[2] != digests[0]) {
				t.Errorf("digests %q, want %x", digests, sum)
			}
			if path == "/big" && (digests[0] != digests[1] || digests[1] == digests[2]) {
				t.Errorf("digests of the contents: %q", digests)
			}
			if v.open != 0 {
				t.Errorf("%d points stay open", v.open)
			}
		}
	}
}
