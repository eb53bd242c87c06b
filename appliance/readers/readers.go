package readers

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// Limits of readers.
const (
	// DefaultTTL is the time to live of a reader that asks for none.
	DefaultTTL = time.Minute
	// MaxTTL bounds it.
	MaxTTL = 24 * time.Hour
	// MaxReaders are open at once, named exports among them.
	MaxReaders = 1024
	// sweepInterval is how often idle readers are looked for.
	sweepInterval = time.Second
	// closeTimeout bounds the drain of one reader.
	closeTimeout = 5 * time.Second
)

// Socket is points.sock as a Set needs it. It asks Set.Authorize whenever a client
// names an export.
type Socket interface {
	// Add serves dev read-only under a name.
	Add(name, description string, dev blockdev.Device) error
	// Remove drains and closes the export's connections; bounded by ctx.
	Remove(ctx context.Context, name string) error
	// Connections that are open to the export now.
	Connections(name string) int
}

// Options of a Set. Vault, Disks and Points are required.
type Options struct {
	Vaults *vault.Set
	// Disks has the names on nbd.sock.
	Disks  *disks.Registry
	Points Socket
	Logger *slog.Logger
	Now    func() time.Time
}

// Set is all readers and named exports. All methods may be called from any number of
// goroutines.
type Set struct {
	o Options

	mu      sync.Mutex
	closed  bool
	readers map[string]*Reader // on points.sock
	exports map[string]*Reader // on nbd.sock
}

// Reader is one disk of a point that is being served.
type Reader struct {
	Name  string // of the export
	Point *recoverypoint.Point
	Disk  recoverypoint.Disk
	// Since, when not nil, is the point whose difference is offered as a dirty bitmap.
	Since *recoverypoint.Point

	uid   int
	ttl   time.Duration
	used  time.Time // guarded by Set.mu
	dev   *recoverypoint.Device
	unpin func()
}

// New returns a Set with no readers.
func New(o Options) *Set {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Set{o: o, readers: map[string]*Reader{}, exports: map[string]*Reader{}}
}

// Authorize lets only the user of a reader open it. uid is that of the socket's peer,
// -1 when unknown.
func (s *Set) Authorize(uid int, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.readers[name]
	if r == nil || uid < 0 || uid != r.uid {
		return fmt.Errorf("open reader %q as user %d: %w", name, uid, appliance.ErrRefused)
	}
	r.used = s.o.Now()
	return nil
}

// open opens the disk and pins the point.
func (s *Set) open(ctx context.Context, selector, disk, who string) (*Reader, error) {
	h, p, d, err := s.o.Vaults.FindDisk(ctx, selector, disk)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	n, closed := len(s.readers)+len(s.exports), s.closed
	s.mu.Unlock()
	op := fmt.Sprintf("open disk %q of recovery point %s", d.Name, p.ID)
	if closed {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrUnavailable, Text: "the daemon is stopping"}
	}
	if n >= MaxReaders {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrUnavailable, Text: fmt.Sprintf("%d readers and exports are open, the limit", n)}
	}
	unpin, err := s.o.Vaults.Pin(p.ID, who) // before it is read: from now on it stays
	if err != nil {
		return nil, err
	}
	// The device outlives the call that opens it.
	dev, err := recoverypoint.OpenDisk(context.WithoutCancel(ctx), h.Store, h.Cache, p.Manifest, d.Name)
	if err != nil {
		unpin()
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	return &Reader{Point: p, Disk: *d, dev: dev, unpin: unpin}, nil
}

func (r *Reader) release() error {
	r.unpin()
	return r.dev.Close()
}

// Open serves a disk of a point on points.sock for the user uid, until Close or until
// no connection has used it for ttl.
func (s *Set) Open(ctx context.Context, selector, disk string, uid int, ttl time.Duration) (*Reader, error) {
	switch {
	case uid < 0:
		return nil, &appliance.Error{Op: "open a reader", Kind: appliance.ErrRefused, Text: "the caller's user is not known",
			Hint: "call over the unix socket"}
	case ttl < 0 || ttl > MaxTTL:
		return nil, &appliance.Error{Op: "open a reader", Kind: appliance.ErrInvalid, Text: fmt.Sprintf("time to live of %v is outside 0 .. %v", ttl, MaxTTL)}
	case ttl == 0:
		ttl = DefaultTTL
	}
	r, err := s.open(ctx, selector, disk, fmt.Sprintf("a reader of user %d", uid))
	if err != nil {
		return nil, err
	}
	var b [16]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	r.Name, r.uid, r.ttl, r.used = hex.EncodeToString(b[:]), uid, ttl, s.o.Now()
	s.mu.Lock()
	s.readers[r.Name] = r
	s.mu.Unlock()
	err = s.o.Points.Add(r.Name, "disk "+r.Disk.Name, r.dev)
	if err != nil {
		s.mu.Lock()
		delete(s.readers, r.Name)
		s.mu.Unlock()
		return nil, errors.Join(fmt.Errorf("open a reader: %w", err), r.release())
	}
	return r, nil
}

// Close ends a reader of the user uid; the superuser may end any.
func (s *Set) Close(ctx context.Context, name string, uid int) error {
	s.mu.Lock()
	r := s.readers[name]
	if r == nil || r.uid != uid && uid != 0 {
		s.mu.Unlock()
		return &appliance.Error{Op: fmt.Sprintf("close reader %q", name), Kind: appliance.ErrNotFound, Text: "no such reader"}
	}
	delete(s.readers, name)
	s.mu.Unlock()
	return s.end(ctx, r)
}

func (s *Set) end(ctx context.Context, r *Reader) error {
	err := s.o.Points.Remove(ctx, r.Name)
	return errors.Join(err, r.release())
}

// Export serves a disk of a point on nbd.sock under a name of the caller's choice. With
// since, a point of the same disk, older or newer, it offers what differs between the two.
func (s *Set) Export(ctx context.Context, selector, disk, name, since string) (*Reader, error) {
	r, err := s.open(ctx, selector, disk, fmt.Sprintf("export %q", name))
	if err != nil {
		return nil, err
	}
	r.Name = name
	var contexts server.ContextSource
	if since != "" {
		if contexts, err = s.difference(ctx, r, since); err != nil {
			return nil, errors.Join(err, r.release())
		}
	}
	desc := fmt.Sprintf("disk %s of recovery point %s", r.Disk.Name, r.Point.ID)
	if err := s.o.Disks.AddExport(name, desc, r.dev, contexts); err != nil {
		return nil, errors.Join(err, r.release())
	}
	s.mu.Lock()
	s.exports[name] = r
	s.mu.Unlock()
	return r, nil
}

// Unexport takes a named export back and ends its connections.
func (s *Set) Unexport(ctx context.Context, name string) error {
	if err := s.o.Disks.RemoveExport(ctx, name); err != nil {
		return err
	}
	s.mu.Lock()
	r := s.exports[name]
	delete(s.exports, name)
	s.mu.Unlock()
	if r == nil {
		return nil
	}
	return r.release()
}

// Run ends readers that nobody uses, until ctx ends; then it ends all.
func (s *Set) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.sweep()
		case <-ctx.Done():
			return s.closeAll()
		}
	}
}

// sweep ends the readers that were idle for their time to live.
func (s *Set) sweep() {
	now := s.o.Now()
	s.mu.Lock()
	all := make([]*Reader, 0, len(s.readers))
	for _, r := range s.readers {
		all = append(all, r)
	}
	s.mu.Unlock()
	var idle []*Reader
	for _, r := range all {
		busy := s.o.Points.Connections(r.Name) > 0 // not under mu: the server asks Authorize
		s.mu.Lock()
		switch {
		case busy:
			r.used = now
		case now.Sub(r.used) >= r.ttl && s.readers[r.Name] == r:
			delete(s.readers, r.Name)
			idle = append(idle, r)
		}
		s.mu.Unlock()
	}
	for _, r := range idle {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		if err := s.end(ctx, r); err != nil {
			s.o.Logger.Warn("an idle reader is not closed", "recovery_point", r.Point.ID, "error", err)
		}
		cancel()
	}
}

// closeAll ends every reader and export.
func (s *Set) closeAll() error {
	s.mu.Lock()
	s.closed = true
	readers, exports := s.readers, s.exports
	s.readers, s.exports = map[string]*Reader{}, map[string]*Reader{}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var errs []error
	for _, r := range readers {
		errs = append(errs, s.end(ctx, r))
	}
	for name, r := range exports {
		errs = append(errs, s.o.Disks.RemoveExport(ctx, name), r.release())
	}
	return errors.Join(errs...)
}

// Exports are the named exports, by name.
func (s *Set) Exports() []*Reader {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*Reader, 0, len(s.exports))
	for _, r := range s.exports {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *Reader) int { return strings.Compare(a.Name, b.Name) })
	return out
}
