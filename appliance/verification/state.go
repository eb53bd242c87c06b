package verification

import (
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/keelblock/keelblock/appliance/statefile"
	"github.com/keelblock/keelblock/dedupe"
)

const stateKind = "verification"

// Outcome of the last verification of a point.
type Outcome struct {
	Point dedupe.Digest
	Vault string
	At    time.Time
	// Bad blocks and nodes that could not be healed.
	Bad int64
}

type stateDoc struct {
	Points map[string]pointDoc `json:"points"`
}

type pointDoc struct {
	Vault string    `json:"vault"`
	At    time.Time `json:"verifiedAt"`
	Bad   int64     `json:"badCount,omitempty"`
}

func (e *Engine) path() string { return filepath.Join(e.o.Dir, "verify.json") }

// load reads the state; without one every point is due.
func (e *Engine) load() {
	var doc stateDoc
	l, err := statefile.Load(e.path(), stateKind, &doc)
	if err != nil {
		e.o.Logger.Warn("what was verified is not known: every point is due", "error", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.serial, e.last = l.Serial, map[dedupe.Digest]pointDoc{}
	for id, p := range doc.Points {
		if d, err := dedupe.ParseDigest(id); err == nil {
			e.last[d] = p
		}
	}
}

// record notes the outcome of a point, durably, and forgets points that are gone. What
// cannot be saved is verified again.
func (e *Engine) record(o Outcome) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last[o.Point] = pointDoc{Vault: o.Vault, At: o.At.UTC().Truncate(time.Second), Bad: o.Bad}
	doc := stateDoc{Points: map[string]pointDoc{}}
	for id, p := range e.last {
		if h, _ := e.o.Vaults.Holder(id); h == nil && e.open(p.Vault) {
			delete(e.last, id)
			continue
		}
		doc.Points[id.String()] = p
	}
	if err := statefile.Save(e.path(), stateKind, e.serial+1, doc); err != nil {
		e.o.Logger.Error("what was verified is not saved", "error", err)
		return
	}
	e.serial++
}

func (e *Engine) open(vault string) bool {
	v, err := e.o.Vaults.Get(vault)
	return err != nil || v.Peek() != nil
}

// Last is the outcome of a point's last verification.
func (e *Engine) Last(id dedupe.Digest) (Outcome, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p, ok := e.last[id]
	return Outcome{Point: id, Vault: p.Vault, At: p.At, Bad: p.Bad}, ok
}

// Damaged are the points of a vault whose last verification found damage that could not
// be healed, in order of their ids.
func (e *Engine) Damaged(vault string) []Outcome {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []Outcome
	for id, p := range e.last {
		if p.Bad > 0 && p.Vault == vault {
			list = append(list, Outcome{Point: id, Vault: p.Vault, At: p.At, Bad: p.Bad})
		}
	}
	slices.SortFunc(list, func(a, b Outcome) int { return strings.Compare(a.Point.String(), b.Point.String()) })
	return list
}
