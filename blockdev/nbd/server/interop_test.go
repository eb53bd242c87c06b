package server_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/nbd/client"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// tool runs a client of somebody else's and returns its standard output. The test
// is skipped when the tool is not installed.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	cmd := exec.CommandContext(within(t, 60*time.Second), name, args...)
	cmd.Dir = t.TempDir() // fio leaves a file of its state
	// nbdsh takes the first python3, which need not be the one that has its module.
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:/bin:"+os.Getenv("PATH"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return string(out)
}

// image writes a file with data, zeros that are written and holes, of a size that
// no large power of two divides.
func image(t *testing.T) (path string, content []byte) {
	t.Helper()
	content = make([]byte, 40<<20+512)
	rng := rand.New(rand.NewPCG(7, 7))
	for _, r := range [][2]int{{0, 3 << 20}, {10<<20 + 4096, 11 << 20}, {30<<20 - 512, 35<<20 + 777}, {40 << 20, 40<<20 + 512}} {
		for i := r[0]; i < r[1]; i++ {
			content[i] = byte(rng.Uint32())
		}
	}
	path = filepath.Join(t.TempDir(), "image.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const block = 64 << 10
	for off := 0; off < len(content); off += block {
		if p := content[off:min(len(content), off+block)]; len(bytes.Trim(p, "\x00")) > 0 {
			if _, err := f.WriteAt(p, int64(off)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := f.Truncate(int64(len(content))); err != nil {
		t.Fatal(err)
	}
	return path, content
}

// interop serves an empty disk of the image's size.
func interop(t *testing.T) (uri, path string, content []byte) {
	path, content = image(t)
	d := newDisk(t, t.TempDir(), int64(len(content)))
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Description: "a disk for others", Device: d})
	return s.uri("disk"), path, content
}

func TestInteropNbdinfo(t *testing.T) {
	uri, _, content := interop(t)
	var info struct {
		Protocol   string
		Structured bool
		Exports    []struct {
			Name        string `json:"export-name"`
			Description string
			Size        int64 `json:"export-size"`
			Contexts    []string
			ReadOnly    bool  `json:"is_read_only"`
			Cache       bool  `json:"can_cache"`
			DF          bool  `json:"can_df"`
			FastZero    bool  `json:"can_fast_zero"`
			Flush       bool  `json:"can_flush"`
			FUA         bool  `json:"can_fua"`
			MultiConn   bool  `json:"can_multi_conn"`
			Trim        bool  `json:"can_trim"`
			Zero        bool  `json:"can_zero"`
			Minimum     int64 `json:"block_size_minimum"`
			Preferred   int64 `json:"block_size_preferred"`
			Maximum     int64 `json:"block_size_maximum"`
		}
	}
	out := tool(t, "nbdinfo", "--json", uri)
	if err := json.Unmarshal([]byte(out), &info); err != nil || len(info.Exports) != 1 {
		t.Fatalf("nbdinfo printed %s (%v)", out, err)
	}
	x := info.Exports[0]
	if info.Protocol != "newstyle-fixed" || !info.Structured || x.Name != "disk" || x.Description != "a disk for others" || x.Size != int64(len(content)) ||
		x.ReadOnly || !x.Cache || !x.DF || !x.FastZero || !x.Flush || !x.FUA || !x.MultiConn || !x.Trim || !x.Zero ||
		x.Minimum != 1 || x.Preferred != 4096 || x.Maximum != 32<<20 || len(x.Contexts) != 1 || x.Contexts[0] != "base:allocation" {
		t.Errorf("nbdinfo sees %s", out)
	}
	if list := tool(t, "nbdinfo", "--list", strings.Replace(uri, "/disk?", "/?", 1)); !strings.Contains(list, `export="disk"`) {
		t.Errorf("nbdinfo --list does not show the export:\n%s", list)
	}
}

func TestInteropNbdcopyAndMap(t *testing.T) {
	uri, path, content := interop(t)
	tool(t, "nbdcopy", "--connections=4", "--flush", path, uri)
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", path, uri)
	back := filepath.Join(t.TempDir(), "back.raw")
	tool(t, "nbdcopy", "--connections=4", uri, back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, content) {
		t.Errorf("nbdcopy there and back has changed the image (%v)", err)
	}
	var extents []struct {
		Offset, Length int64
		Type           int
	}
	out := tool(t, "nbdinfo", "--map", "--json", uri)
	if err := json.Unmarshal([]byte(out), &extents); err != nil {
		t.Fatalf("nbdinfo --map printed %s (%v)", out, err)
	}
	next, holes := int64(0), int64(0)
	for _, e := range extents {
		if e.Offset != next {
			t.Fatalf("the map has a gap at %d:\n%s", next, out)
		}
		next += e.Length
		if e.Type != 0 {
			holes += e.Length
			if len(bytes.Trim(content[e.Offset:e.Offset+e.Length], "\x00")) > 0 {
				t.Errorf("the map calls %d+%d empty, but it holds data", e.Offset, e.Length)
			}
		}
	}
	if next != int64(len(content)) || holes < 20<<20 {
		t.Errorf("the map covers %d bytes of %d, %d of them holes:\n%s", next, len(content), holes, out)
	}
}

func TestInteropQemuImg(t *testing.T) {
	uri, path, _ := interop(t)
	tool(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", path, uri)
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", path, uri)
	back := filepath.Join(t.TempDir(), "back.qcow2")
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-m", "8", "-W", uri, back)
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", path, back)
	if out := tool(t, "qemu-img", "map", "--output=json", "-f", "raw", uri); !strings.Contains(out, `"zero": true`) {
		t.Errorf("qemu-img map sees no zeros:\n%s", out)
	}
}

func TestInteropQemuIO(t *testing.T) {
	uri, _, _ := interop(t)
	tool(t, "qemu-io", "-f", "raw", "-t", "none",
		"-c", "write -P 17 513 70001", "-c", "read -P 17 513 70001",
		"-c", "write -f -P 18 1M 512", "-c", "read -P 18 1M 512",
		"-c", "write -z 2k 512", "-c", "read -P 0 2k 512", "-c", "read -P 17 2560 1000",
		"-c", "write -z -u 3k 1k", "-c", "discard 0 40M",
		"-c", "aio_write -P 19 0 32M", "-c", "aio_flush", "-c", "read -P 19 0 32M", "-c", "flush", uri)
}

func TestInteropFioVerifies(t *testing.T) {
	if out, err := exec.Command("fio", "--enghelp=nbd").CombinedOutput(); err != nil {
		t.Skipf("fio with its nbd engine is not installed: %s", bytes.TrimSpace(out))
	}
	uri, _, _ := interop(t)
	for _, mix := range [][]string{{"--rw=randwrite", "--bs=4k"}, {"--rw=randrw", "--bsrange=512-256k", "--bs_unaligned"}, {"--rw=write", "--bs=1m"}} {
		args := append([]string{"--name=verify", "--ioengine=nbd", "--uri=" + uri, "--size=32m", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--fsync=64"}, mix...)
		tool(t, "fio", args...)
	}
}

// Our client against servers of others.
func TestClientReadsAndWritesOtherServers(t *testing.T) {
	path, content := image(t)
	for name, command := range map[string][]string{
		"nbdkit":   {"nbdkit", "--foreground", "--exit-with-parent", "--unix", "SOCKET", "file", path},
		"qemu-nbd": {"qemu-nbd", "--format=raw", "--socket=SOCKET", "--shared=4", "--export-name=", path},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(command[0]); err != nil {
				t.Skipf("%s is not installed", command[0])
			}
			socket := filepath.Join(t.TempDir(), "s")
			var args []string
			for _, a := range command[1:] {
				args = append(args, strings.Replace(a, "SOCKET", socket, 1))
			}
			cmd := exec.Command(command[0], args...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				cmd.Process.Kill()
				cmd.Wait()
			})
			eventually(t, name+" listens", func() bool { _, err := os.Stat(socket); return err == nil })
			var c *client.Client
			eventually(t, name+" answers", func() bool {
				var err error
				c, err = client.Dial(within(t, 5*time.Second), "nbd+unix:///?socket="+socket)
				return err == nil
			})
			defer c.Close()
			got := make([]byte, len(content))
			if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
				t.Errorf("the content is wrong (%v)", err)
			}
			p := bytes.Repeat([]byte{9}, 100_001)
			copy(content[777:], p)
			if _, err := c.WriteAt(p, 777); err != nil {
				t.Error(err)
			}
			if err := c.WriteZeroes(5000, 3, true); err != nil {
				t.Error(err)
			}
			clear(content[5000:5003])
			if err := c.Flush(); err != nil {
				t.Error(err)
			}
			if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
				t.Errorf("the content is wrong after writes (%v)", err)
			}
		})
	}
}
