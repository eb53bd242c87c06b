package keyring

import (
	"fmt"
	"slices"

	"github.com/keelblock/keelblock/dedupe"
)

// Adopt takes over the data keys of other, a copy of k that got more of them: its first one
// seals new records from now on. The caller has stored other, wrapped, before. Whoever is
// sealing at this moment may still use the key that was first before.
func (k *Keys) Adopt(other *Keys) error {
	if other.Check() != k.Check() {
		return fmt.Errorf("adopt the data keys of domain %x: %w", other.domain, dedupe.ErrWrongKey)
	}
	list := other.dataKeys()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range k.data {
		if !slices.ContainsFunc(list, func(o *dataKey) bool { return o.id == d.id }) {
			return fmt.Errorf("adopt the data keys of domain %x: data key %x is not among them: %w", k.domain, d.id, dedupe.ErrNoKey)
		}
	}
	k.data = list
	return nil
}
