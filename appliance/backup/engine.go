package backup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/clock"
	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/appliance/job"
	"github.com/keelblock/keelblock/appliance/machine"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/blockdev/snapshot"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// Kind is the kind of a backup's job.
const Kind = "Backup"

// MaxNote bounds the text of a request's note, in bytes.
const MaxNote = 4096

// Request asks for a point of a machine, or for one of each machine of a group, cut at
// one instant. Either Machine or Group is given.
type Request struct {
	Machine string
	Group   string
	// Consistency asked for; "": the best there is, without complaint.
	Consistency string
	// Note is any text, kept with the point.
	Note string
	// Vault that the points go to; "": that of the machine, or of all machines of the
	// group.
	Vault string
	// Retain keeps the points for this long, whatever the rules say. 0: the rules decide.
	Retain time.Duration
	// Actor is who asked; it is not part of what makes two requests the same.
	Actor string
}

func (r Request) object() string {
	if r.Group != "" {
		return r.Group
	}
	return r.Machine
}

func (r Request) op() string {
	if r.Group != "" {
		return fmt.Sprintf("back up group %q", r.Group)
	}
	return fmt.Sprintf("back up machine %q", r.Machine)
}

// Options of an Engine. Those that may be nil or 0 say so.
type Options struct {
	Disks    *disks.Registry
	Machines *machine.Set
	Vaults   *vault.Set
	Jobs     *job.Manager
	Clock    *cbt.Clock
	// Now is trusted time, by which points are kept and locked.
	Now func() clock.Time
	// Workers bounds the goroutines of one backup; 0: 1.
	Workers int
	// Turns are what the workers of all backups need to compute; nil: as many as Workers.
	Turns *job.Turns
	// AuditBlocks is how many unchanged blocks of each disk an audit looks at. 0: a
	// thousandth, at least 64, at most 16 MiB.
	AuditBlocks int64
	// Alert tells the operator what he must know about an object; nil: only the log.
	Alert func(object, text string)
	// Full is told of a vault that had no room for the backup of a machine or group; nil:
	// nobody. It does not wait for anything.
	Full   func(h *vault.Handle, object string)
	Logger *slog.Logger
}

// Engine makes points.
type Engine struct {
	o     Options
	slots *snapshot.Coordinator

	mu      sync.Mutex
	waiting map[wish]*job.Task // jobs that have not frozen yet
}

// wish is a request with the disks that it meant when it came: a machine that was
// edited since is another wish.
type wish struct {
	Request
	disks string
}

// New returns an Engine.
func New(o Options) *Engine {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Workers = max(o.Workers, 1)
	if o.Turns == nil {
		o.Turns = job.NewTurns(o.Workers, func() uint64 { return 0 })
	}
	return &Engine{o: o, slots: snapshot.New(o.Clock), waiting: map[wish]*job.Task{}}
}

// Start begins a backup, or joins one that answers the request.
func (e *Engine) Start(ctx context.Context, r Request) (*job.Task, error) {
	op := r.op()
	switch recoverypoint.Consistency(r.Consistency) {
	case "", recoverypoint.Application, recoverypoint.Filesystem, recoverypoint.Crash:
	default:
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf("consistency %q is not known", r.Consistency),
			Hint: "give application, filesystem or crash"}
	}
	if len(r.Note) > MaxNote {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf("a note of %d bytes; at most %d", len(r.Note), MaxNote)}
	}
	if r.Retain < 0 || r.Retain > recoverypoint.MaxPeriod {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf("retention of %v is not within 0 and 100 years", r.Retain)}
	}
	parts, release, err := e.hold(r)
	if err != nil {
		return nil, err
	}
	release()
	if r.Vault, err = vaultOf(r, parts); err != nil {
		return nil, err
	}
	h, err := e.o.Vaults.Use(ctx, r.Vault)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	w := wish{r, diskIDs(parts)}
	w.Actor = ""
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.waiting[w]; t != nil {
		return t, nil
	}
	t, err := e.o.Jobs.Start(Kind, r.object(), func(ctx context.Context, t *job.Task) error {
		frozen := func() { e.frozen(w, t) }
		defer frozen()
		err := e.run(ctx, t, h, r, frozen)
		if err == nil {
			return nil
		}
		if e.o.Full != nil && (errors.Is(err, dedupe.ErrNoSpace) || errors.Is(err, appliance.ErrNoSpace)) {
			e.o.Full(h, r.object())
		}
		return explain(op, err)
	})
	if err != nil {
		return nil, err
	}
	e.waiting[w] = t
	return t, nil
}

// vaultOf is the vault that a request means. The points of a cut are published together,
// so they go to one.
func vaultOf(r Request, parts []*part) (string, error) {
	if r.Vault != "" {
		return r.Vault, nil
	}
	name := cmp.Or(parts[0].machine.Vault, vault.DefaultName)
	for _, p := range parts {
		if other := cmp.Or(p.machine.Vault, vault.DefaultName); other != name {
			return "", &appliance.Error{Op: r.op(), Kind: appliance.ErrInvalid,
				Text: fmt.Sprintf("machine %q is kept in vault %q and machine %q in %q", parts[0].machine.Name, name, p.machine.Name, other),
				Hint: "give --vault, or bring the machines into one: keelblock machine edit NAME --vault V"}
		}
	}
	return name, nil
}

// Slot waits until no job works on a disk, and keeps others from beginning, and the disk
// from being deleted, until release is called.
func (e *Engine) Slot(ctx context.Context, disk string) (release func(), err error) {
	held, unhold, err := e.o.Disks.Hold(disk)
	if err != nil {
		return nil, err
	}
	t := held[0].Tracker()
	if t == nil { // temporary: no job works on it
		return unhold, nil
	}
	slots, err := e.slots.Acquire(ctx, []*cbt.Tracker{t})
	if err != nil {
		unhold()
		return nil, err
	}
	return func() { slots.Release(); unhold() }, nil
}

// explain adds the next step to what an operator can do something about.
func explain(op string, err error) error {
	switch {
	case errors.Is(err, appliance.ErrNoSpace), errors.Is(err, appliance.ErrCancelled):
	case errors.Is(err, dedupe.ErrNoSpace):
		return &appliance.Error{Op: op, Kind: appliance.ErrNoSpace, Err: err,
			Hint: "the disks go on and older points are intact; free space on the vault's file system"}
	case errors.Is(err, snapshot.ErrAborted):
		return &appliance.Error{Op: op, Err: err,
			Hint: "the guest was not disturbed; back up when it writes less, or give a larger --spill-size"}
	case errors.Is(err, dedupe.ErrCorrupt):
		return &appliance.Error{Op: op, Err: err, Hint: "run keelblock recovery-point verify --all"}
	}
	return fmt.Errorf("%s: %w", op, err)
}

// frozen says that t answers no further requests.
func (e *Engine) frozen(w wish, t *job.Task) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.waiting[w] == t {
		delete(e.waiting, w)
	}
}

// members are the disks of a machine that a point holds, and those it leaves out.
type members struct {
	disks    []*disks.Disk
	excluded []recoverypoint.ExcludedDisk
}

// members looks the disks up. A disk that is offline is an error: a point without it
// would not be what was asked for.
func (e *Engine) members(op string, m machine.Machine) (*members, error) {
	out := &members{}
	for _, name := range m.Disks {
		d, err := e.o.Disks.Get(name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", op, err)
		}
		why := ""
		switch {
		case d.Entry().Role == disks.Temporary:
			why = "temporary disk"
		case m.Excludes(name):
			why = "excluded by the operator"
		}
		if why != "" {
			id, err := recoverypoint.ParseID(d.Entry().ID)
			if err != nil {
				return nil, fmt.Errorf("%s: disk %q: %w", op, name, err)
			}
			out.excluded = append(out.excluded, recoverypoint.ExcludedDisk{ID: id, Name: name, SizeBytes: d.Entry().SizeBytes, Reason: why})
			continue
		}
		if d.Tracker() == nil {
			state, reason := d.State()
			return nil, &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: fmt.Sprintf("disk %q is %s: %s", name, state, reason),
				Hint: fmt.Sprintf("bring it back and restart, or keelblock machine edit %s --exclude %s", m.Name, name)}
		}
		out.disks = append(out.disks, d)
	}
	if len(out.disks) == 0 {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: "it has no disk to protect",
			Hint: fmt.Sprintf("keelblock machine edit %s --add-disk DISK", m.Name)}
	}
	return out, nil
}

// errAgain: the attempt found a base that cannot be used, or a map that lies; the next
// one compares.
var errAgain = errors.New("the disk has to be compared")
