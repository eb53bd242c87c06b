package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/statefile"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/pack"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// MaxVaults bounds a Set.
const MaxVaults = 64

// Redundancy of a vault: how many copies of it there are to be, and where.
type Redundancy string

// The redundancies. A vault's is fixed once it holds a point.
const (
	LRS   Redundancy = "LRS"    // copies at this site only
	GRS   Redundancy = "GRS"    // and at a second site, the default
	RAGRS Redundancy = "RA-GRS" // which may be read at all times
)

// Spec is what a vault is made as. It is kept in vaults.json.
type Spec struct {
	Name string `json:"name"`
	// Dir holds packs and index. Locations are more folders with copies of the packs.
	Dir            string     `json:"dir"`
	Locations      []string   `json:"locations,omitempty"`
	BlockSizeBytes int        `json:"blockSizeBytes,omitempty"` // 0: the default
	Redundancy     Redundancy `json:"redundancy"`
	// Compression of new blocks, by name; "": the default. See blockstore.Compression.
	Compression string `json:"compression,omitempty"`
	// Site is the id of the site that the vault belongs to.
	Site string `json:"siteId"`
	// ID of the vault that was last open here, from its superblock; "": none yet. With
	// one, an empty folder is not a first start.
	ID        string    `json:"vaultId,omitempty"`
	CreatedAt time.Time `json:"createdAt"`
	// Keys gives the keys of a vault that is being made; nil: that of SetOptions.
	Keys func(name, dir string) Keys `json:"-"`
}

// SetOptions of a Set. DataDir, DefaultDir and Site are required.
type SetOptions struct {
	// DataDir has vaults.json; new vaults lie in DataDir/vaults unless they are told
	// otherwise.
	DataDir string
	// DefaultDir is the folder of the vault named default.
	DefaultDir string
	// DefaultLocations are folders with copies of the default vault's packs; nil: those
	// that it has.
	DefaultLocations []string
	Site             *Site
	// ReserveBytes of the file system of the default vault stay free; 0, and for others, the
	// default of their own file systems.
	ReserveBytes int64
	// BallastBytes of each vault on another file system than DataDir; 0: the default of that.
	BallastBytes int64
	// CacheBytes bounds the cache that all readers of all vaults share.
	CacheBytes int64
	// Keys gives the keys of the vault of a name in a folder; nil: new vaults are not
	// encrypted.
	Keys func(name, dir string) Keys
	// Logger; nil: silent.
	Logger *slog.Logger
}

// Set is all vaults of an appliance: the one named default, which exists from the first
// start, and those that were made since. A recovery point is found in whichever vault
// holds it. All methods may be called from any number of goroutines.
type Set struct {
	o     SetOptions
	pins  *pins
	cache *recoverypoint.Cache

	mu     sync.Mutex
	vaults map[string]*Vault
	serial uint64 // of vaults.json
	damage error  // vaults.json cannot be read: vaults are missing

	saving sync.Mutex // held while vaults.json is written; before mu
}

const (
	vaultsName = "vaults.json"
	vaultsKind = "vaults"
)

type vaultsDoc struct {
	Vaults []Spec `json:"vaults"`
}

// NewSet returns the vaults that vaults.json lists, all opening. A vaults.json that
// cannot be read leaves the default vault alone; Damage says why.
func NewSet(o SetOptions) *Set {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Set{o: o, pins: newPins(), cache: recoverypoint.NewCache(o.CacheBytes), vaults: map[string]*Vault{}}
	var doc vaultsDoc
	l, err := statefile.Load(s.path(), vaultsKind, &doc)
	if err != nil {
		s.damage = &appliance.Error{Op: "read the list of vaults", Err: err, Hint: "put a good copy of " + s.path() + " back and start the daemon again"}
	}
	s.serial = l.Serial
	specs := []Spec{{Name: DefaultName}}
	for _, spec := range doc.Vaults {
		if spec.Name == DefaultName {
			specs[0] = spec
		} else {
			if spec.ID == "" { // listed by an earlier release, once it was made
				spec.ID = unknownID
			}
			specs = append(specs, spec)
		}
	}
	d := &specs[0]
	d.Dir = o.DefaultDir
	if o.DefaultLocations != nil {
		d.Locations = o.DefaultLocations
	}
	if d.Redundancy == "" {
		d.Redundancy = GRS
	}
	if s.damage != nil { // there was a list, so this is no first start
		d.ID = unknownID
	}
	for _, spec := range specs {
		s.vaults[spec.Name] = s.newVault(spec)
	}
	return s
}

// unknownID is the ID of a vault that was there, and whose id was not written down.
const unknownID = "unknown"

func (s *Set) path() string { return filepath.Join(s.o.DataDir, vaultsName) }

func (s *Set) newVault(spec Spec) *Vault {
	o := Options{Spec: spec, Site: s.o.Site, Cache: s.cache, Logger: s.o.Logger, DataDir: s.o.DataDir, BallastBytes: s.o.BallastBytes}
	if spec.Name == DefaultName {
		o.ReserveBytes = s.o.ReserveBytes
	}
	if give := spec.Keys; give != nil || s.o.Keys != nil {
		if give == nil {
			give = s.o.Keys
		}
		o.Keys = give(spec.Name, spec.Dir)
	}
	v := New(o)
	v.pins, v.served = s.pins, s.served
	return v
}

// served writes down that a vault was open here. A failure is told and no more: the next
// start tries again.
func (s *Set) served(v *Vault) {
	if s.Damage() != nil {
		return // the list that is there may be brought back
	}
	if err := s.save(); err != nil {
		s.o.Logger.Warn("it is not written down that a vault was open here", "vault", v.Name(), "error", err)
	}
}

// Damage is why vaults may be missing from the Set, or nil.
func (s *Set) Damage() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.damage
}

// Default is the vault named default.
func (s *Set) Default() *Vault {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.vaults[DefaultName]
}

// Get is the vault of this name; "" is default.
func (s *Set) Get(name string) (*Vault, error) {
	if name == "" {
		name = DefaultName
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.vaults[name]; v != nil {
		return v, nil
	}
	return nil, &appliance.Error{Op: fmt.Sprintf("find vault %q", name), Kind: appliance.ErrNotFound, Text: "there is no vault of this name",
		Hint: "see keelblock vault list"}
}

// All is every vault, default first, then by name.
func (s *Set) All() []*Vault {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*Vault, 0, len(s.vaults))
	for _, v := range s.vaults {
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b *Vault) int {
		switch {
		case a.Name() == b.Name():
			return 0
		case a.Name() == DefaultName:
			return -1
		case b.Name() == DefaultName:
			return 1
		}
		return strings.Compare(a.Name(), b.Name())
	})
	return list
}

// Plan completes a Spec and refuses one that Create would refuse. The first of Locations,
// if there are any, is where packs and index lie, the others have copies.
func (s *Set) Plan(spec Spec) (Spec, error) {
	op := fmt.Sprintf("create vault %q", spec.Name)
	if err := appliance.CheckName("vault", spec.Name); err != nil {
		return spec, err
	}
	switch spec.Redundancy {
	case "":
		spec.Redundancy = GRS
	case LRS, GRS, RAGRS:
	default:
		return spec, unknownRedundancy(op, spec.Redundancy)
	}
	if n := spec.BlockSizeBytes; n != 0 {
		if err := pack.CheckBlockSize(n); err != nil {
			return spec, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Err: err}
		}
	}
	if _, err := blockstore.ParseCompression(spec.Compression); err != nil {
		return spec, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Err: err}
	}
	if s.o.Site.ID == "" {
		return spec, &appliance.Error{Op: op, Kind: appliance.ErrUnavailable, Text: "the site's identity cannot be read, and a vault belongs to a site"}
	}
	for _, dir := range spec.Locations {
		if !filepath.IsAbs(dir) {
			return spec, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf("location %q is not an absolute path", dir)}
		}
	}
	if spec.Dir == "" && spec.Name != DefaultName {
		spec.Dir = filepath.Join(s.o.DataDir, "vaults", spec.Name)
		if len(spec.Locations) > 0 {
			spec.Dir, spec.Locations = filepath.Clean(spec.Locations[0]), spec.Locations[1:]
		}
	}
	if spec.Name == DefaultName {
		if len(spec.Locations) > 0 {
			return spec, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf("the folder of vault %s is %s", DefaultName, s.o.DefaultDir),
				Hint: "give keelblock serve --vault-location for its copies"}
		}
		old := s.Default().Spec() // copies that are there are refused, not forgotten
		spec.Dir, spec.Locations = old.Dir, old.Locations
	}
	spec.Site, spec.CreatedAt = s.o.Site.ID, time.Now().UTC().Truncate(time.Second)
	s.mu.Lock()
	defer s.mu.Unlock()
	return spec, s.checkLocked(op, spec)
}

func unknownRedundancy(op string, r Redundancy) error {
	return &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf("redundancy %q is not known", r), Hint: "give LRS, GRS or RA-GRS"}
}

// Create makes a vault as Plan has completed it, opens it and adds it to the list, in
// this order: a kill in between leaves a folder that the next Create of it takes over. A
// vault whose folder is gone is made anew.
func (s *Set) Create(ctx context.Context, spec Spec) (*Vault, error) {
	op := fmt.Sprintf("create vault %q", spec.Name)
	v, gone, err := s.add(op, spec)
	if err != nil {
		return nil, err
	}
	err = v.make(ctx)
	if err == nil {
		err = s.save()
	}
	if err != nil {
		s.remove(v, gone)
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

// add reserves the name. gone is the vault that had it, or nil.
func (s *Set) add(op string, spec Spec) (v, gone *Vault, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.checkLocked(op, spec); err != nil {
		return nil, nil, err
	}
	gone = s.vaults[spec.Name]
	if gone != nil && gone.o.Keys != nil {
		gone.o.Keys.Forget() // its files stay, each under the id of its domain
	}
	v = s.newVault(spec)
	s.vaults[spec.Name] = v
	return v, gone, nil
}

// remove takes a vault that was not made out again, and puts back the one that had its
// name.
func (s *Set) remove(v, gone *Vault) {
	if v.o.Keys != nil {
		v.o.Keys.Forget()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.vaults, v.Name())
	if gone != nil {
		_, reason := gone.State()
		again := s.newVault(gone.Spec())
		again.Refuse(reason)
		s.vaults[v.Name()] = again
	}
}

// checkLocked refuses a Spec that clashes with the vaults there are.
func (s *Set) checkLocked(op string, spec Spec) error {
	if s.damage != nil {
		return fmt.Errorf("%s: %w", op, s.damage)
	}
	if old := s.vaults[spec.Name]; old != nil && !old.isGone() {
		return &appliance.Error{Op: op, Kind: appliance.ErrExists, Text: "a vault of this name exists", Hint: "choose another name; see keelblock vault list"}
	}
	if len(s.vaults) >= MaxVaults {
		return &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: fmt.Sprintf("there are %d vaults already, the limit", MaxVaults)}
	}
	seen := map[string]string{s.o.DataDir: "the data folder"}
	for _, other := range s.vaults {
		if other.Name() == spec.Name {
			continue // it is gone
		}
		for _, dir := range other.o.folders() {
			seen[dir] = fmt.Sprintf("vault %q", other.Name())
		}
	}
	for _, dir := range spec.folders() {
		if owner := seen[dir]; owner != "" {
			return &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: fmt.Sprintf("folder %s belongs to %s", dir, owner)}
		}
		seen[dir] = "this vault already"
	}
	return nil
}

// folders are the places of the packs.
func (s Spec) folders() []string {
	list := []string{filepath.Clean(s.Dir)}
	for _, dir := range s.Locations {
		list = append(list, filepath.Clean(dir))
	}
	return list
}

// save writes the list.
func (s *Set) save() error {
	s.saving.Lock()
	defer s.saving.Unlock()
	var doc vaultsDoc
	for _, v := range s.All() {
		doc.Vaults = append(doc.Vaults, v.Spec())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := statefile.Save(s.path(), vaultsKind, s.serial+1, doc); err != nil {
		return err
	}
	s.serial++
	return nil
}

// SetRedundancy changes a vault's redundancy, which is refused once it holds a point.
func (s *Set) SetRedundancy(ctx context.Context, name string, r Redundancy) error {
	op := fmt.Sprintf("edit vault %q", name)
	v, err := s.Get(name)
	if err != nil {
		return err
	}
	if r != LRS && r != GRS && r != RAGRS {
		return unknownRedundancy(op, r)
	}
	h, err := v.Use(ctx)
	if err != nil {
		return err
	}
	if v.Spec().Redundancy == r {
		return nil
	}
	if len(h.Points.List("", true)) > 0 {
		return &appliance.Error{Op: op, Kind: appliance.ErrRefused, Text: "its redundancy is fixed since it holds recovery points",
			Hint: "make another vault: keelblock vault create NAME --redundancy " + string(r)}
	}
	return s.change(op, v, func(spec *Spec) { spec.Redundancy = r })
}

// SetCompression changes how a vault compresses new blocks, from now on; those that it
// holds stay as they are.
func (s *Set) SetCompression(ctx context.Context, name, compression string) error {
	op := fmt.Sprintf("edit vault %q", name)
	v, err := s.Get(name)
	if err != nil {
		return err
	}
	c, err := blockstore.ParseCompression(compression)
	if err != nil {
		return &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Err: err}
	}
	h, err := v.Use(ctx)
	if err != nil {
		return err
	}
	if err := s.change(op, v, func(spec *Spec) { spec.Compression = c.String() }); err != nil {
		return err
	}
	return h.Store.SetCompression(c)
}

// change changes what vaults.json says of a vault, or nothing.
func (s *Set) change(op string, v *Vault, edit func(*Spec)) error {
	v.mu.Lock()
	old := v.o.Spec
	edit(&v.o.Spec)
	v.mu.Unlock()
	if err := s.save(); err != nil {
		v.mu.Lock()
		v.o.Spec.Redundancy, v.o.Spec.Compression = old.Redundancy, old.Compression
		v.mu.Unlock()
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// Handles are the vaults that are open now, default first. It never waits.
func (s *Set) Handles() []*Handle {
	var list []*Handle
	for _, v := range s.All() {
		if h := v.Peek(); h != nil {
			list = append(list, h)
		}
	}
	return list
}

// Use is Vault.Use of the vault of this name; "" is default.
func (s *Set) Use(ctx context.Context, name string) (*Handle, error) {
	v, err := s.Get(name)
	if err != nil {
		return nil, err
	}
	return v.Use(ctx)
}

// Each waits until every vault is open or closed and returns the open ones, or, when
// there are none, why.
func (s *Set) Each(ctx context.Context) ([]*Handle, error) {
	var list []*Handle
	var reason error
	for _, v := range s.All() {
		h, err := v.Use(ctx)
		if err == nil {
			list = append(list, h)
		} else if reason == nil {
			reason = err
		}
	}
	if len(list) == 0 {
		return nil, reason
	}
	return list, nil
}

// Holder is the open vault that holds a point, soft-deleted or not, and the point; nil
// when none does.
func (s *Set) Holder(id dedupe.Digest) (*Handle, *recoverypoint.Point) {
	for _, h := range s.Handles() {
		if p := h.Points.Get(id); p != nil {
			return h, p
		}
	}
	return nil, nil
}

// Newest is the newest point of a machine, by name or id, in any open vault; nil when
// there is none.
func (s *Set) Newest(machine string) (*Handle, *recoverypoint.Point) {
	var in *Handle
	var newest *recoverypoint.Point
	for _, h := range s.Handles() {
		if p := h.Points.Newest(machine); p != nil && (newest == nil || p.Manifest.FrozenAt.After(newest.Manifest.FrozenAt)) {
			in, newest = h, p
		}
	}
	return in, newest
}

// NextSequence is the greatest NextSequence of the open vaults: a machine's points have
// one order, wherever they are.
func (s *Set) NextSequence(machine, generation recoverypoint.ID) uint64 {
	next := uint64(1)
	for _, h := range s.Handles() {
		next = max(next, h.Points.NextSequence(machine, generation))
	}
	return next
}

// Close closes all vaults.
func (s *Set) Close() error {
	var errs []error
	for _, v := range s.All() {
		errs = append(errs, v.Close())
	}
	return errors.Join(errs...)
}
