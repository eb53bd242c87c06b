package blockstore

import (
	"errors"

	"github.com/keelblock/keelblock/dedupe/pack"
)

// outPack is where the collection's pack of a class is kept.
func (c *Collection) outPack(class pack.Class) **openPack {
	if class == pack.ClassMetadata {
		return &c.outMeta
	}
	return &c.outData
}

// out is the pack that the collection appends to. It may use the reserve of free
// space: what it writes frees more. When there is no room for a whole pack it makes do
// with a smaller one.
func (c *Collection) out(class pack.Class, record int64) (*openPack, error) {
	at := c.outPack(class)
	if *at != nil {
		return *at, nil
	}
	least := pack.HeaderSize + record + pack.SealSize(1) + 2*pack.PageSize
	c.s.relieve(least + c.s.indexRoomNow())
	free, err := freeBytes(c.s.dir)
	if err != nil {
		return nil, err
	}
	size := max(least, min(c.s.o.PackBytes, free-c.s.indexRoomNow()))
	if err := c.s.checkSpare(size, c.s.indexRoomNow()); err != nil {
		return nil, err
	}
	p, err := c.s.makePack(class, size, size)
	if err != nil {
		return nil, noSpace(err)
	}
	*at = p
	return p, nil
}

// sealOut seals the collection's pack of a class.
func (c *Collection) sealOut(class pack.Class) error {
	at := c.outPack(class)
	p := *at
	if err := p.w.Seal(); err != nil {
		return err
	}
	if err := c.s.enterRow(p, packSealed, len(p.w.Entries(0)), p.w.End()); err != nil {
		return err
	}
	*at = nil
	return c.s.closePack(p)
}

// syncOut makes durable what the collection has copied so far.
func (c *Collection) syncOut() error {
	for _, p := range []*openPack{c.outData, c.outMeta} {
		if p == nil || p.w.End() == p.durable {
			continue
		}
		n, end, err := p.w.Sync()
		if err != nil {
			return noSpace(err)
		}
		if err := c.s.enterRow(p, packOpen, n, end); err != nil {
			return err
		}
	}
	return nil
}

// closeOut gives the collection's packs back: to the pool, for the batches to come.
// What was copied and not moved is rolled back.
func (c *Collection) closeOut() error {
	var errs []error
	for _, class := range []pack.Class{pack.ClassData, pack.ClassMetadata} {
		at := c.outPack(class)
		p := *at
		if *at = nil; p == nil {
			continue
		}
		if p.w.End() == p.durable && p.known {
			errs = append(errs, c.s.returnPack(p))
		} else {
			errs = append(errs, c.s.rollBackPack(p))
		}
	}
	return errors.Join(errs...)
}
