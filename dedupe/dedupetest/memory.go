package dedupetest

import (
	"context"
	"fmt"
	"sync"

	"github.com/keelblock/keelblock/dedupe"
)

// Memory is a dedupe.Store in memory. It keeps what was put as it is, whole and
// uncompressed; Close forgets it. Use NewMemory.
type Memory struct {
	blockSize int
	domain    dedupe.DomainID

	mu        sync.Mutex
	closed    bool
	content   map[key][]byte
	manifests []dedupe.Digest
	notes     []dedupe.Note
	batches   map[*memoryBatch]struct{}
	stats     dedupe.Stats
}

type key struct {
	kind   dedupe.Kind
	digest dedupe.Digest
}

var (
	_ dedupe.Store = (*Memory)(nil)
	_ dedupe.Batch = (*memoryBatch)(nil)
)

// NewMemory is an empty Store with blocks of blockSize bytes.
func NewMemory(blockSize int) *Memory {
	return &Memory{blockSize: blockSize, domain: dedupe.DomainID{1}, content: make(map[key][]byte),
		batches: make(map[*memoryBatch]struct{})}
}

// BlockSize implements dedupe.Store.
func (m *Memory) BlockSize() int { return m.blockSize }

// Domain implements dedupe.Store.
func (m *Memory) Domain() dedupe.DomainID { return m.domain }

// BlockDigest implements dedupe.Store.
func (m *Memory) BlockDigest(p []byte) dedupe.Digest { return dedupe.Sum(p) }

// Encrypted implements dedupe.Store.
func (m *Memory) Encrypted() bool { return false }

// Stats are the Store's counters.
func (m *Memory) Stats() dedupe.Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stats
}

// Corrupt flips a bit of what is stored under d, so that reading it is
// dedupe.ErrCorrupt. It panics when nothing is stored there.
func (m *Memory) Corrupt(kind dedupe.Kind, d dedupe.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := append([]byte(nil), m.content[key{kind, d}]...)
	p[len(p)/2] ^= 1
	m.content[key{kind, d}] = p
}

// Remove forgets what is stored under d, as a lost pack does.
func (m *Memory) Remove(kind dedupe.Kind, d dedupe.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.content, key{kind, d})
}

// Get implements dedupe.Store.
func (m *Memory) Get(ctx context.Context, kind dedupe.Kind, d dedupe.Digest, buf []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, dedupe.ErrClosed
	}
	p, ok := m.content[key{kind, d}]
	for b := range m.batches {
		if !ok {
			p, ok = b.content[key{kind, d}]
		}
	}
	if !ok || kind == dedupe.KindNote {
		return nil, fmt.Errorf("get %v: %w", d, dedupe.ErrNotFound)
	}
	m.stats.ReadBlocks++
	if sum(kind, p) != d {
		m.stats.CorruptBlocks++
		return nil, fmt.Errorf("get %v from memory: %w", d, dedupe.ErrCorrupt)
	}
	if kind == dedupe.KindNode {
		p = p[1:]
	}
	return append(buf[:0], p...), nil
}

// sum is the digest of content as Memory keeps it: a node has its level in front.
func sum(kind dedupe.Kind, p []byte) dedupe.Digest {
	if kind != dedupe.KindNode {
		return dedupe.Sum(p)
	}
	var children [dedupe.FanOut]dedupe.Digest
	for i := range children {
		copy(children[i][:], p[1+i*dedupe.DigestSize:])
	}
	return dedupe.NodeSum(int(p[0]), &children)
}

// Begin implements dedupe.Store.
func (m *Memory) Begin(ctx context.Context) (dedupe.Batch, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, dedupe.ErrClosed
	}
	b := &memoryBatch{m: m, content: make(map[key][]byte)}
	m.batches[b] = struct{}{}
	return b, nil
}

// Manifests implements dedupe.Store.
func (m *Memory) Manifests(ctx context.Context, yield func(dedupe.Digest) bool) error {
	m.mu.Lock()
	list, closed := m.manifests, m.closed
	m.mu.Unlock()
	if closed {
		return dedupe.ErrClosed
	}
	for _, d := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !yield(d) {
			break
		}
	}
	return nil
}

// Notes implements dedupe.Store.
func (m *Memory) Notes(ctx context.Context, yield func(dedupe.Note) bool) error {
	m.mu.Lock()
	list, closed := m.notes, m.closed
	m.mu.Unlock()
	if closed {
		return dedupe.ErrClosed
	}
	for _, n := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		n.Body = append([]byte(nil), n.Body...)
		if !yield(n) {
			break
		}
	}
	return nil
}

// Close implements dedupe.Store.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	clear(m.batches)
	return nil
}

// memoryBatch keeps what it put until Commit.
type memoryBatch struct {
	m       *Memory
	content map[key][]byte // guarded by m.mu, as is done
	done    bool
}

func (b *memoryBatch) put(ctx context.Context, kind dedupe.Kind, d dedupe.Digest, p []byte) (dedupe.Put, error) {
	if err := ctx.Err(); err != nil {
		return dedupe.Put{}, err
	}
	put := dedupe.Put{Digest: d}
	m := b.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || b.done {
		return put, dedupe.ErrClosed
	}
	if kind == dedupe.KindBlock {
		m.stats.PutBlocks++
	}
	k := key{kind, d}
	if _, ok := b.content[k]; ok {
		return put, nil
	}
	if old, ok := m.content[k]; ok && sum(kind, old) == d {
		return put, nil
	}
	b.content[k] = append([]byte(nil), p...)
	put.New, put.StoredBytes, put.RawBytes = true, int64(len(p)), int64(len(p))
	if kind == dedupe.KindBlock {
		m.stats.NewBlocks++
		m.stats.NewRawBytes += int64(len(p))
		m.stats.NewBytes += int64(len(p))
	}
	return put, nil
}

// PutBlock implements dedupe.Batch.
func (b *memoryBatch) PutBlock(ctx context.Context, p []byte) (dedupe.Put, error) {
	if len(p) != b.m.blockSize {
		return dedupe.Put{}, fmt.Errorf("put block of %d bytes, want %d", len(p), b.m.blockSize)
	}
	return b.put(ctx, dedupe.KindBlock, dedupe.Sum(p), p)
}

// PutNode implements dedupe.Batch.
func (b *memoryBatch) PutNode(ctx context.Context, level int, children *[dedupe.FanOut]dedupe.Digest) (dedupe.Put, error) {
	if level < 0 || level >= dedupe.MaxDepth {
		return dedupe.Put{}, fmt.Errorf("put node of level %d, want 0 to %d", level, dedupe.MaxDepth-1)
	}
	p := append(make([]byte, 0, 1+dedupe.FanOut*dedupe.DigestSize), byte(level))
	for i := range children {
		p = append(p, children[i][:]...)
	}
	return b.put(ctx, dedupe.KindNode, dedupe.NodeSum(level, children), p)
}

// Commit implements dedupe.Batch.
func (b *memoryBatch) Commit(ctx context.Context, p dedupe.Publication) ([]dedupe.Digest, error) {
	m := b.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || b.done {
		return nil, dedupe.ErrClosed
	}
	b.done = true
	delete(m.batches, b)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for i, x := range p.Manifests {
		if len(x) == 0 || len(x) > dedupe.MaxMetadataSize {
			return nil, fmt.Errorf("manifest %d of %d bytes, want 1 to %d", i, len(x), dedupe.MaxMetadataSize)
		}
	}
	for i := range p.Notes {
		if n := len(p.Notes[i].Body); n > dedupe.MaxMetadataSize {
			return nil, fmt.Errorf("note %d of %d bytes, limit %d", i, n, dedupe.MaxMetadataSize)
		}
	}
	for k, v := range b.content {
		m.content[k] = v
		switch k.kind {
		case dedupe.KindBlock:
			m.stats.Blocks++
		case dedupe.KindNode:
			m.stats.Nodes++
		}
	}
	ids := make([]dedupe.Digest, len(p.Manifests))
	for i, x := range p.Manifests {
		ids[i] = dedupe.Sum(x)
		k := key{dedupe.KindManifest, ids[i]}
		if _, ok := m.content[k]; !ok {
			m.manifests = append(m.manifests, ids[i])
		}
		m.content[k] = append([]byte(nil), x...)
	}
	for _, n := range p.Notes {
		n.Sequence = uint64(len(m.notes) + 1)
		n.Body = append([]byte(nil), n.Body...)
		m.notes = append(m.notes, n)
	}
	return ids, nil
}

// Abort implements dedupe.Batch.
func (b *memoryBatch) Abort() error {
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	b.done = true
	delete(b.m.batches, b)
	return nil
}
