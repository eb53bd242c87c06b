package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// nbdsh runs lines of Python with libnbd's h, in the folder of the test.
func nbdsh(t *testing.T, dir string, lines ...string) string {
	t.Helper()
	need(t, "nbdsh")
	if err := exec.Command("/usr/bin/python3", "-c", "import nbd").Run(); err != nil {
		t.Skip("/usr/bin/python3 has no module nbd (python3-libnbd)")
	}
	args := []string{"env", "PATH=/usr/bin:" + os.Getenv("PATH"), "nbdsh"}
	for _, l := range lines {
		args = append(args, "-c", l)
	}
	return must(t, dir, args...)
}

// libnbd's programs start servers in two ways: with a socket on standard input and
// output, and with one that listens on descriptor 3. Both end the server when the handle
// is closed.
func TestLibnbdStartsTheServer(t *testing.T) {
	dir := home(t)
	must(t, dir, "truncate", "-s", "1M", "disk.raw")
	must(t, dir, "keelblock", "serve", "-d")
	must(t, dir, "keelblock", "disk", "create", "web0", "--size", "1MiB")
	for _, what := range []string{"disk.raw", "web0"} {
		for _, start := range []string{
			fmt.Sprintf(`h.connect_command(["keelblock", "nbd", %q, "--stdio"])`, what),
			fmt.Sprintf(`h.connect_systemd_socket_activation(["keelblock", "nbd", %q])`, what),
		} {
			for _, name := range []string{"", what} {
				got := nbdsh(t, dir, fmt.Sprintf("h.set_export_name(%q)", name), `h.add_meta_context("base:allocation")`, start,
					"assert h.get_size() == 1 << 20",
					`h.pwrite(b"k" * 4096, 65536, nbd.CMD_FLAG_FUA)`,
					"h.zero(4096, 131072, nbd.CMD_FLAG_NO_HOLE)",
					"h.trim(65536, 0)",
					"h.flush()",
					"assert h.pread(4096, 65536) == b'k' * 4096",
					"e = []",
					"h.block_status(1 << 20, 0, lambda m, o, x, err: e.extend(x))",
					"print(e)",
					"h.shutdown()")
				if want := "[65536, 3, 4096, 0, 61440, 3, 4096, 2, 913408, 3]"; got != want {
					t.Errorf("%s, name %q: extents %s, want %s", start, name, got, want)
				}
			}
		}
	}
	for _, what := range []string{"disk.raw", "web0"} {
		_, stderr, status := command(t, dir, "env", "PATH=/usr/bin:"+os.Getenv("PATH"), "nbdsh", "-c", `h.set_export_name("other")`,
			"-c", fmt.Sprintf(`h.connect_command(["keelblock", "nbd", %q, "--stdio"])`, what))
		if status == 0 || !strings.Contains(stderr, "no export named 'other'") {
			t.Errorf("nbdsh asks %s for another export: status %d, %s", what, status, stderr)
		}
	}
	must(t, dir, "keelblock", "stop")
}

// With --listen it says when clients can connect, serves many, takes over a socket that
// nobody serves any more, and ends in order.
func TestNBDListens(t *testing.T) {
	dir := home(t)
	must(t, dir, "truncate", "-s", "1M", "disk.raw")
	for _, address := range []string{"unix:" + dir + "/nbd.sock", "tcp:127.0.0.1:0", "unix:" + dir + "/nbd.sock"} {
		cmd := exec.Command("keelblock", "nbd", dir+"/disk.raw", "--listen", address)
		cmd.Env = append(os.Environ(), "KEELBLOCK_DATA="+dir+"/d")
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		ready := fmt.Sprintf("ready pid=%d nbd=", cmd.Process.Pid)
		listens, ok := strings.CutPrefix(strings.TrimSpace(line), ready)
		network, at, _ := strings.Cut(listens, ":")
		if !ok || !strings.HasPrefix(address, network+":") {
			t.Fatalf("%q, want %s%s", line, ready, address)
		}
		for range 3 {
			nc, err := net.Dial(network, at)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close() // they are open when it ends
			greeting := make([]byte, 8)
			nc.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := nc.Read(greeting); err != nil || string(greeting) != "NBDMAGIC" {
				t.Errorf("greeting %q (%v)", greeting, err)
			}
		}
		if network == "unix" {
			if _, stderr, status := command(t, dir, "keelblock", "nbd", "disk.raw", "--listen", address); status != 1 {
				t.Errorf("a second server on %s: status %d, %s", address, status, stderr)
			}
		}
		signal := unix.SIGTERM
		if network == "tcp" {
			signal = unix.SIGKILL
			// What a killed server leaves behind.
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/nbd.sock", Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			l.SetUnlinkOnClose(false)
			l.Close()
		}
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); (err == nil) != (signal == unix.SIGTERM) {
			t.Errorf("the end by %v: %v", signal, err)
		}
	}
	if _, err := os.Stat(dir + "/nbd.sock"); err == nil {
		t.Error("the socket is left behind")
	}
}
