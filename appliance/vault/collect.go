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
	if err := h.Reread(ctx); err != nil && ctx.Err() == nil {
		h.Vault.o.Logger.Warn("points that could not be read were not read again", "vault", h.Vault.Name(), "error", err)
	}
	r, err := collection.Run(ctx, h.Store, h.Points, collection.Options{DryRun: dryRun, Pinned: h.Vault.Pinned, Progress: progress})
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
