package daemon

import (
	"context"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/keelblock/keelblock/appliance/api"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/dedupe/pack"
)

const (
	// earlySpacing is the least time between two collections of a vault that are made
	// because it is nearly full, or failed: without room for a backup they would
	// follow one another.
	earlySpacing = 15 * time.Minute
	// lowSpace times its reserve is the free space below which a vault is nearly full.
	lowSpace = 2
)

// notCollected is logged when a vault is full and nothing is to be gained.
const notCollected = "a vault is not collected before its time"

// fullVault is a backup that met a full vault.
type fullVault struct {
	h      *vault.Handle
	object string // machine or group
}

// vaultIsFull is told by a backup that it met a full vault. It never waits: what is not
// looked at now is seen by the free space later.
func (d *daemon) vaultIsFull(h *vault.Handle, object string) {
	select {
	case d.full <- fullVault{h, object}:
	default:
	}
}

// collectVaults starts a collection of each open vault at its time, and earlier when
// it is full, until ctx ends.
func (d *daemon) collectVaults(ctx context.Context) {
	if d.cfg.CollectEvery < 0 {
		return
	}
	tick := time.NewTicker(min(d.cfg.CollectInterval, max(d.cfg.CollectEvery/4, time.Millisecond)))
	defer tick.Stop()
	due, early := make(map[string]time.Time), make(map[string]time.Time) // by the vault's name
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-d.full:
			d.collectEarly(f.h, early, fmt.Sprintf("a backup of %s found the vault full", f.object), true)
			continue
		case <-tick.C:
		}
		now := time.Now()
		for _, h := range d.vaults.Handles() {
			at, ok := due[h.Vault.Name()]
			if ok && now.Before(at) {
				d.watchSpace(h, early)
				continue
			}
			if ok {
				d.collectVault(h)
			}
			due[h.Vault.Name()] = nextCollection(h.Store.Vault(), now, d.cfg.CollectEvery)
		}
	}
}

// watchSpace collects a vault that is nearly full, and takes the alert back of one that
// is not. A ballast that was given up comes back with the space.
func (d *daemon) watchSpace(h *vault.Handle, early map[string]time.Time) {
	h.Vault.RestoreBallast()
	free, low := d.isLow(h)
	if !low {
		d.alert(spaceOf(h), "")
		return
	}
	d.collectEarly(h, early, fmt.Sprintf("only %d bytes are free", free), false)
}

// isLow reports whether a vault's file system is nearly full.
func (d *daemon) isLow(h *vault.Handle) (free int64, low bool) {
	s, err := vault.SpaceOf(h.Dir)
	if err != nil {
		return 0, false // who reads and writes there says so
	}
	return s.Free, s.Free < lowSpace*h.ReserveBytes
}

// spaceOf is what alerts about a vault's space are about.
func spaceOf(h *vault.Handle) string { return "space of vault " + h.Vault.Name() }

// collectEarly starts a collection before its time, when there may be something to free:
// points were purged, or a backup failed and left what it had stored.
func (d *daemon) collectEarly(h *vault.Handle, early map[string]time.Time, reason string, failed bool) {
	name, last := h.Vault.Name(), h.Vault.LastCollection()
	if last.Outcome == vault.CollectionRunning || !mayCollect(h.Freeable(), failed, last, time.Since(early[name])) {
		d.log.Debug(notCollected, "vault", name, "why", reason)
		return
	}
	early[name] = time.Now()
	t, err := api.StartCollection(d.jobs, h, reason, false)
	if err != nil {
		d.log.Warn("a collection does not start", "vault", name, "error", err)
		return
	}
	d.log.Warn("a vault is collected before its time", "vault", name, "why", reason, "job", t.ID())
	go func() { // ends with the job, which the daemon's stop waits for
		<-t.Ended()
		d.tellSpace(h)
	}()
}

// mayCollect decides whether a vault is collected before its time. since is the time since
// that was done last. A backup that failed after points were purged need not wait, unless
// the collection before could not do its work either.
func mayCollect(freeable, failed bool, last vault.LastCollection, since time.Duration) bool {
	if !freeable && !failed {
		return false
	}
	done := last.Outcome == vault.CollectionCompleted || last.Outcome == ""
	return since >= earlySpacing || freeable && failed && done
}

// tellSpace says what a collection before its time came to.
func (d *daemon) tellSpace(h *vault.Handle) {
	last := h.Vault.LastCollection()
	text := fmt.Sprintf("%s; a collection freed %d bytes", last.Reason, last.FreedBytes)
	if last.Error != "" {
		text = fmt.Sprintf("%s; a collection failed: %s", last.Reason, last.Error)
	}
	free, low := d.isLow(h)
	if !low && last.Error == "" {
		d.log.Warn("a vault has room again", "vault", h.Vault.Name(), "why", text, "free", free)
		d.alert(spaceOf(h), "")
		return
	}
	d.alert(spaceOf(h), fmt.Sprintf("%s, and %d bytes are free; delete recovery points with --purge, or give the file system of %s more room", text, free, h.Dir))
}

// collectVault starts a collection. One that cannot start is made up for the next time.
func (d *daemon) collectVault(h *vault.Handle) {
	if _, err := api.StartCollection(d.jobs, h, api.Scheduled, false); err != nil {
		d.log.Warn("a collection does not start", "vault", h.Vault.Name(), "error", err)
	}
}

// nextCollection is the next time after now at which a vault is collected: once in every,
// at a moment that follows from its id, so that appliances on one storage do not all
// begin at once.
func nextCollection(id pack.VaultID, now time.Time, every time.Duration) time.Time {
	h := fnv.New64a()
	h.Write(id[:])
	at := now.Truncate(every).Add(time.Duration(h.Sum64() % uint64(every)))
	if !at.After(now) {
		at = at.Add(every)
	}
	return at
}
