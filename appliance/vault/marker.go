package vault

import (
	"fmt"
	"time"

	"github.com/keelblock/keelblock/appliance/statefile"
)

// maxAttempts is how many starts may die while opening before the vault stays closed.
const maxAttempts = 2

const markerKind = "opening"

// Marker stands on disk while catalog and vault are being opened.
type Marker struct {
	path   string
	serial uint64
}

type markerDoc struct {
	Attempts int       `json:"attempts"`
	Since    time.Time `json:"since"`
}

// NewMarker returns the marker kept at path; it touches nothing.
func NewMarker(path string) *Marker { return &Marker{path: path} }

// Path is where the marker is kept.
func (m *Marker) Path() string { return m.path }

// Enter writes the marker. ok is false, and nothing is written, when two starts
// died with it set.
func (m *Marker) Enter() (ok bool, err error) {
	var doc markerDoc
	l, err := statefile.Load(m.path, markerKind, &doc)
	if err != nil {
		// A marker that does not verify is still a marker: a start was here.
		doc.Attempts = max(doc.Attempts, 1)
	}
	if doc.Attempts >= maxAttempts {
		return false, nil
	}
	m.serial = l.Serial + 1
	doc = markerDoc{Attempts: doc.Attempts + 1, Since: time.Now().UTC().Truncate(time.Second)}
	if err := statefile.Save(m.path, markerKind, m.serial, doc); err != nil {
		return false, fmt.Errorf("write the marker of the vault's opening: %w", err)
	}
	return true, nil
}

// Leave removes the marker: the opening ended, well or with an error.
func (m *Marker) Leave() error { return statefile.Remove(m.path) }
