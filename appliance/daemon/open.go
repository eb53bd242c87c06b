package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/catalog"
	"github.com/keelblock/keelblock/appliance/cursor"
	"github.com/keelblock/keelblock/appliance/job"
	"github.com/keelblock/keelblock/appliance/machine"
	"github.com/keelblock/keelblock/appliance/vault"
)

// openStores opens catalog and vault under the marker. Whatever goes wrong becomes
// the state of that part; disks are served already and stay so.
func (d *daemon) openStores(ctx context.Context) {
	defer d.openOnce.Do(func() { close(d.opened) })
	ok, err := d.marker.Enter()
	if err != nil {
		// Without a marker a death could repeat for ever: do not try.
		reason := &appliance.Error{Op: "open the vault", Kind: appliance.ErrUnavailable, Err: err, Hint: "free space in the data directory and start again"}
		d.refuse(reason)
		return
	}
	if !ok {
		d.refuse(vault.TooManyDeaths())
		return
	}
	d.openCatalog(ctx)
	d.openVault(ctx)
	if err := d.marker.Leave(); err != nil {
		d.log.Error("the marker of the vault's opening stays", "error", err)
	}
	if err := d.ballast.Fill(d.vaultReserve); err != nil {
		d.log.Warn("there is no ballast", "error", err)
	}
}

// refuse leaves catalog and vault closed.
func (d *daemon) refuse(reason error) {
	d.log.Error("catalog and vault stay closed; disks are served", "error", reason)
	d.vault.Refuse(reason)
	d.machines.Close(reason)
	d.cursors.Close(reason)
}

func (d *daemon) openVault(ctx context.Context) {
	if d.siteErr != nil { // points are read without the key, and that matters most now
		d.alert("site", fmt.Sprintf("no backup can be made: %v", d.siteErr))
	}
	if err := d.vault.Open(ctx); err != nil {
		d.log.Error("the vault stays closed; disks are served", "error", err)
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
func (d *daemon) rebuild(ctx context.Context, t *job.Task) error {
	t.Detail("reading packs")
	last := int64(0)
	end := t.Begin("RebuildIndex")
	err := d.vault.RebuildIndex(ctx, func(done, total int64) {
		t.SetTotal(total)
		t.AddDone(done - last)
		last = done
	})
	end(err)
	if err != nil {
		return err
	}
	if err := d.marker.Leave(); err != nil {
		return err
	}
	d.openStores(ctx)
	state, reason := d.vault.State()
	if state != vault.Open {
		return reason
	}
	return nil
}
