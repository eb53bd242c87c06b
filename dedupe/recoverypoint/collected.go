package recoverypoint

import (
	"bytes"
	"cmp"

	"github.com/keelblock/keelblock/dedupe"
)

// Purged are the points that were purged and not collected yet. last says of each
// whether it is the newest of its machine and generation: its manifest is kept, without
// what it reaches, so that its sequence is not given again.
func (x *Index) Purged() (last map[dedupe.Digest]bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	type line struct{ machine, generation ID }
	newest := make(map[line]*Point)
	for _, p := range x.points {
		l := line{p.Manifest.MachineID, p.Manifest.Generation.ID}
		if q := newest[l]; q == nil || cmp.Or(cmp.Compare(p.Manifest.Sequence, q.Manifest.Sequence), bytes.Compare(p.ID[:], q.ID[:])) > 0 {
			newest[l] = p
		}
	}
	last = make(map[dedupe.Digest]bool)
	for id, p := range x.points {
		if p.purged {
			last[id] = newest[line{p.Manifest.MachineID, p.Manifest.Generation.ID}] == p
		}
	}
	return last
}

// Forget drops purged points that were collected from memory. A collection that is over
// tells it in any case: it has written records anew.
func (x *Index) Forget(ids []dedupe.Digest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, id := range ids {
		if p := x.points[id]; p != nil && p.purged {
			delete(x.points, id)
		}
		if p := x.broken[id]; p != nil && p.purged {
			delete(x.broken, id)
			x.solved(id)
		}
	}
	x.ordered, x.unique, x.collected = nil, nil, true
}
