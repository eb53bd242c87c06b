package replicate

import (
	"errors"
	"time"
)

// SiteID names one appliance among its peers. It is random, 128 bits in lower-case
// hex, made at the first start and never reused.
type SiteID string

// Role is what a site is to one replicated machine.
type Role string

// The roles. Exactly one site may hold RoleActive for a machine in one generation.
const (
	// RoleSource: the machine runs here and is copied from here.
	RoleSource Role = "source"
	// RoleTarget: the machine's points arrive here; its disks are not writable.
	RoleTarget Role = "target"
	// RoleActive: the machine runs here and is copied nowhere, either because it
	// is not replicated or after a failover that is not yet re-protected.
	RoleActive Role = "active"
)

// Lag is how far a target is behind, for one machine.
type Lag struct {
	// NewestComplete is the freeze time of the newest point that is complete and
	// verified at the target; zero when there is none.
	NewestComplete time.Time
	// BacklogBytes is what is known to be still missing, before compression.
	BacklogBytes int64
}

// RPO is the age of the newest complete point at the given time: what would be
// lost if the source died now. ok is false when there is no complete point.
func (l Lag) RPO(now time.Time) (rpo time.Duration, ok bool) {
	if l.NewestComplete.IsZero() {
		return 0, false
	}
	return max(now.Sub(l.NewestComplete), 0), true
}

// Sentinel errors between sites.
var (
	// ErrFenced: the machine's generation has moved on at the other site; this
	// side must not write.
	ErrFenced = errors.New("fenced by a newer generation at the other site")
	// ErrUnknownBase: the peer does not hold the point that a difference was
	// asked against; the caller descends level by level instead.
	ErrUnknownBase = errors.New("base point is not held by the peer")
)
