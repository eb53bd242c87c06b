package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// MaxListed bounds Report.Bad; Report.BadCount goes on counting.
const MaxListed = 10000

// Report is the result of one verification.
type Report struct {
	Blocks int64 // read and found good
	Nodes  int64 // read and found good
	Bytes  int64 // of those blocks, before compression
	// Bad lists what is damaged or missing, by disk in the manifest's order and by
	// offset; at most MaxListed.
	Bad      []Bad
	BadCount int64
}

// OK reports whether everything was found good.
func (r Report) OK() bool { return r.BadCount == 0 }

// Err is nil, or says how much is bad and names the first; it is dedupe.ErrCorrupt.
func (r Report) Err() error {
	if r.BadCount == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d blocks and nodes are bad, the first: %v: %w",
		r.BadCount, r.BadCount+r.Blocks+r.Nodes, r.Bad[0], dedupe.ErrCorrupt)
}

// Bad is one block or node that cannot be read as what it should be.
type Bad struct {
	// Disk is the disk's name; "" for a block of the definition.
	Disk string
	// Part is "data", "change set", "definition" or "names".
	Part string
	Kind dedupe.Kind // KindBlock or KindNode
	// Offset and Length of the range that is lost, in bytes of the disk or of the
	// content.
	Offset, Length int64
	Digest         dedupe.Digest
	// Pack is where the store has it, "" when it does not know it.
	Pack string
	Err  error

	order int
}

// String is one line for an operator.
func (b Bad) String() string {
	what := "block"
	if b.Kind == dedupe.KindNode {
		what = "tree node"
	}
	where := b.Part
	if b.Disk != "" {
		where = fmt.Sprintf("disk %q, %s", b.Disk, b.Part)
	}
	s := fmt.Sprintf("%s, bytes %d+%d: %s %v", where, b.Offset, b.Length, what, b.Digest)
	if b.Pack != "" {
		s += " in pack " + b.Pack
	}
	return fmt.Sprintf("%s: %v", s, b.Err)
}

// locator is a store that knows where a record is.
type locator interface {
	Locate(d dedupe.Digest) (pack string, off, length int64, err error)
}

// Point reads everything that m reaches. progress, unless nil, is called with the
// total of bytes read so far, now and then, from one goroutine at a time. The error
// says why verification itself could not go on (canceled, store closed); damage is
// no error of Point but stands in the Report.
func Point(ctx context.Context, s dedupe.Store, m *recoverypoint.Manifest, progress func(doneBytes int64)) (Report, error) {
	return PointOnce(ctx, s, m, nil, progress)
}

// PointOnce is Point in a run over several points: a block that an earlier one had, and
// that was good, is counted and not read again. seen is the run's; nil reads all.
func PointOnce(ctx context.Context, s dedupe.Store, m *recoverypoint.Manifest, seen *Seen, progress func(doneBytes int64)) (Report, error) {
	v := &verifier{store: s, blockSize: s.BlockSize(), progress: progress, seen: seen}
	workers := runtime.GOMAXPROCS(0)
	todo := make(chan Bad, 16*workers)
	g, ctx := errgroup.WithContext(ctx)
	for range workers {
		g.Go(func() error { return v.readBlocks(ctx, todo) })
	}
	g.Go(func() error {
		defer close(todo)
		return v.list(ctx, m, todo)
	})
	if err := g.Wait(); err != nil {
		return v.report, fmt.Errorf("verify recovery point of machine %q: %w", m.MachineName, err)
	}
	slices.SortFunc(v.report.Bad, func(a, b Bad) int {
		return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.Offset, b.Offset), cmp.Compare(b.Length, a.Length))
	})
	if progress != nil {
		progress(v.report.Bytes)
	}
	return v.report, nil
}

type verifier struct {
	store     dedupe.Store
	blockSize int
	progress  func(int64)
	seen      *Seen

	mu     sync.Mutex // guards what follows, and calls of progress
	report Report
	told   int64
}

// progressStep is how many bytes lie between two calls of progress.
const progressStep = 4 << 20

// list sends every block that m reaches to the readers, and reads the nodes itself:
// there is one for 128 blocks.
func (v *verifier) list(ctx context.Context, m *recoverypoint.Manifest, todo chan<- Bad) error {
	send := func(b Bad) error {
		select {
		case todo <- b:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	nodes := hashtree.Direct(v.store)
	for i := range m.Disks {
		d := &m.Disks[i]
		if d.Root.BlockSize != v.blockSize {
			return fmt.Errorf("disk %q has blocks of %d bytes, the vault of %d", d.Name, d.Root.BlockSize, v.blockSize)
		}
		item := Bad{Disk: d.Name, Part: "data", order: 2 * i}
		seen := int64(0)
		err := hashtree.Visit(ctx, nodes, d.Root, 0, d.Root.SizeBytes, func(e hashtree.Entry) (bool, error) {
			b := item
			b.Kind, b.Offset, b.Length, b.Digest, b.Err = dedupe.KindNode, e.Offset, e.Length, e.Digest, e.Err
			switch {
			case e.Level < 0:
				b.Kind = dedupe.KindBlock
				return false, send(b)
			case e.Err != nil:
				seen--
				return false, v.bad(ctx, b)
			}
			seen++ // taken back above when it turns out bad
			return true, nil
		})
		v.mu.Lock()
		v.report.Nodes += seen
		v.mu.Unlock()
		if err != nil {
			return err
		}
		if err := v.listContent(d.ChangeSet, Bad{Disk: d.Name, Part: "change set", order: 2*i + 1}, send); err != nil {
			return err
		}
	}
	if err := v.listContent(m.Private, Bad{Part: "names", order: -2}, send); err != nil {
		return err
	}
	return v.listContent(m.Definition, Bad{Part: "definition", order: -1}, send)
}

func (v *verifier) listContent(c recoverypoint.Content, item Bad, send func(Bad) error) error {
	for i, d := range c.Blocks {
		if d.IsZero() {
			continue
		}
		item.Kind, item.Digest = dedupe.KindBlock, d
		item.Offset = int64(i) * int64(c.BlockSize)
		item.Length = min(int64(c.BlockSize), c.Length-item.Offset)
		if err := send(item); err != nil {
			return err
		}
	}
	return nil
}

// readBlocks reads what list sends.
func (v *verifier) readBlocks(ctx context.Context, todo <-chan Bad) error {
	buf := make([]byte, v.blockSize)
	for b := range todo {
		if v.seen.has(b.Digest) {
			v.good(b.Length)
			continue
		}
		p, err := v.store.Get(ctx, dedupe.KindBlock, b.Digest, buf[:0])
		if err == nil && len(p) != v.blockSize {
			err = fmt.Errorf("%d bytes, want %d: %w", len(p), v.blockSize, dedupe.ErrCorrupt)
		}
		if err != nil {
			b.Err = err
			if err := v.bad(ctx, b); err != nil {
				return err
			}
			continue
		}
		v.seen.add(b.Digest)
		v.good(b.Length)
	}
	return nil
}

func (v *verifier) good(n int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Blocks++
	v.report.Bytes += n
	if v.progress != nil && v.report.Bytes-v.told >= progressStep {
		v.told = v.report.Bytes
		v.progress(v.told)
	}
}

// bad lists b. It returns an error if b.Err does not speak about the content but
// about the attempt to read it.
func (v *verifier) bad(ctx context.Context, b Bad) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(b.Err, dedupe.ErrClosed) || errors.Is(b.Err, dedupe.ErrNoKey) { // nothing is wrong with it
		return b.Err
	}
	if l, ok := v.store.(locator); ok {
		if pack, _, _, err := l.Locate(b.Digest); err == nil {
			b.Pack = pack
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.BadCount++
	if len(v.report.Bad) < MaxListed {
		v.report.Bad = append(v.report.Bad, b)
	}
	return nil
}
