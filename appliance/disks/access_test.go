package disks

import "testing"

// A disk with a list is for those on it; without one, and what is no disk, for all.
func TestAllowed(t *testing.T) {
	r := &Registry{disks: map[string]*Disk{
		"open": {entry: Entry{Name: "open"}},
		"db0":  {entry: Entry{Name: "db0", Allow: []string{"db-host", "backup"}}},
	}}
	for _, x := range []struct {
		name, commonName string
		want             bool
	}{
		{"open", "", true}, {"open", "anyone", true}, {"none", "", true},
		{"db0", "db-host", true}, {"db0", "backup", true},
		{"db0", "", false}, {"db0", "web-host", false}, {"db0", "DB-HOST", false},
	} {
		if got := r.Allowed(x.name, x.commonName); got != x.want {
			t.Errorf("Allowed(%q, %q) = %v, want %v", x.name, x.commonName, got, x.want)
		}
	}
	r.disks["db0"].entry.Allow = []string{""}
	if r.Allowed("db0", "") {
		t.Error("a client without a certificate passes for the name \"\"")
	}
}
