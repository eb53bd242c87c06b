// Command demo is the tour that `make demo` gives: it starts the appliance in a
// temporary folder, fills a disk with a real file system through a real NBD
// client, backs it up, changes it, backs it up again, mounts both points, copies a
// file out of each, restores, compares, and cleans up.
//
//	demo -bin bin/keelblock
//
// Nothing is simulated: every line behind a $ is a command that was run, and every
// ✓ is a comparison that held. What fails ends the tour with exit status 1, what
// the machine cannot do (no FUSE) with 3. Whatever happens, nothing stays behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/keelblock/keelblock/tools/rig"
)

// errNoFUSE: the machine cannot mount, so the tour was shown only in part.
var errNoFUSE = errors.New("/dev/fuse cannot be opened, so files could not be shown through a mount; on a plain Debian `modprobe fuse` brings it")

func main() {
	bin := flag.String("bin", "bin/keelblock", "the keelblock binary")
	mebibytes := flag.Int64("content", 320, "how many MiB of this machine's files the disk gets")
	flag.Parse()

	// SIGPIPE, too: the tour cleans up when its output is piped into head.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	err := run(ctx, *bin, *mebibytes<<20, newConsole(os.Stdout))
	stop()
	switch {
	case err == nil:
	case errors.Is(err, errNoFUSE):
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(3)
	default:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// needed are the commands of other projects that take part.
var needed = []string{"sfdisk", "mke2fs", "debugfs", "e2fsck", "nbdcopy", "nbdinfo", "qemu-img"}

// run makes the temporary folder, gives the tour and takes everything away again.
func run(ctx context.Context, bin string, contentBytes int64, c *console) (err error) {
	if err := rig.Need(needed...); err != nil {
		return err
	}
	r, err := rig.New(bin, "keelblock-demo-")
	if err != nil {
		return err
	}
	t := &tour{ctx: ctx, c: c, r: r, contentBytes: contentBytes}
	defer func() {
		if cleanErr := t.clean(); err == nil {
			err = cleanErr
		}
	}()
	return t.give()
}
