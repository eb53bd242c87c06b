package volume_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem/detect"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
	"github.com/keelblock/keelblock/blockdev/volume"
	"github.com/keelblock/keelblock/blockdev/volume/luks"
	"github.com/keelblock/keelblock/blockdev/volume/lvm"
	"github.com/keelblock/keelblock/blockdev/volume/md"
)

const vmSet = "volumes"

// vmDisks are the disks of a case that are not left out.
func vmDisks(files map[string][]byte, without ...string) []volume.Disk {
	var out []volume.Disk
	for _, name := range slices.Sorted(maps.Keys(files)) {
		disk, ok := strings.CutSuffix(name, ".img")
		if ok && !slices.Contains(without, disk) {
			out = append(out, volume.Disk{Name: disk, Reader: bytes.NewReader(files[name]), Size: int64(len(files[name]))})
		}
	}
	return out
}

func unlockWith(secret []byte) func(h *luks.Header) (luks.Key, error) {
	return func(h *luks.Header) (luks.Key, error) { return h.Unlock(secret) }
}

// TestVMVolumes holds what is read of LVM groups, md arrays and LUKS volumes against what
// the kernel of a Debian guest showed: every byte of each volume, and the files in it.
func TestVMVolumes(t *testing.T) {
	for _, name := range fstest.VMCases(t, vmSet) {
		t.Run(name, func(t *testing.T) {
			files := fstest.VMCase(t, vmSet, name)
			secrets := [][]byte{nil}
			for _, key := range []string{"passphrase", "keyfile"} {
				if files[key] != nil {
					secrets = append(secrets[:len(secrets):len(secrets)], files[key])
				}
			}
			if len(secrets) > 1 {
				secrets = secrets[1:]
			}
			for _, secret := range secrets {
				set := volume.Assemble(vmDisks(files), volume.Options{Unlock: unlockWith(secret)})
				for i, err := range set.Failed {
					if err != nil || len(set.Warnings[i]) > 0 {
						t.Errorf("disk %d: %v, %q", i, err, set.Warnings[i])
					}
				}
				compareVM(t, files, byName(set))
			}
		})
	}
}

// compareVM compares the volumes with the lines of the file "volumes".
func compareVM(t *testing.T, files map[string][]byte, nodes map[string]*volume.Node) {
	t.Helper()
	lines := 0
	for line := range strings.Lines(string(files["volumes"])) {
		lines++
		f := strings.Fields(line)
		n := nodes[f[0]]
		switch {
		case n == nil:
			t.Errorf("%s is not listed; there are %q", f[0], slices.Sorted(maps.Keys(nodes)))
		case f[2] == "unsupported":
			if !errors.Is(n.Err, lvm.ErrUnsupported) {
				t.Errorf("%s: %v", n.Name, n.Err)
			}
		case n.Content == nil:
			t.Errorf("%s: %+v", n.Name, n)
		default:
			compareContent(t, n, f[1], f[2], files[n.Name+".manifest"])
		}
	}
	if lines == 0 {
		t.Error("the case names no volumes")
	}
}

func compareContent(t *testing.T, n *volume.Node, size, sum string, manifest []byte) {
	t.Helper()
	p := make([]byte, n.Size)
	if _, err := n.Content.ReadAt(p, 0); err != nil {
		t.Errorf("%s: %v", n.Name, err)
		return
	}
	if got := fmt.Sprintf("%d %x", n.Size, sha256.Sum256(p)); got != size+" "+sum {
		t.Errorf("%s (%s, %q): content is %s, the kernel's %s %s", n.Name, n.What, n.Notes, got, size, sum)
		return
	}
	fs, err := detect.Open(n.Content, n.Size)
	if err != nil {
		t.Errorf("%s: %v", n.Name, err)
		return
	}
	m, err := fstest.FromFS(fs)
	if err != nil {
		t.Errorf("%s: %v", n.Name, err)
		return
	}
	if got := m.Text(fstest.FieldAtime); got != string(manifest) {
		t.Errorf("%s: the files differ from the kernel's view:\n%s\nwant\n%s", n.Name, got, manifest)
	}
}

// Every case with one of its disks left out: what lies on it is listed with the reason,
// and what does not is as before.
func TestVMMissingDiskIsNamed(t *testing.T) {
	for name, c := range map[string]struct {
		without string
		lost    map[string]error // and the others are read
	}{
		"md-raid0":     {"d2", map[string]error{"md-zones": md.ErrMissing}},
		"md-lvm":       {"d0", nil},
		"md-raid1":     {"d0", nil},
		"md-raid1-old": {"d1", nil},
	} {
		t.Run(name, func(t *testing.T) {
			files := fstest.VMCase(t, vmSet, name)
			set := volume.Assemble(vmDisks(files, c.without), volume.Options{})
			nodes := byName(set)
			var rest []string
			for line := range strings.Lines(string(files["volumes"])) {
				n := nodes[strings.Fields(line)[0]]
				if n == nil {
					t.Errorf("not listed: %s", line)
					continue
				}
				want := c.lost[n.Name]
				if want != nil && (!errors.Is(n.Err, want) || n.Content != nil) {
					t.Errorf("%s: %v", n.Name, n.Err)
				}
				if want == nil && n.Err == nil {
					rest = append(rest, line)
				}
			}
			if len(rest) == 0 {
				return
			}
			files["volumes"] = []byte(strings.Join(rest, ""))
			compareVM(t, files, nodes)
		})
	}
}

// The leg that failed before the other was written is not read, alone it is labelled.
func TestVMStaleLegIsLabelled(t *testing.T) {
	files := fstest.VMCase(t, vmSet, "md-raid1-stale")
	old := byName(volume.Assemble(vmDisks(files, "d0"), volume.Options{}))["md-stale"]
	if old == nil || old.Err != nil || !strings.Contains(strings.Join(old.Notes, "; "), "what is shown is older") {
		t.Fatalf("the stale leg alone: %+v", old)
	}
	fs, err := detect.Open(old.Content, old.Size)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := fstest.File(fs, "etc", "hostname"); err != nil || string(got) != "guest\n" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestVMLockedVolumes(t *testing.T) {
	for _, name := range []string{"luks1", "luks2-4k"} {
		files := fstest.VMCase(t, vmSet, name)
		n := byName(volume.Assemble(vmDisks(files), volume.Options{}))["d0-0"]
		if n == nil || !errors.Is(n.Err, volume.ErrLocked) || n.Content != nil || len(n.Layers) != 1 {
			t.Errorf("%s, nothing given: %+v", name, n)
		}
		n = byName(volume.Assemble(vmDisks(files), volume.Options{Unlock: unlockWith([]byte("correct house"))}))["d0-0"]
		if n == nil || !errors.Is(n.Err, luks.ErrPassphrase) || n.Content != nil {
			t.Errorf("%s, wrong passphrase: %+v", name, n)
		}
	}
}
