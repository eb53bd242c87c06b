package hashtree

import (
	"context"
	"fmt"
	"sync"

	"github.com/keelblock/keelblock/dedupe"
)

// NodeSize is the length of a stored node in bytes.
const NodeSize = dedupe.FanOut * dedupe.DigestSize

// Node is the children of one node in order; the zero digest is a hole. A Node
// got from Nodes is shared and must not be changed.
type Node [dedupe.FanOut]dedupe.Digest

// Getter is the part of dedupe.Store that reads. A Batch that can read what it
// has put may stand in for the Store while its tree is not yet published.
type Getter interface {
	Get(ctx context.Context, kind dedupe.Kind, d dedupe.Digest, buf []byte) ([]byte, error)
}

// Nodes reads nodes. Implementations are safe for concurrent use.
type Nodes interface {
	// Node returns the node of the given level and digest, verified against both.
	// The result is shared: it must not be changed.
	Node(ctx context.Context, level int, d dedupe.Digest) (*Node, error)
}

// NodeError says which node of a tree could not be read, and what is lost by it.
type NodeError struct {
	Level  int
	Digest dedupe.Digest
	// Offset and Length of the range of the disk below the node, in bytes, when
	// the reader knew its place; Length is 0 otherwise.
	Offset, Length int64
	Err            error
}

func (e *NodeError) Error() string {
	if e.Length == 0 {
		return fmt.Sprintf("read node %v of level %d: %v", e.Digest, e.Level, e.Err)
	}
	return fmt.Sprintf("read node %v of level %d for bytes %d+%d: %v", e.Digest, e.Level, e.Offset, e.Length, e.Err)
}

// Unwrap is the store's error.
func (e *NodeError) Unwrap() error { return e.Err }

// Direct reads each node from g.
func Direct(g Getter) Nodes { return direct{g} }

type direct struct{ g Getter }

var nodeBuffers = sync.Pool{New: func() any { b := make([]byte, NodeSize); return &b }}

func (n direct) Node(ctx context.Context, level int, d dedupe.Digest) (*Node, error) {
	bp := nodeBuffers.Get().(*[]byte)
	defer nodeBuffers.Put(bp)
	p, err := n.g.Get(ctx, dedupe.KindNode, d, *bp)
	if err != nil {
		return nil, &NodeError{Level: level, Digest: d, Err: err}
	}
	node, err := ParseNode(level, d, p)
	if err != nil {
		return nil, &NodeError{Level: level, Digest: d, Err: err}
	}
	return node, nil
}

// ParseNode decodes the stored bytes of a node and verifies that they are the node
// d of the given level. The store has compared them with the level of its record;
// this compares with the level at which the parent names the node, so that no tree
// can be made whose levels contradict each other. It costs 3 µs for 8 MiB of disk.
func ParseNode(level int, d dedupe.Digest, p []byte) (*Node, error) {
	if level < 0 || level >= dedupe.MaxDepth {
		return nil, fmt.Errorf("level %d is not in 0 .. %d: %w", level, dedupe.MaxDepth-1, dedupe.ErrCorrupt)
	}
	if len(p) != NodeSize {
		return nil, fmt.Errorf("%d bytes, want %d: %w", len(p), NodeSize, dedupe.ErrCorrupt)
	}
	node, empty := new(Node), true
	for i := range node {
		copy(node[i][:], p[i*dedupe.DigestSize:])
		empty = empty && node[i].IsZero()
	}
	if empty {
		return nil, fmt.Errorf("node without children: %w", dedupe.ErrCorrupt)
	}
	if got := dedupe.NodeSum(level, (*[dedupe.FanOut]dedupe.Digest)(node)); got != d {
		return nil, fmt.Errorf("content has digest %v: %w", got, dedupe.ErrCorrupt)
	}
	return node, nil
}

// Cached reads through a cache of the count nodes used last, at 4 KiB each.
func Cached(g Getter, count int) Nodes {
	return &cached{nodes: Direct(g), slots: make([]cachedNode, max(count, 8)), where: make(map[dedupe.Digest]int)}
}

// cached evicts by the clock algorithm: a hit sets a mark and moves nothing.
type cached struct {
	nodes Nodes

	mu    sync.Mutex // guards what follows; not held over a read
	slots []cachedNode
	where map[dedupe.Digest]int
	hand  int
}

type cachedNode struct {
	digest dedupe.Digest
	level  int
	node   *Node
	used   bool
}

func (c *cached) Node(ctx context.Context, level int, d dedupe.Digest) (*Node, error) {
	c.mu.Lock()
	if i, ok := c.where[d]; ok && c.slots[i].level == level {
		c.slots[i].used = true
		n := c.slots[i].node
		c.mu.Unlock()
		return n, nil
	}
	c.mu.Unlock()
	n, err := c.nodes.Node(ctx, level, d)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.where[d]; ok {
		return n, nil
	}
	for c.slots[c.hand].used {
		c.slots[c.hand].used = false
		c.hand = (c.hand + 1) % len(c.slots)
	}
	if old := c.slots[c.hand]; old.node != nil {
		delete(c.where, old.digest)
	}
	c.slots[c.hand] = cachedNode{digest: d, level: level, node: n}
	c.where[d] = c.hand
	c.hand = (c.hand + 1) % len(c.slots)
	return n, nil
}
