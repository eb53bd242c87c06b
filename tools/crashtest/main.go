// Command crashtest is `make test-crash`: the packages' loops of kills and power
// cuts, made long.
//
//	crashtest -rounds 1000            that many rounds of each loop
//	crashtest -minutes 30             each loop for so long
//	crashtest -seed 42 -only blockstore
//	crashtest -list
//
// The loops are ordinary tests with a short form in `go test ./...`. Some read
// ROUNDS, MINUTES and SEED from the environment; the others are run again and again.
// Each prints its seed; a failure ends the run and shows the command that repeats it. The
// last line is "rounds=N seed=S lost=0", with the rounds of all loops.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// loop is one test.
type loop struct {
	folder, test string
	// each is how many rounds one run of the test has; 0: it reads ROUNDS itself.
	each int
	// env is added to the environment.
	env []string
	// variable that the test reads its rounds from; "": ROUNDS.
	variable string
	// once: rounds make no sense, the test is exhaustive.
	once bool
	says string
}

// loops are all of them. A test of this package checks that they exist.
var loops = []loop{
	{folder: "blockdev/cbt", test: "TestModelHolds", once: true, env: []string{"MODEL=full"},
		says: "every interleaving of the model of freeze and intent map, with a kill and a power cut at each state, those of the recovery too"},
	{folder: "blockdev/cbt", test: "TestRandomOperations",
		says: "random writes, cuts, aborts, kills and restarts of tracked disks against plain bytes"},
	{folder: "blockdev/cbt", test: "TestDemand30CutHoldsWhatWasAcknowledgedBefore", variable: "CUTS",
		says: "a later write is never ahead of an earlier one over several disks"},
	{folder: "blockdev/cbt", test: "TestPowerCutUnderLoad", variable: "POWERCUTS",
		says: "the power goes at any request of guests, backups, flushes and resizes at once, over a simulated platter; what differs is in doubt"},
	{folder: "dedupe/blockstore", test: "TestPowerCut",
		says: "the file system under the vault is shut down without its log; committed points stand"},
	{folder: "dedupe/blockstore", test: "TestKill",
		says: "the process that writes the vault is killed; committed points stand"},
	{folder: "dedupe/blockstore", test: "TestDemand77CopiesAreEqualAfterAnyStop",
		says: "kills and power cuts of a vault at two and three locations; afterwards all copies are equal, and each alone has every committed point"},
	{folder: "dedupe/blockstore", test: "TestPowerCutOfOneLocation",
		says: "the file system of one of two locations is shut down in mid-ingest; the other goes on, and a repair makes the copies equal"},
	{folder: "dedupe/blockstore", test: "TestCollectPowerCut",
		says: "the same at any system call of a collection; points that are not purged stand, purged ones do not come back, also when the index is rebuilt"},
	{folder: "dedupe/blockstore", test: "TestCollectKill",
		says: "the process that collects the vault is killed"},
	{folder: "dedupe/blockstore", test: "TestVaultPowerCut",
		says: "power cuts and kills of an encrypted vault at one to three locations that is written with patches, read, purged, collected and repaired at once, while a location fails or is full; points stand at each location alone, purged ones do not come back"},
	{folder: "dedupe/blockstore", test: "TestCollectModel", variable: "STEPS",
		says: "random batches with patches, purges, stops, kills, damage and loss of one location, and collections with batches at work at each of their steps, against a map"},
	{folder: "appliance/daemon", test: "TestLiveDiskKilled",
		says: "the daemon is killed under writing, flushing clients of three disks, and again while it recovers; nothing acknowledged is lost, the map lists all that differs, the next point equals the disks"},
	{folder: "appliance/daemon", test: "TestLiveDiskPowerCut",
		says: "the same, and the file system below is shut down without its log, ext4 or xfs; nothing flushed is lost"},
	{folder: "appliance/daemon", test: "TestN8GroupKilled",
		says: "kills, with two machines backed up as a group and one of them alone beside it; every point of the group is one instant"},
	{folder: "appliance/daemon", test: "TestN8GroupPowerCut",
		says: "power cuts of the same"},
	{folder: "appliance/daemon", test: "TestKillDuringBackupLosesNothing", each: 6,
		says: "the daemon is killed in the middle of backups under a writing client; the map lists all that differs"},
}

func main() {
	rounds := flag.Int("rounds", 1000, "rounds of each loop")
	minutes := flag.Int("minutes", 0, "run each loop for so many minutes instead")
	seed := flag.Uint64("seed", 0, "seed of the first round of each loop; 0: random")
	only := flag.String("only", "", "only loops whose folder or test holds this")
	list := flag.Bool("list", false, "list the loops")
	flag.Parse()
	if *list {
		for _, l := range loops {
			fmt.Printf("%-52s %s\n", l.folder+"."+l.test, l.says)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *rounds, *minutes, *seed, *only); err != nil {
		fmt.Fprintln(os.Stderr, "crashtest:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, rounds, minutes int, seed uint64, only string) error {
	if rounds < 1 || minutes < 0 {
		return errors.New("rounds must be at least 1 and minutes not negative")
	}
	dir, err := os.MkdirTemp("", "keelblock-crashtest-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if seed == 0 {
		seed = uint64(rand.Uint32()) + 1
	}
	count, total := 0, 0
	for _, l := range loops {
		if !strings.Contains(l.folder+"."+l.test, only) {
			continue
		}
		count++
		fmt.Printf("== %s.%s: %s\n", l.folder, l.test, l.says)
		start := time.Now()
		n, err := l.run(ctx, dir, rounds, minutes, seed)
		total += n
		if err != nil {
			fmt.Printf("rounds=%d seed=%d lost=1\n", total, seed)
			return fmt.Errorf("%s.%s: %w", l.folder, l.test, err)
		}
		fmt.Printf("== ok after %s\n", time.Since(start).Round(time.Second))
	}
	if count == 0 {
		return fmt.Errorf("no loop's name holds %q", only)
	}
	fmt.Printf("rounds=%d seed=%d lost=0\n", total, seed)
	return nil
}

// run builds the test once and runs it until its rounds or minutes are over. It
// returns how many rounds have ended.
func (l loop) run(ctx context.Context, dir string, rounds, minutes int, seed uint64) (done int, err error) {
	bin := filepath.Join(dir, strings.ReplaceAll(l.folder, "/", "-")+".test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", bin, "./"+l.folder)
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build: %w\n%s", err, out)
	}
	env := append(os.Environ(), l.env...)
	runs := 1
	deadline := time.Now().Add(time.Duration(minutes) * time.Minute)
	switch {
	case l.once:
	case l.each > 0:
		runs = (rounds + l.each - 1) / l.each
	case l.variable != "":
		env = append(env, fmt.Sprintf("%s=%d", l.variable, rounds))
	case minutes > 0:
		env = append(env, fmt.Sprintf("MINUTES=%d", minutes), fmt.Sprintf("ROUNDS=%d", rounds))
	default:
		env = append(env, fmt.Sprintf("ROUNDS=%d", rounds))
	}
	for i := 1; ; i++ {
		cmd := exec.CommandContext(ctx, bin, "-test.run", "^"+l.test+"$", "-test.v", "-test.timeout", "0")
		cmd.Dir = l.folder
		cmd.Env = append(env, fmt.Sprintf("SEED=%d", seed+uint64(i-1)))
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
		cmd.WaitDelay = 10 * time.Second
		out, err := cmd.CombinedOutput()
		fmt.Print(digest(string(out)))
		if err != nil {
			return done, fmt.Errorf("%w\n%s\nagain: go test -count=1 -v -run '^%s$' ./%s, with the seed above", err, out, l.test, l.folder)
		}
		if strings.Contains(string(out), "--- SKIP: "+l.test+" ") {
			return done, nil // its reason was printed
		}
		done += l.rounds(string(out), rounds)
		if l.each > 0 && minutes > 0 && time.Now().Before(deadline) {
			continue
		}
		if i >= runs {
			return done, nil
		}
	}
}

// said is where a test says how many rounds it did.
var said = regexp.MustCompile(`rounds=(\d+) `)

// rounds are those of one run of the test: what it says, else what it was asked for.
func (l loop) rounds(out string, asked int) (n int) {
	for _, m := range said.FindAllStringSubmatch(out, -1) {
		k, _ := strconv.Atoi(m[1]) // digits
		n += k
	}
	switch {
	case n > 0:
		return n
	case l.once:
		return 1
	case l.each > 0:
		return l.each
	}
	return asked
}

// digest keeps of a test's output what one wants to see of a thousand rounds: its
// remarks, not the names of subtests.
func digest(out string) string {
	var b strings.Builder
	for line := range strings.Lines(out) {
		t := strings.TrimSpace(line)
		if strings.HasPrefix(t, "=== ") || strings.HasPrefix(t, "--- PASS") || t == "PASS" || t == "" || strings.Contains(t, "SEED=") && strings.HasPrefix(t, "---") {
			continue
		}
		b.WriteString("   " + strings.TrimRight(line, "\n") + "\n")
		if b.Len() > 4000 {
			b.WriteString("   …\n")
			break
		}
	}
	return b.String()
}
