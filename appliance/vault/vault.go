package vault

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/statefile"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/keyring"
	"github.com/keelblock/keelblock/dedupe/packdir"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// DefaultName is the name of the vault that every appliance has.
const DefaultName = "default"

// rebuildHint is the way out when the index of a vault cannot be opened.
func rebuildHint(name string) string { return "the packs are untouched; run " + rebuildCommand(name) }

// rebuildCommand is what an operator types.
func rebuildCommand(name string) string {
	if name == DefaultName {
		return "keelblock vault rebuild-index"
	}
	return "keelblock vault rebuild-index --vault " + name
}

// State of a vault.
type State string

// The states.
const (
	Opening State = "opening"
	Open    State = "open"
	Closed  State = "closed"
)

// Options of a Vault. Name, Dir, Site and Cache are required.
type Options struct {
	Spec
	// Site signs the points that are made here, and owns the vault.
	Site *Site
	// ReserveBytes of free space below which nothing new is stored. 0: the default of
	// the vault's file system.
	ReserveBytes int64
	// DataDir is the appliance's folder, whose file system has a ballast already; "": there
	// is none. BallastBytes are of the vault's own ballast, where it lies on another one; 0:
	// the default of that file system.
	DataDir      string
	BallastBytes int64
	// Cache is what all readers share.
	Cache *recoverypoint.Cache
	// Keys of encryption at rest; nil: a new vault is not encrypted.
	Keys Keys
	// Logger; nil: silent.
	Logger *slog.Logger
}

// Keys has the keys of one vault.
type Keys interface {
	// Make makes those of a new vault, which is being made in the folder unborn, and has
	// them safely on disk when it returns. nil: the vault is not to be encrypted.
	Make(ctx context.Context, unborn string) (*keyring.Keys, error)
	// Open gives those of the vault that there is, none when it is not encrypted.
	Open(ctx context.Context) ([]*keyring.Keys, error)
	// Forget is called when the vault was not made in the end.
	Forget()
}

// Handle is an open vault. It is valid until the Vault is closed, which the daemon
// does after its jobs and readers have ended.
type Handle struct {
	Vault  *Vault
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
	pins    *pins // shared with the other vaults of a Set
	last    LastCollection
	// lastSerial is that of the file of last.
	lastSerial uint64
	served     func(*Vault) // called when another vault than before was opened; nil: nobody
}

// New returns a vault that is opening.
func New(o Options) *Vault {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Vault{o: o, state: Opening, settled: make(chan struct{}), pins: newPins()}
}

// Name of the vault.
func (v *Vault) Name() string { return v.o.Name }

// Spec is what the vault was made as.
func (v *Vault) Spec() Spec {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.o.Spec
}

// op begins an error's text: "open vault web".
func (v *Vault) op(verb string) string { return verb + " vault " + v.o.Name }

// Open opens the vault, or makes it at the first start. An error leaves it closed
// with that reason. Open and Refuse are not called at the same time.
func (v *Vault) Open(ctx context.Context) error {
	fresh, err := v.reach(ctx)
	if fresh && v.served != nil {
		v.served(v)
	}
	return err
}

// reach is Open, and whether the vault is another one than the Spec says.
func (v *Vault) reach(ctx context.Context) (fresh bool, err error) {
	v.reopening()
	h, err := v.open(ctx)
	if err != nil {
		err = &appliance.Error{Op: v.op("open"), Kind: appliance.ErrUnavailable, Err: err, Hint: v.hintFor(err)}
	} else {
		id := h.Store.Vault()
		fresh = v.setID(hex.EncodeToString(id[:]))
	}
	v.settle(h, err)
	return fresh, err
}

// setID reports whether the id is another one than before.
func (v *Vault) setID(id string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	old := v.o.ID
	v.o.ID = id
	return old != id
}

// Refuse leaves the vault closed for the reason given.
func (v *Vault) Refuse(reason error) { v.reopening(); v.settle(nil, reason) }

// TooManyDeaths is the reason after starts that died while opening.
func TooManyDeaths(name string) error {
	return &appliance.Error{Op: "open vault " + name, Kind: appliance.ErrUnavailable,
		Text: fmt.Sprintf("the last %d starts died while opening it, so it stays closed and disks are served without it", maxAttempts),
		Hint: rebuildHint(name)}
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

// hintFor is the next step after an opening that failed, unless err says it.
func (v *Vault) hintFor(err error) string {
	var e *appliance.Error
	switch {
	case errors.As(err, &e) && e.Hint != "":
		return "" // it says what to do
	case errors.Is(err, dedupe.ErrLocked):
		return "end the other process"
	case errors.Is(err, dedupe.ErrNoKey), errors.Is(err, dedupe.ErrWrongKey):
		return "see keelblock key show; keelblock key restore FILE brings keys back"
	case errors.Is(err, dedupe.ErrNoSpace):
		return "free space on the vault's file system and start the daemon again"
	case v.noSuperblock() && len(v.copies()) == 0:
		return "the packs are untouched; put the file superblock back from a copy of this folder or of another location: without it nothing can read them"
	case errors.Is(err, unix.EROFS):
		return "the file system of " + v.o.Dir + " is mounted read-only, and nothing in it is changed; mount it for writing and start the daemon again"
	case errors.Is(err, dedupe.ErrUnknownFormat):
		return "a newer release may have written it; the packs are untouched"
	}
	return rebuildHint(v.o.Name)
}

// noSuperblock reports whether the folder has lost its superblock, and the copy of it.
func (v *Vault) noSuperblock() bool {
	_, err := blockstore.ReadSuperblock(v.o.Dir)
	return errors.Is(err, os.ErrNotExist)
}

// options of the store below.
func (v *Vault) options() blockstore.Options {
	return blockstore.Options{Locations: v.o.Locations, ReserveBytes: v.o.ReserveBytes, Relieve: v.relieve, Logger: v.o.Logger}
}

// open is one attempt. A damaged table makes Badger panic: that is an error here.
func (v *Vault) open(ctx context.Context) (h *Handle, err error) {
	defer func() {
		if p := recover(); p != nil {
			h, err = nil, fmt.Errorf("%w: %v", dedupe.ErrCorrupt, p)
		}
	}()
	if err := v.create(ctx); err != nil {
		return nil, err
	}
	if v.o.ReserveBytes == 0 {
		space, err := SpaceOf(v.o.Dir)
		if err != nil {
			return nil, err
		}
		v.o.ReserveBytes = space.VaultReserve()
	}
	v.dropBallast()
	if err := v.claim(); err != nil {
		return nil, err
	}
	o := v.options()
	if o.Compression, err = blockstore.ParseCompression(v.Spec().Compression); err != nil {
		return nil, &appliance.Error{Kind: appliance.ErrInvalid, Err: err, Hint: "a newer release may have written " + vaultsName}
	}
	if v.o.Keys != nil {
		keys, err := v.o.Keys.Open(ctx)
		if err != nil {
			return nil, err
		}
		o.Keys = keys
	}
	s, err := blockstore.Open(v.o.Dir, o)
	if err != nil {
		return nil, err
	}
	points, err := recoverypoint.OpenIndex(ctx, s)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	v.fillBallast()
	v.loadCollection()
	for _, p := range points.Problems() {
		v.o.Logger.Error("a recovery point is not readable", "vault", v.o.Name, "recovery_point", p.ID, "error", p.Err)
	}
	return &Handle{Vault: v, Store: s, Points: points, Cache: v.o.Cache, Site: v.o.Site,
		Dir: v.o.Dir, ReserveBytes: v.o.ReserveBytes}, nil
}

// ownerName is a file in the vault's folder that says whose it is.
const (
	ownerName = "owner.json"
	ownerKind = "vault-owner"
)

type ownerDoc struct {
	Site string `json:"siteId"`
	Name string `json:"name"`
}

// claim refuses the vault of another site: its points are that site's, and two sites
// that write one vault would each take the other's packs for damage. A vault without an
// owner, from before there were such files, is taken.
func (v *Vault) claim() error {
	if v.o.Site.ID == "" {
		return nil // the alert says that the identity cannot be read
	}
	path := filepath.Join(v.o.Dir, ownerName)
	var doc ownerDoc
	l, err := statefile.Load(path, ownerKind, &doc)
	if err != nil {
		v.o.Logger.Warn("the vault's owner is not readable, written again", "vault", v.o.Name, "error", err)
	}
	if err == nil && l.Serial > 0 {
		if doc.Site != v.o.Site.ID {
			return &appliance.Error{Kind: appliance.ErrRefused, Text: fmt.Sprintf("it belongs to site %s, and this is site %s", doc.Site, v.o.Site.ID),
				Hint: "a vault and what it protects are at one site; read it there, or make a vault here: keelblock vault create NAME. If this is what is left of a lost data folder: keelblock help recovery"}
		}
		if doc.Name == v.o.Name {
			return nil
		}
	}
	return statefile.Save(path, ownerKind, l.Serial+1, ownerDoc{Site: v.o.Site.ID, Name: v.o.Name})
}

// make is open for a vault that is being created.
func (v *Vault) make(ctx context.Context) error {
	if err := os.MkdirAll(parent(v.o.Dir), 0o700); err != nil {
		return err
	}
	_, err := v.reach(ctx)
	return err
}

// create makes the vault of a first start beside its place and renames it: a kill
// leaves no half vault.
func (v *Vault) create(ctx context.Context) error {
	if err := v.refuseRoot(); err != nil {
		return err
	}
	if empty, err := isEmpty(v.o.Dir); !empty {
		return err
	}
	if v.Spec().ID != "" {
		return v.gone()
	}
	unborn := v.o.Dir + ".new"
	if err := os.RemoveAll(unborn); err != nil {
		return err
	}
	o := v.options()
	o.BlockSize = v.o.BlockSizeBytes
	if err := v.makeKeys(ctx, unborn, &o); err != nil {
		return err
	}
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

// refuseRoot refuses the root of a file system for a new vault: nothing can be renamed to
// where something is mounted.
func (v *Vault) refuseRoot() error {
	var here, above unix.Stat_t
	if unix.Stat(v.o.Dir, &here) != nil || unix.Stat(filepath.Dir(v.o.Dir), &above) != nil || here.Dev == above.Dev {
		return nil
	}
	if _, err := blockstore.ReadSuperblock(v.o.Dir); !errors.Is(err, os.ErrNotExist) {
		return nil // opening it says more
	}
	return &appliance.Error{Kind: appliance.ErrInvalid, Text: fmt.Sprintf("folder %s is the root of a file system", v.o.Dir),
		Hint: "give a folder in it, such as " + filepath.Join(v.o.Dir, "keelblock")}
}

// ErrGone: a vault was open in a folder that is empty now.
var ErrGone = errors.New("it is empty, although the vault was open there before")

// gone is why an empty folder is not filled with a new vault. Where a file system is not
// mounted yet that would take backups onto the wrong disk, and hide the points that there
// are. A copy of the vault at another location can take the place.
func (v *Vault) gone() error {
	e := &appliance.Error{Kind: appliance.ErrUnavailable, Text: "folder " + v.o.Dir, Err: ErrGone}
	if copies := v.copies(); len(copies) > 0 {
		e.Hint = fmt.Sprintf("mount its file system, and it is opened by itself; if its disk is lost, %s makes it again from the copy in %s",
			rebuildCommand(v.o.Name), strings.Join(copies, " or "))
	} else {
		e.Hint = fmt.Sprintf("mount its file system, and it is opened by itself; if the vault is gone for good, keelblock vault create %s makes a new one", v.o.Name)
	}
	return e
}

// copies are the other locations of the vault that have packs.
func (v *Vault) copies() (list []string) {
	for _, dir := range v.Spec().Locations {
		_, err := blockstore.ReadSuperblock(dir)
		packs, _ := os.ReadDir(filepath.Join(dir, packdir.PacksName)) // a creation that was killed left none
		if err == nil && len(packs) > 0 {
			list = append(list, dir)
		}
	}
	return list
}

// isGone reports whether the vault is closed because its folder is empty.
func (v *Vault) isGone() bool {
	state, reason := v.State()
	return state == Closed && errors.Is(reason, ErrGone)
}

// IsBack reports whether the folder of a vault that was gone has something in it again.
func (v *Vault) IsBack() bool {
	if !v.isGone() {
		return false
	}
	empty, err := isEmpty(v.o.Dir)
	return err == nil && !empty
}

// isEmpty reports whether a folder is empty, or is not there.
func isEmpty(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	return err == nil && len(entries) == 0, err
}

// makeKeys makes the keys of a vault that is to be encrypted, and puts them into o.
func (v *Vault) makeKeys(ctx context.Context, unborn string, o *blockstore.Options) error {
	if v.o.Keys == nil {
		return nil
	}
	if err := os.Mkdir(unborn, 0o700); err != nil {
		return err
	}
	keys, err := v.o.Keys.Make(ctx, unborn)
	if keys != nil {
		o.Keys = []*keyring.Keys{keys}
	}
	return err
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
		return nil, &appliance.Error{Op: v.op("use"), Kind: appliance.ErrUnavailable, Text: "it is still being opened", Hint: "try again in a moment"}
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
		v.reason = &appliance.Error{Op: v.op("use"), Kind: appliance.ErrUnavailable, Text: "the daemon is stopping"}
	}
	v.mu.Unlock()
	if h == nil {
		return nil
	}
	v.dropBallast()
	if err := h.Store.Close(); err != nil {
		return fmt.Errorf("close vault %s: %w", v.o.Name, err)
	}
	return nil
}

// RebuildIndex makes the index anew from the packs. The vault must be closed. A folder that
// lost everything takes up again what another location has.
func (v *Vault) RebuildIndex(ctx context.Context, progress func(done, total int64)) (err error) {
	op := v.op("rebuild the index of")
	if s, _ := v.State(); s != Closed {
		return &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: "the vault is " + string(s) + " and needs no rebuild"}
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: %w: %v", op, dedupe.ErrCorrupt, p)
		}
	}()
	if v.isGone() && !v.IsBack() && len(v.copies()) == 0 {
		return fmt.Errorf("%s: %w", op, v.gone())
	}
	v.dropBallast()
	err = blockstore.RebuildIndex(ctx, v.o.Dir, v.options(), progress)
	switch {
	case errors.Is(err, unix.EROFS), err != nil && v.noSuperblock():
		return &appliance.Error{Op: op, Kind: appliance.ErrUnavailable, Err: err, Hint: v.hintFor(err)}
	case err != nil:
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}
