package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// writer is a QEMU that writes to a disk of the daemon without pause, and comes back by
// itself when the daemon does.
type writer struct {
	t      *testing.T
	cmd    *exec.Cmd
	stop   chan struct{}
	fed    chan int
	read   chan struct{}
	failed []string
}

const writerBlocks, writerBlock = 64, 64 << 10

func startWriter(t *testing.T, dir, disk string) *writer {
	t.Helper()
	w := &writer{t: t, stop: make(chan struct{}), fed: make(chan int, 1), read: make(chan struct{})}
	w.cmd = exec.Command("qemu-io", "--image-opts",
		"driver=nbd,server.type=unix,server.path="+dir+"/d/run/nbd.sock,export="+disk+",reconnect-delay=60")
	w.cmd.Env = append(os.Environ(), "KEELBLOCK_DATA="+dir+"/d") // so that the end of the test finds it
	in, err := w.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.cmd.Stderr = w.cmd.Stdout
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer in.Close()
		n := 0
		for ; ; n++ {
			select {
			case <-w.stop:
				io.WriteString(in, "aio_flush\nflush\n")
				w.fed <- n
				return
			default:
			}
			// Block i%64 holds i%251; sixteen requests are under way.
			if _, err := fmt.Fprintf(in, "aio_write -q -P %d %d %d\n", n%251, n%writerBlocks*writerBlock, writerBlock); err != nil {
				w.fed <- n
				return
			}
			if n%16 == 15 {
				io.WriteString(in, "aio_flush\n")
			}
		}
	}()
	go func() {
		defer close(w.read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if s := lines.Text(); strings.Contains(s, "failed") || strings.Contains(s, "error") {
				w.failed = append(w.failed, s)
			}
		}
	}()
	return w
}

// end lets the writer finish, and returns the qemu-io commands that check its data.
func (w *writer) end() (checks []string) {
	w.t.Helper()
	close(w.stop)
	n := <-w.fed
	<-w.read
	if err := w.cmd.Wait(); err != nil {
		w.t.Errorf("qemu-io: %v", err)
	}
	if len(w.failed) > 0 {
		w.t.Errorf("the guest got %d errors, the first: %s", len(w.failed), w.failed[0])
	}
	for i := max(0, n-writerBlocks); i < n; i++ {
		checks = append(checks, "-c", fmt.Sprintf("read -P %d %d %d", i%251, i%writerBlocks*writerBlock, writerBlock))
	}
	return checks
}

// A guest writes on while the daemon is stopped and started again, and while it is
// killed: QEMU reconnects, sends again what was not answered, and the guest gets no
// error. The disk holds what was written last.
func TestTheGuestGoesOnAcrossRestartsOfTheDaemon(t *testing.T) {
	need(t, "qemu-io")
	dir := home(t)
	must(t, dir, "keelblock", "serve", "-d")
	must(t, dir, "keelblock", "disk", "create", "web0", "--size", "4MiB")
	w := startWriter(t, dir, "web0")
	atIt := regexp.MustCompile(`connections: +[1-9]`)
	connected := func() {
		t.Helper()
		for end := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if atIt.MatchString(must(t, dir, "keelblock", "disk", "show", "web0")) {
				return
			}
			if time.Now().After(end) {
				t.Fatal("QEMU does not come back")
			}
		}
	}
	for _, how := range []string{"stop", "kill", "stop"} {
		connected()
		if how == "stop" {
			must(t, dir, "keelblock", "stop")
		} else {
			kill9(t, dir)
		}
		must(t, dir, "keelblock", "serve", "-d")
	}
	connected()
	args := append([]string{"qemu-io", "-f", "raw"}, w.end()...)
	out := must(t, dir, append(args, "nbd+unix:///web0?socket="+dir+"/d/run/nbd.sock")...)
	if strings.Contains(out, "verification failed") || strings.Count(out, "read 65536/65536") != writerBlocks {
		t.Errorf("the disk does not hold what was written last:\n%s", out)
	}
	must(t, dir, "keelblock", "stop")
}

// kill9 kills the daemon and waits until it is gone.
func kill9(t *testing.T, dir string) {
	t.Helper()
	text, err := os.ReadFile(dir + "/d/lock")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000); err != nil {
		t.Fatal(err)
	}
}
