package main

import (
	"context"
	_ "embed"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

//go:embed orders.sh
var orders string

// Waits of the scenario attach, for TCG on a busy machine.
const partLimit = 6 * time.Minute

// exerciserOps is how many operations the exerciser carries out on each file.
const exerciserOps = 400

// attach is the scenario of the kernel's own NBD client: in a guest nbd-client uses a
// disk of a daemon here, over TCP, and the daemon in the guest attaches disks to the
// guest's kernel.
func (l *lab) attach() error {
	port, err := freePort()
	if err != nil {
		return err
	}
	listen := fmt.Sprintf("tcp:127.0.0.1:%d", port)
	for _, args := range [][]string{
		{"serve", "-d", "--nbd-listen", listen},
		{"disk", "create", "a", "--size", "512MiB"},
		{"machine", "create", "vm", "--disk", "a"},
	} {
		if _, err := l.keelblock(args...); err != nil {
			return err
		}
	}
	disk, err := l.ordersDisk(orders, fmt.Sprintf("port=%d\nseed=%d\nops=%d\nparts='kernel_client attached_disk'\n", port, l.began.Unix(), exerciserOps))
	if err != nil {
		return err
	}
	g, err := boot(l.ctx, l.image, l.accel, "if=virtio,format=raw,snapshot=on,file.filename="+l.image.disk, disk, l.r.Dir)
	if err != nil {
		return err
	}
	l.guests = append(l.guests, g)
	if err := l.follow(g, map[string]func() error{"restart": func() error {
		if _, err := l.r.Backup(l.ctx, "vm"); err != nil {
			return err
		}
		for _, args := range [][]string{{"stop"}, {"serve", "-d", "--nbd-listen", listen}} {
			if _, err := l.keelblock(args...); err != nil {
				return err
			}
		}
		l.say("the daemon of this host was stopped and started")
		return nil
	}}); err != nil {
		return err
	}
	g.cutPower()
	return l.judge()
}

// follow prints what the guest says until it is done. Where it waits, the action of that
// name is taken.
func (l *lab) follow(g *guest, actions map[string]func() error) error {
	for next := 0; ; next++ {
		if err := g.await(l.ctx, "the guest's next step", partLimit, func() bool { return len(g.said) > next }); err != nil {
			return err
		}
		g.mu.Lock()
		line, console := g.said[next], strings.Join(g.tail, "\n  ")
		g.mu.Unlock()
		l.say("guest: %s", line)
		what, rest, _ := strings.Cut(line, " ")
		switch what {
		case "done":
			return nil
		case "fail":
			return fmt.Errorf("in the guest: %s\n  %s", rest, console)
		case "queue":
			if err := checkQueue(rest); err != nil {
				return err
			}
		case "wait":
			if err := actions[rest](); err != nil {
				return err
			}
			if _, err := g.in.Write([]byte("go\n")); err != nil {
				return err
			}
		}
	}
}

// checkQueue holds what the guest's kernel shows of a device against what we advertise.
func checkQueue(line string) error {
	fields := strings.Fields(line)
	got := map[string]string{}
	for _, f := range fields[1:] {
		k, v, _ := strings.Cut(f, "=")
		got[k] = v
	}
	want := map[string]string{"write_cache": "write-back", "fua": "1", "logical_block_size": "512"}
	if got["ro"] == "1" {
		want["fua"] = got["fua"] // nothing is written
	}
	for k, v := range want {
		if got[k] != v {
			return fmt.Errorf("%s: the kernel has %s=%s, want %s", fields[0], k, got[k], v)
		}
	}
	// The driver asks for trims up to what its 32-bit length holds.
	if got["ro"] == "0" && len(got["discard_max_bytes"]) < len("4294966784") {
		return fmt.Errorf("%s: the kernel trims at most %s bytes at once", fields[0], got["discard_max_bytes"])
	}
	return nil
}

// judge looks at the host's disk after the guest has gone: the file system is clean and
// what it trimmed takes no room.
func (l *lab) judge() error {
	if _, err := l.keelblock("backup", "vm"); err != nil {
		return err
	}
	if _, err := l.keelblock("restore", "file", "vm@latest:a", "a.raw"); err != nil {
		return err
	}
	if _, err := l.command("e2fsck", "-fn", "a.raw"); err != nil {
		return err
	}
	if _, err := l.keelblock("recovery-point", "verify", "--all"); err != nil {
		return err
	}
	l.say("e2fsck: the disk that nbd-client wrote is clean in its point, too")
	return nil
}

// ordersDisk makes the image that the guest takes its orders from: the script run and its
// settings, with our programs.
func (l *lab) ordersDisk(run, settings string) (string, error) {
	stage := filepath.Join(l.r.Dir, "orders")
	if err := os.MkdirAll(stage, 0o755); err != nil {
		return "", err
	}
	for name, text := range map[string]string{"run": run, "settings": settings} {
		if err := os.WriteFile(filepath.Join(stage, name), []byte(text), 0o755); err != nil {
			return "", err
		}
	}
	if _, err := l.command("cp", l.r.Bin, filepath.Join(stage, "keelblock")); err != nil {
		return "", err
	}
	for name, program := range map[string]string{"fsx": "tools/fsx", "judge": "tools/vmlab/judge"} {
		if err := buildTool(l.ctx, program, filepath.Join(stage, name)); err != nil {
			return "", err
		}
	}
	disk := filepath.Join(l.r.Dir, "orders.img")
	_, err := l.command("mke2fs", "-q", "-F", "-t", "ext4", "-L", "orders", "-d", stage, disk, "96M")
	return disk, err
}

// buildTool builds a program of this repository, static for the guest.
func buildTool(ctx context.Context, program, path string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", path, "github.com/keelblock/keelblock/"+program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", program, err, out)
	}
	return nil
}

// freePort is one that nobody listens on now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close() // it was only asked for
	return l.Addr().(*net.TCPAddr).Port, nil
}
