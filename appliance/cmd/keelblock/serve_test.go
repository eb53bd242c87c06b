package main

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSystemdIsTold plays systemd: it gets READY=1 when clients can connect, and
// STOPPING=1 when the daemon drains.
func TestSystemdIsTold(t *testing.T) {
	dir := home(t)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	told := func(want string) {
		t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for p := make([]byte, 4096); ; {
			n, err := conn.Read(p)
			if err != nil {
				t.Fatalf("wait for %s: %v", want, err)
			}
			if strings.Contains("\n"+string(p[:n])+"\n", "\n"+want+"\n") {
				return
			}
		}
	}
	cmd := exec.Command("keelblock", "serve")
	cmd.Env = append(os.Environ(), "KEELBLOCK_DATA="+dir+"/d", "NOTIFY_SOCKET="+dir+"/notify")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	told("READY=1")
	must(t, dir, "keelblock", "disk", "list")
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	told("STOPPING=1")
	if err := cmd.Wait(); err != nil {
		t.Errorf("serve ended by SIGTERM: %v", err)
	}
}
