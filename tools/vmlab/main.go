// Command vmlab is `make test-vm`: a Debian guest lives on a disk of ours, is
// backed up while it runs, loses its power, and boots again from its points; and in
// another guest the kernel itself is the client.
//
//	vmlab -bin bin/keelblock
//	vmlab -bin bin/keelblock -only attach
//	vmlab -bin bin/keelblock -images DIR -only volumes
//
// # Scenario live
//
// The guest is built once from Debian's packages (mmdebstrap, root) and kept in
// the user's cache folder. Its root file system is on our NBD export. A service in
// it writes numbered files, each with fsync, and reports each on the serial console
// once it is on disk. What was reported before a backup began must be in the point:
// the point is restored and booted, another is exported read-only and booted with an
// overlay of QEMU's, and e2fsck judges a third copy. In between the daemon is stopped and
// started under the running guest: QEMU reconnects (reconnect-delay), the guest sees no
// error.
//
// # Scenario attach
//
// The build machine's kernel may lack the nbd driver; the guest's has it. There
// nbd-client uses a disk of the daemon here over TCP with two connections, and a daemon
// in the guest attaches disks to the guest's kernel. The queue's limits must be what we
// advertise; a file system is made, exercised (tools/fsx), trimmed and checked; daemons
// are killed and restarted under it. orders.sh is what the guest does.
//
// # Images
//
// With -images a guest makes disks in formats that the build machine's kernel may not
// know, and writes down what its kernel shows of them: the judge of our readers
// (`make test-fs-vm`). Each set of images is a script in the folder images; images.go says
// what it finds and what it leaves. Each case becomes one file DIR/CASE.zip, which a test
// reads by fstest.VMCase.
//
// # Scenario windows
//
// The build machine's kernel may lack vfat and exfat; the guest's has them. It mounts
// images made here, fills them (judge) and says what it shows; our readers must show the
// same of the same images. With -update the small ones and their manifests become the
// test data of the readers. windows.sh is what the guest does. It runs by name only.
//
// # All
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
	only := flag.String("only", "", "one scenario, live, attach or windows, or one set of images; empty: live and attach, or all sets")
	images := flag.String("images", "", "make images for the readers' tests in this `folder` instead")
	update := flag.Bool("update", false, "scenario windows: write the test data of the readers (run it in the repository)")
	limit := flag.Duration("limit", 15*time.Minute, "the longest run of a scenario, without building the guest")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	if err := run(ctx, *bin, *accel, *only, *images, *update, *limit); err != nil {
		fmt.Fprintln(os.Stderr, "vmlab:", err)
		stop()
		os.Exit(1)
	}
}

// scenarios in the order in which they run.
var scenarios = []struct {
	name   string
	run    func(*lab) error
	byName bool // not part of a run of all
}{{"live", (*lab).live, false}, {"attach", (*lab).attach, false}, {"windows", (*lab).windows, true}}

func run(ctx context.Context, bin, accel, only, images string, update bool, limit time.Duration) error {
	if images != "" {
		return runImages(ctx, bin, accel, only, images, limit)
	}
	img, err := guestImage(ctx, recipe)
	if err != nil {
		return fmt.Errorf("build the guest: %w", err)
	}
	if accel == "" {
		if accel, err = probe(ctx, img); err != nil {
			return err
		}
	}
	known := only == ""
	for _, s := range scenarios {
		if only != s.name && (only != "" || s.byName) {
			continue
		}
		known = true
		if err := runOne(ctx, bin, accel, img, limit, func(l *lab) error { l.update = update; return s.run(l) }); err != nil {
			return fmt.Errorf("scenario %s: %w", s.name, err)
		}
	}
	if !known {
		return fmt.Errorf("there is no scenario %q", only)
	}
	return nil
}

func runOne(ctx context.Context, bin, accel string, img image, limit time.Duration, scenario func(*lab) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
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
	return scenario(l)
}

// say prints a line with the time since the start.
func (l *lab) say(format string, args ...any) {
	fmt.Printf("%5.0fs  %s\n", time.Since(l.began).Seconds(), fmt.Sprintf(format, args...))
}
