package disks

import (
	"context"
	"fmt"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// exportOf is d as the server has it.
func (r *Registry) exportOf(d *Disk) server.Export {
	return server.Export{Name: d.entry.Name, Description: "disk " + d.entry.Name, Device: d.Device(),
		Exclusive: d.entry.Exclusive, Contexts: contexts{r, d.entry.Name}}
}

// SetContexts tells where the metadata contexts of the disks come from. Until then there
// are none.
func (r *Registry) SetContexts(of func(disk string) server.ContextSource) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.contexts = of
}

// contexts are those of SetContexts, which comes after the first exports.
type contexts struct {
	r    *Registry
	disk string
}

func (c contexts) source() server.ContextSource {
	c.r.mu.RLock()
	defer c.r.mu.RUnlock()
	if c.r.contexts == nil {
		return nil
	}
	return c.r.contexts(c.disk)
}

// Contexts is server.ContextSource.Contexts.
func (c contexts) Contexts(ctx context.Context) ([]string, error) {
	if s := c.source(); s != nil {
		return s.Contexts(ctx)
	}
	return nil, nil
}

// OpenContext is server.ContextSource.OpenContext.
func (c contexts) OpenContext(ctx context.Context, name string) (server.Context, error) {
	if s := c.source(); s != nil {
		return s.OpenContext(ctx, name)
	}
	return nil, &appliance.Error{Op: fmt.Sprintf("open metadata context %q", name), Kind: appliance.ErrUnavailable, Text: "the daemon is starting"}
}
