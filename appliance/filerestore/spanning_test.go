package filerestore_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/appliance/filerestore"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
	"github.com/keelblock/keelblock/blockdev/volume/md"
)

// vmPoint is a tree with one point of a machine whose disks a Debian guest made.
func vmPoint(t *testing.T, name string, o filerestore.Options, without string) (*filerestore.Tree, map[string][]byte) {
	t.Helper()
	t.Chdir("../../blockdev/volume") // the images are its test data
	files := fstest.VMCase(t, "volumes", name)
	disks := map[string]*memory{}
	for file, p := range files {
		if disk, ok := strings.CutSuffix(file, ".img"); ok && disk != without {
			disks[disk] = &memory{p: p}
		}
	}
	s := &source{}
	s.add("aaaa", "web", frozen, "t", disks)
	return filerestore.New(s, o), files
}

func requireStatus(t *testing.T, tree *filerestore.Tree, want ...string) {
	t.Helper()
	text := status(t, tree, "web", "latest")
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("STATUS lacks %q:\n%s", w, text)
		}
	}
}

func TestLVMInLUKSInAPartition(t *testing.T) {
	locked, files := vmPoint(t, "luks2-lvm", filerestore.Options{}, "")
	if got := list(t, walk(t, locked, "web", "latest", "volumes").Directory); got != "d0-1.raw" {
		t.Errorf("locked: %s", got)
	}
	requireStatus(t, locked, "volumes/d0-1: LUKS2 aes-xts-plain64; UNREADABLE", "it is encrypted and locked; give --key-file", "see volumes/d0-1.raw")
	for name, secret := range map[string][]byte{"passphrase": append(files["passphrase"], '\n'), "keyfile": files["keyfile"]} {
		tree, _ := vmPoint(t, "luks2-lvm", filerestore.Options{Keys: filerestore.NewKeyring([][]byte{[]byte("wrong"), secret})}, "")
		if got := list(t, walk(t, tree, "web", "latest", "volumes").Directory); got != "crypt-vg-root crypt-vg-home" {
			t.Errorf("%s: %s", name, got)
		}
		got, err := readFile(t, walk(t, tree, "web", "latest", "volumes", "crypt-vg-home").Volume, "zeros")
		if err != nil || got != strings.Repeat("\x00", 100000) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		requireStatus(t, tree, "volumes/d0-1: LUKS2 aes-xts-plain64; LVM2 physical volume of group crypt-vg", "volumes/crypt-vg-root: LVM volume root of group crypt-vg, linear; ext4", "no problems so far")
	}
	wrong, _ := vmPoint(t, "luks2-lvm", filerestore.Options{Keys: filerestore.NewKeyring([][]byte{[]byte("wrong")})}, "")
	requireStatus(t, wrong, "opens none of its key slots; give another --key-file FILE")
	for _, tree := range []*filerestore.Tree{locked, wrong} {
		if l := tree.Locked(context.Background(), "web", "aaaa"); len(l) != 1 || !strings.Contains(l[0].Error(), "volume d0-1: LUKS2") {
			t.Errorf("locked volumes: %v", l)
		}
	}
}

// A volume of which a part is missing is there by its name, and its use says why not.
func TestVolumeWithAMissingPartSaysSo(t *testing.T) {
	tree, _ := vmPoint(t, "md-raid0", filerestore.Options{}, "d2")
	if got := list(t, walk(t, tree, "web", "latest", "volumes").Directory); got != "md-zones" {
		t.Errorf("volumes: %s", got)
	}
	v := walk(t, tree, "web", "latest", "volumes", "md-zones").Volume
	if _, err := v.Open(context.Background()); !errors.Is(err, md.ErrMissing) {
		t.Errorf("%v", err)
	}
	requireStatus(t, tree, "volumes of LVM and md", "volumes/md-zones: md RAID0 array zones, superblock 1.2; UNREADABLE: member 2 of 3 is not there")
	whole, _ := vmPoint(t, "md-raid0", filerestore.Options{}, "")
	if got, err := readFile(t, walk(t, whole, "web", "latest", "volumes", "md-zones").Volume, "zeros"); err != nil || len(got) != 100000 {
		t.Errorf("with all disks: %d bytes, %v", len(got), err)
	}
	requireStatus(t, whole, "volumes/d0-0: member of md array zones", "volumes/d2-0: member of md array zones")
}

func TestArrayIsNamedByItsName(t *testing.T) {
	tree, _ := vmPoint(t, "md-raid1-stale", filerestore.Options{}, "d0")
	if got := list(t, walk(t, tree, "web", "latest", "volumes").Directory); got != "md-stale" {
		t.Errorf("volumes: %s", got)
	}
	requireStatus(t, tree, "volumes/md-stale: md RAID1 array stale, superblock 1.2; ext4", "what is shown is older", "volumes/d1-0: member of md array stale")
}
