package cli

import (
	"strings"
	"testing"
)

// A chain is read only where the user, and not a guest, has said what it consists of.
func TestBackingChainMustBeStated(t *testing.T) {
	top := func(backing, format string) []chainLink {
		return []chainLink{{File: "over.qcow2", Size: 1 << 20, Backing: backing, BackingFormat: format}, {File: backing, Size: 1 << 20}}
	}
	long := make([]chainLink, maxChain+1)
	for _, c := range []struct {
		name  string
		chain []chainLink
		want  string // "": allowed
	}{
		{"alone", []chainLink{{File: "a.qcow2"}}, ""},
		{"stated", top("base.qcow2", "qcow2"), ""},
		{"no format", top("base.img", ""), "does not say in which format"},
		{"network", top("nbd://host/x", "raw"), "is no file"},
		{"json", top(`json:{"driver":"nbd"}`, "raw"), "is no file"},
		{"too long", long, "limit"},
	} {
		err := checkChain("over.qcow2", c.chain)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}
