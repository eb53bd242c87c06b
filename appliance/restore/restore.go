package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sync/errgroup"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/appliance/job"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// Kind is the kind of a restore's job.
const Kind = "Restore"

const (
	// pieceBytes is what one worker copies at a time, a multiple of every block size, and
	// so little that it stays in the cache of the worker's core from decoding to writing.
	pieceBytes = 1 << 20
	// backBytes is what is written before it is read back, for the same reason.
	backBytes = 256 << 10
)

// Request asks for one disk.
type Request struct {
	// Point is a selector, with or without :DISK; Disk overrides what stands behind it.
	Point, Disk string
	// Name of the new disk.
	Name string
}

// Options of an Engine. All but Workers and Logger are required.
type Options struct {
	Disks  *disks.Registry
	Vaults *vault.Set
	Jobs   *job.Manager
	// DiskDir is where new disks lie; DiskReserveBytes of its file system stay free.
	DiskDir          string
	DiskReserveBytes int64
	// Workers copy at once; at least 1.
	Workers int
	Logger  *slog.Logger
}

// Engine restores disks.
type Engine struct{ o Options }

// New returns an Engine.
func New(o Options) *Engine {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Workers = max(o.Workers, 1)
	return &Engine{o: o}
}

// Start begins a restore.
func (e *Engine) Start(ctx context.Context, r Request) (*job.Task, error) {
	op := fmt.Sprintf("restore disk %q", r.Name)
	if err := appliance.CheckName("disk", r.Name); err != nil {
		return nil, err
	}
	h, p, d, err := e.o.Vaults.FindDisk(ctx, r.Point, r.Disk)
	if err != nil {
		return nil, err
	}
	unpin, err := e.o.Vaults.Pin(p.ID, op)
	if err != nil {
		return nil, err
	}
	src, err := recoverypoint.OpenDisk(ctx, h.Store, h.Cache, p.Manifest, d.Name)
	if err != nil {
		unpin()
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	c := &copier{o: e.o, op: op, src: src}
	end := func(err error) error {
		unpin()
		return errors.Join(err, src.Close())
	}
	if err := c.measure(ctx); err != nil {
		return nil, end(err)
	}
	target, err := e.o.Disks.Begin(disks.Spec{Name: r.Name, SizeBytes: src.Size()})
	if err != nil {
		return nil, end(err)
	}
	t, err := e.o.Jobs.Start(Kind, r.Name, func(ctx context.Context, t *job.Task) error {
		origin := disks.Origin{Point: p.ID.String(), DiskID: d.ID.String()}
		err := c.run(ctx, t, target, origin, cbt.PointID(p.ID))
		return end(errors.Join(err, target.Discard()))
	})
	if err != nil {
		return nil, end(errors.Join(err, target.Discard()))
	}
	return t, nil
}

// copier is one restore.
type copier struct {
	o      Options
	op     string
	src    *recoverypoint.Device
	data   []blockdev.Extent // ascending, bounds on pieces' grid or the disk's end
	needed int64
}

// measure lists what there is to copy and refuses a target without room for it.
func (c *copier) measure(ctx context.Context) error {
	err := c.src.Extents(0, c.src.Size(), func(x blockdev.Extent, s blockdev.ExtentStatus) bool {
		if !s.Zero {
			c.data = append(c.data, x)
			c.needed += x.Length
		}
		return ctx.Err() == nil
	})
	if err = errors.Join(err, ctx.Err()); err != nil {
		return fmt.Errorf("%s: %w", c.op, err)
	}
	space, err := vault.SpaceOf(c.o.DiskDir)
	if err != nil {
		return fmt.Errorf("%s: %w", c.op, err)
	}
	if free := space.Free - c.o.DiskReserveBytes; c.needed > free {
		return &appliance.Error{Op: c.op, Kind: appliance.ErrNoSpace,
			Text: fmt.Sprintf("it takes up to %d bytes, and %s has %d bytes free above its reserve of %d",
				c.needed, c.o.DiskDir, max(free, 0), c.o.DiskReserveBytes),
			Hint: "free space there, or restore to a file with keelblock restore file"}
	}
	return nil
}

// run copies, then publishes the disk.
func (c *copier) run(ctx context.Context, t *job.Task, target *disks.Unfinished, origin disks.Origin, base cbt.PointID) error {
	t.SetTotal(c.needed)
	t.Detail("copying")
	end := t.Begin("TransferFromVault")
	err := c.copy(ctx, t, target)
	end(err)
	if err != nil {
		return fmt.Errorf("%s: %w", c.op, err)
	}
	t.Detail("making it durable")
	end = t.Begin("PublishDisk")
	d, err := target.Publish(origin, base)
	end(err)
	if err != nil {
		return err
	}
	t.Result(d.Name())
	return nil
}

// copy fills the target in parallel.
func (c *copier) copy(ctx context.Context, t *job.Task, target *disks.Unfinished) error {
	g, ctx := errgroup.WithContext(ctx)
	pieces := make(chan blockdev.Extent)
	g.Go(func() error {
		defer close(pieces)
		for _, x := range c.data {
			for x.Length > 0 {
				n := min(x.Length, pieceBytes-x.Offset%pieceBytes)
				select {
				case pieces <- blockdev.Extent{Offset: x.Offset, Length: n}:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
				x.Offset, x.Length = x.Offset+n, x.Length-n
			}
		}
		return nil
	})
	c.src.Copying()
	for range c.o.Workers {
		g.Go(func() error {
			job.Background() // it decompresses and hashes; the thread ends with it
			buf, back := make([]byte, pieceBytes), make([]byte, backBytes)
			for x := range pieces {
				if err := c.piece(x, buf[:x.Length], back, target); err != nil {
					return err
				}
				t.AddDone(x.Length)
			}
			return nil
		})
	}
	return g.Wait()
}

// piece copies one piece, leaves grains of zeros out, and reads back what it wrote.
func (c *copier) piece(x blockdev.Extent, buf, back []byte, target *disks.Unfinished) error {
	if _, err := c.src.ReadAt(buf, x.Offset); err != nil {
		return err
	}
	dev := target.Device()
	for from := 0; from < len(buf); {
		to := from
		for to < min(from+backBytes, len(buf)) && !isZero(grain(buf, to)) {
			to += len(grain(buf, to))
		}
		if to > from {
			p, off := buf[from:to], x.Offset+int64(from)
			if _, err := dev.WriteAt(p, off); err != nil {
				return err
			}
			if _, err := dev.ReadAt(back[:len(p)], off); err != nil {
				return err
			}
			if !bytes.Equal(p, back[:len(p)]) {
				return fmt.Errorf("%d bytes at %d read back as something else: %w", len(p), off, blockdev.ErrCorrupt)
			}
		}
		for to < len(buf) && isZero(grain(buf, to)) {
			to += len(grain(buf, to))
		}
		from = to
	}
	dev.StartWriteback(x.Offset, x.Length)
	return nil
}

// grain is the grain of p at off, shorter at the end.
func grain(p []byte, off int) []byte { return p[off:min(off+blockdev.GrainSize, len(p))] }

// zeros is a grain of them.
var zeros [blockdev.GrainSize]byte

func isZero(p []byte) bool { return bytes.Equal(p, zeros[:len(p)]) }
