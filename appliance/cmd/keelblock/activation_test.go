package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// activated starts keelblock as systemd does: with sockets from descriptor 3 on. It is
// ended with the test.
func activated(t *testing.T, dir, names string, sockets []net.Listener, args ...string) (line string, cmd *exec.Cmd) {
	t.Helper()
	// The number of the process is only known within it.
	script := fmt.Sprintf(`LISTEN_PID=$$ LISTEN_FDS=%d LISTEN_FDNAMES=%s exec keelblock "$@"`, len(sockets), names)
	cmd = exec.Command("sh", append([]string{"-c", script, "sh"}, args...)...)
	cmd.Env = append(os.Environ(), "KEELBLOCK_DATA="+dir+"/d", "KEELBLOCK_API=")
	for _, l := range sockets {
		f, err := l.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		cmd.Wait()
		return stderr.String(), cmd
	}
	return strings.TrimSpace(line), cmd
}

func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // systemd removes it, not who listens
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// The daemon takes over the sockets that systemd has opened: by their names, and without
// by their addresses. Clients that come before it listens wait, and nothing is removed.
func TestTheDaemonTakesSocketsOver(t *testing.T) {
	need(t, "nbdinfo")
	dir := home(t)
	if err := os.MkdirAll(dir+"/d/run", 0o750); err != nil {
		t.Fatal(err)
	}
	// Named; the one without a name is where the daemon would listen itself.
	sockets := []net.Listener{
		listen(t, "tcp", "127.0.0.1:0"), listen(t, "unix", dir+"/nbd.sock"), listen(t, "unix", dir+"/api.sock"), listen(t, "unix", dir+"/d/run/nbd.sock"),
	}
	line, cmd := activated(t, dir, "nbd:nbd:api:unknown", sockets, "serve")
	want := fmt.Sprintf("ready pid=%d api=unix:%s/d/run/api.sock nbd=tcp:%s nbd=unix:%s/nbd.sock nbd=unix:%s/d/run/nbd.sock",
		cmd.Process.Pid, dir, sockets[0].Addr(), dir, dir)
	if line != want {
		t.Errorf("%q, want %q", line, want)
	}
	must(t, dir, "keelblock", "--api", "unix:"+dir+"/api.sock", "disk", "create", "web0", "--size", "1MiB")
	must(t, dir, "keelblock", "disk", "show", "web0")
	for _, uri := range []string{"nbd://" + sockets[0].Addr().String() + "/web0", "nbd+unix:///web0?socket=" + dir + "/nbd.sock", "nbd+unix:///web0?socket=" + dir + "/d/run/nbd.sock"} {
		if got := must(t, dir, "nbdinfo", "--size", uri); got != "1048576" {
			t.Errorf("%s: size %s", uri, got)
		}
	}
	must(t, dir, "keelblock", "stop")
	if err := cmd.Wait(); err != nil {
		t.Errorf("serve: %v", err)
	}
	for _, path := range []string{dir + "/nbd.sock", dir + "/api.sock", dir + "/d/run/nbd.sock"} {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("the socket of systemd is gone: %v", err)
		}
	}
}

func TestSocketsThatCannotBeTakenOver(t *testing.T) {
	dir := home(t)
	for _, x := range []struct {
		names, network, want string
	}{
		{"api", "tcp", "only NBD is served over TCP"},
		{"points", "tcp", "only NBD is served over TCP"},
		{"keelblock.socket", "unix", "FileDescriptorName=nbd, api, points"},
	} {
		address := dir + "/" + x.names + ".sock"
		if x.network == "tcp" {
			address = "127.0.0.1:0"
		}
		stderr, cmd := activated(t, dir, x.names, []net.Listener{listen(t, x.network, address)}, "serve")
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() == 0 || !strings.Contains(stderr, x.want) {
			t.Errorf("a %s socket called %q: %v, %s", x.network, x.names, cmd.ProcessState, stderr)
		}
		if cmd.ProcessState == nil {
			cmd.Process.Signal(unix.SIGTERM)
			cmd.Wait()
		}
	}
	// A number that is no socket, and sockets that were for another process.
	if _, stderr, status := command(t, dir, "sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec keelblock serve 3</dev/null`); status != 2 || !strings.Contains(stderr, "no socket") {
		t.Errorf("LISTEN_FDS with a file: status %d, %s", status, stderr)
	}
	line := must(t, dir, "env", "LISTEN_PID=1", "LISTEN_FDS=1", "keelblock", "serve", "-d")
	if !strings.HasPrefix(line, "ready pid=") {
		t.Errorf("sockets for another process: %q", line)
	}
	must(t, dir, "keelblock", "stop")
}

// keelblock nbd serves on sockets that were handed over until it is told to end, and a
// connection that was accepted for it until the client leaves.
func TestNBDTakesSocketsOver(t *testing.T) {
	need(t, "nbdinfo", "truncate")
	dir := home(t)
	must(t, dir, "truncate", "-s", "1M", "disk.raw")
	l := listen(t, "unix", dir+"/disk.sock")
	script := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec keelblock nbd disk.raw`)
	script.Dir = dir
	script.Env = append(os.Environ(), "KEELBLOCK_DATA="+dir+"/d")
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	script.ExtraFiles = []*os.File{f}
	if err := script.Start(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got := must(t, dir, "nbdinfo", "--size", "nbd+unix:///?socket="+dir+"/disk.sock"); got != "1048576" {
			t.Errorf("size %s", got)
		}
	}
	if err := script.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := script.Wait(); err != nil {
		t.Errorf("keelblock nbd ended by SIGTERM: %v", err)
	}
}
