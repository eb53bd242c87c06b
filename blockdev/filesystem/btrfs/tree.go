package btrfs

// tree is a B-tree, with what a log changes of it.
type tree struct {
	id      uint64 // its nodes' owner
	root    ref
	changes *changes // nil for none
}

// path is the way from the root to an item.
type path struct {
	nodes [maxLevel + 1]*node
	slots [maxLevel + 1]int
	// below[l] is what all keys in nodes[l] are below, when bounded[l].
	below   [maxLevel + 1]key
	bounded [maxLevel + 1]bool
	top     int
}

// descend goes down from the node at level l to the leaf that may hold k.
func (f *FS) descend(t *tree, p *path, l int, k key) error {
	for ; l > 0; l-- {
		n := p.nodes[l]
		i := n.search(k)
		if i == n.n || n.key(i) != k {
			i = max(0, i-1)
		}
		p.slots[l] = i
		if err := f.enter(t, p, l); err != nil {
			return err
		}
	}
	return nil
}

// enter reads the child at the slot of level l. Its keys must be those that the
// pointers promise, so that a search cannot miss an item, and a walk over all keys
// meets no node twice.
func (f *FS) enter(t *tree, p *path, l int) error {
	n, i := p.nodes[l], p.slots[l]
	r := n.child(i)
	c, err := f.node(t, r)
	if err != nil {
		return err
	}
	p.below[l-1], p.bounded[l-1] = p.below[l], p.bounded[l]
	if i+1 < n.n {
		p.below[l-1], p.bounded[l-1] = n.key(i+1), true
	}
	if c.n == 0 || c.key(0) != n.key(i) {
		return corruptf("node %d does not begin with the key of the pointer to it", r.logical)
	}
	if p.bounded[l-1] && c.key(c.n-1).compare(p.below[l-1]) >= 0 {
		return corruptf("node %d has keys of the node behind it", r.logical)
	}
	p.nodes[l-1] = c
	return nil
}

// find positions p at the leaf where k is or would be.
func (f *FS) find(t *tree, p *path, k key) error {
	root, err := f.node(t, t.root)
	if err != nil {
		return err
	}
	p.top = int(root.level)
	p.nodes[p.top] = root
	if err := f.descend(t, p, p.top, k); err != nil {
		return err
	}
	p.slots[0] = p.nodes[0].search(k)
	return nil
}

// settle moves p from behind the last item of a leaf to the next leaf. more is false
// at the end of the tree.
func (f *FS) settle(t *tree, p *path) (more bool, err error) {
	if p.slots[0] < p.nodes[0].n {
		return true, nil
	}
	l := 1
	for ; l <= p.top; l++ {
		if p.slots[l]+1 < p.nodes[l].n {
			p.slots[l]++
			break
		}
	}
	if l > p.top {
		return false, nil
	}
	for ; l > 0; l-- {
		if err := f.enter(t, p, l); err != nil {
			return false, err
		}
		p.slots[l-1] = 0
	}
	return true, nil
}

// scan yields the items from k on, ascending, until yield returns false or an error.
func (f *FS) scan(t *tree, k key, yield func(item) (more bool, err error)) error {
	var p path
	if err := f.find(t, &p, k); err != nil {
		return err
	}
	over := t.changes.from(k)
	for {
		more, err := f.settle(t, &p)
		if err != nil {
			return err
		}
		c, changed := over.peek()
		if !more && !changed {
			return nil
		}
		var it item
		if more {
			it = p.nodes[0].item(p.slots[0])
		}
		if changed {
			order := -1
			if more {
				order = c.key.compare(it.key)
			}
			if order <= 0 {
				over.next()
				if order == 0 {
					p.slots[0]++
				}
				if c.data == nil {
					continue
				}
				it = item(c)
			} else {
				p.slots[0]++
			}
		} else {
			p.slots[0]++
		}
		if more, err := yield(it); err != nil || !more {
			return err
		}
	}
}

// get is the item with exactly this key.
func (f *FS) get(t *tree, k key) (data []byte, ok bool, err error) {
	if data, ok := t.changes.get(k); ok {
		return data, data != nil, nil
	}
	var p path
	if err := f.find(t, &p, k); err != nil {
		return nil, false, err
	}
	n, i := p.nodes[0], p.slots[0]
	if i == n.n || n.key(i) != k {
		return nil, false, nil
	}
	return n.item(i).data, true, nil
}

// floor is the last item whose key is not above k.
func (f *FS) floor(t *tree, k key) (it item, ok bool, err error) {
	c, changed := t.changes.floor(k)
	for {
		it, ok, err = f.floorOnDisk(t, k)
		if err != nil || !ok {
			break
		}
		if _, gone := t.changes.get(it.key); !gone {
			break
		}
		k = it.key.before()
	}
	if err == nil && changed && (!ok || c.key.compare(it.key) > 0) {
		return item(c), true, nil
	}
	return it, ok, err
}

func (f *FS) floorOnDisk(t *tree, k key) (it item, ok bool, err error) {
	var p path
	if err := f.find(t, &p, k); err != nil {
		return it, false, err
	}
	n, i := p.nodes[0], p.slots[0]
	if i == n.n || n.key(i) != k {
		i--
	}
	// The pointers above lead to the leaf whose first key is not above k, unless k is
	// before the first of the whole tree.
	if i < 0 {
		return it, false, nil
	}
	return n.item(i), true, nil
}

// before is the key just below k; that of the first key is itself.
func (k key) before() key {
	switch {
	case k.offset > 0:
		k.offset--
	case k.kind > 0:
		k.kind, k.offset = k.kind-1, m64
	case k.object > 0:
		k = key{k.object - 1, 255, m64}
	}
	return k
}
