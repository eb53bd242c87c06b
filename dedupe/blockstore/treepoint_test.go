package blockstore_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"

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
	More  []dedupe.Digest // further trees over the same blocks, of level 1
}

// trees are the tops of all trees.
func (p *treePoint) trees() []dedupe.Digest {
	if p.Top.IsZero() {
		return p.More
	}
	return append([]dedupe.Digest{p.Top}, p.More...)
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
	// bases, when not nil, chooses the version that each one is put as a patch over, and
	// puts some whole; nil: the version before.
	bases *rand.Rand
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
	back := uint64(1)
	if o.bases != nil {
		if back = o.bases.Uint64N(versionOf(seed) + 1); back == 0 {
			return o.batch.PutBlock(ctx, buf)
		}
	}
	was := make([]byte, len(buf))
	fillVersion(was, seed-back<<versionShift)
	return dedupetest.PutOver(ctx, s, o.patches, buf, was)
}

// putMore puts a further tree of n nodes over the last blocks that were put, in an order
// that seed says: who put the same blocks puts the same nodes.
func (o *openTree) putMore(ctx context.Context, n int, last int, seed uint64) error {
	blocks := o.list[len(o.list)-last:]
	r := rand.New(rand.NewPCG(seed, 3))
	var top [dedupe.FanOut]dedupe.Digest
	for i := range n {
		var children [dedupe.FanOut]dedupe.Digest
		for j := range children {
			children[j] = blocks[r.IntN(len(blocks))]
		}
		put, err := o.batch.PutNode(ctx, 0, &children)
		if err != nil {
			return err
		}
		top[i] = put.Digest
	}
	put, err := o.batch.PutNode(ctx, 1, &top)
	if err == nil {
		o.point.More = append(o.point.More, put.Digest)
	}
	return err
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
			for _, top := range p.trees() {
				err = errors.Join(err, c.MarkTree(ctx, 1, top))
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
// list of points; what was said to be gone may be there only as purged. What several points
// share is read once.
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
	blocks, nodes := make(map[uint64]bool), make(map[dedupe.Digest]bool) // that were read
	for _, id := range live {
		p, err := loadTree(ctx, s, id)
		if err != nil {
			return err
		}
		for _, seed := range p.Seeds {
			if blocks[seed] {
				continue
			}
			blocks[seed] = true
			fillVersion(plain, seed)
			got, err := s.Get(ctx, dedupe.KindBlock, s.BlockDigest(plain), buf)
			if err != nil || string(got) != string(plain) {
				return fmt.Errorf("point %q, block %d: %w", p.Name, seed, err)
			}
		}
		for _, top := range p.trees() {
			if err := checkNodes(ctx, s, top, nodes); err != nil {
				return fmt.Errorf("point %q: %w", p.Name, err)
			}
		}
	}
	return nil
}

// checkNodes reads the nodes of a tree of two levels, but for those that were read.
func checkNodes(ctx context.Context, s dedupe.Store, top dedupe.Digest, read map[dedupe.Digest]bool) error {
	if read[top] {
		return nil
	}
	read[top] = true
	content, err := s.Get(ctx, dedupe.KindNode, top, nil)
	if err != nil {
		return err
	}
	for at := 0; at < len(content); at += dedupe.DigestSize {
		if d := dedupe.Digest(content[at:][:dedupe.DigestSize]); !d.IsZero() && !read[d] {
			read[d] = true
			if _, err := s.Get(ctx, dedupe.KindNode, d, nil); err != nil {
				return err
			}
		}
	}
	return nil
}
