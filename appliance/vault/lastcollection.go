package vault

import (
	"errors"
	"path/filepath"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/statefile"
)

// Outcome is how a collection ended.
type Outcome string

// The outcomes. A collection that a kill ended is interrupted.
const (
	CollectionRunning     Outcome = "running"
	CollectionCompleted   Outcome = "completed"
	CollectionNoSpace     Outcome = "noSpace" // what could be dropped is; there was no room to write the rest again
	CollectionFailed      Outcome = "failed"
	CollectionCancelled   Outcome = "cancelled"
	CollectionInterrupted Outcome = "interrupted"
)

// LastCollection is how the last collection of a vault went. It is kept in the vault's
// folder.
type LastCollection struct {
	StartedAt time.Time `json:"startedAt"`
	EndedAt   time.Time `json:"endedAt,omitzero"`
	Outcome   Outcome   `json:"outcome"`
	// Reason is why it was made: on request, in its turn, or because the vault was full.
	Reason     string `json:"reason"`
	FreedBytes int64  `json:"freedBytes"`
	// KeptBytes are in packs afterwards.
	KeptBytes int64 `json:"keptBytes"`
	// Purged points are known afterwards; a greater number means that there is something
	// to free.
	Purged int    `json:"purgedPoints"`
	Error  string `json:"error,omitempty"`
}

const (
	lastCollectionName = "collection.json"
	lastCollectionKind = "vault-collection"
)

func (v *Vault) lastCollectionPath() string { return filepath.Join(v.o.Dir, lastCollectionName) }

// loadCollection reads how the last collection went; the vault is being opened, so one
// that seems to run was interrupted.
func (v *Vault) loadCollection() {
	var last LastCollection
	l, err := statefile.Load(v.lastCollectionPath(), lastCollectionKind, &last)
	if err != nil {
		v.o.Logger.Warn("how the last collection went is not readable", "vault", v.o.Name, "error", err)
		last = LastCollection{}
	}
	if last.Outcome == CollectionRunning {
		last.Outcome, last.Error = CollectionInterrupted, "the daemon ended meanwhile"
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last, v.lastSerial = last, l.Serial
}

// LastCollection is how the last collection went, that which runs included; its Outcome
// is "" when there was none.
func (v *Vault) LastCollection() LastCollection {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.last
}

// beginCollection refuses a second collection beside one.
func (v *Vault) beginCollection(reason string) (LastCollection, error) {
	v.mu.Lock()
	if v.last.Outcome == CollectionRunning {
		v.mu.Unlock()
		return LastCollection{}, &appliance.Error{Op: v.op("collect"), Kind: appliance.ErrInUse, Text: "it is being collected already",
			Hint: "see keelblock job list"}
	}
	v.last = LastCollection{StartedAt: time.Now().UTC().Truncate(time.Millisecond), Outcome: CollectionRunning, Reason: reason}
	last := v.last
	v.mu.Unlock()
	v.saveCollection(last)
	return last, nil
}

func (v *Vault) endCollection(last LastCollection, cancelled, noSpace bool, err error) {
	last.EndedAt = time.Now().UTC().Truncate(time.Millisecond)
	switch {
	case err != nil && cancelled:
		last.Outcome = CollectionCancelled
	case err != nil:
		last.Outcome = CollectionFailed
	case noSpace:
		last.Outcome = CollectionNoSpace
	default:
		last.Outcome = CollectionCompleted
	}
	if err != nil {
		var e *appliance.Error
		if last.Error = err.Error(); errors.As(err, &e) {
			short := *e
			short.Op = "" // the status is about this vault
			last.Error = short.Error()
		}
	}
	v.saveCollection(last)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last = last
}

// saveCollection writes how it goes. Without room it is known until the next start.
func (v *Vault) saveCollection(last LastCollection) {
	v.mu.Lock()
	v.lastSerial++
	serial := v.lastSerial
	v.mu.Unlock()
	if err := statefile.Save(v.lastCollectionPath(), lastCollectionKind, serial, last); err != nil {
		v.o.Logger.Warn("how the collection goes is not written down", "vault", v.o.Name, "error", err)
	}
}

// Freeable reports whether points were purged since the last collection began, so that
// another one has something to free.
func (h *Handle) Freeable() bool {
	purged := h.Points.Purged()
	if len(purged) > h.Vault.LastCollection().Purged {
		return true
	}
	for _, newest := range purged {
		if !newest { // the manifest of a newest one stays
			return true
		}
	}
	return false
}
