package btrfs

import "sort"

// changes are items that stand in place of those of a tree: what the replay of a log
// made. They are in order, in pieces, so that a change costs little among many.
// A nil *changes has none.
type changes struct {
	pieces [][]change // none is empty
	bytes  int
}

// change is an item, or with nil data the lack of one.
type change struct {
	key  key
	data []byte
}

const (
	maxPiece = 512
	// maxChangedBytes bounds what is kept of a log.
	maxChangedBytes = 64 << 20
	changeOverhead  = 64
)

// at is the place of the first change whose key is not below k.
func (c *changes) at(k key) (piece, slot int) {
	piece = sort.Search(len(c.pieces), func(i int) bool {
		p := c.pieces[i]
		return p[len(p)-1].key.compare(k) >= 0
	})
	if piece == len(c.pieces) {
		return piece, 0
	}
	p := c.pieces[piece]
	return piece, sort.Search(len(p), func(i int) bool { return p[i].key.compare(k) >= 0 })
}

func (c *changes) get(k key) (data []byte, ok bool) {
	if c == nil {
		return nil, false
	}
	piece, slot := c.at(k)
	if piece == len(c.pieces) || c.pieces[piece][slot].key != k {
		return nil, false
	}
	return c.pieces[piece][slot].data, true
}

// floor is the last change that is an item and not above k.
func (c *changes) floor(k key) (change, bool) {
	if c == nil {
		return change{}, false
	}
	piece, slot := c.at(k)
	if piece < len(c.pieces) && c.pieces[piece][slot].key == k {
		slot++
	}
	for {
		for slot--; slot >= 0; slot-- {
			if x := c.pieces[piece][slot]; x.data != nil {
				return x, true
			}
		}
		if piece--; piece < 0 {
			return change{}, false
		}
		slot = len(c.pieces[piece])
	}
}

// set puts an item in place; nil data takes it away.
func (c *changes) set(k key, data []byte) {
	c.bytes += len(data) + changeOverhead
	piece, slot := c.at(k)
	if piece == len(c.pieces) {
		if piece == 0 {
			c.pieces = append(c.pieces, []change{{k, data}})
			return
		}
		piece--
		slot = len(c.pieces[piece])
	}
	p := c.pieces[piece]
	if slot < len(p) && p[slot].key == k {
		c.bytes -= len(p[slot].data) + changeOverhead
		p[slot].data = data
		return
	}
	p = append(p, change{})
	copy(p[slot+1:], p[slot:])
	p[slot] = change{k, data}
	c.pieces[piece] = p
	if len(p) > maxPiece {
		half := append([]change(nil), p[len(p)/2:]...)
		c.pieces[piece] = p[: len(p)/2 : len(p)/2]
		c.pieces = append(c.pieces, nil)
		copy(c.pieces[piece+2:], c.pieces[piece+1:])
		c.pieces[piece+1] = half
	}
}

// changeCursor walks over changes.
type changeCursor struct {
	c           *changes
	piece, slot int
}

func (c *changes) from(k key) changeCursor {
	if c == nil {
		return changeCursor{}
	}
	piece, slot := c.at(k)
	return changeCursor{c, piece, slot}
}

func (u *changeCursor) peek() (change, bool) {
	if u.c == nil || u.piece == len(u.c.pieces) {
		return change{}, false
	}
	return u.c.pieces[u.piece][u.slot], true
}

func (u *changeCursor) next() {
	if u.slot++; u.slot == len(u.c.pieces[u.piece]) {
		u.piece, u.slot = u.piece+1, 0
	}
}
