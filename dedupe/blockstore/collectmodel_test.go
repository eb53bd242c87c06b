package blockstore_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// treePoint is a manifest of the tests of collection: a tree, and blocks beside it.
type treePoint struct {
	Name  string
	Seeds []uint64
	Top   dedupe.Digest // of level 1; zero without blocks
	Extra []dedupe.Digest
}

// purgeNote is the note that takes a point out of the tests' vault.
const purgeNote = 5

// A seed of these tests has in its low bits a block, and above how often a part of it was
// changed since; of a hot block that is one grain again and again.
const (
	versionShift = 32
	hot          = 1 << 63
)

func versionOf(seed uint64) uint64 { return seed &^ hot >> versionShift }

// fillVersion fills p with a version of a block, which differs from the one before in a
// grain or two.
func fillVersion(p []byte, seed uint64) {
	block := seed % (1 << versionShift)
	dedupetest.FillBlock(p, block)
	if seed&hot != 0 {
		if v := versionOf(seed); v > 0 {
			fillGrain(p, int(block), rand.New(rand.NewPCG(block, v)))
		}
		return
	}
	for v := uint64(1); v <= versionOf(seed); v++ {
		r := rand.New(rand.NewPCG(block, v))
		for range 1 + r.IntN(2) {
			fillGrain(p, r.IntN(len(p)/pack.GrainSize), r)
		}
	}
}

func fillGrain(p []byte, n int, r *rand.Rand) {
	grain := p[n%(len(p)/pack.GrainSize)*pack.GrainSize:][:pack.GrainSize]
	for i := range grain[:len(grain)*3/4] {
		grain[i] = byte(r.Uint32())
	}
}

// openTree is a batch of the model that is being filled.
type openTree struct {
	patches dedupe.Patches // where versions of blocks are put
	batch   dedupe.Batch
	point   treePoint
	list    []dedupe.Digest // of the blocks, in order
}

func (o *openTree) put(ctx context.Context, s dedupe.Store, seeds []uint64) error {
	buf := make([]byte, s.BlockSize())
	for _, seed := range seeds {
		fillVersion(buf, seed)
		put, err := o.putVersion(ctx, s, seed, buf)
		if err != nil {
			return err
		}
		o.point.Seeds = append(o.point.Seeds, seed)
		o.list = append(o.list, put.Digest)
	}
	return nil
}

// putVersion puts a block, one that was changed as a patch over what it was before.
func (o *openTree) putVersion(ctx context.Context, s dedupe.Store, seed uint64, buf []byte) (dedupe.Put, error) {
	if versionOf(seed) == 0 {
		return o.batch.PutBlock(ctx, buf)
	}
	if o.patches == nil {
		o.patches = o.batch.(dedupe.PatchBatch).Patches()
	}
	was := make([]byte, len(buf))
	fillVersion(was, seed-1<<versionShift)
	return o.patches.PutPatch(ctx, buf, s.BlockDigest(was), func() ([]byte, error) { return was, nil })
}

// commit puts the tree over the blocks and publishes the point.
func (o *openTree) commit(ctx context.Context) (dedupe.Digest, error) {
	var top [dedupe.FanOut]dedupe.Digest
	n := 0
	for list := o.list; len(list) > 0; n++ {
		var children [dedupe.FanOut]dedupe.Digest
		list = list[copy(children[:16], list):]
		put, err := o.batch.PutNode(ctx, 0, &children)
		if err != nil {
			return dedupe.Digest{}, err
		}
		top[n%dedupe.FanOut] = put.Digest
	}
	if n > 0 {
		put, err := o.batch.PutNode(ctx, 1, &top)
		if err != nil {
			return dedupe.Digest{}, err
		}
		o.point.Top, o.point.Extra = put.Digest, o.list[:1]
	}
	m, err := json.Marshal(o.point)
	if err != nil {
		return dedupe.Digest{}, err
	}
	ids, err := o.batch.Commit(ctx, dedupe.Publication{Manifests: [][]byte{m},
		Notes: []dedupe.Note{{Type: 2, Subject: dedupe.Sum(m), Body: []byte(o.point.Name)}}})
	if err != nil {
		return dedupe.Digest{}, err
	}
	return ids[0], nil
}

func loadTree(ctx context.Context, s dedupe.Store, id dedupe.Digest) (p treePoint, err error) {
	m, err := s.Get(ctx, dedupe.KindManifest, id, nil)
	if err == nil {
		err = json.Unmarshal(m, &p)
	}
	return p, err
}

// purge publishes that a point is gone.
func purge(ctx context.Context, s dedupe.Store, id dedupe.Digest) error {
	b, err := s.Begin(ctx)
	if err != nil {
		return err
	}
	_, err = b.Commit(ctx, dedupe.Publication{Notes: []dedupe.Note{{Type: purgeNote, Subject: id}}})
	return err
}

// listed is what a reader of the vault takes for its points: published, not purged.
func listed(ctx context.Context, s dedupe.Store) (live []dedupe.Digest, purged map[dedupe.Digest]bool, notes map[uint64]dedupe.Digest, err error) {
	var all []dedupe.Digest
	if err = s.Manifests(ctx, func(d dedupe.Digest) bool { all = append(all, d); return true }); err != nil {
		return nil, nil, nil, err
	}
	purged, notes = make(map[dedupe.Digest]bool), make(map[uint64]dedupe.Digest)
	err = s.Notes(ctx, func(n dedupe.Note) bool {
		notes[n.Sequence] = n.Subject
		if n.Type == purgeNote {
			purged[n.Subject] = true
		}
		return true
	})
	for _, d := range all {
		if !purged[d] {
			live = append(live, d)
		}
	}
	return live, purged, notes, err
}

// collectTrees is what package collection does, for the points of these tests. between
// is called between the mark and the sweep of each pass.
func collectTrees(ctx context.Context, s *blockstore.Store, o blockstore.CollectOptions, between func() error) (blockstore.CollectReport, error) {
	c, err := s.BeginCollection(ctx, o)
	if err != nil {
		return blockstore.CollectReport{}, err
	}
	defer c.End()
	live, purged, notes, err := listed(ctx, s)
	if err != nil {
		return c.Report(), err
	}
	known := make(map[dedupe.Digest]bool)
	for _, d := range live {
		known[d] = true
	}
	for n := range c.Passes() {
		c.StartPass(n)
		for _, id := range live {
			p, err := loadTree(ctx, s, id)
			if err == nil {
				err = c.MarkTree(ctx, 1, p.Top)
			}
			if err != nil {
				return c.Report(), err
			}
			for _, d := range p.Extra {
				c.MarkBlock(d)
			}
		}
		if between != nil {
			if err := between(); err != nil {
				return c.Report(), err
			}
		}
		if n == 0 {
			if err := c.SweepNodes(ctx); err != nil {
				return c.Report(), err
			}
		}
		if err := c.SweepBlocks(ctx); err != nil {
			return c.Report(), err
		}
	}
	err = c.SweepPacks(ctx, blockstore.Dead{
		Manifest: func(d dedupe.Digest) bool { return purged[d] },
		Subject: func(sequence uint64) dedupe.Digest {
			if subject := notes[sequence]; !known[subject] {
				return subject
			}
			return dedupe.Digest{}
		}})
	return c.Report(), err
}

// checkTrees reads every point that must be there, to the last block, and compares the
// list of points; what was said to be gone may be there only as purged.
func checkTrees(s dedupe.Store, want map[dedupe.Digest]bool) error {
	ctx := context.Background()
	live, _, _, err := listed(ctx, s)
	if err != nil {
		return err
	}
	for _, id := range live {
		if !want[id] {
			return fmt.Errorf("point %v is back", id)
		}
	}
	if len(live) != len(want) {
		return fmt.Errorf("%d points, want %d", len(live), len(want))
	}
	buf, plain := make([]byte, 0, s.BlockSize()), make([]byte, s.BlockSize())
	for _, id := range live {
		p, err := loadTree(ctx, s, id)
		if err != nil {
			return err
		}
		for _, seed := range p.Seeds {
			fillVersion(plain, seed)
			got, err := s.Get(ctx, dedupe.KindBlock, s.BlockDigest(plain), buf)
			if err != nil || string(got) != string(plain) {
				return fmt.Errorf("point %q, block %d: %w", p.Name, seed, err)
			}
		}
		if p.Top.IsZero() {
			continue
		}
		top, err := s.Get(ctx, dedupe.KindNode, p.Top, nil)
		if err != nil {
			return fmt.Errorf("point %q: %w", p.Name, err)
		}
		for at := 0; at < len(top); at += dedupe.DigestSize {
			if d := dedupe.Digest(top[at:][:dedupe.DigestSize]); !d.IsZero() {
				if _, err := s.Get(ctx, dedupe.KindNode, d, nil); err != nil {
					return fmt.Errorf("point %q: %w", p.Name, err)
				}
			}
		}
	}
	return nil
}

// collectModel drives a vault by random steps and knows what must be in it.
type collectModel struct {
	t       testing.TB
	r       *rand.Rand
	o       blockstore.Options
	dir     string
	s       *blockstore.Store
	points  map[dedupe.Digest]bool
	order   []dedupe.Digest // of points, as they came
	open    []*openTree
	named   int
	inside  bool // a hook of the collection under way is at work
	acting  float64
	copies  []string // of the folder, taken in the midst of a collection
	wants   []map[dedupe.Digest]bool
	during  error // of a step inside of a collection
	collect int
	depths  []int // of the blocks at the end
	// versions of each block that batches put; 0 makes no patches.
	versions uint64
}

// seedRange is small, so that batches put what deleted points had.
const seedRange = 500

func (m *collectModel) start() error {
	hooked := m.o.WithHook(func(op, name string) error {
		if op != "collect" || m.inside || m.acting == 0 {
			return nil
		}
		m.inside = true
		defer func() { m.inside = false }()
		if m.r.Float64() < m.acting && m.during == nil {
			m.during = m.act()
		}
		if len(m.copies) < 3 && m.r.IntN(8) == 0 {
			m.snapshot()
		}
		return nil
	})
	var err error
	m.s, err = blockstore.Open(m.dir, hooked)
	return err
}

// snapshot keeps what a kill would leave at this moment.
func (m *collectModel) snapshot() {
	next := filepath.Join(m.t.TempDir(), "copy")
	copyTree(m.t, m.dir, next)
	want := make(map[dedupe.Digest]bool)
	for d := range m.points {
		want[d] = true
	}
	m.copies, m.wants = append(m.copies, next), append(m.wants, want)
}

func (m *collectModel) seeds(n int) []uint64 {
	list := make([]uint64, n)
	blocks := uint64(seedRange)
	if m.versions > 0 {
		blocks = seedRange / 5 // of larger blocks, in several versions
	}
	at := m.r.Uint64N(blocks)
	for i := range list { // runs: neighbours die together
		list[i] = (at + uint64(i)) % blocks
		if m.versions > 0 && m.r.IntN(3) > 0 {
			list[i] += m.r.Uint64N(m.versions) << versionShift
		}
	}
	return list
}

// act is a step that may also happen inside of a collection.
func (m *collectModel) act() error {
	ctx := context.Background()
	n := m.r.IntN(10)
	if len(m.open) == 0 || n == 0 && len(m.open) < 3 {
		b, err := m.s.Begin(ctx)
		if err != nil {
			return err
		}
		m.named++
		m.open = append(m.open, &openTree{batch: b, point: treePoint{Name: fmt.Sprintf("point %d", m.named)}})
	}
	i := m.r.IntN(len(m.open))
	o := m.open[i]
	switch {
	case n < 7:
		return o.put(ctx, m.s, m.seeds(1+m.r.IntN(40)))
	case n == 7:
		m.open = slices.Delete(m.open, i, i+1)
		return o.batch.Abort()
	default:
		m.open = slices.Delete(m.open, i, i+1)
		id, err := o.commit(ctx)
		if err != nil {
			return err
		}
		m.points[id] = true
		m.order = append(m.order, id)
		return nil
	}
}

func (m *collectModel) purgeSome() error {
	for range m.r.IntN(3) {
		if len(m.order) == 0 {
			return nil
		}
		i := m.r.IntN(len(m.order))
		if err := purge(context.Background(), m.s, m.order[i]); err != nil {
			return err
		}
		delete(m.points, m.order[i])
		m.order = slices.Delete(m.order, i, i+1)
	}
	return nil
}

func (m *collectModel) runCollection() error {
	m.collect++
	m.copies, m.wants, m.during = nil, nil, nil
	m.acting = []float64{0, 0.3, 0.8}[m.r.IntN(3)]
	o := blockstore.CollectOptions{}
	if m.r.IntN(3) == 0 {
		o.MemoryBytes = 1 + m.s.Stats().Blocks*2/3 // three passes
	}
	acting := m.acting
	_, err := collectTrees(context.Background(), m.s, o, func() error {
		for acting > 0 && m.r.IntN(3) > 0 {
			if err := m.act(); err != nil {
				return err
			}
		}
		return nil
	})
	m.acting = 0
	if err := errors.Join(err, m.during); err != nil {
		return err
	}
	for i, dir := range m.copies {
		if err := m.checkCopy(dir, m.wants[i]); err != nil {
			return fmt.Errorf("a kill in the midst of collection %d: %w", m.collect, err)
		}
	}
	return nil
}

// checkCopy opens what a kill left, checks it, collects it, and builds its index anew.
func (m *collectModel) checkCopy(dir string, want map[dedupe.Digest]bool) error {
	defer os.RemoveAll(dir)
	check := func(collect bool) error {
		s, err := blockstore.Open(dir, m.o)
		if err != nil {
			return err
		}
		err = errors.Join(checkTrees(s, want), s.CheckIndex())
		if err == nil && collect {
			if _, err = collectTrees(context.Background(), s, blockstore.CollectOptions{}, nil); err == nil {
				err = errors.Join(checkTrees(s, want), s.CheckIndex())
			}
		}
		return errors.Join(err, s.Close())
	}
	rebuild := m.r.IntN(2) == 0
	if rebuild {
		if err := blockstore.RebuildIndex(context.Background(), dir, m.o, nil); err != nil {
			return err
		}
		s, err := blockstore.Open(dir, m.o)
		if err != nil {
			return err
		}
		if err := errors.Join(checkTrees(s, want), s.Close()); err != nil {
			return fmt.Errorf("rebuilt: %w", err)
		}
		return nil
	}
	return check(m.r.IntN(2) == 0)
}

func (m *collectModel) reopen() error {
	for _, o := range m.open {
		if err := o.batch.Abort(); err != nil {
			return err
		}
	}
	m.open = nil
	if err := m.s.Close(); err != nil {
		return err
	}
	return m.start()
}

func (m *collectModel) step() error {
	switch n := m.r.IntN(20); {
	case n < 10:
		return m.act()
	case n < 13:
		return m.purgeSome()
	case n < 15:
		return m.reopen()
	case n == 15: // a kill
		next := filepath.Join(m.t.TempDir(), "killed")
		copyTree(m.t, m.dir, next)
		m.open = nil
		if err := m.s.Close(); err != nil {
			return err
		}
		if err := os.RemoveAll(m.dir); err != nil {
			return err
		}
		m.dir = next
		return m.start()
	default:
		return m.runCollection()
	}
}

// run makes steps and checks after each collection and at the end.
func (m *collectModel) run(steps int) (err error) {
	if err := m.start(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.s.Close()) }()
	for step := range steps {
		before := m.collect
		if err := m.step(); err != nil {
			return fmt.Errorf("step %d: %w", step, err)
		}
		if m.collect > before {
			if err := errors.Join(checkTrees(m.s, m.points), m.s.CheckIndex()); err != nil {
				return fmt.Errorf("step %d, after collection %d: %w", step, m.collect, err)
			}
		}
	}
	m.depths = m.s.PatchDepths()
	return errors.Join(checkTrees(m.s, m.points), m.s.CheckIndex())
}

// patchOptions are those of vaults whose blocks have room for patches over patches.
var patchOptions = blockstore.Options{BlockSize: 64 << 10, PackBytes: blockstore.MinPackBytes}

// newPatchModel is a model of which most blocks are patches.
func newPatchModel(t testing.TB, seed uint64, o blockstore.Options) *collectModel {
	m := newCollectModel(t, seed, o)
	m.dir, m.versions = newVault(t, patchOptions), 6
	return m
}

// TestCollectModel with patches, of which some stand in half-dead bundles, some alone keep
// their bases, and some are put while those go.
func TestCollectModelPatches(t *testing.T) {
	t.Parallel()
	seed := uint64(envInt(t, "SEED", time.Now().UnixNano()&0xffffff))
	steps := int(envInt(t, "STEPS", 90))
	t.Logf("SEED=%d STEPS=%d", seed, steps)
	m := newPatchModel(t, seed, patchOptions)
	if err := m.run(steps); err != nil {
		t.Fatalf("SEED=%d: %v", seed, err)
	}
	t.Logf("%d collections, %d points at the end, blocks by depth %v", m.collect, len(m.points), m.depths)
}

func newCollectModel(t testing.TB, seed uint64, o blockstore.Options) *collectModel {
	return &collectModel{t: t, r: rand.New(rand.NewPCG(seed, 9)), o: o, dir: newVault(t, crashOptions), points: make(map[dedupe.Digest]bool)}
}

// Random batches, commits, aborts, purges, stops, kills and collections, with batches
// at work at every step of a collection and a kill at any of them, against a map.
func TestCollectModel(t *testing.T) {
	t.Parallel()
	seed := uint64(envInt(t, "SEED", time.Now().UnixNano()&0xffffff))
	steps := int(envInt(t, "STEPS", 120))
	t.Logf("SEED=%d STEPS=%d", seed, steps)
	m := newCollectModel(t, seed, crashOptions)
	if err := m.run(steps); err != nil {
		t.Fatalf("SEED=%d: %v", seed, err)
	}
	t.Logf("%d collections, %d points at the end", m.collect, len(m.points))
}

// The model finds every mistake that is seeded: what it does not find it does not prove.
func TestCollectModelFindsBugs(t *testing.T) {
	t.Parallel()
	for name := range blockstore.Bugs {
		if name == notesAlone || name == bundlesWhole {
			continue // TestCollectKeepsPurgeNote and TestCollectPatchesMatters show these
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := range uint64(envInt(t, "SEEDS", 12)) {
				seed := n ^ 2 // 2 first: it finds most of them
				m := newCollectModel(t, seed, crashOptions.WithBug(name))
				if strings.Contains(name, "patch") {
					m = newPatchModel(t, seed, patchOptions.WithBug(name))
				}
				if err := m.run(150); err != nil {
					t.Logf("seed %d, collection %d: %v", seed, m.collect, err)
					return
				}
			}
			t.Error("the model does not find it")
		})
	}
}
