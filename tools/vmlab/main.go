// Command vmlab is `make test-vm`: a Debian guest lives on a disk of ours, is
// backed up while it runs, loses its power, and boots again from its points.
//
//	vmlab -bin bin/keelblock
//
// The guest is built once from Debian's packages (mmdebstrap, root) and kept in
// the user's cache folder. Its root file system is on our NBD export. A service in
// it writes numbered files, each with fsync, and reports each on the serial console
// once it is on disk. What was reported before a backup began must be in the point:
// the point is restored and booted, another is exported read-only and booted with an
// overlay of QEMU's, and e2fsck judges a third copy.
//
// KVM is probed first, since it hangs on some machines; TCG does otherwise, and a
// run then takes some minutes. Every wait has an end.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/keelblock/keelblock/tools/rig"
)

func main() {
	bin := flag.String("bin", "bin/keelblock", "the keelblock binary")
	accel := flag.String("accel", "", "kvm or tcg; empty: kvm where it works")
	limit := flag.Duration("limit", 15*time.Minute, "the longest run, without building the guest")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	if err := run(ctx, *bin, *accel, *limit); err != nil {
		fmt.Fprintln(os.Stderr, "vmlab:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, bin, accel string, limit time.Duration) (err error) {
	img, err := guestImage(ctx)
	if err != nil {
		return fmt.Errorf("build the guest: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if accel == "" {
		if accel, err = probe(ctx, img); err != nil {
			return err
		}
	}
	r, err := rig.New(bin, "keelblock-vm-")
	if err != nil {
		return err
	}
	l := &lab{ctx: ctx, r: r, image: img, accel: accel, began: time.Now()}
	defer func() {
		if cleanErr := l.clean(); err == nil {
			err = cleanErr
		}
	}()
	return l.scenario()
}

// say prints a line with the time since the start.
func (l *lab) say(format string, args ...any) {
	fmt.Printf("%5.0fs  %s\n", time.Since(l.began).Seconds(), fmt.Sprintf(format, args...))
}
