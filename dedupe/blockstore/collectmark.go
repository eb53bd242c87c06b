package blockstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// MarkBlock marks one block.
func (c *Collection) MarkBlock(d dedupe.Digest) {
	if !d.IsZero() && c.inPass(d) {
		c.blocks.add(d)
	}
}

// MarkTree marks the node d of the given level and all below it. A node that was marked
// before is not gone through again. A node that cannot be read ends the collection:
// what is below it is needed and not known.
func (c *Collection) MarkTree(ctx context.Context, level int, d dedupe.Digest) error {
	if d.IsZero() {
		return nil
	}
	if level < 0 {
		c.MarkBlock(d)
		return nil
	}
	if _, ok := c.nodes[d]; ok {
		return nil
	}
	c.nodes[d] = struct{}{}
	children, err := c.node(ctx, level, d)
	if err != nil {
		return err
	}
	for i := range children {
		if err := c.MarkTree(ctx, level-1, children[i]); err != nil {
			return err
		}
	}
	return nil
}

// node reads a node and compares it with the level at which it is named; -1 is any.
func (c *Collection) node(ctx context.Context, level int, d dedupe.Digest) (*[dedupe.FanOut]dedupe.Digest, error) {
	content, err := c.s.Get(ctx, dedupe.KindNode, d, make([]byte, 0, pack.NodeSize))
	if err != nil {
		return nil, err
	}
	children, err := pack.DecodeNode(content)
	if err == nil && level >= 0 && dedupe.NodeSum(level, children) != d {
		err = fmt.Errorf("node %v is not of level %d: %w", d, level, dedupe.ErrCorrupt)
	}
	return children, err
}

// hit says that an entry is needed, and whether it is still there. Store.gate is held.
func (c *Collection) hit(kind dedupe.Kind, d dedupe.Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.taking[entry{kind, d}]; ok && !c.s.o.bugs.skipTaking {
		return false
	}
	if c.s.o.bugs.skipHit {
		return true
	}
	c.hits.add(d)
	if kind == dedupe.KindNode {
		c.enqueueLocked(d)
	}
	return true
}

// enqueue puts a node into the queue of those to be followed, once.
func (c *Collection) enqueue(d dedupe.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.enqueueLocked(d)
}

func (c *Collection) enqueueLocked(d dedupe.Digest) {
	if _, ok := c.followed[d]; !ok {
		c.followed[d] = struct{}{}
		c.queue = append(c.queue, d)
	}
}

// follow marks what is below nodes that were hit. The batch has put their children
// itself, or has them from a point that its user pinned; this is for whoever will not.
func (c *Collection) follow(ctx context.Context) error {
	for {
		c.mu.Lock()
		list := c.queue
		c.queue = nil
		c.mu.Unlock()
		if len(list) == 0 {
			return nil
		}
		for _, d := range list {
			if err := c.followNode(ctx, -1, d); err != nil {
				return err
			}
		}
	}
}

func (c *Collection) followNode(ctx context.Context, level int, d dedupe.Digest) error {
	if _, ok := c.nodes[d]; ok {
		return nil // all below it is marked
	}
	children, err := c.node(ctx, level, d)
	if errors.Is(err, dedupe.ErrNotFound) || errors.Is(err, dedupe.ErrCorrupt) {
		return nil // it was hit in its batch, or what it names is gone: it proves nothing
	}
	if err != nil {
		return err
	}
	below, err := c.levelOf(d)
	if err != nil {
		return err
	}
	for _, child := range children {
		if child.IsZero() {
			continue
		}
		c.hits.add(child)
		if below > 0 {
			c.mu.Lock()
			_, known := c.followed[child]
			c.followed[child] = struct{}{}
			c.mu.Unlock()
			if !known {
				if err := c.followNode(ctx, below-1, child); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// levelOf is the level of a node, as the index knows it.
func (c *Collection) levelOf(d dedupe.Digest) (int, error) {
	p, ok, err := c.s.find(dedupe.KindNode, d)
	if !ok {
		return 0, err
	}
	return int(p.level), err
}
