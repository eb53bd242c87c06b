package blockstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/looptest"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
)

// There are few blocks, so that batches put what deleted points had, and what others
// just put; and of each several versions.
const mixBlocks, mixVersions = 150, 4

// mixer does all that a vault in use does, at once: batches with patches, purges,
// reads, collections.
type mixer struct {
	*process
	mu      sync.Mutex
	live    []dedupe.Digest
	reading dedupe.Digest // is not purged now
	shared  []uint64      // what several batches put now, and nobody has put before
	uses    int           // of it that are left
}

func mixJob(p *process) error {
	ctx := context.Background()
	m := &mixer{process: p}
	var err error
	if m.live, _, _, err = listed(ctx, p.s); err != nil {
		return err
	}
	if p.Repair {
		go func() {
			_, _ = p.s.RepairLocations(ctx, nil) // trouble may come in its midst; the test repairs again
		}()
	}
	first := make(chan error)
	for i, fn := range []func(r *rand.Rand) error{m.collect, m.write, m.write, m.read} {
		go func() { first <- fn(rand.New(rand.NewPCG(p.Seed, uint64(i)))) }()
	}
	return <-first
}

// collect collects without end.
func (m *mixer) collect(r *rand.Rand) error {
	for {
		o := blockstore.CollectOptions{}
		if r.IntN(4) == 0 {
			o.MemoryBytes = 1 + m.s.Stats().Blocks*2/3 // three passes
		}
		m.enter("collecting")
		report, err := collectTrees(context.Background(), m.s, o, func() error {
			time.Sleep(upTo(r, 20*time.Millisecond)) // others do something between mark and sweep
			return nil
		})
		m.enter("")
		if err != nil {
			return fmt.Errorf("collect: %w", err)
		}
		if len(report.Problems) > 0 && !report.NoSpace {
			return fmt.Errorf("collect: %q", report.Problems)
		}
		m.say("collected")
		time.Sleep(upTo(r, 50*time.Millisecond))
	}
}

// write commits, aborts and purges without end.
func (m *mixer) write(r *rand.Rand) error {
	ctx := context.Background()
	for i := 0; ; i++ {
		b, err := m.s.Begin(ctx)
		if err != nil {
			return err
		}
		o := &openTree{batch: b, bases: r, point: treePoint{Name: fmt.Sprintf("%d %d %d", m.Seed, r.Uint32(), i)}}
		if err := m.fill(r, o); err != nil {
			return fmt.Errorf("put: %w", err)
		}
		switch r.IntN(8) {
		case 0:
			if err := b.Abort(); err != nil {
				return fmt.Errorf("abort: %w", err)
			}
			continue
		case 1: // no point, though all is in the index
			if _, err := b.Commit(ctx, dedupe.Publication{}); err != nil {
				return fmt.Errorf("commit nothing: %w", err)
			}
			continue
		}
		id, err := o.commit(ctx)
		if err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		m.say("committed", id)
		if r.IntN(6) == 0 {
			if err := m.purge(id); err != nil {
				return fmt.Errorf("purge: %w", err)
			}
			continue
		}
		m.mu.Lock()
		m.live = append(m.live, id)
		m.mu.Unlock()
		for {
			id, ok := m.choose(r)
			if !ok {
				break
			}
			if err := m.purge(id); err != nil {
				return fmt.Errorf("purge: %w", err)
			}
		}
	}
}

// fill puts what a batch has: what is there already, and what others put at this moment,
// over whatever base it likes, with nodes over that.
func (m *mixer) fill(r *rand.Rand, o *openTree) error {
	ctx := context.Background()
	for range 1 + r.IntN(4) {
		if r.IntN(2) == 0 {
			if err := o.put(ctx, m.s, mixNeighbours(r)); err != nil {
				return err
			}
			continue
		}
		list := m.share(r)
		if err := o.put(ctx, m.s, list); err != nil {
			return err
		}
		if err := o.putMore(ctx, 1+r.IntN(20), len(list), list[0]); err != nil {
			return err
		}
	}
	return nil
}

// share is a list of new blocks and versions of them, the same for some calls.
func (m *mixer) share(r *rand.Rand) []uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.uses--; m.uses < 0 {
		m.uses, m.shared = 1+r.IntN(3), nil
		first := mixBlocks + r.Uint64N(1<<31)
		for i := range 1 + r.Uint64N(10) {
			for v := range 1 + r.Uint64N(mixVersions) {
				m.shared = append(m.shared, first+i+v<<versionShift)
			}
		}
	}
	return m.shared
}

// mixNeighbours are versions of blocks beside one another, of which many make the same
// nodes as others.
func mixNeighbours(r *rand.Rand) []uint64 {
	list := neighbours(r, 1+r.IntN(40), mixBlocks)
	if r.IntN(2) == 0 {
		off := list[0] % 16
		for i := range list {
			list[i] = (list[i] + mixBlocks - off) % mixBlocks
		}
	}
	version := r.Uint64N(mixVersions)
	for i := range list {
		if r.IntN(4) == 0 {
			version = r.Uint64N(mixVersions)
		}
		list[i] += version << versionShift
	}
	return list
}

// choose takes out a point to be purged, if there are many or by chance.
func (m *mixer) choose(r *rand.Rand) (dedupe.Digest, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.live) == 0 || len(m.live) < 10 && r.IntN(3) > 0 {
		return dedupe.Digest{}, false
	}
	at := r.IntN(len(m.live))
	id := m.live[at]
	if id == m.reading {
		return id, false
	}
	m.live = slices.Delete(m.live, at, at+1)
	return id, true
}

// read reads points without end.
func (m *mixer) read(r *rand.Rand) error {
	for {
		m.mu.Lock()
		m.reading = dedupe.Digest{}
		if len(m.live) > 0 {
			m.reading = m.live[r.IntN(len(m.live))]
		}
		id := m.reading
		m.mu.Unlock()
		if id.IsZero() {
			time.Sleep(time.Millisecond)
			continue
		}
		if err := readTree(context.Background(), m.s, id); err != nil {
			return fmt.Errorf("read beside a collection: %w", err)
		}
	}
}

// troubles are what comes to one location while the others go on.
var troubles = map[string]func(p *process){
	"power": func(p *process) {
		if err := looptest.CutPower(p.Dirs[p.Hurt]); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	},
	"full": func(p *process) {
		if err := fillUp(fillerOf(p.Dirs[p.Hurt])); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	},
	"packs": func(p *process) {
		packs := filepath.Join(p.Dirs[p.Hurt], "packs")
		p.failing.Store(&packs)
	},
}

// fillerOf is the file that fills the file system of a location.
func fillerOf(dir string) string { return filepath.Join(filepath.Dir(dir), "filler") }

// largeVault is from where on packs that every vault has count for little.
const largeVault = 8 << 20

// mixVault is a vault whose locations are each on a file system of their own.
type mixVault struct {
	*said
	fs    []*looptest.FS // of which the first are in use
	dirs  []string
	whole bool // no location was out when it was closed
	small bool // a few records fill a pack
	o     blockstore.Options

	lives, kills, hurt, collections, purged int
	liveBytes, packBytes                    int64   // sums over all that were collected by verify
	worst                                   float64 // bytes in packs for one that is live, after a collection
	worstReport                             string
}

func newMixVault(t testing.TB) *mixVault {
	v := &mixVault{}
	for range 3 {
		v.fs = append(v.fs, looptest.New(t, "ext4", 400<<20))
	}
	return v
}

// mixOptions are those of a vault at dirs. Its packs may be so small that those of a batch
// are in the index long before it ends.
func mixOptions(dirs []string, small bool) blockstore.Options {
	o := encrypted(blockstore.Options{PackBytes: blockstore.MinPackBytes, Locations: dirs[1:]})
	if small {
		o = o.WithPackBytes(256 << 10)
	}
	return o
}

// create begins anew with n locations.
func (v *mixVault) create(t testing.TB, n int) {
	t.Helper()
	v.said, v.dirs, v.whole = newSaid(), nil, true
	for _, fs := range v.fs[:n] {
		fs.Format()
		v.dirs = append(v.dirs, filepath.Join(fs.Dir, "vault"))
	}
	v.o = mixOptions(v.dirs, v.small)
	if err := blockstore.Create(v.dirs[0], v.o); err != nil {
		t.Fatalf("create: %v", err)
	}
}

// life is one of a worker's, which ends in a power cut or a kill, and the power's return.
func (v *mixVault) life(t testing.TB, r *rand.Rand, first bool) (points int) {
	t.Helper()
	w := worker{Job: "mix", Dirs: v.dirs, Keys: true, SmallPacks: v.small, Seed: r.Uint64N(1 << 32), Repair: r.IntN(2) == 0}
	var opened func(kill func())
	switch n := r.IntN(6); {
	case !first && n < 4: // while it recovers from the one before, or soon
		w.Cut, w.Rebuild = 1+r.Int64N(60), n == 0
	case n == 0:
		w.Cut, w.CutIn = 1+r.Int64N(120), "collect" // between two steps of a collection
	case n < 3:
		w.Cut, w.CutIn = 1+r.Int64N(800), "collecting"
	case n == 3:
		w.Cut = 1 + r.Int64N(2000)
	case n == 4:
		w.CutAfter = upTo(r, time.Second)
	default:
		opened = after(upTo(r, time.Second))
		v.kills++
	}
	if first && v.whole && len(v.dirs) > 1 && r.IntN(2) == 0 {
		w.Trouble, w.Hurt, w.TroubleAt = []string{"power", "full", "packs"}[r.IntN(3)], 1+r.IntN(len(v.dirs)-1), 1+r.Int64N(800)
		if w.Trouble == "packs" { // the first one's, too
			w.Hurt = r.IntN(len(v.dirs))
		}
		v.hurt++
	}
	v.lives++
	purged, collected := v.counts["purged"], v.counts["collected"]
	points = v.live(t, w, opened)
	v.purged += v.counts["purged"] - purged
	v.collections += v.counts["collected"] - collected
	for i := range v.dirs {
		v.fs[i].Remount()
		if err := os.Remove(fillerOf(v.dirs[i])); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return points
}

// verify checks the vault after a crash, as it is and in other ways, chosen by chance.
func (v *mixVault) verify(r *rand.Rand) error {
	s, err := blockstore.Open(v.dirs[0], v.o)
	if err != nil {
		return err
	}
	if err := errors.Join(v.verifyOpen(r, s), s.Close()); err != nil {
		return err
	}
	if v.whole {
		if err := sameCopies(v.dirs); err != nil {
			return err
		}
		for _, dir := range v.dirs {
			if err := oneLocation(dir, v.o, v.checkStore); err != nil {
				return err
			}
		}
	}
	if r.IntN(3) > 0 {
		return nil
	}
	return v.checkRebuilt(v.dirs[0], v.o)
}

func (v *mixVault) verifyOpen(r *rand.Rand, s *blockstore.Store) error {
	if err := v.checkStore(s); err != nil {
		return err
	}
	if r.IntN(3) > 0 {
		if _, err := s.RepairLocations(context.Background(), nil); err != nil {
			return err
		}
		if got := states(s); strings.Contains(got, "out") {
			return fmt.Errorf("after a repair locations are %s: %+v", got, s.Locations())
		}
	}
	v.whole = !strings.Contains(states(s), "out")
	if r.IntN(2) > 0 {
		return nil
	}
	report, err := collectTrees(context.Background(), s, blockstore.CollectOptions{}, nil)
	if err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	if len(report.Problems) > 0 {
		return fmt.Errorf("collect: %q", report.Problems)
	}
	v.collections++
	bytes, err := s.PackFileBytes()
	if ratio := float64(bytes) / float64(report.LiveBytes); report.LiveBytes > largeVault && ratio > v.worst {
		v.worst, v.worstReport = ratio, fmt.Sprintf("%d bytes in packs after %+v", bytes, report)
	}
	v.liveBytes, v.packBytes = v.liveBytes+report.LiveBytes, v.packBytes+bytes
	return errors.Join(err, v.checkStore(s))
}

// The vault as the product uses it, encrypted, with patches, at one to three locations,
// written, read, purged and collected at once, survives power cuts and kills at any
// moment, also while a location fails, is full or is repaired: every committed point
// reads back, from each location alone, and no purged one comes back.
func TestVaultPowerCut(t *testing.T) {
	t.Parallel()
	v := newMixVault(t)
	defer func() {
		t.Logf("lives=%d kills=%d cuts=%d troubles=%d collections=%d purged=%d packs to live=%.2f, worst %.2f: %s",
			v.lives, v.kills, v.lives-v.kills, v.hurt, v.collections, v.purged,
			float64(v.packBytes)/float64(max(v.liveBytes, 1)), v.worst, v.worstReport)
	}()
	crashLoop(t, 5, func(r *rand.Rand, n int64) (points int, err error) {
		if n == 0 || r.IntN(5) == 0 {
			v.small = r.IntN(2) == 0
			v.create(t, 1+r.IntN(len(v.fs)))
		}
		for i := range 1 + r.IntN(4) {
			points += v.life(t, r, i == 0)
		}
		return points, v.verify(r)
	})
}
