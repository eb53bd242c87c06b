package daemon

import (
	"context"
	"hash/fnv"
	"time"

	"github.com/keelblock/keelblock/appliance/api"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// collectTick is how often the daemon looks whether a vault is due.
const collectTick = 30 * time.Second

// collectVaults starts a collection of each open vault at its time, until ctx ends.
func (d *daemon) collectVaults(ctx context.Context) {
	if d.cfg.CollectEvery < 0 {
		return
	}
	tick := time.NewTicker(min(collectTick, max(d.cfg.CollectEvery/4, time.Millisecond)))
	defer tick.Stop()
	due := make(map[string]time.Time) // by the vault's name
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		for _, h := range d.vaults.Handles() {
			at, ok := due[h.Vault.Name()]
			if ok && now.Before(at) {
				continue
			}
			if ok {
				d.collectVault(h)
			}
			due[h.Vault.Name()] = nextCollection(h.Store.Vault(), now, d.cfg.CollectEvery)
		}
	}
}

// collectVault starts a collection. One that cannot start is made up for the next time.
func (d *daemon) collectVault(h *vault.Handle) {
	if _, err := api.StartCollection(d.jobs, h, false); err != nil {
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
