// Command nbdslices measures our NBD server and the disks behind it: against nbdkit's
// file plugin, a tracked disk against the same file untracked, and a guest's writes
// before, during and after backups.
//
// All sides run at the same time over one file. One load generator, with one set of
// buffers, turns to them in slices of 20 ms, so that whatever else the machine does meets
// all alike: two separate runs of a benchmark have contradicted each other by a factor of
// three on a shared machine. The tracked disk and the same disk untracked are exports of
// one process, since two processes of one binary can differ by 5 % for their whole
// lives; against nbdkit, which is a process of its own, only more starts help. A row's
// ratio is the median over the starts of the median over the rounds of one.
//
//	go run ./tools/compare/nbdslices [-bin bin/keelblock] [-row REGEXP] [-disk DIR]
//
// It prints one line per row: name, ours, the peer, ratio, goal, ok or missed; a ratio
// above 1 means that ours is better, whatever the unit. Lines that begin with # are
// remarks.
//
//	nbd-…       a tracked disk, as the daemon serves it, against nbdkit
//	tracked-…   the same against the same file untracked, behind our server
//	control-…   the untracked file against itself, by two exports: what noise there is
//	syscalls-…  system calls per request, against the bar of two
//	freeze-…    freezing 8 disks of 1 TiB under load, against the bar of 1 ms
//	capture-…   writes while a backup runs, against the quiet moments around it
//	guest-…     p99 of a guest's writes beside backups, against an untracked disk in the
//	            seconds before each; median of the backups
//
// Where a name says nothing else: unix socket, tmpfs, one connection.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"strconv"
	"syscall"
	"time"
)

func main() {
	defaultRounds := 60
	if n, err := strconv.Atoi(os.Getenv("ROUNDS")); err == nil && n > 0 {
		defaultRounds = n
	}
	rounds := flag.Int("rounds", defaultRounds, "rounds per row, over all starts; also by $ROUNDS")
	starts := flag.Int("starts", 5, "how often the servers are started for each stage")
	slice := flag.Duration("slice", 20*time.Millisecond, "time per server and round")
	pick := flag.String("row", ".", "rows to run, a regular expression")
	bin := flag.String("bin", "bin/keelblock", "the keelblock binary, for the rows with backups")
	diskDir := flag.String("disk", os.TempDir(), "folder on a disk's file system")
	// What follows is used by itself.
	var o serveOptions
	flag.StringVar(&o.file, "serve", "", "serve this file on the network and address named by the arguments")
	flag.BoolVar(&o.track, "track", false, "serve it with a changed-block tracker")
	flag.StringVar(&o.maps, "maps", "", "folder of the map")
	flag.StringVar(&o.certs, "certs", "", "serve it by TLS with the certificates of this folder")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	var err error
	if o.file != "" {
		o.network, o.at = flag.Arg(0), flag.Arg(1)
		err = serve(ctx, o)
	} else {
		err = run(ctx, *starts, *rounds, *slice, *pick, *bin, *diskDir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "nbdslices:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, starts, rounds int, slice time.Duration, pick, bin, diskDir string) error {
	picked, err := regexp.Compile(pick)
	if err != nil {
		return err
	}
	if _, err := exec.LookPath("nbdkit"); err != nil {
		return fmt.Errorf("nbdkit is not installed (apt-get install nbdkit)")
	}
	at, remove, err := newPlaces(diskDir)
	defer remove()
	if err != nil {
		return err
	}
	p := plan{starts: starts, slice: slice, wanted: picked.MatchString}
	p.rounds = (rounds + p.starts - 1) / p.starts
	fmt.Printf("# %d starts of %d rounds of %v slices; ratio: median over the starts of the median over the rounds\n", p.starts, p.rounds, slice)
	for _, st := range stages {
		if err := p.runStage(ctx, at, st); err != nil {
			return err
		}
	}
	if err := p.countSyscalls(ctx, at); err != nil {
		return err
	}
	if err := p.freezeRows(ctx, at); err != nil {
		return err
	}
	return p.guestRows(ctx, bin)
}
