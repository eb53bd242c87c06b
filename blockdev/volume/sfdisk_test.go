package volume_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/blockdev/volume"
)

// TestSfdiskAgrees makes tables with sfdisk and requires what sfdisk then lists.
func TestSfdiskAgrees(t *testing.T) {
	tool, err := exec.LookPath("sfdisk")
	if err != nil {
		t.Skip("sfdisk is not installed (Debian package fdisk)")
	}
	for name, script := range map[string]string{
		"gpt": "label: gpt\nstart=2048, size=8192, name=\"boot\"\nsize=16384, name=\"root\"\nstart=65536, name=\"rest\"\n",
		"mbr": "label: dos\n1: start=2048, size=8192, type=83\n2: start=12288, size=8192, type=82\n3: start=22528, type=5\n5: size=8192\n6: size=8192, type=c\n",
	} {
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 64*mib); err != nil {
			t.Fatal(err)
		}
		c := exec.Command(tool, "--quiet", "--no-tell-kernel", path)
		c.Stdin = strings.NewReader(script)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		out, err := exec.Command(tool, "--json", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		var judge struct {
			PartitionTable struct {
				ID         string
				Partitions []struct {
					Start, Size            int64
					Node, Type, Name, UUID string
				}
			}
		}
		if err := json.Unmarshal(out, &judge); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, warnings, err := volume.List(f, 64*mib)
		if err != nil || len(warnings) != 0 {
			t.Fatalf("%s: %v %q", name, err, warnings)
		}
		for _, p := range judge.PartitionTable.Partitions {
			if p.Type == "5" {
				continue // the extended partition is no volume
			}
			if len(got) == 0 {
				t.Fatalf("%s: sfdisk has more partitions: %+v", name, p)
			}
			v := got[0]
			got = got[1:]
			uuid := strings.ToLower(p.UUID)
			if name == "mbr" {
				number, err := strconv.Atoi(strings.TrimPrefix(p.Node, path))
				if err != nil {
					t.Fatal(err)
				}
				uuid = fmt.Sprintf("%s-%02x", strings.TrimPrefix(judge.PartitionTable.ID, "0x"), number)
			}
			if v.UUID != uuid {
				t.Errorf("%s: partition %d has UUID %q, sfdisk has %q", name, v.Number, v.UUID, uuid)
			}
			if v.Offset != p.Start*512 || v.Size != p.Size*512 || v.Name != p.Name || (name == "gpt" && v.TypeGUID != p.Type) {
				t.Errorf("%s: %+v, sfdisk has %+v", name, v, p)
			}
		}
		if len(got) != 0 {
			t.Errorf("%s: too many: %+v", name, got)
		}
	}
}
