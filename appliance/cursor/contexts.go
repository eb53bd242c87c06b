package cursor

import (
	"context"
	"fmt"
	"slices"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/dirtybitmap"
	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// offer is one dirty bitmap of a live disk.
type offer struct {
	name  string // in full
	point *recoverypoint.Point
}

// offers are the dirty bitmaps that a disk has now: one for each cursor, by its name, and
// one for each of their points and the base of the map, since-ID. It never waits: while
// vault or catalog are closed there are none.
func (s *Set) offers(d *disks.Disk) []offer {
	if d.Tracker() == nil {
		return nil
	}
	s.mu.Lock()
	var cursors []Cursor
	if s.closed == nil {
		cursors = s.of(d.Entry().ID)
	}
	s.mu.Unlock()
	var named, since []offer
	add := func(p *recoverypoint.Point) {
		name := dirtybitmap.Since(p)
		if !slices.ContainsFunc(since, func(o offer) bool { return o.name == name }) {
			since = append(since, offer{name, p})
		}
	}
	var l live
	l.read(d.Tracker())
	if _, base := s.baseOf(l, d.Entry()); base != nil {
		add(base)
	}
	for _, c := range cursors {
		id, err := dedupe.ParseDigest(c.Point)
		if err != nil {
			continue
		}
		if _, p := s.vaults.Holder(id); p != nil && DiskOf(p, d.Entry()) != nil {
			named = append(named, offer{dirtybitmap.Named(c.Name), p})
			add(p)
		}
	}
	return append(named, since...)
}

// Bitmaps are the full names of the dirty bitmap contexts that a disk offers now.
func (s *Set) Bitmaps(d *disks.Disk) []string {
	var names []string
	for _, o := range s.offers(d) {
		names = append(names, o.name)
	}
	return names
}

// Contexts offers the dirty bitmaps of a live disk, by its name. Each is fixed for the
// connection that opens it: it has what changed until then.
func (s *Set) Contexts(disk string) server.ContextSource { return source{s, disk} }

type source struct {
	s    *Set
	disk string
}

var _ server.ContextSource = source{}

// Contexts is server.ContextSource.Contexts.
func (c source) Contexts(context.Context) ([]string, error) {
	d, err := c.s.disks.Get(c.disk)
	if err != nil {
		return nil, err
	}
	return c.s.Bitmaps(d), nil
}

// OpenContext is server.ContextSource.OpenContext.
func (c source) OpenContext(ctx context.Context, name string) (server.Context, error) {
	d, err := c.s.disks.Get(c.disk)
	if err != nil {
		return nil, err
	}
	offers := c.s.offers(d)
	i := slices.IndexFunc(offers, func(o offer) bool { return o.name == name })
	if i < 0 {
		return nil, dirtybitmap.NotOffered(name)
	}
	set, size, err := c.s.Since(ctx, d, offers[i].point)
	if err != nil {
		return nil, fmt.Errorf("open metadata context %q: %w", name, err)
	}
	return dirtybitmap.New(set, size), nil
}

// Changes is what may have changed on a live disk since a cursor.
func (s *Set) Changes(ctx context.Context, d *disks.Disk, cursor string) (set *recoverypoint.ChangeSet, sizeBytes int64, err error) {
	op := fmt.Sprintf("list changes of disk %q since cursor %q", d.Name(), cursor)
	c, err := s.Get(cursor)
	if err != nil {
		return nil, 0, err
	}
	if c.DiskID != d.Entry().ID {
		return nil, 0, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf("it is a cursor of disk %q", c.DiskName),
			Hint: fmt.Sprintf("keelblock disk map %s --cursor %s", c.DiskName, cursor)}
	}
	if _, err := s.vaults.Each(ctx); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", op, err)
	}
	id, err := dedupe.ParseDigest(c.Point)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", op, err)
	}
	_, p := s.vaults.Holder(id)
	if p == nil || DiskOf(p, d.Entry()) == nil {
		return nil, 0, &appliance.Error{Op: op, Kind: appliance.ErrNotFound, Text: fmt.Sprintf("its recovery point %s is gone", c.Point),
			Hint: "copy the whole disk, and keelblock cursor advance " + cursor}
	}
	return s.Since(ctx, d, p)
}
