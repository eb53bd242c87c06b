package daemon_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// An increment by QEMU's tools alone, as `keelblock help export` tells it. QEMU takes a
// dirty range for a hole that has no zeroes, so `qemu-img convert` of an export with
// x-dirty-bitmap and a target with a backing file copies all but the increment, and
// without one all. What works is to ask `qemu-img map` and to name the ranges: to
// `qemu-img convert`, for a raw copy of the older point, or to qemu-io, for a qcow2 file
// that holds the increment alone.
func TestQEMUConvertsAnIncrement(t *testing.T) {
	for _, tool := range []string{"qemu-img", "qemu-io"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed (apt-get install qemu-utils)", tool)
		}
	}
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	const size = 6<<20 + 512
	a.makeDisk(t, "web0", size)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 103)
	g.write(t, 0, 5<<20)
	first := a.backup(t, "web")
	old := bytes.Clone(g.want)
	g.write(t, 5000, 3000)
	g.write(t, 2<<20, 100_000)
	g.write(t, size-512, 512)
	if err := g.dev.WriteZeroes(3<<20, 70_000, true); err != nil {
		t.Fatal(err)
	}
	clear(g.want[3<<20 : 3<<20+70_000])
	second := a.backup(t, "web")
	is := bytes.Clone(g.want)
	g.write(t, 0, size) // what comes later is in neither
	call(t, a.points.Export, &kb.ExportRequest{Point: second.Id, Disk: "web0", Name: "increment", Since: first.Id})

	run := func(name string, args ...string) []byte {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return out
	}
	nbd := fmt.Sprintf("driver=nbd,server.type=unix,server.path=%s,export=increment", cfg.NBDSocket())
	var list []struct {
		Start, Length int64
		Data          bool
	}
	out := run("qemu-img", "map", "--output=json", "--image-opts", nbd+",x-dirty-bitmap=qemu:dirty-bitmap:since-"+first.Id)
	if err := json.Unmarshal(out, &list); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dir := t.TempDir()
	image, overlay := filepath.Join(dir, "copy.raw"), filepath.Join(dir, "increment.qcow2")
	if err := os.WriteFile(image, old, 0o600); err != nil {
		t.Fatal(err)
	}
	uri := fmt.Sprintf("nbd+unix:///increment?socket=%s", cfg.NBDSocket())
	run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", uri, overlay)
	dirty := int64(0)
	for _, x := range list {
		if x.Data {
			continue
		}
		dirty += x.Length
		part := fmt.Sprintf("driver=raw,offset=%d,size=%d,", x.Start, x.Length)
		run("qemu-img", "convert", "-n", "--image-opts", part+fmt.Sprintf("file.driver=nbd,file.server.type=unix,file.server.path=%s,file.export=increment", cfg.NBDSocket()),
			"--target-image-opts", part+"file.driver=file,file.filename="+image)
		run("qemu-io", "-C", "-f", "qcow2", "-c", fmt.Sprintf("read %d %d", x.Start, x.Length), overlay)
	}
	if want := int64(8192 + 102400 + 512 + 73728); dirty < 512 || dirty > want {
		t.Errorf("%d bytes are dirty, want at most %d", dirty, want)
	}
	got, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, is) {
		t.Error("the old point with the converted ranges is not the new one")
	}

	// The qcow2 file over a copy of the older point is the newer one, and converts to it.
	before, whole := filepath.Join(dir, "old.raw"), filepath.Join(dir, "new.raw")
	if err := os.WriteFile(before, old, 0o600); err != nil {
		t.Fatal(err)
	}
	run("qemu-img", "rebase", "-u", "-F", "raw", "-b", before, overlay)
	call(t, a.points.Unexport, &kb.UnexportRequest{Name: "increment"})
	run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", overlay, whole)
	if got, err = os.ReadFile(whole); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, is) {
		t.Error("the qcow2 increment over the old point is not the new one")
	}
}
