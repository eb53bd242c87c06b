package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/catalog"
	"github.com/keelblock/keelblock/appliance/cursor"
	"github.com/keelblock/keelblock/appliance/job"
	"github.com/keelblock/keelblock/appliance/machine"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/dedupe/packdir"
)

// openStores opens the catalog and all vaults, each under its marker. Whatever goes
// wrong becomes the state of that part; disks are served already and stay so.
func (d *daemon) openStores(ctx context.Context) {
	defer d.openOnce.Do(func() { close(d.opened) })
	if d.siteErr != nil { // points are read without the key, and that matters most now
		d.alert("site", fmt.Sprintf("no backup can be made: %v", d.siteErr))
	}
	for _, v := range d.vaults.All() {
		d.openVault(ctx, v)
	}
	if err := d.ballast.Fill(d.vaultReserve); err != nil {
		d.log.Warn("there is no ballast", "error", err)
	}
}

// markerOf is the marker of a vault's opening; the catalog shares the default vault's.
func (d *daemon) markerOf(v *vault.Vault) *vault.Marker {
	if v.Name() == vault.DefaultName {
		return vault.NewMarker(filepath.Join(d.cfg.DataDir, "vault.opening"))
	}
	return vault.NewMarker(filepath.Join(d.cfg.DataDir, "vaults", v.Name()+".opening"))
}

// openVault opens a vault, and with the default one the catalog, under the marker.
func (d *daemon) openVault(ctx context.Context, v *vault.Vault) {
	d.openMu.Lock()
	defer d.openMu.Unlock()
	if state, _ := v.State(); state == vault.Open {
		return
	}
	// Asking for its keys may take long, and a kill meanwhile is not the vault's fault. The
	// error comes again from Open.
	_ = d.keys.Prepare(ctx, v.Name())
	marker := d.markerOf(v)
	ok, err := true, os.MkdirAll(filepath.Dir(marker.Path()), 0o700)
	if err == nil {
		ok, err = marker.Enter()
	}
	if err != nil {
		// Without a marker a death could repeat for ever: do not try.
		d.refuse(v, &appliance.Error{Op: "open vault " + v.Name(), Kind: appliance.ErrUnavailable, Err: err, Hint: "free space in the data directory and start again"})
		return
	}
	if !ok {
		d.refuse(v, vault.TooManyDeaths(v.Name()))
		return
	}
	if v.Name() == vault.DefaultName {
		d.openCatalog(ctx)
	}
	if err := v.Open(ctx); err != nil {
		d.log.Error("a vault stays closed; disks are served", "vault", v.Name(), "error", err)
	}
	if h := v.Peek(); h != nil {
		d.time.Evidence(h.Points.StatedAt())
	}
	if err := marker.Leave(); err != nil {
		d.log.Error("the marker of a vault's opening stays", "vault", v.Name(), "error", err)
	}
}

// refuse leaves a vault closed, and with the default one the catalog.
func (d *daemon) refuse(v *vault.Vault, reason error) {
	d.log.Error("a vault stays closed; disks are served", "vault", v.Name(), "error", reason)
	v.Refuse(reason)
	if v.Name() == vault.DefaultName {
		d.machines.Close(reason)
		d.cursors.Close(reason)
	}
}

// openCatalog opens the catalog unless it is open, and hands it to machines, jobs and cursors.
func (d *daemon) openCatalog(ctx context.Context) {
	d.mu.Lock()
	db := d.catalog
	d.mu.Unlock()
	if db != nil {
		return
	}
	db, err := catalog.Open(d.cfg.CatalogDir(), catalog.Options{Logger: d.log})
	if err == nil {
		err = d.machines.Attach(ctx, catalog.NewCollection[machine.Machine](db, "machine"), catalog.NewCollection[machine.Group](db, "group"))
		if err == nil {
			err = d.jobs.Attach(ctx, catalog.NewCollection[job.Record](db, "job"))
		}
		if err == nil {
			err = d.cursors.Attach(ctx, catalog.NewCollection[cursor.Cursor](db, "cursor"))
		}
		if err != nil {
			err = errors.Join(err, db.Close())
		}
	}
	if err != nil {
		reason := &appliance.Error{Op: "open the catalog", Kind: appliance.ErrUnavailable, Err: err,
			Hint: "disks are served and points can be read; move " + d.cfg.CatalogDir() + " away, start again and create the machines anew"}
		if errors.Is(err, catalog.ErrNoSpace) {
			reason.Hint = "disks are served; free space on the file system and start the daemon again"
		}
		d.machines.Close(reason)
		d.cursors.Close(reason)
		d.jobs.Detach()
		d.alert("catalog", reason.Error())
		return
	}
	d.mu.Lock()
	d.catalog = db
	d.mu.Unlock()
	d.alert("catalog", "")
}

// rebuild is the job that makes the index of a closed vault anew and opens it. The
// marker stays until it has ended, so that a death of it counts as one of an opening.
func (d *daemon) rebuild(ctx context.Context, t *job.Task, v *vault.Vault) error {
	t.Detail("reading packs")
	last := int64(0)
	end := t.Begin("RebuildIndex")
	err := v.RebuildIndex(ctx, func(done, total int64) {
		t.SetTotal(total)
		t.AddDone(done - last)
		last = done
	})
	end(err)
	if err != nil {
		return err
	}
	if err := d.markerOf(v).Leave(); err != nil {
		return err
	}
	d.openVault(ctx, v)
	if err := d.ballast.Fill(d.vaultReserve); err != nil {
		d.log.Warn("there is no ballast", "error", err)
	}
	state, reason := v.State()
	if state != vault.Open {
		return reason
	}
	if h := v.Peek(); h != nil {
		d.finishRebuild(ctx, t, h)
	}
	return nil
}

// finishRebuild does what can wait until the points of a vault are read again, and says
// what there is. They are as good as their packs: what fails here is a warning.
func (d *daemon) finishRebuild(ctx context.Context, t *job.Task, h *vault.Handle) {
	t.Detail("dropping what no point reaches")
	if err := h.Prune(ctx); err != nil {
		t.Warn(err.Error())
	}
	if slices.ContainsFunc(h.Store.Locations(), func(l packdir.State) bool { return l.State == packdir.StateIn && l.MissingPacks > 0 }) {
		t.Detail("copying packs to a location that lacks them")
		if _, err := h.Store.RepairLocations(ctx, nil); err != nil {
			t.Warn(err.Error())
		}
	}
	for _, p := range h.Points.Problems() {
		t.Warn(fmt.Sprintf("recovery point %s is not readable: %v", p.ID, p.Err))
	}
	t.Result(fmt.Sprintf("vault %s: %d recovery points in %d packs", h.Vault.Name(), len(h.Points.List("", true)), h.Store.Stats().Packs))
}
