package server

import (
	"context"

	"github.com/keelblock/keelblock/blockdev"
)

// DirtyBitmapPrefix begins the names of contexts that tell what changed, as QEMU
// has them; flag 1 means dirty.
const DirtyBitmapPrefix = "qemu:dirty-bitmap:"

// ContextSource offers metadata contexts of an export beside base:allocation. Its
// methods may be called from any goroutine, and must not call the Server.
type ContextSource interface {
	// Contexts lists the full names that are offered now.
	Contexts(ctx context.Context) ([]string, error)
	// OpenContext fixes one of them for one connection, until Close. An error
	// refuses that name only. Clients may send any name.
	//
	// A client that has opened one and never finished its handshake holds it until
	// Options.HandshakeTimeout ends, even if Remove has taken the export away
	// meanwhile: Close may come after the Device was closed, Status never does.
	OpenContext(ctx context.Context, name string) (Context, error)
}

// Context is an open metadata context.
type Context interface {
	// Status calls yield for consecutive extents that cover [off, off+n) in ascending
	// order without gaps, until yield returns false. Adjacent extents may have equal
	// flags.
	Status(off, n int64, yield func(x blockdev.Extent, flags uint32) bool) error
	// Close ends its use. No call of Status is under way.
	Close()
}
