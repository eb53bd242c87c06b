package blockstore_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
)

// envCollector has the test binary write, purge and collect in this folder.
const envCollector = "KEELBLOCK_TEST_COLLECTOR"

// runCollector commits, purges and collects points until it is killed, or cuts the
// power itself at one of the system calls of a collection. It says what it has done.
func runCollector(dir string) error {
	seed, err := strconv.ParseUint(os.Getenv(envSeed), 10, 64)
	if err != nil {
		return err
	}
	cut, err := strconv.ParseInt(os.Getenv(envCut), 10, 64)
	if err != nil {
		return err
	}
	var calls atomic.Int64
	var collecting, dead atomic.Bool
	defer func() {
		if dead.Load() {
			select {} // what fails without power is not an end: the kill is under way
		}
	}()
	s, err := blockstore.Open(dir, crashOptions.WithHook(func(string, string) error {
		if cut > 0 && collecting.Load() && calls.Add(1) == cut {
			dead.Store(true)
			if err := cutPower(dir); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	}))
	if err != nil {
		return err
	}
	fmt.Println("open")
	ctx := context.Background()
	r := rand.New(rand.NewPCG(seed, 3))
	live, _, _, err := listed(ctx, s)
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		for range 1 + r.IntN(4) {
			list := make([]uint64, 1+r.IntN(120))
			at := r.Uint64N(2000)
			for j := range list {
				list[j] = at + uint64(j)
			}
			id, err := writeTree(ctx, s, fmt.Sprintf("seed %d, point %d", seed, i), list)
			if err != nil {
				return err
			}
			fmt.Println("committed", id)
			live = append(live, id)
		}
		for range r.IntN(4) {
			at := r.IntN(len(live))
			if slices.Index(live, live[at]) != at {
				continue
			}
			fmt.Println("purging", live[at])
			if err := purge(ctx, s, live[at]); err != nil {
				return err
			}
			fmt.Println("purged", live[at])
			live = slices.Delete(live, at, at+1)
			if len(live) == 0 {
				break
			}
		}
		b, err := s.Begin(ctx) // what it puts is never committed
		if err != nil {
			return err
		}
		o := &openTree{batch: b}
		if err := o.put(ctx, s, []uint64{r.Uint64N(2000), r.Uint64N(2000), r.Uint64N(2000)}); err != nil {
			return err
		}
		collecting.Store(true)
		_, err = collectTrees(ctx, s, blockstore.CollectOptions{}, nil)
		collecting.Store(false)
		if err != nil {
			return err
		}
		if err := b.Abort(); err != nil {
			return err
		}
		fmt.Println("collected")
	}
}

// collectorState is what a collector said it has done, over all of its lives.
type collectorState struct {
	must map[dedupe.Digest]bool // committed, and no purge was begun
	gone map[dedupe.Digest]bool // purged
	runs int                    // collections that ended
}

func (c *collectorState) hear(line string) error {
	word, id, _ := strings.Cut(line, " ")
	if word == "open" || word == "collected" {
		if word == "collected" {
			c.runs++
		}
		return nil
	}
	d, err := dedupe.ParseDigest(id)
	if err != nil {
		return fmt.Errorf("the collector says %q: %w", line, err)
	}
	switch word {
	case "committed":
		c.must[d] = true
	case "purging":
		delete(c.must, d)
	case "purged":
		c.gone[d] = true
	}
	return nil
}

// live runs the collector until it dies, by itself or by kill after a while.
func (c *collectorState) live(t testing.TB, dir string, seed uint64, cut int64, kill time.Duration) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envCollector+"="+dir, fmt.Sprintf("%s=%d", envSeed, seed), fmt.Sprintf("%s=%d", envCut, cut))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	limit := 90 * time.Second
	if kill > 0 {
		limit = kill
	}
	timer := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if err := c.hear(lines.Text()); err != nil {
			t.Fatal(err)
		}
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("seed %d cut %d: the collector ended by itself: %v: %s", seed, cut, err, stderr.String())
	}
}

// check opens the vault after a crash and checks every point.
func (c *collectorState) check(dir string, collect bool) error {
	s, err := blockstore.Open(dir, crashOptions)
	if err != nil {
		return err
	}
	err = c.checkStore(s)
	if err == nil && collect {
		if _, err = collectTrees(context.Background(), s, blockstore.CollectOptions{}, nil); err == nil {
			err = c.checkStore(s)
		}
	}
	return errors.Join(err, s.Close())
}

func (c *collectorState) checkStore(s *blockstore.Store) error {
	live, _, _, err := listed(context.Background(), s)
	if err != nil {
		return err
	}
	have := make(map[dedupe.Digest]bool)
	for _, id := range live {
		if have[id] = true; c.gone[id] {
			return fmt.Errorf("purged point %v is back", id)
		}
	}
	for id := range c.must {
		if !have[id] {
			return fmt.Errorf("point %v is gone", id)
		}
	}
	return checkTrees(s, have)
}

// round is one life, a crash, and all checks.
func (c *collectorState) round(dir string, n int64) error {
	if err := c.check(dir, n%2 == 1); err != nil {
		return err
	}
	if n%3 != 2 {
		return nil
	}
	if err := blockstore.RebuildIndex(context.Background(), dir, crashOptions, nil); err != nil {
		return fmt.Errorf("rebuild index: %w", err)
	}
	if err := c.check(dir, false); err != nil {
		return fmt.Errorf("rebuilt: %w", err)
	}
	return nil
}

func newCollectorState() *collectorState {
	return &collectorState{must: make(map[dedupe.Digest]bool), gone: make(map[dedupe.Digest]bool)}
}

// Every point that is not purged survives a power cut at any system call of a
// collection, whole, and no purged one comes back.
func TestCollectPowerCut(t *testing.T) {
	t.Parallel()
	l := newLoopFS(t, 400<<20)
	dir := filepath.Join(l.dir, "vault")
	var c *collectorState
	fresh := func() {
		c = newCollectorState()
		if err := blockstore.Create(dir, crashOptions); err != nil {
			t.Fatalf("create: %v", err)
		}
	}
	fresh()
	crashLoop(t, 6, func(r *rand.Rand, n int64) (int, error) {
		if n%20 == 19 {
			l.umount(t)
			l.format(t)
			fresh()
		}
		before := len(c.must)
		c.live(t, dir, r.Uint64N(1<<32), 1+r.Int64N(120), 0)
		l.umount(t)
		l.mount(t)
		return max(0, len(c.must)-before), c.round(dir, n)
	})
}

// The same with a kill at any moment.
func TestCollectKill(t *testing.T) {
	t.Parallel()
	dir := newVault(t, crashOptions)
	c := newCollectorState()
	crashLoop(t, 4, func(r *rand.Rand, n int64) (int, error) {
		if n%20 == 19 {
			dir, c = newVault(t, crashOptions), newCollectorState()
		}
		before := len(c.must)
		c.live(t, dir, r.Uint64N(1<<32), 0, 300*time.Millisecond+time.Duration(r.Int64N(int64(2*time.Second))))
		return max(0, len(c.must)-before), c.round(dir, n)
	})
}
