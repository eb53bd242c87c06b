package hostdev

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/keelblock/keelblock/blockdev/nbd"
)

// blockSize is the logical block size in bytes; see the package comment.
const blockSize = 512

// MaxConnections bounds Options.Connections; the kernel starts a thread for each.
const MaxConnections = 16

// Options of an attachment. Serve, Export and Backend are required.
type Options struct {
	// Serve serves one connection until it ends, as Server.ServeConn does.
	Serve func(context.Context, net.Conn) error
	// Export is the name that is asked for.
	Export string
	// Backend is what the kernel keeps as the owner of the device: a later process
	// with the same one takes the device over. It must be unique to the disk.
	Backend string
	// Connections is 1 to MaxConnections. Default 1, since with more the kernel repeats
	// a write that took longer than Timeout on another connection, where nothing keeps
	// the first copy from landing after a later write of the same block. One is used
	// too when the export does not advertise CAN_MULTI_CONN.
	Connections int
	// ReadOnly has the kernel refuse writes, also of an export that takes them.
	ReadOnly bool
	// Timeout is when the kernel gives up a request and repeats it on another
	// connection. Default 30 s, which is also what the kernel does by itself.
	Timeout time.Duration
	// DeadTimeout is how long requests wait when there is no connection at all, before
	// they fail. Default 24 h: an error makes a file system read-only.
	DeadTimeout time.Duration
	// Logger; nil: silent.
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Connections == 0 {
		o.Connections = 1
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	if o.DeadTimeout == 0 {
		o.DeadTimeout = 24 * time.Hour
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Attachment is an export on a device. Connect begins it, Run keeps it, Detach ends it;
// a process that just ends leaves the device waiting for the next one. Its methods may
// be called from several goroutines.
type Attachment struct {
	o      Options
	index  int
	host   host
	kernel *kernel

	change sync.Mutex // held over each conversation with the kernel
	gone   bool       // Detach was called; guarded by change
	want   int        // connections; guarded by change

	mu    sync.Mutex
	live  int           // connections that are served
	err   error         // of the latest attempt to connect
	ended chan struct{} // has one element when some ended since Run looked

	serving sync.WaitGroup
}

// New prepares the attachment of the device with this number. Nothing is connected.
func New(index int, o Options) (*Attachment, error) {
	return newAttachment(index, o, host{"/sys/block", "/dev", "/proc/self/mounts"}, &kernel{openNetlink})
}

func newAttachment(index int, o Options, h host, k *kernel) (*Attachment, error) {
	o = o.withDefaults()
	if o.Connections < 1 || o.Connections > MaxConnections {
		return nil, fmt.Errorf("attach %s: %d connections, 1 to %d are possible", h.path(index), o.Connections, MaxConnections)
	}
	return &Attachment{o: o, index: index, host: h, kernel: k, want: o.Connections, ended: make(chan struct{}, 1)}, nil
}

// Connect connects the device. If the kernel has it connected to the same
// Options.Backend, left by an earlier process, its dead connections are replaced. ctx is
// for the attempt only.
func (a *Attachment) Connect(ctx context.Context) error {
	if err := a.connect(ctx); err != nil {
		return fmt.Errorf("attach %s: %w", a.Path(), err)
	}
	return nil
}

// Path of the device.
func (a *Attachment) Path() string { return a.host.path(a.index) }

// Connections that are served now.
func (a *Attachment) Connections() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.live
}

// Err says why the device lacks connections; nil while it has them all.
func (a *Attachment) Err() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.err
}

// Run connects the device if it is not connected, replaces connections that end, and
// connects it anew when something else has freed it, until ctx ends or Detach is called.
// It leaves the connections, which the server ends.
func (a *Attachment) Run(ctx context.Context) {
	const shortest, longest, calm = 100 * time.Millisecond, 5 * time.Second, 30 * time.Second
	wait, failing, last := time.Duration(0), false, time.Now()
	if a.Connections() == 0 {
		a.signal()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.ended:
		}
		if time.Since(last) > calm {
			wait = shortest
		}
		select { // one that the kernel drops at once must not make us spin
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait, last = min(max(2*wait, shortest), longest), time.Now()
		err := a.connect(ctx)
		switch {
		case errors.Is(err, errDetached):
			return
		case err == nil && failing:
			a.o.Logger.Info("a device has its connections again", "device", a.Path(), "export", a.o.Export)
		case err != nil && ctx.Err() == nil:
			a.signal()
			if !failing {
				a.o.Logger.Error("a device lacks connections; it is tried again", "device", a.Path(), "export", a.o.Export, "error", err)
			}
		}
		failing = err != nil
	}
}

// signal has Run look.
func (a *Attachment) signal() {
	select {
	case a.ended <- struct{}{}:
	default: // it will look anyway
	}
}

var errDetached = errors.New("the device is detached")

func (a *Attachment) connect(ctx context.Context) error {
	a.change.Lock()
	defer a.change.Unlock()
	if a.gone {
		return errDetached
	}
	err := a.complete(ctx)
	a.mu.Lock()
	a.err = err
	a.mu.Unlock()
	return err
}

// complete makes the connections that are missing and hands them to the kernel.
func (a *Attachment) complete(ctx context.Context) error {
	s := a.host.status(a.index)
	ours := s.configured && s.backend == a.o.Backend
	if s.configured && !ours {
		return fmt.Errorf("%w: it is %s", ErrBusy, a.host.user(s))
	}
	missing := a.want - a.Connections()
	if missing <= 0 {
		return nil
	}
	if !ours && a.Connections() > 0 {
		return errors.New("something else has disconnected it")
	}
	d := device{index: uint32(a.index), backend: a.o.Backend, timeout: a.o.Timeout, dead: a.o.DeadTimeout}
	var ends []*os.File
	defer func() {
		for _, f := range ends {
			f.Close() // the kernel has its own reference to those it took
		}
	}()
	for len(ends) < missing && ctx.Err() == nil {
		end, info, err := a.open()
		if err != nil {
			return err
		}
		ends = append(ends, end)
		d.sockets = append(d.sockets, int(end.Fd()))
		d.sizeBytes, d.flags = info.Size, info.Flags
		if info.Flags&nbd.FlagCanMultiConn == 0 {
			a.want = 1
			break
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if a.o.ReadOnly {
		d.flags |= nbd.FlagReadOnly
	}
	if ours {
		return a.takeOver(d, s)
	}
	if err := a.kernel.connect(d); err != nil {
		return err
	}
	if s := a.host.status(a.index); s.configured && s.backend != a.o.Backend {
		return errors.Join(ErrTooOld, a.kernel.disconnect(d.index))
	}
	return nil
}

// takeOver gives a device that the kernel has kept fresh sockets, and its size if that
// has changed meanwhile. The size comes second: a kernel that changes it waits for
// requests, which wait for the sockets.
func (a *Attachment) takeOver(d device, s status) error {
	if err := a.kernel.reconnect(d); err != nil {
		return err
	}
	if s.sizeBytes == int64(d.sizeBytes) {
		return nil
	}
	return a.resized(int64(d.sizeBytes))
}

// open makes one connection, served, and returns the kernel's end of it.
func (a *Attachment) open() (*os.File, nbd.ExportInfo, error) {
	p, err := newPair()
	if err != nil {
		return nil, nbd.ExportInfo{}, err
	}
	defer p.client.Close() // the file is a duplicate
	a.mu.Lock()
	a.live++
	a.mu.Unlock()
	a.serving.Go(func() {
		// It belongs to the server, whose Shutdown ends it, not to the call that attaches.
		err := a.o.Serve(context.Background(), p.server)
		p.server.Close() // it is closed already when it was served
		a.o.Logger.Debug("a connection of a device has ended", "device", a.Path(), "export", a.o.Export, "error", err)
		a.mu.Lock()
		a.live--
		a.mu.Unlock()
		a.signal()
	})
	info, err := negotiate(p.client, a.o.Export)
	if err != nil {
		return nil, info, err
	}
	f, err := connFile(p.client)
	return f, info, err
}

// Resize tells the kernel the new size of the disk. What has the device open sees it at
// once. A disk that grows is resized before its device, one that shrinks after it.
func (a *Attachment) Resize(sizeBytes int64) error {
	a.change.Lock()
	defer a.change.Unlock()
	if err := a.resized(sizeBytes); err != nil {
		return fmt.Errorf("resize %s: %w", a.Path(), err)
	}
	return nil
}

func (a *Attachment) resized(sizeBytes int64) error {
	if err := a.kernel.resize(uint32(a.index), a.o.Backend, uint64(sizeBytes)); err != nil {
		return err
	}
	if s := a.host.status(a.index); s.sizeBytes != sizeBytes {
		return fmt.Errorf("%w: it has %d bytes, want %d", ErrNoResize, s.sizeBytes, sizeBytes)
	}
	return nil
}

// Detach writes out what the kernel has cached and frees the device. It refuses while
// something holds it (ErrHeld) and while it has no connection (ErrNoConnection). A device
// that is not ours any more is left alone.
func (a *Attachment) Detach(ctx context.Context) error {
	op := "detach " + a.Path()
	a.change.Lock()
	defer a.change.Unlock()
	if a.gone {
		return nil
	}
	if s := a.host.status(a.index); !s.configured || s.backend != a.o.Backend {
		a.gone = true // it is free, or somebody else's by now
		a.signal()
		return nil
	}
	if a.Connections() == 0 { // what is cached could not be written out
		return fmt.Errorf("%s: %w", op, ErrNoConnection)
	}
	release, err := a.host.claim(a.index)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if err := errors.Join(a.kernel.disconnect(uint32(a.index)), release()); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	a.gone = true
	a.signal()
	ended := make(chan struct{})
	go func() { // ends with the connections, which the kernel has just closed
		a.serving.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: its connections have not ended: %w", op, ctx.Err())
	}
}

// Wait returns when every connection has ended: after Detach, or once the server is
// shut down. Run must have returned.
func (a *Attachment) Wait() { a.serving.Wait() }
