package blockstore_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/looptest"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
)

// envWorker has the test binary be a worker, and is its JSON.
const envWorker = "KEELBLOCK_TEST_WORKER"

var crashOptions = blockstore.Options{BlockSize: dedupe.MinBlockSize, PackBytes: blockstore.MinPackBytes}

// worker is a process that does its job on a vault until it is killed, or until it cuts
// the power of the vault's file systems itself.
type worker struct {
	Job  string   // one of jobs
	Dirs []string // the vault's locations, its own folder first
	// Keys: the vault is encrypted, with testKeys.
	Keys bool
	Seed uint64
	// SmallPacks are those of mixOptions.
	SmallPacks bool
	// Cut: the power goes at this one of its system calls that change or sync a file; 0:
	// never. CutIn, when not empty, counts only those of a job's phase.
	Cut   int64
	CutIn string
	// CutAfter: the power goes at this time after the vault was opened; 0: never.
	CutAfter time.Duration
	// Rebuild: the index is built anew before the vault is opened.
	Rebuild bool
	// Trouble comes to location Hurt at system call TroubleAt, one of troubles.
	Trouble   string
	Hurt      int
	TroubleAt int64
	// Repair: locations that are out are repaired beside the job.
	Repair bool
}

// jobs end with an error, or never.
var jobs = map[string]func(p *process) error{"write": writeJob, "collect": collectJob, "mix": mixJob}

func TestMain(m *testing.M) {
	text := os.Getenv(envWorker)
	if text == "" {
		os.Exit(m.Run())
	}
	if err := beWorker(text); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(1)
}

func beWorker(text string) error {
	p := &process{}
	if err := json.Unmarshal([]byte(text), &p.worker); err != nil {
		return err
	}
	job := jobs[p.Job]
	if job == nil {
		return fmt.Errorf("no job %q", p.Job)
	}
	err := p.open()
	if err == nil {
		p.say("open")
		err = job(p)
	}
	if p.dead.Load() {
		select {} // what fails without power is not an end: the kill is under way
	}
	return err
}

// process is a worker at work.
type process struct {
	worker
	s            *blockstore.Store
	r            *rand.Rand
	calls, steps atomic.Int64 // system calls, and those that count for Cut
	phase        atomic.Pointer[string]
	dead         atomic.Bool
	failing      atomic.Pointer[string] // below this folder every call fails
}

func (p *process) open() (err error) {
	p.r = rand.New(rand.NewPCG(p.Seed, 1))
	o := blockstore.Options{PackBytes: blockstore.MinPackBytes, Locations: p.Dirs[1:]}
	switch {
	case p.SmallPacks:
		o = mixOptions(p.Dirs, true)
	case p.Keys:
		o = encrypted(o)
	}
	o = o.WithHook(p.hook)
	if p.Rebuild {
		if err := blockstore.RebuildIndex(context.Background(), p.Dirs[0], o, nil); err != nil {
			return err
		}
	}
	if p.s, err = blockstore.Open(p.Dirs[0], o); err == nil && p.CutAfter > 0 {
		time.AfterFunc(p.CutAfter, p.cutPower)
	}
	return err
}

// enter says which phase the job is in.
func (p *process) enter(phase string) { p.phase.Store(&phase) }

func (p *process) hook(op, name string) error {
	if p.TroubleAt > 0 && p.calls.Add(1) == p.TroubleAt {
		troubles[p.Trouble](p)
	}
	if phase := p.phase.Load(); p.Cut > 0 && (p.CutIn == "" || p.CutIn == op || phase != nil && *phase == p.CutIn) && p.steps.Add(1) == p.Cut {
		p.cutPower()
	}
	if dir := p.failing.Load(); dir != nil && strings.HasPrefix(name, *dir) {
		return syscall.EIO
	}
	return nil
}

// cutPower does not return.
func (p *process) cutPower() {
	p.dead.Store(true)
	cut := make(map[uint64]bool)
	for _, dir := range p.Dirs {
		var st syscall.Stat_t
		if err := syscall.Stat(dir, &st); err != nil || cut[st.Dev] {
			continue // it lost its power before
		}
		if err := looptest.CutPower(dir); err != nil && !errors.Is(err, syscall.EIO) {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		cut[st.Dev] = true
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// say tells the test what was done.
func (p *process) say(words ...any) { fmt.Println(words...) }

// said is what workers said they have done to one vault, over all of their lives.
type said struct {
	must   map[dedupe.Digest]bool // committed, and no purge was begun
	gone   map[dedupe.Digest]bool // purged
	counts map[string]int         // of each word
}

func newSaid() *said {
	return &said{must: make(map[dedupe.Digest]bool), gone: make(map[dedupe.Digest]bool), counts: make(map[string]int)}
}

func (c *said) hear(line string) error {
	word, id, _ := strings.Cut(line, " ")
	c.counts[word]++
	if id == "" {
		return nil
	}
	d, err := dedupe.ParseDigest(id)
	if err != nil {
		return fmt.Errorf("the worker says %q: %w", line, err)
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

// committed is what must be there, as a list.
func (c *said) committed() (list []dedupe.Digest) {
	for d := range c.must {
		list = append(list, d)
	}
	return list
}

// hung is how long a worker may take to die, on the busiest machine.
const hung = 5 * time.Minute

// live runs a worker until it dies, and returns how many points it committed. opened,
// when not nil, is told once the vault is open, and kills it in its own time.
func (c *said) live(t testing.TB, w worker, opened func(kill func())) (points int) {
	t.Helper()
	text, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envWorker+"="+string(text))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := sync.OnceFunc(func() { _ = cmd.Process.Kill() })
	guard := time.AfterFunc(hung, func() {
		t.Errorf("the worker neither died nor ended: %s", text)
		kill()
	})
	defer guard.Stop()
	before := c.counts["committed"]
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if err := c.hear(lines.Text()); err != nil {
			t.Fatal(err)
		}
		if lines.Text() == "open" && opened != nil {
			go opened(kill)
		}
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the worker ended by itself: %v: %s\n%s", err, stderr.String(), text)
	}
	return c.counts["committed"] - before
}

// after kills a worker some time after it has opened its vault.
func after(wait time.Duration) func(kill func()) {
	return func(kill func()) { time.Sleep(wait); kill() }
}

// upTo is a random time.
func upTo(r *rand.Rand, d time.Duration) time.Duration { return time.Duration(r.Int64N(int64(d))) }

// checkStore checks that all committed points are there, no purged one is, and that
// all that are read back whole.
func (c *said) checkStore(s *blockstore.Store) error {
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

// check opens the vault and checks every point, then collects it when asked to, and
// checks again.
func (c *said) check(dir string, o blockstore.Options, collect bool) error {
	s, err := blockstore.Open(dir, o)
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

// checkRebuilt builds the index anew and checks every point.
func (c *said) checkRebuilt(dir string, o blockstore.Options) error {
	if err := blockstore.RebuildIndex(context.Background(), dir, o, nil); err != nil {
		return err
	}
	if err := c.check(dir, o, false); err != nil {
		return fmt.Errorf("with a rebuilt index: %w", err)
	}
	return nil
}

// envInt is a number from the environment, for the long loops of make test-crash.
func envInt(t testing.TB, name string, def int64) int64 {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return def
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q: %v", name, v, err)
	}
	return n
}

// crashLoop runs rounds of write, crash, reopen, check. ROUNDS, MINUTES and SEED of
// the environment make it long; its last line is what the long loop is read by.
func crashLoop(t *testing.T, rounds int64, round func(r *rand.Rand, n int64) (points int, err error)) {
	t.Helper()
	seed := uint64(envInt(t, "SEED", time.Now().UnixNano()&0xffffff))
	rounds = envInt(t, "ROUNDS", rounds)
	end := time.Time{}
	if m := envInt(t, "MINUTES", 0); m > 0 {
		end, rounds = time.Now().Add(time.Duration(m)*time.Minute), 1<<62
	}
	r := rand.New(rand.NewPCG(seed, 2))
	done, lost, points := int64(0), 0, 0
	defer func() {
		t.Logf("points=%d", points)
		t.Logf("rounds=%d seed=%d lost=%d", done, seed, lost)
	}()
	for ; done < rounds && (end.IsZero() || time.Now().Before(end)); done++ {
		n, err := round(r, done)
		points += n
		if err != nil {
			lost++
			t.Fatalf("round %d of seed %d: %v", done, seed, err)
		}
	}
}

// writeJob commits points, of which some are aborted.
func writeJob(p *process) error {
	ctx := context.Background()
	for i := 0; ; i++ {
		b, err := p.s.Begin(ctx)
		if err != nil {
			return err
		}
		point, err := putPoint(ctx, p.s, b, fmt.Sprintf("seed %d point %d", p.Seed, i), seeds(p.r, 1+p.r.IntN(200), 20000))
		if err != nil {
			return err
		}
		if p.r.IntN(5) == 0 {
			if err := b.Abort(); err != nil {
				return err
			}
			continue
		}
		id, err := commitPoint(ctx, b, point)
		if err != nil {
			return err
		}
		p.say("committed", id)
	}
}

// collectJob commits, purges and collects points in turn. Its phase "collecting" is a
// collection.
func collectJob(p *process) error {
	ctx := context.Background()
	live, _, _, err := listed(ctx, p.s)
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		for j := range 1 + p.r.IntN(4) {
			name := fmt.Sprintf("seed %d, point %d.%d", p.Seed, i, j)
			id, err := writeTree(ctx, p.s, name, neighbours(p.r, 1+p.r.IntN(120), 2000))
			if err != nil {
				return err
			}
			p.say("committed", id)
			live = append(live, id)
		}
		for range min(p.r.IntN(4), len(live)) {
			at := p.r.IntN(len(live))
			if err := p.purge(live[at]); err != nil {
				return err
			}
			live = slices.Delete(live, at, at+1)
		}
		b, err := p.s.Begin(ctx) // what it puts is never committed
		if err != nil {
			return err
		}
		o := &openTree{batch: b}
		if err := o.put(ctx, p.s, []uint64{p.r.Uint64N(2000), p.r.Uint64N(2000), p.r.Uint64N(2000)}); err != nil {
			return err
		}
		p.enter("collecting")
		_, err = collectTrees(ctx, p.s, blockstore.CollectOptions{}, nil)
		p.enter("")
		if err != nil {
			return err
		}
		if err := b.Abort(); err != nil {
			return err
		}
		p.say("collected")
	}
}

// purge takes a point out of the vault.
func (p *process) purge(id dedupe.Digest) error {
	p.say("purging", id)
	if err := purge(context.Background(), p.s, id); err != nil {
		return err
	}
	p.say("purged", id)
	return nil
}

// neighbours are n block seeds beside one another, below limit.
func neighbours(r *rand.Rand, n int, limit uint64) []uint64 {
	list := make([]uint64, n)
	at := r.Uint64N(limit)
	for i := range list {
		list[i] = (at + uint64(i)) % limit
	}
	return list
}
