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
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
)

// The test binary is run again as a writer that is killed, or that cuts the power of
// its own file system.
const (
	envWriter = "KEELBLOCK_TEST_WRITER" // the vault's folder
	envSeed   = "KEELBLOCK_TEST_SEED"
	envCut    = "KEELBLOCK_TEST_CUT"  // cut the power at this system call, 0: never
	envKeys   = "KEELBLOCK_TEST_KEYS" // 1: the vault is encrypted
)

var crashOptions = blockstore.Options{BlockSize: dedupe.MinBlockSize, PackBytes: blockstore.MinPackBytes}

func TestMain(m *testing.M) {
	if dir := os.Getenv(envWriter); dir != "" {
		if err := runWriter(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(envCollector); dir != "" {
		if err := runCollector(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runWriter commits points and prints the id of each, until it is killed.
func runWriter(dir string) error {
	seed, err := strconv.ParseUint(os.Getenv(envSeed), 10, 64)
	if err != nil {
		return err
	}
	cut, err := strconv.ParseInt(os.Getenv(envCut), 10, 64)
	if err != nil {
		return err
	}
	var calls atomic.Int64
	var dead atomic.Bool
	defer func() {
		if dead.Load() {
			select {} // what fails without power is not an end: the kill is under way
		}
	}()
	o := crashOptions
	if os.Getenv(envKeys) == "1" {
		o = encrypted(o)
	}
	o = o.WithHook(func(string, string) error {
		if cut > 0 && calls.Add(1) == cut {
			dead.Store(true)
			if err := cutPower(dir); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	})
	s, err := blockstore.Open(dir, o)
	if err != nil {
		return err
	}
	fmt.Println("open")
	ctx := context.Background()
	r := rand.New(rand.NewPCG(seed, 1))
	for i := 0; ; i++ {
		b, err := s.Begin(ctx)
		if err != nil {
			return err
		}
		p, err := putPoint(ctx, s, b, fmt.Sprintf("seed %d point %d", seed, i), seeds(r, 1+r.IntN(200), 20000))
		if err != nil {
			return err
		}
		if r.IntN(5) == 0 {
			if err := b.Abort(); err != nil {
				return err
			}
			continue
		}
		id, err := commitPoint(ctx, b, p)
		if err != nil {
			return err
		}
		fmt.Println("committed", id)
	}
}

// cutPower makes the file system of dir as after a power cut: what was not flushed is
// lost, and nothing more gets through (EXT4_IOC_SHUTDOWN without a log flush).
func cutPower(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	const ioctl, noLogFlush = 0x8004587d, 2 // _IOR('X', 125, __u32)
	flags := uint32(noLogFlush)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ioctl, uintptr(unsafe.Pointer(&flags))); e != 0 {
		return fmt.Errorf("cut the power of %s: %w", dir, e)
	}
	return nil
}

// loopFS is an ext4 of its own on a loop device.
type loopFS struct {
	img, dev, dir string
}

// newLoopFS makes one and removes it when the test ends; the test is skipped where
// that is not possible.
func newLoopFS(t testing.TB, sizeBytes int64) *loopFS {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for a loop mount")
	}
	for _, tool := range []string{"losetup", "mkfs.ext4", "mount", "umount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: %v", tool, err)
		}
	}
	tmp := t.TempDir()
	l := &loopFS{img: filepath.Join(tmp, "img"), dir: filepath.Join(tmp, "mnt")}
	if err := os.Mkdir(l.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(l.img, sizeBytes); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", l.img).CombinedOutput()
	if err != nil {
		t.Skipf("needs a loop device: losetup: %v: %s", err, out)
	}
	l.dev = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		_ = unix.Unmount(l.dir, unix.MNT_DETACH) // it may not be mounted
		l.run(t, "losetup", "-d", l.dev)
	})
	l.format(t)
	return l
}

func (l *loopFS) format(t testing.TB) {
	t.Helper()
	l.run(t, "mkfs.ext4", "-q", "-F", "-E", "nodiscard", l.dev)
	l.mount(t)
}

func (l *loopFS) mount(t testing.TB) {
	t.Helper()
	l.run(t, "mount", "-t", "ext4", "-o", "noatime", l.dev, l.dir)
}

// umount returns when the kernel has let go of the file system. A process that copied
// the mount namespace, as sandboxes do, keeps it a little longer, and a mount meanwhile
// would get the same one again, still without power.
func (l *loopFS) umount(t testing.TB) {
	t.Helper()
	l.run(t, "umount", l.dir)
	for range 1000 {
		if _, err := os.Stat(filepath.Join("/proc/fs/ext4", filepath.Base(l.dev))); errors.Is(err, os.ErrNotExist) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s is still mounted somewhere", l.dev)
}

func (l *loopFS) run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// writerRun is one life of the writer.
type writerRun struct {
	committed []dedupe.Digest
	opened    bool
}

// runCrashWriter runs the writer until it dies. stop, when not nil, is told when the
// store is open and kills it at its own time.
func runCrashWriter(t testing.TB, dir string, keys bool, seed uint64, cut int64, stop func(kill func())) writerRun {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envWriter+"="+dir, fmt.Sprintf("%s=%d", envSeed, seed), fmt.Sprintf("%s=%d", envCut, cut))
	if keys {
		cmd.Env = append(cmd.Env, envKeys+"=1")
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timeout := time.AfterFunc(60*time.Second, func() {
		t.Errorf("seed %d cut %d: the writer neither died nor ended", seed, cut)
		_ = cmd.Process.Kill()
	})
	defer timeout.Stop()
	var run writerRun
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if lines.Text() == "open" {
			run.opened = true
			if stop != nil {
				go stop(func() { _ = cmd.Process.Kill() })
			}
			continue
		}
		d, err := dedupe.ParseDigest(strings.TrimPrefix(lines.Text(), "committed "))
		if err != nil {
			t.Fatalf("writer says %q", lines.Text())
		}
		run.committed = append(run.committed, d)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("seed %d cut %d: the writer ended by itself: %v: %s", seed, cut, err, stderr.String())
	}
	return run
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

// reopen opens a vault after a crash, checks all of it and closes it.
func reopen(dir string, o blockstore.Options, want []dedupe.Digest) error {
	s, err := blockstore.Open(dir, o)
	if err != nil {
		return err
	}
	if err := checkStore(s, want); err != nil {
		return errors.Join(err, s.Close())
	}
	return s.Close()
}

// checkRebuilt checks that an index made from the packs says what the old one says.
func checkRebuilt(dir string, o blockstore.Options) error {
	dump := func() (map[string]blockstore.IndexEntry, error) {
		s, err := blockstore.Open(dir, o)
		if err != nil {
			return nil, err
		}
		d, err := s.DumpIndex()
		return d, errors.Join(err, s.Close())
	}
	old, err := dump()
	if err != nil {
		return err
	}
	if err := blockstore.RebuildIndex(context.Background(), dir, o, nil); err != nil {
		return err
	}
	rebuilt, err := dump()
	if err != nil {
		return err
	}
	for k := range old {
		if _, ok := rebuilt[k]; !ok {
			return fmt.Errorf("key %x is not in the rebuilt index", k)
		}
	}
	for k := range rebuilt {
		if _, ok := old[k]; !ok {
			return fmt.Errorf("key %x is only in the rebuilt index", k)
		}
	}
	return nil
}

// Every committed point, and all below it, survives a power cut at any system call.
func TestPowerCut(t *testing.T) { eachDomain(t, testPowerCut) }

func testPowerCut(t *testing.T, crashOptions blockstore.Options) {
	t.Parallel()
	l := newLoopFS(t, 400<<20)
	dir := filepath.Join(l.dir, "vault")
	var committed []dedupe.Digest
	fresh := func() {
		committed = nil
		if err := blockstore.Create(dir, crashOptions); err != nil {
			t.Fatalf("create: %v", err)
		}
	}
	fresh()
	crashLoop(t, 6, func(r *rand.Rand, n int64) (int, error) {
		if n%10 == 9 { // before the file system is full of aborted batches
			l.umount(t)
			l.format(t)
			fresh()
		}
		run := runCrashWriter(t, dir, crashOptions.Keys != nil, r.Uint64N(1<<32), 1+r.Int64N(1500), nil)
		committed = append(committed, run.committed...)
		l.umount(t)
		l.mount(t)
		if err := reopen(dir, crashOptions, committed); err != nil {
			return 0, err
		}
		if n%5 == 4 {
			if err := checkRebuilt(dir, crashOptions); err != nil {
				return 0, fmt.Errorf("rebuild index: %w", err)
			}
			return len(run.committed), reopen(dir, crashOptions, committed)
		}
		return len(run.committed), nil
	})
}

// Every committed point survives a kill at any moment.
func TestKill(t *testing.T) { eachDomain(t, testKill) }

func testKill(t *testing.T, crashOptions blockstore.Options) {
	t.Parallel()
	dir := newVault(t, crashOptions)
	var committed []dedupe.Digest
	crashLoop(t, 5, func(r *rand.Rand, n int64) (int, error) {
		if n%10 == 9 {
			dir, committed = newVault(t, crashOptions), nil
		}
		wait := time.Duration(r.Int64N(int64(500 * time.Millisecond)))
		run := runCrashWriter(t, dir, crashOptions.Keys != nil, r.Uint64N(1<<32), 0, func(kill func()) {
			time.Sleep(wait)
			kill()
		})
		committed = append(committed, run.committed...)
		if n%3 == 2 { // and by a reader that may not change anything
			o := crashOptions
			o.ReadOnly = true
			s, err := blockstore.Open(dir, o)
			if err != nil {
				return 0, fmt.Errorf("open read-only after a kill: %w", err)
			}
			if err := errors.Join(checkStore(s, committed), s.Close()); err != nil {
				return 0, fmt.Errorf("read-only after a kill: %w", err)
			}
		}
		return len(run.committed), reopen(dir, crashOptions, committed)
	})
}
