package daemon_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// loopMount makes a file system of its own for the test.
func loopMount(t *testing.T, fs string, sizeBytes int64) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a loop mount")
	}
	for _, tool := range []string{"losetup", "mount", "umount", "mkfs." + fs} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Skipf("%s %v: %v: %s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	dir := dataDir(t)
	image, mnt := filepath.Join(dir, "image"), filepath.Join(dir, "m")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(sizeBytes), f.Close(), os.Mkdir(mnt, 0o755)); err != nil {
		t.Fatal(err)
	}
	run("mkfs."+fs, "-q", image)
	loop := run("losetup", "-f", "--show", image)
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", loop).CombinedOutput(); err != nil {
			t.Errorf("losetup -d: %v: %s", err, out)
		}
	})
	run("mount", loop, mnt)
	t.Cleanup(func() {
		if err := unmount(mnt); err != nil {
			t.Error(err)
		}
	})
	return mnt
}

// unmount waits a while for a file system that is busy: a test beside this one may
// just start a process, which holds our open files until it runs its program.
func unmount(mnt string) error {
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		out, err := exec.Command("umount", mnt).CombinedOutput()
		if err == nil {
			return nil
		}
		if time.Since(began) > 10*time.Second {
			return fmt.Errorf("umount: %w: %s", err, out)
		}
	}
}

// A full file system under the vault: the backup fails with the reason and the
// number, the disk goes on, older points are intact, and with space it works again.
func TestVaultOnFullFileSystem(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	mnt := loopMount(t, "ext4", 400<<20)
	cfg := testConfig(t, filepath.Join(mnt, "kb"))
	a := start(t, cfg)
	// The disk's own file lies elsewhere: this is about the vault.
	backing := filepath.Join(dataDir(t), "big.raw")
	if f, err := os.Create(backing); err != nil || errors.Join(f.Truncate(600<<20), f.Close()) != nil {
		t.Fatal(err)
	}
	call(t, a.disks.Create, &kb.CreateDiskRequest{Name: "big0", Backing: backing})
	a.makeMachine(t, "big", "big0")
	g := newGuest(t, cfg, "big0", 400)
	g.write(t, 0, 32<<20)
	first := a.backup(t, "big")
	kept := append([]byte(nil), g.want...)

	for off := int64(32 << 20); off < 480<<20; off += 32 << 20 {
		g.write(t, off, 32<<20)
	}
	for range 2 { // again and again
		j, err := tryCall(a.machines.Backup, &kb.BackupRequest{Machine: "big"})
		if err == nil {
			j = a.wait(t, j)
			if j.State != "Failed" || j.ErrorCode != connect.CodeResourceExhausted.String() || !strings.Contains(j.Error, "space") {
				t.Fatalf("backup into a full vault: %v", j)
			}
		} else {
			wantCode(t, err, connect.CodeResourceExhausted)
		}
	}
	g.write(t, 1<<20, 1<<20)
	compare(t, "disk beside a full vault", g.dev, g.want)
	a.comparePoint(t, first.Id, "", kept)
	if l := call(t, a.points.List, &kb.ListPointsRequest{}).Points; len(l) != 1 {
		t.Errorf("points: %v", l)
	}
	g.disconnect(t)
	a.stop()

	// Full to the last byte, by somebody else: the start still serves the disk.
	hog := filepath.Join(mnt, "hog")
	for i := range 2 { // with ballast to drop, and without
		fill(t, fmt.Sprint(hog, i))
		a = start(t, cfg)
		g.dev = open(t, cfg, "big0")
		compare(t, "disk after a start on a full file system", g.dev, g.want)
		g.write(t, int64(i)<<20, 1<<20)
		g.disconnect(t)
		st := call(t, a.app.Status, &kb.StatusRequest{})
		t.Logf("start %d on a full file system: vault %s: %s; alerts %v", i, st.Vault.State, st.Vault.Reason, st.Alerts)
		if st.Vault.State == "open" {
			a.comparePoint(t, first.Id, "", kept)
		} else if !strings.Contains(st.Vault.Reason, "space") {
			t.Errorf("reason: %s", st.Vault.Reason)
		}
		a.stop()
	}
	for i := range 2 {
		if err := os.Remove(fmt.Sprint(hog, i)); err != nil {
			t.Fatal(err)
		}
	}
	a = start(t, cfg)
	a.comparePoint(t, first.Id, "", kept)
	// What was written while it was served untracked is in doubt, never forgotten.
	if d := call(t, a.disks.Get, &kb.GetDiskRequest{Name: "big0"}); d.State != "suspect" || d.Tracking != "compare" {
		t.Errorf("disk after it was served untracked: %v", d)
	}
	// The backups that failed left records that no point needs: the first of them began a
	// collection by itself, this one takes the rest. The point that is kept has 32 MiB.
	if j := a.wait(t, call(t, a.vaults.Collect, &kb.CollectRequest{})); j.State != "Completed" {
		t.Errorf("collection: %v", j)
	}
	if after := call(t, a.app.VaultStatus, &kb.VaultStatusRequest{}).PackBytes; after > 32<<20*6/5 {
		t.Errorf("packs have %d bytes after a collection", after)
	}
	a.comparePoint(t, first.Id, "", kept)
	a.makeDisk(t, "small0", 1<<20)
	a.makeMachine(t, "small", "small0")
	a.backup(t, "small")
}

// fill takes all space of a file system.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, n := range []int{1 << 20, 4096, 512} {
		buf := make([]byte, n)
		for err = nil; err == nil; {
			_, err = f.Write(buf)
		}
	}
}

// A restore is refused with the number before a byte is written; a disk that runs full
// says so to its guest and to nobody else.
func TestDemand24RestoreWithoutRoomIsRefusedWithTheNumber(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	mnt := loopMount(t, "ext4", 400<<20)
	cfg := testConfig(t, filepath.Join(mnt, "kb"))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 300<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 24)
	// Compressible, so that the vault has room and a second disk has not.
	for off := int64(0); off < 180<<20; off += 1 << 20 {
		p := g.want[off : off+1<<20]
		for i := range p {
			p[i] = byte(i>>8) ^ byte(off>>20) | 1
		}
		if _, err := g.dev.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	p := a.backup(t, "web")
	kept := append([]byte(nil), g.want[:4096]...)
	_, err := tryCall(a.points.RestoreDisk, &kb.RestoreDiskRequest{Point: p.Id, Name: "again0"})
	wantCode(t, err, connect.CodeResourceExhausted)
	if want := fmt.Sprint(180 << 20); !strings.Contains(err.Error(), want) {
		t.Errorf("the number %s is missing: %v", want, err)
	}
	if _, err := tryCall(a.disks.Get, &kb.GetDiskRequest{Name: "again0"}); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("a refused restore left a disk: %v", err)
	}
	noLeftovers(t, cfg)

	// The guest fills the file system: its write fails, the reserve stays.
	a.makeDisk(t, "fill0", 1<<30)
	f := open(t, cfg, "fill0")
	buf := make([]byte, 4<<20)
	for i := range buf {
		buf[i] = byte(i) | 1
	}
	var full error
	for off := int64(0); off < 1<<30 && full == nil; off += int64(len(buf)) {
		_, full = f.WriteAt(buf, off)
	}
	if full == nil {
		t.Fatal("the file system never ran full")
	}
	compare(t, "the other disk", g.dev, g.want)
	g.write(t, 0, 4096) // allocated already
	j, err := tryCall(a.machines.Backup, &kb.BackupRequest{Machine: "web"})
	if err == nil {
		j = a.wait(t, j)
		if j.State == "Failed" && j.ErrorCode != connect.CodeResourceExhausted.String() {
			t.Errorf("backup on a full file system: %v", j)
		}
	} else {
		wantCode(t, err, connect.CodeResourceExhausted)
	}
	copy(g.want, kept) // what the point holds
	a.comparePoint(t, p.Id, "", g.want)
}

// Sparse disks of 32 TiB, 32 of them, with a few MiB written: created, backed up twice
// and restored in seconds.
func TestDemand50ThirtyTwoSparseDisksOf32TiB(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	mnt := loopMount(t, "xfs", 2<<30)
	cfg := testConfig(t, filepath.Join(mnt, "kb"))
	a := start(t, cfg)
	const size, count = 32 << 40, 32
	var names []string
	marks := []int64{0, 5 << 40, size - 4096}
	for i := range count {
		name := fmt.Sprintf("d%02d", i)
		names = append(names, name)
		a.makeDisk(t, name, size)
		c := open(t, cfg, name)
		for j, off := range marks {
			if _, err := c.WriteAt(bytesOf(byte(i+1), byte(j+1), 4096), off); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	a.makeMachine(t, "big", names...)
	first := a.backup(t, "big")
	if len(first.Disks) != count || first.ReadBytes > count*3*(64<<10) {
		t.Errorf("first backup read %d bytes of %d disks", first.ReadBytes, len(first.Disks))
	}
	c := open(t, cfg, "d07")
	if _, err := c.WriteAt(bytesOf(99, 99, 4096), 7<<40); err != nil {
		t.Fatal(err)
	}
	c.Close()
	second := a.backup(t, "big")
	if second.Tracking != "enabled" || second.ReadBytes != 4096 {
		t.Errorf("second: read %d, %s", second.ReadBytes, second.Tracking)
	}
	a.restore(t, second.Id, "d07", "back")
	back := open(t, cfg, "back")
	for j, off := range append(marks, 7<<40) {
		want := bytesOf(8, byte(j+1), 4096)
		if j == 3 {
			want = bytesOf(99, 99, 4096)
		}
		got := make([]byte, 4096)
		if _, err := back.ReadAt(got, off); err != nil || string(got) != string(want) {
			t.Errorf("restored disk at %d: %v", off, err)
		}
	}
	if d := call(t, a.disks.Get, &kb.GetDiskRequest{Name: "back"}); d.AllocatedBytes > 1<<20 {
		t.Errorf("the restored disk takes %d bytes", d.AllocatedBytes)
	}
}

func bytesOf(a, b byte, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = a
		if i%2 == 1 {
			p[i] = b
		}
	}
	return p
}
