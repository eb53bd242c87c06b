package vault

import (
	"context"
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/collection"
)

// CollectOptions of Collect.
type CollectOptions struct {
	// DryRun changes nothing and only says what would be freed.
	DryRun bool
	// Reason says why it is made, for LastCollection.
	Reason string
	// Progress, when not nil, is told what is being done.
	Progress func(step string)
}

// Collect frees what no point of the vault needs. Points in use are kept. How it went can
// be asked later, with LastCollection.
func (h *Handle) Collect(ctx context.Context, o CollectOptions) (r collection.Report, err error) {
	if o.DryRun {
		return h.collect(ctx, o)
	}
	last, err := h.Vault.beginCollection(o.Reason)
	if err != nil {
		return r, err
	}
	defer func() {
		last.FreedBytes, last.KeptBytes = r.FreedBytes, r.PackBytes
		last.Purged = len(h.Points.Purged())
		h.Vault.endCollection(last, ctx.Err() != nil, r.NoSpace, err)
		h.Vault.RestoreBallast() // if it was given up for this, or for the deletions before
	}()
	return h.collect(ctx, o)
}

func (h *Handle) collect(ctx context.Context, o CollectOptions) (collection.Report, error) {
	if err := h.Reread(ctx); err != nil && ctx.Err() == nil {
		h.Vault.o.Logger.Warn("points that could not be read were not read again", "vault", h.Vault.Name(), "error", err)
	}
	r, err := collection.Run(ctx, h.Store, h.Points, collection.Options{DryRun: o.DryRun, Pinned: h.Vault.Pinned, Progress: o.Progress})
	if err == nil || ctx.Err() != nil {
		return r, err
	}
	e := &appliance.Error{Op: h.Vault.op("collect"), Err: err}
	var unreadable *collection.UnreadableError
	switch {
	case errors.Is(err, blockstore.ErrCollecting):
		e.Kind, e.Hint = appliance.ErrInUse, "see keelblock job list"
	case errors.As(err, &unreadable):
		e.Hint = unreadableHint(unreadable.Point, errors.Is(err, dedupe.ErrUnknownFormat))
	case errors.Is(err, dedupe.ErrNoSpace):
		e.Kind, e.Hint = appliance.ErrNoSpace, "free a few MiB on the vault's file system and try again"
	}
	return r, e
}

// Reread lists the points again that could not be read when the vault was opened, and
// can be read now.
func (h *Handle) Reread(ctx context.Context) error {
	back, err := h.Points.Reread(ctx)
	for _, p := range back {
		h.Vault.o.Logger.Info("a recovery point can be read again", "vault", h.Vault.Name(), "recovery_point", p.ID, "machine", p.Manifest.MachineName)
	}
	return err
}

// unreadableHint is what to do about a point that cannot be read.
func unreadableHint(id dedupe.Digest, later bool) string {
	if later {
		return "use the release that made it"
	}
	return fmt.Sprintf("bring back a location of the vault that has it and run keelblock recovery-point verify --all; if there is none, give it up: keelblock recovery-point delete %s --purge", id)
}

// Prune drops from the index what no point reaches, after it was made anew from the
// packs: what aborted backups left.
func (h *Handle) Prune(ctx context.Context) error {
	if _, err := collection.Run(ctx, h.Store, h.Points, collection.Options{IndexOnly: true, Pinned: h.Vault.Pinned}); err != nil {
		return fmt.Errorf("%s: %w", h.Vault.op("prune the index of"), err)
	}
	return nil
}
