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

// Collect frees what no point of the vault needs; with dryRun it only says what that
// is. Points in use are kept. progress is told what is being done.
func (h *Handle) Collect(ctx context.Context, dryRun bool, progress func(step string)) (collection.Report, error) {
	r, err := collection.Run(ctx, h.Store, h.Points, collection.Options{DryRun: dryRun, Pinned: h.Vault.Pinned, Progress: progress})
	if err == nil || ctx.Err() != nil {
		return r, err
	}
	e := &appliance.Error{Op: h.Vault.op("collect"), Err: err}
	switch {
	case errors.Is(err, blockstore.ErrCollecting):
		e.Kind, e.Hint = appliance.ErrInUse, "see keelblock job list"
	case errors.Is(err, collection.ErrUnreadable):
		e.Hint = "see keelblock vault verify; when the point cannot be healed, delete it with --purge"
	case errors.Is(err, dedupe.ErrNoSpace):
		e.Kind, e.Hint = appliance.ErrNoSpace, "free a few MiB on the vault's file system and try again"
	}
	return r, e
}

// Prune drops from the index what no point reaches, after it was made anew from the
// packs: what aborted backups left.
func (h *Handle) Prune(ctx context.Context) error {
	if _, err := collection.Run(ctx, h.Store, h.Points, collection.Options{IndexOnly: true, Pinned: h.Vault.Pinned}); err != nil {
		return fmt.Errorf("%s: %w", h.Vault.op("prune the index of"), err)
	}
	return nil
}
