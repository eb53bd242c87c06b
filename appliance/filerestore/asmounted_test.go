package filerestore_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/appliance/filerestore"
	"github.com/keelblock/keelblock/appliance/fusemount"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// extOf makes an ext4 of files, with a label and UUID.
func extOf(t *testing.T, label, uuid string, files map[string]string) []byte {
	t.Helper()
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skip("mke2fs is not installed")
	}
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, "tree", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(dir, "image")
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-b", "1024", "-L", label, "-U", uuid, "-d", dir+"/tree", image, "2M").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// readPath reads a file of a volume by its path.
func readPath(v fusemount.Volume, path string) (string, error) {
	fs, err := v.Open(context.Background())
	if err != nil {
		return "", err
	}
	at := fs.Root()
	for name := range strings.SplitSeq(path, "/") {
		if at, err = fs.Lookup(at, []byte(name)); err != nil {
			return "", err
		}
	}
	a, err := fs.Getattr(at)
	if err != nil {
		return "", err
	}
	p := make([]byte, a.Size)
	n, err := fs.ReadAt(at, p, 0)
	return string(p[:n]), err
}

const (
	rootUUID = "11111111-1111-4111-8111-111111111111"
	homeUUID = "22222222-2222-4222-8222-22222222222a"
	dataUUID = "33333333-3333-4333-8333-333333333333"
)

func TestTreeAsTheGuestMountedIt(t *testing.T) {
	const table = `UUID=` + rootUUID + ` / ext4 errors=remount-ro 0 1
UUID="22222222-2222-4222-8222-22222222222A" /home ext4 defaults 0 2
/dev/vdb /home/shared/data ext4 defaults 0 2
/dev/disk/by-label/my\x20logs /var/log ext4 defaults 0 2
PARTUUID=a1020304-04 /parts ext4 defaults 0 2
/dev/sda3 none swap sw 0 0
/home/shared /srv none bind 0 0
UUID=99999999-9999-4999-8999-999999999999 /gone ext4 nofail 0 2
/dev/disk/by-path/pci-0000:00 /bypath ext4 nofail 0 2
LABEL=later /later ext4 noauto 0 0
/dev/sda5 /nowhere ext4 defaults 0 0
server:/x /nfs nfs defaults 0 0
`
	root := extOf(t, "root", rootUUID, map[string]string{"etc/fstab": table, "home/hidden": "", "var/log/hidden": "", "srv/hidden": "", "gone/under": "under",
		"bypath/x": "", "later/x": "", "nfs/x": "", "parts/x": "", "proc/x": ""})
	home := extOf(t, "home", homeUUID, map[string]string{"ann/file": "ann's", "shared/data/hidden": "", "shared/note": "note"})
	logs := extOf(t, "my logs", dataUUID, map[string]string{"syslog": "log"})
	part := extOf(t, "", "44444444-4444-4444-8444-444444444444", map[string]string{"p": "part"})
	data := extOf(t, "data", "55555555-5555-4555-8555-555555555555", map[string]string{"big/file": "data"})
	web0 := partitioned(root, home, logs, part)
	binary.LittleEndian.PutUint32(web0[440:], 0xa1020304)
	s := &source{}
	s.add("aaaa", "web", frozen, "t", map[string]*memory{"web0": {p: web0}, "web1": {p: data}})

	plain := filerestore.New(s, filerestore.Options{})
	if got := list(t, walk(t, plain, "web", "latest").Directory); strings.Contains(got, "as-mounted") {
		t.Errorf("unasked: %s", got)
	}
	tree := filerestore.New(s, filerestore.Options{AsMounted: true})
	if got := list(t, walk(t, tree, "web", "latest").Directory); got != "web0.raw web1.raw as-mounted STATUS volumes" {
		t.Fatalf("point: %s", got)
	}
	guest := walk(t, tree, "web", "latest", "as-mounted").Volume
	for path, want := range map[string]string{"etc/fstab": table, "home/ann/file": "ann's", "home/shared/note": "note", "home/shared/data/big/file": "data",
		"var/log/syslog": "log", "parts/p": "part", "srv/note": "note", "gone/under": "under"} {
		if got, err := readPath(guest, path); got != want {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	for _, path := range []string{"home/hidden", "var/log/hidden", "srv/hidden", "home/shared/data/hidden", "parts/x"} {
		if _, err := readPath(guest, path); !errors.Is(err, filesystem.ErrNotExist) {
			t.Errorf("%s, which a mount covers: %v", path, err)
		}
	}
	requireStatus(t, tree, "as-mounted, by /etc/fstab", `"/": volumes/web0-1`, `"/home": volumes/web0-2`, `"/home/shared/data": volumes/web1-0`,
		`"/var/log": volumes/web0-3`, `"/srv": the folder "/home/shared"`,
		`"/gone": NOT MOUNTED: line 8 of /etc/fstab, "UUID=99999999-9999-4999-8999-999999999999": no volume of the machine is it`,
		`"/bypath": NOT MOUNTED: line 9 of /etc/fstab, "/dev/disk/by-path/pci-0000:00": this form of naming a device is not known`,
		`"/nowhere": NOT MOUNTED: line 11`, "no problems so far")
	if text := status(t, tree, "web", "latest"); strings.Contains(text, "later") || strings.Contains(text, "nfs") || strings.Contains(text, "swap") {
		t.Errorf("what the guest did not mount from a disk is in STATUS:\n%s", text)
	}
}

// A copy of a root names another volume as "/"; two guests on one machine have a tree each.
func TestRootOfTheGuestIsFound(t *testing.T) {
	fstab := func(uuid string) map[string]string {
		return map[string]string{"etc/fstab": "UUID=" + uuid + " / ext4\n"}
	}
	copied := extOf(t, "", dataUUID, fstab(rootUUID))
	root, other := extOf(t, "", rootUUID, fstab(rootUUID)), extOf(t, "", homeUUID, fstab(homeUUID))
	unnamed := extOf(t, "", homeUUID, map[string]string{"etc/fstab": "LABEL=cloudimg-rootfs / ext4\n"})
	for name, test := range map[string]struct {
		disk []byte
		want string
	}{
		"a copy beside it": {partitioned(copied, root), "web0.raw as-mounted STATUS volumes"},
		"two guests":       {partitioned(root, other), "web0.raw as-mounted-web0-1 as-mounted-web0-2 STATUS volumes"},
		"named by its kernel's command line only": {partitioned(unnamed), "web0.raw as-mounted STATUS volumes"},
		"none":           {partitioned(extOf(t, "", homeUUID, map[string]string{"x": ""})), "web0.raw STATUS volumes"},
		"only a copy":    {partitioned(copied, extOf(t, "", rootUUID, map[string]string{"x": ""})), "web0.raw STATUS volumes"},
		"sure and maybe": {partitioned(unnamed, root), "web0.raw as-mounted STATUS volumes"},
	} {
		s := &source{}
		s.add("aaaa", "web", frozen, "t", map[string]*memory{"web0": {p: test.disk}})
		tree := filerestore.New(s, filerestore.Options{AsMounted: true})
		if got := list(t, walk(t, tree, "web", "latest").Directory); got != test.want {
			t.Errorf("%s: %s", name, got)
		}
		if strings.Contains(test.want, "as-mounted") {
			requireStatus(t, tree, "by /etc/fstab")
		} else {
			requireStatus(t, tree, "as-mounted: no volume that can be read has an /etc/fstab")
		}
	}
}

// Two volumes with one UUID, a disk and its clone: nobody knows which one the guest took.
func TestAmbiguousDeviceIsNotGuessed(t *testing.T) {
	root := extOf(t, "", rootUUID, map[string]string{"etc/fstab": "LABEL=none / ext4\nUUID=" + homeUUID + " /home ext4\n", "home/under": ""})
	home := extOf(t, "", homeUUID, map[string]string{"x": ""})
	s := &source{}
	s.add("aaaa", "web", frozen, "t", map[string]*memory{"web0": {p: partitioned(root, home, home)}})
	tree := filerestore.New(s, filerestore.Options{AsMounted: true})
	requireStatus(t, tree, `"/home": NOT MOUNTED: line 2 of /etc/fstab, "UUID=`+homeUUID+`": several volumes are it: volumes/web0-2, volumes/web0-3`)
}

// Names of LVM, by both spellings, inside of LUKS.
func TestDevicesOfLVMByName(t *testing.T) {
	_, files := vmPoint(t, "luks2-lvm", filerestore.Options{}, "")
	const table = "LABEL=none / ext4\n/dev/mapper/crypt--vg-home /home ext4\n/dev/crypt-vg/root /root ext4\n/dev/mapper/crypt--vg-none /x ext4\n"
	root := extOf(t, "", rootUUID, map[string]string{"etc/fstab": table, "home/under": "", "root/under": "", "x/under": ""})
	disks := func() map[string]*memory {
		out := map[string]*memory{"a0": {p: root}}
		for file, p := range files {
			if disk, ok := strings.CutSuffix(file, ".img"); ok {
				out[disk] = &memory{p: p}
			}
		}
		return out
	}
	s := &source{}
	s.add("aaaa", "web", frozen, "t", disks())
	open := filerestore.New(s, filerestore.Options{AsMounted: true, Keys: filerestore.NewKeyring([][]byte{files["passphrase"]})})
	guest := walk(t, open, "web", "latest", "as-mounted").Volume
	if got, err := readPath(guest, "home/zeros"); len(got) != 100000 {
		t.Errorf("/home: %d bytes, %v", len(got), err)
	}
	requireStatus(t, open, `"/home": volumes/crypt-vg-home`, `"/root": volumes/crypt-vg-root`, `"/x": NOT MOUNTED: line 4 of /etc/fstab, "/dev/mapper/crypt--vg-none": no volume of the machine is it`)
	locked := filerestore.New(s, filerestore.Options{AsMounted: true})
	requireStatus(t, locked, `"/home": NOT MOUNTED: line 2 of /etc/fstab, "/dev/mapper/crypt--vg-home": no volume of the machine is it that is open; locked are volumes/d0-1`)
}
