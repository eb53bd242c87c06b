// Command nbdslices compares our NBD server with nbdkit's file plugin, and a tracked
// disk with the same raw file behind our own server.
//
// Both sides run at the same time, each in a process of its own, over files of the same
// content on tmpfs. One load generator turns to them in slices of 20 ms, so that
// whatever else the machine does meets both alike: two separate runs of a
// benchmark have contradicted each other by a factor of three on a shared machine.
// A row's ratio is the median of the ratios of all rounds.
//
//	go run ./tools/compare/nbdslices [-rounds 40] [-row REGEXP] [-syscalls]
//
// It prints one line per row: name, ours, the peer, ratio, goal, ok or missed; rates
// are in requests or MiB per second.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/blockdev/localdisk"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// sides are the two servers of a row.
type sides [2]string

// The sides. tracked is raw with the changed-block tracker in between, without a snapshot.
var (
	againstNbdkit = sides{"ours", "nbdkit"}
	againstRaw    = sides{"tracked", "raw"}
)

// row is one kind of load.
type row struct {
	sides sides
	name  string
	write bool
	bytes int // per request
	depth int // requests under way
	goal  float64
}

var rows = []row{
	{againstNbdkit, "nbd-read-4k-qd1", false, 4 << 10, 1, 0.9},
	{againstNbdkit, "nbd-write-4k-qd1", true, 4 << 10, 1, 0.9},
	{againstNbdkit, "nbd-read-4k-qd32", false, 4 << 10, 32, 1.0},
	{againstNbdkit, "nbd-write-4k-qd32", true, 4 << 10, 32, 1.0},
	{againstNbdkit, "nbd-read-1m", false, 1 << 20, 4, 1.0},
	{againstNbdkit, "nbd-write-1m", true, 1 << 20, 4, 1.0},
	{againstRaw, "tracked-read-4k-qd32", false, 4 << 10, 32, 0.98},
	{againstRaw, "tracked-write-4k-qd1", true, 4 << 10, 1, 0.98},
	{againstRaw, "tracked-write-4k-qd32", true, 4 << 10, 32, 0.98},
	{againstRaw, "tracked-write-1m", true, 1 << 20, 4, 0.98},
}

// diskBytes is the size of the export. It stays in memory.
const diskBytes = 256 << 20

func main() {
	defaultRounds := 25
	if n, err := strconv.Atoi(os.Getenv("ROUNDS")); err == nil && n > 0 {
		defaultRounds = n
	}
	rounds := flag.Int("rounds", defaultRounds, "rounds per row; also by $ROUNDS")
	slice := flag.Duration("slice", 20*time.Millisecond, "time per server and round")
	pick := flag.String("row", ".", "rows to run, a regular expression")
	syscalls := flag.Bool("syscalls", false, "count system calls per request with strace instead")
	serveFile := flag.String("serve", "", "serve this file on the socket named by the argument (used by itself)")
	track := flag.Bool("track", false, "serve it with a changed-block tracker (used by itself)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if *serveFile != "" {
		err = serve(ctx, *serveFile, *track, flag.Arg(0))
	} else {
		err = run(ctx, *rounds, *slice, *pick, *syscalls)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "nbdslices:", err)
		os.Exit(1)
	}
}

// serve is our server, in the process that run starts. Its standard input ends with
// that of its parent.
func serve(ctx context.Context, file string, track bool, socket string) error {
	d, err := open(file, track)
	if err != nil {
		return err
	}
	defer d.Close()
	s := server.New(server.Options{})
	if err := s.Add(server.Export{Device: d}); err != nil {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		os.Stdin.Read(make([]byte, 1)) // ends with the parent
		cancel()
	}()
	if err := s.Serve(ctx, l); err != nil {
		return err
	}
	return s.Shutdown(context.Background())
}

// open opens the file as the daemon does, or without its tracker.
func open(file string, track bool) (blockdev.Device, error) {
	d, err := localdisk.Open(file, localdisk.Options{})
	if err != nil || !track {
		return d, err
	}
	t, err := cbt.Open(d, cbt.NewClock(), cbt.Options{DiskID: "slices", MapPath: file + ".map", SavePath: file + ".saved"})
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return t, nil
}

func run(ctx context.Context, rounds int, slice time.Duration, pick string, syscalls bool) error {
	picked, err := regexp.Compile(pick)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/dev/shm", "keelblock-nbdslices-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fmt.Printf("# %d rounds of %v slices, tmpfs, unix socket; requests or MiB per second; ratio: median of rounds\n", rounds, slice)
	for _, s := range []sides{againstNbdkit, againstRaw} {
		var chosen []row
		for _, r := range rows {
			if r.sides == s && picked.MatchString(r.name) {
				chosen = append(chosen, r)
			}
		}
		if len(chosen) > 0 {
			if err := runSides(ctx, dir, s, chosen, rounds, slice, syscalls); err != nil {
				return err
			}
		}
	}
	return nil
}

// runSides runs the rows of one pair of servers.
func runSides(ctx context.Context, dir string, s sides, rows []row, rounds int, slice time.Duration, syscalls bool) error {
	peers, stop, err := startPeers(ctx, dir, s)
	if err != nil {
		return err
	}
	defer stop()
	for _, r := range rows {
		if syscalls {
			err = countSyscalls(ctx, r, peers)
		} else {
			err = measure(ctx, r, rounds, slice, peers)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return nil
}

// peer is one server that is being measured.
type peer struct {
	name string
	pid  int
	load *load
}

// startPeers starts two servers, each over a file of the same content, and connects
// to them. stop ends them.
func startPeers(ctx context.Context, dir string, s sides) (peers [2]*peer, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return peers, nil, err
	}
	if _, err := exec.LookPath("nbdkit"); err != nil && s == againstNbdkit {
		return peers, nil, fmt.Errorf("nbdkit is not installed (apt-get install nbdkit)")
	}
	content := content()
	var running []*exec.Cmd
	stop = func() {
		for _, p := range peers {
			if p != nil {
				unix.Close(p.load.fd) // nbdkit waits for its clients to leave
			}
		}
		for _, c := range running {
			c.Process.Signal(syscall.SIGTERM)
			late := time.AfterFunc(5*time.Second, func() { c.Process.Kill() })
			c.Wait()
			late.Stop()
		}
	}
	for i, name := range s {
		file, socket := filepath.Join(dir, name+".raw"), filepath.Join(dir, name+".sock")
		if err := os.WriteFile(file, content, 0o600); err != nil {
			stop()
			return peers, nil, err
		}
		cmd := exec.CommandContext(ctx, self, "-serve", file, fmt.Sprintf("-track=%v", name == "tracked"), socket)
		if name == "nbdkit" {
			cmd = exec.CommandContext(ctx, "nbdkit", "--foreground", "--exit-with-parent", "--unix", socket, "file", file)
		}
		cmd.Stderr = os.Stderr
		if _, err := cmd.StdinPipe(); err != nil { // held open until we end
			stop()
			return peers, nil, err
		}
		if err := cmd.Start(); err != nil {
			stop()
			return peers, nil, err
		}
		running = append(running, cmd)
		l, err := connect(socket)
		if err != nil {
			stop()
			return peers, nil, fmt.Errorf("connect to %s: %w", name, err)
		}
		peers[i] = &peer{name, cmd.Process.Pid, l}
	}
	return peers, stop, nil
}

// content is what both files hold: no zeros, nothing that repeats.
func content() []byte {
	p := make([]byte, diskBytes)
	x := uint64(88172645463325252)
	for i := 0; i < len(p); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		for j := range 8 {
			p[i+j] = byte(x >> (8 * j))
		}
	}
	return p
}

// measure runs the rounds of one row and prints it.
func measure(ctx context.Context, r row, rounds int, slice time.Duration, peers [2]*peer) error {
	var rates [2][]float64
	var ratios []float64
	for round := range rounds + 2 { // two to warm up
		var rate [2]float64
		for turn := range 2 {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			i := (turn + round) % 2 // each goes first every other time
			n, took, err := peers[i].load.slice(r, slice)
			if err != nil {
				return fmt.Errorf("%s: %w", peers[i].name, err)
			}
			rate[i] = float64(n) / took.Seconds()
		}
		if round < 2 {
			continue
		}
		rates[0], rates[1] = append(rates[0], rate[0]), append(rates[1], rate[1])
		ratios = append(ratios, rate[0]/rate[1])
	}
	unit, verdict := "/s", "ok"
	scale := 1.0
	if r.bytes >= 1<<20 {
		unit, scale = "MiB/s", float64(r.bytes>>20)
	}
	ratio := median(ratios)
	if ratio < r.goal {
		verdict = "missed"
	}
	fmt.Printf("%-22s %12s %12s %6.2f %5.2f %s\n", r.name,
		fmt.Sprintf("%.0f%s", median(rates[0])*scale, unit), fmt.Sprintf("%.0f%s", median(rates[1])*scale, unit), ratio, r.goal, verdict)
	return nil
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	if n := len(list); n%2 == 0 {
		return (list[n/2-1] + list[n/2]) / 2
	}
	return list[len(list)/2]
}
