package guestfiles

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestEscapeIsSafeAndReadByTheShell(t *testing.T) {
	for _, name := range []string{"plain", "with space", "größe", "a\nb", "\x1b[2J", "it's\t\\", "\xff\xfe", "$'x'", "", "\u202e", "\x7f", "a\x0012"} {
		got := Escape([]byte(name))
		for i := range len(got) {
			if got[i] < 0x20 || got[i] == 0x7f {
				t.Errorf("%q is escaped as %q", name, got)
			}
		}
		if !strings.HasPrefix(got, "$'") {
			if got != name {
				t.Errorf("%q is escaped as %q", name, got)
			}
			continue
		}
		if strings.ContainsRune(name, 0) {
			continue // no shell has it
		}
		bash, err := exec.LookPath("bash")
		if err != nil {
			t.Skip("bash is not installed")
		}
		out, err := exec.Command(bash, "-c", "printf %s "+got).Output()
		if err != nil || string(out) != name {
			t.Errorf("the shell reads %s as %q, want %q (%v)", got, out, name, err)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		pattern, name string
		want          bool
	}{
		{"*", "", true}, {"*", "a", true}, {"*", "a/b", false}, {"**", "a/b", true}, {"**/b", "x/a/b", true}, {"*/b", "x/a/b", false},
		{"*.conf", "a.conf", true}, {"*.conf", "a.con", false}, {"a*b*c", "aXbYc", true}, {"a*b*c", "aXbY", false},
		{"?", "/", false}, {"?", "x", true}, {"[a-c]x", "bx", true}, {"[!a-c]x", "bx", false}, {"[]]", "]", true}, {"[^/]", "/", false},
		{`\*`, "*", true}, {`\*`, "a", false}, {"*\xff", "a\xff", true}, {"", "", true}, {"a", "", false}, {"*a**", "bac/d", true},
	} {
		if got := Match(tt.pattern, tt.name); got != tt.want {
			t.Errorf("Match(%q, %q) is %v", tt.pattern, tt.name, got)
		}
	}
	for _, bad := range []string{"", "[a", "[", "x[!"} {
		if CheckPattern(bad) == nil {
			t.Errorf("pattern %q is accepted", bad)
		}
	}
}

func FuzzMatch(f *testing.F) {
	f.Add("a*[b-d]?**/x", "aqcz/y/x")
	f.Add(strings.Repeat("*a", 20), strings.Repeat("a", 60)+"b")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if len(pattern) > 300 || len(name) > 300 {
			return
		}
		if CheckPattern(pattern) == nil {
			Match(pattern, name)
		}
		if n := len(Escape([]byte(name))); n > 4*len(name)+3 {
			t.Errorf("%d bytes for %d", n, len(name))
		}
	})
}

func TestTimesOfPax(t *testing.T) {
	for want, at := range map[string]time.Time{"1": time.Unix(1, 0), "1.5": time.Unix(1, 5e8), "-1.5": time.Unix(-2, 5e8), "-0.000000001": time.Unix(-1, 999999999), "-3": time.Unix(-3, 0)} {
		if got := paxTime(at); got != want {
			t.Errorf("%v is %q, want %q", at, got, want)
		}
	}
	for n := range 300 {
		var r records
		r.add("key", strings.Repeat("v", n))
		length, _, _ := strings.Cut(r.b.String(), " ")
		if got := r.b.Len(); length != strconv.Itoa(got) {
			t.Fatalf("a record of %d bytes says %s", got, length)
		}
	}
}
