package server_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/localdisk"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// restarts has QEMU write without pause to a server that is shut down and replaced on
// the same socket, again and again, and returns what QEMU said of failures and the disk.
func restarts(t *testing.T, refuse bool, times int) (failures []string, d *localdisk.Disk, written []byte) {
	const size, block = 4 << 20, 64 << 10
	d = newDisk(t, t.TempDir(), size)
	socket := filepath.Join(t.TempDir(), "nbd.sock")
	var s *server.Server
	begin := func() (end func()) {
		s = server.New(server.Options{RefuseOnShutdown: refuse})
		if err := s.Add(server.Export{Name: "disk", Device: d}); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- s.Serve(context.Background(), l) }()
		return func() {
			if err := s.Shutdown(within(t, 10*time.Second)); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
			if err := <-served; err != nil {
				t.Errorf("Serve: %v", err)
			}
		}
	}
	end := begin()
	cmd := exec.CommandContext(within(t, 60*time.Second), "qemu-io", "--image-opts",
		"driver=nbd,server.type=unix,server.path="+socket+",export=disk,reconnect-delay=60")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop, fed := make(chan struct{}), make(chan int, 1)
	go func() { // requests in flight all the time; each block has the number of its last write
		defer in.Close()
		n := 0
		for {
			select {
			case <-stop:
				io.WriteString(in, "aio_flush\nflush\n")
				fed <- n
				return
			default:
			}
			n++
			if _, err := fmt.Fprintf(in, "aio_write -q -P %d %d %d\n", n%251, n%(size/block)*block, block); err != nil {
				fed <- n
				return
			}
			if n%16 == 0 {
				io.WriteString(in, "aio_flush\n")
			}
		}
	}()
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if s := lines.Text(); strings.Contains(s, "failed") || strings.Contains(s, "error") {
				failures = append(failures, s)
			}
		}
	}()
	writes := func() { // QEMU has come (back) and is at it
		eventually(t, "QEMU writes", func() bool { return s.Stats().Writes > 100 })
	}
	for range times {
		writes()
		end()
		end = begin()
	}
	writes()
	close(stop)
	n := <-fed
	<-read
	if err := cmd.Wait(); err != nil && !refuse {
		t.Errorf("qemu-io: %v", err)
	}
	end()
	written = make([]byte, size)
	for i := max(1, n-size/block+1); i <= n; i++ {
		copy(written[i%(size/block)*block:], bytes.Repeat([]byte{byte(i % 251)}, block))
	}
	return failures, d, written
}

// A guest whose QEMU has reconnect-delay notices nothing of a server that is replaced:
// what the old one has not answered is sent again to the new one. That is why Shutdown is
// silent by default: QEMU (7.2) hands an ESHUTDOWN, which the protocol has for a server
// that goes away, to the guest as an I/O error and repeats nothing.
func TestQEMUGoesOnAcrossARestart(t *testing.T) {
	if _, err := exec.LookPath("qemu-io"); err != nil {
		t.Skip("qemu-io is not installed")
	}
	t.Parallel()
	failures, d, want := restarts(t, false, 2)
	if len(failures) > 0 {
		t.Errorf("QEMU says: %s", failures[0])
	}
	got := make([]byte, len(want))
	if _, err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the disk does not hold what QEMU wrote last")
	}
	// A stop meets a request only by chance.
	const stops = 8
	for range stops {
		if failures, _, _ := restarts(t, true, 1); len(failures) > 0 {
			return
		}
	}
	t.Errorf("QEMU forgave %d times an ESHUTDOWN: RefuseOnShutdown could be the default", stops)
}
