package namespace_test

import (
	"strings"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem/namespace"
)

func TestFstabIsRead(t *testing.T) {
	lines, bad := namespace.Parse([]byte(`# comment
UUID="0a-b" / ext4 defaults,subvol=@ 0 1

LABEL=my\040data	/srv/my\040data xfs nofail,x=a\054b
/dev/sda3 none swap sw 0 0
/dev/sdb1 /two
lonely
proc /proc proc defaults 0 0
/srv /mnt none bind
server:/x /nfs nfs defaults
/dev/sdc1 /later ext4 noauto
/dev/sdd1 /first-use ext4 noauto,x-systemd.automount
/dev/sde1 /fuse fuse.sshfs
tmpfs /tmp tmpfs
`))
	if len(bad) != 1 || bad[0] != "line 7 has no mount point" {
		t.Errorf("bad lines: %q", bad)
	}
	var got []string
	for _, l := range lines {
		if l.Mounted() {
			got = append(got, l.Spec+" "+l.File+" "+l.Type+" "+strings.Join(l.Options, ";"))
		}
	}
	want := []string{"UUID=0a-b / ext4 defaults;subvol=@", "LABEL=my data /srv/my data xfs nofail;x=a,b", "/dev/sdb1 /two auto ",
		"/srv /mnt none bind", "/dev/sdd1 /first-use ext4 noauto;x-systemd.automount"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("mounted lines:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if v, ok := lines[0].Option("subvol"); !ok || v != "@" || !lines[0].Selects() || lines[1].Selects() {
		t.Errorf("subvol: %q %v", v, ok)
	}
}

func TestOrderOfMounts(t *testing.T) {
	for name, test := range map[string]struct{ table, want string }{
		"a mount point's folder first":   {"a /x/y/z t\nb /x t\nc /x/y t", "b c a"},
		"the source of a bind first":     {"/data/deep /srv none bind\na /data t", "a /data/deep"},
		"what lies in a bound folder":    {"c /srv/sub t\n/data /srv none bind\na /data t", "a /data c"},
		"two at one place as they stand": {"a /x t\nb /x t\nc /x t", "a b c"},
		"a circle ends":                  {"/b /a none bind\n/a /b none bind", "/b /a"},
		"spelled otherwise":              {"a //x/./y/ t\nb /x/ t", "b a"},
		"only whole names":               {"a /xy t\nb /x t", "a b"},
	} {
		lines, _ := namespace.Parse([]byte(test.table))
		var got []string
		for _, l := range namespace.Order(lines) {
			got = append(got, l.Spec)
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: %q, want %q", name, strings.Join(got, " "), test.want)
		}
	}
}

func FuzzFstab(f *testing.F) {
	f.Add([]byte("UUID=\"a\" / ext4 subvol=@,x=\\054 0 1\n/x /y none bind\n"))
	f.Add([]byte("\\777 \\0 \\04\n\n#\n\x00 \xff ,,,=\n"))
	f.Fuzz(func(t *testing.T, table []byte) {
		lines, _ := namespace.Parse(table)
		if len(lines) > 200 {
			lines = lines[:200]
		}
		ordered := namespace.Order(lines)
		seen := make(map[int]bool)
		for _, l := range ordered {
			if seen[l.Number] || l.File == "" || l.Spec == "" {
				t.Fatalf("line %d is there twice, or empty: %+v", l.Number, l)
			}
			seen[l.Number] = true
		}
		if len(ordered) != len(lines) {
			t.Fatalf("%d of %d lines", len(ordered), len(lines))
		}
	})
}
