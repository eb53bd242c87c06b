package vault

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/statefile"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// DefaultName is the name of the vault that every appliance has.
const DefaultName = "default"

// SoftDelete is how long a deleted point can be undeleted.
const SoftDelete = 14 * 24 * time.Hour

// rebuildHint is the way out when the index cannot be opened.
const rebuildHint = "the packs are untouched; run keelblock vault rebuild-index"

// State of a vault.
type State string

// The states.
const (
	Opening State = "opening"
	Open    State = "open"
	Closed  State = "closed"
)

// Options of a Vault. Dir and Site are required.
type Options struct {
	Dir string
	// Site signs the points that are made here.
	Site *Site
	// ReserveBytes of free space below which nothing new is stored.
	ReserveBytes int64
	// CacheBytes bounds the cache that all readers share.
	CacheBytes int64
	// Logger; nil: silent.
	Logger *slog.Logger
}

// Handle is an open vault. It is valid until the Vault is closed, which the daemon
// does after its jobs and readers have ended.
type Handle struct {
	Store  *blockstore.Store
	Points *recoverypoint.Index
	Cache  *recoverypoint.Cache
	Site   *Site
	// Dir of the store and the free space that it keeps.
	Dir          string
	ReserveBytes int64
}

// Vault is the appliance's vault in any of its states. All methods may be called
// from any number of goroutines.
type Vault struct {
	o Options

	mu      sync.Mutex
	state   State
	reason  error
	settled chan struct{} // closed when the state is not Opening
	handle  *Handle
	pins    map[dedupe.Digest]map[string]int // point → who → how often
}

// New returns a vault that is opening.
func New(o Options) *Vault {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Vault{o: o, state: Opening, settled: make(chan struct{}), pins: map[dedupe.Digest]map[string]int{}}
}

// Open opens the vault, or makes it at the first start. An error leaves it closed
// with that reason. Open and Refuse are not called at the same time.
func (v *Vault) Open(ctx context.Context) error {
	v.reopening()
	h, err := v.open(ctx)
	if err != nil {
		err = &appliance.Error{Op: "open vault " + DefaultName, Kind: appliance.ErrUnavailable, Err: err, Hint: hintFor(err)}
	}
	v.settle(h, err)
	return err
}

// Refuse leaves the vault closed for the reason given.
func (v *Vault) Refuse(reason error) { v.reopening(); v.settle(nil, reason) }

// TooManyDeaths is the reason after starts that died while opening.
func TooManyDeaths() error {
	return &appliance.Error{Op: "open vault " + DefaultName, Kind: appliance.ErrUnavailable,
		Text: fmt.Sprintf("the last %d starts died while opening it, so it stays closed and disks are served without it", maxAttempts),
		Hint: rebuildHint}
}

func (v *Vault) reopening() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.state == Closed {
		v.state, v.reason, v.settled = Opening, nil, make(chan struct{})
	}
}

func (v *Vault) settle(h *Handle, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.handle, v.reason, v.state = h, err, Open
	if err != nil {
		v.state = Closed
	}
	close(v.settled)
}

func hintFor(err error) string {
	switch {
	case errors.Is(err, dedupe.ErrLocked):
		return "end the other process"
	case errors.Is(err, dedupe.ErrNoSpace):
		return "free space on the vault's file system and start the daemon again"
	case errors.Is(err, dedupe.ErrUnknownFormat):
		return "a newer release may have written it; the packs are untouched"
	}
	return rebuildHint
}

// options of the store below.
func (v *Vault) options() blockstore.Options {
	return blockstore.Options{ReserveBytes: v.o.ReserveBytes, Logger: v.o.Logger}
}

// open is one attempt. A damaged table makes Badger panic: that is an error here.
func (v *Vault) open(ctx context.Context) (h *Handle, err error) {
	defer func() {
		if p := recover(); p != nil {
			h, err = nil, fmt.Errorf("%w: %v", dedupe.ErrCorrupt, p)
		}
	}()
	if err := v.create(); err != nil {
		return nil, err
	}
	s, err := blockstore.Open(v.o.Dir, v.options())
	if err != nil {
		return nil, err
	}
	points, err := recoverypoint.OpenIndex(ctx, s)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	for _, p := range points.Problems() {
		v.o.Logger.Error("a recovery point is not readable", "recovery_point", p.ID, "error", p.Err)
	}
	return &Handle{Store: s, Points: points, Cache: recoverypoint.NewCache(v.o.CacheBytes), Site: v.o.Site,
		Dir: v.o.Dir, ReserveBytes: v.o.ReserveBytes}, nil
}

// create makes the vault of a first start beside its place and renames it: a kill
// leaves no half vault.
func (v *Vault) create() error {
	entries, err := os.ReadDir(v.o.Dir)
	if err == nil && len(entries) > 0 || err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	unborn := v.o.Dir + ".new"
	if err := os.RemoveAll(unborn); err != nil {
		return err
	}
	var domain dedupe.DomainID
	rand.Read(domain[:]) // never fails, see crypto/rand
	o := v.options()
	o.Domain = domain
	if err := blockstore.Create(unborn, o); err != nil {
		return fmt.Errorf("create vault: %w", err)
	}
	if err := os.Remove(v.o.Dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Rename(unborn, v.o.Dir); err != nil {
		return err
	}
	return statefile.SyncDir(parent(v.o.Dir))
}

// State and, when it is closed, the reason with the next step.
func (v *Vault) State() (State, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.state, v.reason
}

// Wait returns when the vault is no longer opening, or ctx has ended.
func (v *Vault) Wait(ctx context.Context) error {
	v.mu.Lock()
	settled := v.settled
	v.mu.Unlock()
	select {
	case <-settled:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Use returns the open vault. It waits while the vault is opening; it is
// ErrUnavailable with the reason when it is closed.
func (v *Vault) Use(ctx context.Context) (*Handle, error) {
	if err := v.Wait(ctx); err != nil {
		return nil, &appliance.Error{Op: "use vault " + DefaultName, Kind: appliance.ErrUnavailable, Text: "it is still being opened", Hint: "try again in a moment"}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.handle == nil {
		return nil, v.reason
	}
	return v.handle, nil
}

// Peek is the open vault, or nil while it is not open. It never waits.
func (v *Vault) Peek() *Handle {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.handle
}

// Close closes the store. Calls of Use are ErrUnavailable from then on. It is not
// called while Open runs.
func (v *Vault) Close() error {
	v.mu.Lock()
	h := v.handle
	if v.state == Opening {
		close(v.settled)
	}
	v.handle, v.state = nil, Closed
	if h != nil || v.reason == nil {
		v.reason = &appliance.Error{Op: "use vault " + DefaultName, Kind: appliance.ErrUnavailable, Text: "the daemon is stopping"}
	}
	v.mu.Unlock()
	if h == nil {
		return nil
	}
	if err := h.Store.Close(); err != nil {
		return fmt.Errorf("close vault %s: %w", DefaultName, err)
	}
	return nil
}

// RebuildIndex makes the index anew from the packs. The vault must be closed.
func (v *Vault) RebuildIndex(ctx context.Context, progress func(done, total int64)) (err error) {
	op := "rebuild the index of vault " + DefaultName
	if s, _ := v.State(); s != Closed {
		return &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: "the vault is " + string(s) + " and needs no rebuild"}
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: %w: %v", op, dedupe.ErrCorrupt, p)
		}
	}()
	if err := blockstore.RebuildIndex(ctx, v.o.Dir, v.options(), progress); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}
