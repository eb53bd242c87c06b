package recoverypoint

import (
	"context"

	"github.com/keelblock/keelblock/dedupe/hashtree"
)

// LimitCensus makes x count exactly only up to so many digests.
func LimitCensus(x *Index, entries int) { x.entries = entries }

// Reveal puts the private texts, which g has, into the fields of m, as OpenIndex does.
func (m *Manifest) Reveal(ctx context.Context, g hashtree.Getter) error {
	return m.reveal(func(c Content) (*texts, error) { return loadTexts(ctx, g, c) })
}
