package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// guest is a running virtual machine whose serial console is read.
type guest struct {
	cmd  *exec.Cmd
	in   io.WriteCloser // its console's input
	done chan struct{}  // closed when QEMU has ended
	err  error          // of QEMU, after done

	mu     sync.Mutex
	synced int           // newest entry that the guest reported as on disk
	found  int           // entries that it found at its start, -1 before it said so
	bad    int           // a damaged one among them, 0 if none
	cache  string        // what its kernel thinks of the disk's write cache
	said   []string      // what follows LAB in lines of orders, in order
	tail   []string      // last lines of the console
	heard  chan struct{} // closed and made anew at each line
}

// boot starts QEMU with the given -drive value for the root disk. With orders, an image
// of a file system, the guest runs the program run in it, and has a network in which
// 10.0.2.2 is this host's loopback. more are the -drive values of further disks.
func boot(ctx context.Context, img image, accel, drive, orders, tempDir string, more ...string) (*guest, error) {
	args := []string{"-accel", accel, "-smp", "1", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-kernel", img.kernel, "-initrd", img.initrd, "-drive", drive}
	line, memory := "root=/dev/vda1 rw console=ttyS0 panic=-1", "512"
	if orders != "" {
		line, memory = line+" lab=orders", "1024"
		args = append(args, "-drive", "if=virtio,format=raw,readonly=on,file.filename="+orders,
			"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=")
	}
	for _, d := range more {
		args = append(args, "-drive", d)
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append(args, "-append", line, "-m", memory)...)
	// An overlay of snapshot=on goes there.
	cmd.Env = append(os.Environ(), "TMPDIR="+tempDir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	g := &guest{cmd: cmd, in: in, done: make(chan struct{}), found: -1, heard: make(chan struct{})}
	go func() {
		g.listen(out)
		if err := cmd.Wait(); err != nil {
			g.err = fmt.Errorf("qemu: %w %s", err, stderr.String())
		}
		close(g.done)
	}()
	return g, nil
}

var (
	labSynced = regexp.MustCompile(`LAB synced (\d+)`)
	labFound  = regexp.MustCompile(`LAB found (\d+) bad (\d+)`)
	labCache  = regexp.MustCompile(`LAB cache (\w+ \w+)`)
	labSaid   = regexp.MustCompile(`LAB: (.*)`)
)

// listen reads the console until it ends.
func (g *guest) listen(console io.Reader) {
	in := bufio.NewReader(console)
	for {
		line, err := in.ReadString('\n')
		if line = strings.TrimSpace(line); line != "" {
			g.hear(line)
		}
		if err != nil {
			return
		}
	}
}

func (g *guest) hear(line string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m := labSynced.FindStringSubmatch(line); m != nil {
		g.synced, _ = strconv.Atoi(m[1])
	}
	if m := labFound.FindStringSubmatch(line); m != nil {
		g.found, _ = strconv.Atoi(m[1])
		g.bad, _ = strconv.Atoi(m[2])
	}
	if m := labCache.FindStringSubmatch(line); m != nil {
		g.cache = m[1]
	}
	if m := labSaid.FindStringSubmatch(line); m != nil {
		g.said = append(g.said, m[1])
	}
	g.tail = append(g.tail, line)
	if len(g.tail) > 60 {
		g.tail = g.tail[1:]
	}
	close(g.heard)
	g.heard = make(chan struct{})
}

// newest is the newest entry that was reported as on disk.
func (g *guest) newest() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.synced
}

// await waits until ok, which is called with mu held, says so.
func (g *guest) await(ctx context.Context, what string, limit time.Duration, ok func() bool) error {
	timeout := time.After(limit)
	for {
		g.mu.Lock()
		reached, heard := ok(), g.heard
		console := strings.Join(g.tail, "\n  ")
		g.mu.Unlock()
		if reached {
			return nil
		}
		select {
		case <-heard:
		case <-g.done:
			return fmt.Errorf("wait for %s: qemu ended: %w\n  %s", what, errors.Join(g.err, errors.New("console:")), console)
		case <-timeout:
			return fmt.Errorf("wait for %s: nothing for %s\n  %s", what, limit, console)
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w\n  %s", what, context.Cause(ctx), console)
		}
	}
}

// cutPower ends the guest as a power cut would, and waits for QEMU's end.
func (g *guest) cutPower() {
	_ = g.cmd.Process.Kill() // it may have ended
	<-g.done
}

// probe says whether KVM boots a kernel here. On some machines /dev/kvm is there
// and the first instruction never ends.
func probe(ctx context.Context, img image) (string, error) {
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		fmt.Println("no KVM here; TCG it is")
		return "tcg", nil
	}
	if err := kvm.Close(); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 25*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "kvm", "-m", "256", "-nodefaults", "-no-reboot",
		"-display", "none", "-serial", "stdio", "-kernel", img.kernel, "-append", "console=ttyS0 panic=-1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	works := false
	for sc := bufio.NewScanner(out); sc.Scan(); {
		if strings.Contains(sc.Text(), "Linux version") {
			works = true
			break
		}
	}
	_ = cmd.Process.Kill() // it may have ended
	_ = cmd.Wait()         // killed: always an error
	if works {
		fmt.Println("KVM works here")
		return "kvm", nil
	}
	fmt.Println("/dev/kvm is there but boots nothing within 25 s; TCG it is")
	return "tcg", nil
}
