package filerestore

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/namespace"
	"github.com/keelblock/keelblock/blockdev/volume"
)

func TestNamesOfDevices(t *testing.T) {
	partition := func(disk, number int, more volume.Node) *vol {
		more.Disk, more.Volume.Number = disk, number
		return &vol{name: "v", node: &more}
	}
	sda1 := partition(0, 1, volume.Node{Volume: volume.Volume{UUID: "a1b2c3d4-01", Name: "EFI system"}})
	sda2 := partition(0, 2, volume.Node{Keys: []string{"aaaa-bbbb"}})
	vdb := partition(1, 0, volume.Node{})
	nvme2 := partition(2, 11, volume.Node{Keys: []string{"cccc"}, Member: "physical volume"})
	lv := partition(-1, 0, volume.Node{Group: "my-vg", LogicalVolume: "a-b"})
	md := partition(-1, 0, volume.Node{Array: "boot"})
	md0p1 := partition(-1, 0, volume.Node{Array: "0", Partition: 1})
	disk28 := partition(27, 3, volume.Node{})
	d := &deviceNames{vols: []*vol{sda1, sda2, vdb, nvme2, lv, md, md0p1, disk28},
		infos:    map[*vol]filesystem.Info{sda1: {UUID: "ABCD-1234", Label: "with space"}, lv: {UUID: "0a"}},
		crypttab: map[string]string{"secret": "UUID=AAAA-bbbb", "again": "/dev/disk/by-uuid/aaaa-bbbb", "byname": "/dev/sda2", "a": "/dev/mapper/b", "b": "/dev/mapper/a"}}
	for spec, want := range map[string]*vol{
		"UUID=abcd-1234": sda1, "LABEL=with space": sda1, "PARTUUID=A1B2C3D4-01": sda1, "PARTLABEL=EFI system": sda1,
		"/dev/disk/by-uuid/ABCD-1234": sda1, `/dev/disk/by-label/with\x20space`: sda1, `/dev/disk/by-partlabel/EFI\x20system`: sda1, "/dev/disk/by-partuuid/a1b2c3d4-01": sda1,
		"/dev/sda1": sda1, "/dev/vda2": sda2, "/dev//sda1": sda1, "/dev/vdb": vdb, "/dev/hdb": vdb, "/dev/nvme2n1p11": nvme2, "/dev/mmcblk0p1": sda1, "/dev/sdab3": disk28,
		"/dev/my-vg/a-b": lv, "/dev/mapper/my--vg-a--b": lv, "/dev/md/boot": md, "/dev/md0p1": md0p1, "/dev/md/0p1": md0p1,
		"/dev/mapper/secret": sda2, "/dev/mapper/again": sda2, "/dev/mapper/byname": sda2, "/dev/mapper/luks-aaaa-BBBB": sda2,
	} {
		if v, err := d.find(spec); v != want {
			t.Errorf("%s: %v", spec, err)
		}
	}
	for spec, want := range map[string]string{
		"/dev/sdc1": "no volume", "/dev/mapper/my-vg-a-b": "no volume", "/dev/mapper/luks-cccc": "no volume", "/dev/my-vg/a": "no volume", "UUID=": "not known",
		"/images/x.iso": "not known", "relative": "not known", "/dev/disk/by-path/x": "not known", "/dev/cdrom": "not known", "ZFS=tank": "not known", "/dev/md0": "no volume",
		"/dev/../etc": "not known", "/dev/a/b/c": "not known", "/dev/mapper/a": "name each other",
	} {
		if v, err := d.find(spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v; want %q", spec, v, err, want)
		}
	}
}

// parts is a file system of two folders, @ and @home, that are mounted as parts. Each has a
// file; @ has an fstab.
type parts struct {
	filesystem.FS
	root  filesystem.Inode
	fstab string
}

var partsTree = map[filesystem.Inode]map[string]filesystem.Inode{
	5:  {"@": 10, "@home": 20, "@old": 30},
	10: {"etc": 11, "home": 12}, 11: {"fstab": 13}, 12: {"hidden": 14},
	20: {"file": 21},
	30: {"etc": 31}, 31: {"fstab": 13},
}

func (p parts) Info() filesystem.Info                             { return filesystem.Info{UUID: "bb"} }
func (p parts) Root() filesystem.Inode                            { return p.root }
func (p parts) TopLevel() filesystem.Inode                        { return 5 }
func (p parts) Parent(filesystem.Inode) (filesystem.Inode, error) { return 5, nil }
func (p parts) ReadAt(_ filesystem.Inode, b []byte, _ int64) (int, error) {
	return copy(b, p.fstab), nil
}
func (p parts) Subvolume(id uint64) (filesystem.Inode, error) {
	if ino := map[uint64]filesystem.Inode{5: 5, 256: 10, 257: 20}[id]; ino != 0 {
		return ino, nil
	}
	return 0, filesystem.ErrNotExist
}
func (p parts) Lookup(dir filesystem.Inode, name []byte) (filesystem.Inode, error) {
	if ino := partsTree[dir][string(name)]; ino != 0 {
		return ino, nil
	}
	return 0, filesystem.ErrNotExist
}
func (p parts) Getattr(ino filesystem.Inode) (filesystem.Attr, error) {
	if partsTree[ino] != nil {
		return filesystem.Attr{Inode: ino, Type: filesystem.TypeDir}, nil
	}
	return filesystem.Attr{Inode: ino, Type: filesystem.TypeRegular, Size: int64(len(p.fstab))}, nil
}
func (p parts) ReadDir(dir filesystem.Inode, _ uint64, yield func(filesystem.Dirent) bool) error {
	for name, ino := range partsTree[dir] {
		if !yield(filesystem.Dirent{Name: []byte(name), Inode: ino, Type: filesystem.TypeDir}) {
			break
		}
	}
	return nil
}

func TestPartsOfAVolumeAreMounted(t *testing.T) {
	for name, test := range map[string]struct {
		root       filesystem.Inode
		fstab      string
		tree, note string // of the tree that is found; a note in STATUS
	}{
		"by name":             {5, "UUID=bb / btrfs subvol=@\nUUID=bb /home btrfs subvol=/@home", "as-mounted", `"/": volumes/web0-1, subvolume @`},
		"by number":           {5, "UUID=bb / btrfs subvolid=256\nUUID=bb /home btrfs subvolid=257", "as-mounted", `"/": volumes/web0-1, subvolume @`},
		"the default one":     {10, "UUID=bb / btrfs\nUUID=bb /home btrfs subvol=@home", "as-mounted", `"/": volumes/web0-1`},
		"the default, named":  {10, "UUID=bb / btrfs subvol=@\nUUID=bb /home btrfs subvol=@home", "as-mounted", `"/": volumes/web0-1`},
		"one that is missing": {5, "UUID=bb / btrfs subvol=@\nUUID=bb /home btrfs subvol=@none", "as-mounted", `"/home": volumes/web0-1, subvolume`},
	} {
		p := &pointVolumes{tree: New(nil, Options{})}
		p.problems.tree = p.tree
		v := &vol{point: p, name: "web0-1", readable: true, node: &volume.Node{}, fs: parts{root: test.root, fstab: test.fstab}}
		trees := p.lookForTrees(context.Background(), &foundVolumes{vols: []*vol{v}})
		if len(trees) != 1 || trees[0].name != test.tree {
			t.Errorf("%s: %d trees", name, len(trees))
			continue
		}
		if notes := strings.Join(trees[0].notes, "\n"); !strings.Contains(notes, test.note) {
			t.Errorf("%s: notes\n%s", name, notes)
		}
		_, err := trees[0].ns.Walk("/home/file")
		switch {
		case name == "one that is missing":
			if _, hidden := trees[0].ns.Walk("/home/hidden"); err == nil || hidden == nil || !strings.Contains(err.Error(), "subvolume @none") {
				t.Errorf("%s: %v, %v", name, err, hidden)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		}
	}
	// A file system without parts, mounted by one.
	if _, err := part(struct{ filesystem.FS }{}, namespace.Line{Options: []string{"subvol=@"}}); !errors.Is(err, errParts) {
		t.Errorf("%v", err)
	}
}
