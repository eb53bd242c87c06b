package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/nbd"
)

var (
	// ErrServerClosed: Shutdown was called.
	ErrServerClosed = errors.New("NBD server is shut down")
	// ErrExists: an export of that name is there already.
	ErrExists = errors.New("export exists already")
	// ErrNotFound: no export has that name.
	ErrNotFound = errors.New("export does not exist")
)

// Export is a Device under a name.
type Export struct {
	// Name is what clients ask for: UTF-8 of at most nbd.MaxNameLength bytes. The
	// empty name is the default export, which clients get that name none.
	Name string
	// Description is shown to clients that list exports.
	Description string
	// Device holds the content. It stays the caller's, who may close it after
	// Remove or Shutdown has returned without an error.
	Device blockdev.Device
	// ReadOnly refuses every command that changes the Device.
	ReadOnly bool
	// Exclusive has a client that opens the export for writing cut the connections
	// that had done so before: the only full fence against a stale writer. Such an
	// export does not advertise CAN_MULTI_CONN.
	Exclusive bool
	// Contexts offers metadata contexts beside base:allocation; nil: none.
	Contexts ContextSource
}

// Peer is who is at the other end of a connection.
type Peer struct {
	// Network is "unix" or "tcp", Addr the peer's address; that of a unix socket
	// is mostly empty.
	Network, Addr string
	// UID and PID are those of the process at the other end of a unix socket when
	// it connected (SO_PEERCRED), -1 when unknown.
	UID, PID int
	// CommonName is the subject of the client certificate that was verified, "" without
	// one; TLS is set once the connection is encrypted.
	CommonName string
	TLS        bool
}

// Options configure a Server. The zero value is usable.
type Options struct {
	// Logger gets what an operator should see; nil drops it.
	Logger *slog.Logger
	// Authorize says why a peer may not use an export, or nil. It is asked
	// whenever a client names an export, and for each name of a list. Nil allows
	// everything. It must not call the Server.
	Authorize func(peer Peer, name string) error
	// TLS offers STARTTLS with this configuration; nil refuses it. Client certificates
	// are verified when it says so.
	TLS *tls.Config
	// RequireTLS answers nothing but STARTTLS and ABORT before TLS, on TCP; unix sockets
	// may do without.
	RequireTLS bool
	// DefaultExport is what clients get that ask for the name "", unless an export has
	// that name. "": nothing.
	DefaultExport string
	// AllowList answers NBD_OPT_LIST on TCP too; on unix sockets it is always
	// answered.
	AllowList bool
	// Workers is how many requests of one connection may wait for the Device at
	// once. Default 32.
	Workers int
	// MaxConnections is how many connections are open at once; more are closed at
	// once. Default 4096.
	MaxConnections int
	// MaxInflightBytes bounds the buffers of all connections that wait for a
	// Device or for a slow client, beside 256 KiB each way per connection.
	// Default 128 MiB, at least nbd.MaxPayload.
	MaxInflightBytes int64
	// HandshakeTimeout is how long a client may take from connecting to the end of
	// the handshake. Default 30 s.
	HandshakeTimeout time.Duration
	// StallTimeout is how long a client may stop in the middle of a request or of
	// reading a reply. Default 2 minutes.
	StallTimeout time.Duration
	// BarrierTimeout is how long a client that opens an export for writing waits for
	// what other connections have under way, before it is refused. Default 20 s:
	// longer than it takes to find that a TCP peer has vanished, and within the
	// handshake's time.
	BarrierTimeout time.Duration
	// RefuseOnShutdown has Shutdown answer requests that come while it drains with
	// NBD_ESHUTDOWN. By default they stay unanswered and the connection is closed:
	// clients that reconnect (QEMU's reconnect-delay, nbd-client -persist) send
	// those again and their guests notice nothing. An ESHUTDOWN becomes an I/O
	// error in the guest: QEMU 7.2 with reconnect-delay hands it up and repeats
	// nothing (TestQEMUGoesOnAcrossARestart shows both). Remove always answers,
	// since its export does not come back.
	RefuseOnShutdown bool
	// OnDisconnect is called after the last request of a connection to the export
	// has ended. It must not call the Server.
	OnDisconnect func(exportName string)
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Authorize == nil {
		o.Authorize = func(Peer, string) error { return nil }
	}
	if o.OnDisconnect == nil {
		o.OnDisconnect = func(string) {}
	}
	if o.Workers <= 0 {
		o.Workers = 32
	}
	if o.MaxConnections <= 0 {
		o.MaxConnections = 4096
	}
	if o.MaxInflightBytes <= 0 {
		o.MaxInflightBytes = 128 << 20
	}
	// A read with DF, and one without structured replies, is buffered whole.
	o.MaxInflightBytes = max(o.MaxInflightBytes, nbd.MaxPayload)
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = 30 * time.Second
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = 2 * time.Minute
	}
	if o.BarrierTimeout <= 0 {
		o.BarrierTimeout = 20 * time.Second
	}
	return o
}

// Server serves exports. Its methods may be called from any goroutine.
type Server struct {
	o       Options
	buffers bufferPools
	pipes   pipes
	// jobs go to workers that have nothing to do, of whom there are idle; over ends them,
	// and pool waits for all.
	jobs    chan job
	idle    atomic.Int64
	pool    sync.WaitGroup
	over    chan struct{}
	endOnce sync.Once
	// budget counts the bytes of Options.MaxInflightBytes in use.
	budget *semaphore.Weighted
	// running bounds the device requests of all workers: each may hold a thread.
	running chan struct{}

	mu        sync.Mutex
	exports   map[string]*export
	conns     map[*conn]struct{}
	listeners map[net.Listener]struct{}
	closing   bool
	retired   Stats // of connections that have ended

	barrierWaits, barrierRefusals atomic.Uint64
	// noBarrier is for the test that shows what the barrier is for.
	noBarrier bool

	// join waits for the goroutine of each connection.
	join sync.WaitGroup
}

// New makes a server without exports.
func New(o Options) *Server {
	o = o.withDefaults()
	if o.TLS != nil {
		o.TLS = o.TLS.Clone()
		o.TLS.DynamicRecordSizingDisabled = true // full records from the first on
	}
	return &Server{
		o:         o,
		budget:    semaphore.NewWeighted(o.MaxInflightBytes),
		running:   make(chan struct{}, 128*runtime.GOMAXPROCS(0)),
		exports:   make(map[string]*export),
		jobs:      make(chan job),
		over:      make(chan struct{}),
		conns:     make(map[*conn]struct{}),
		listeners: make(map[net.Listener]struct{}),
	}
}

// export is an Export with the abilities of its Device, asked for once.
type export struct {
	Export
	trimmer      blockdev.Trimmer
	zeroer       blockdev.Zeroer
	extents      blockdev.ExtentLister
	nowait       blockdev.NowaitReader
	nowaitWriter blockdev.NowaitWriter
	file         blockdev.FileBacked
	pipe         blockdev.PipeWriter
	fast         blockdev.FastZeroer

	// conns are its connections, guarded by Server.mu; gone is closed when the
	// last one leaves after Remove.
	conns   map[*conn]struct{}
	removed bool
	gone    chan struct{}
}

// Add makes an export known. Clients may use it when Add returns.
func (s *Server) Add(x Export) error {
	if err := nbd.CheckName(x.Name); err != nil {
		return fmt.Errorf("add export: name: %w", err)
	}
	if len(x.Description) > nbd.MaxNameLength {
		return fmt.Errorf("add export %q: description of %d bytes, at most %d", x.Name, len(x.Description), nbd.MaxNameLength)
	}
	e := &export{Export: x, conns: make(map[*conn]struct{}), gone: make(chan struct{})}
	e.trimmer, _ = x.Device.(blockdev.Trimmer)
	e.zeroer, _ = x.Device.(blockdev.Zeroer)
	e.extents, _ = x.Device.(blockdev.ExtentLister)
	e.nowait, _ = x.Device.(blockdev.NowaitReader)
	e.nowaitWriter, _ = x.Device.(blockdev.NowaitWriter)
	e.pipe, _ = x.Device.(blockdev.PipeWriter)
	if f, ok := x.Device.(blockdev.FastZeroer); ok && (f.ZeroesFast(true) || f.ZeroesFast(false)) {
		e.fast = f
	}
	if f, ok := x.Device.(blockdev.FileBacked); ok && f.ReadFD(func(int) error { return nil }) == nil {
		e.file = f
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return fmt.Errorf("add export %q: %w", x.Name, ErrServerClosed)
	}
	if _, ok := s.exports[x.Name]; ok {
		return fmt.Errorf("add export %q: %w", x.Name, ErrExists)
	}
	s.exports[x.Name] = e
	return nil
}

// Remove takes an export away: no client can choose it any more, requests that
// are under way end, later ones are answered with ESHUTDOWN, its connections are
// closed, and the Device is flushed. Other exports notice nothing.
//
// When ctx ends first, the connections are cut and the error is that of ctx: then
// requests may still be under way, and the Device must not be closed yet.
func (s *Server) Remove(ctx context.Context, name string) error {
	s.mu.Lock()
	e, ok := s.exports[name]
	if !ok {
		s.mu.Unlock()
		return fmt.Errorf("remove export %q: %w", name, ErrNotFound)
	}
	delete(s.exports, name)
	e.removed = true
	if len(e.conns) == 0 {
		close(e.gone)
	}
	for c := range e.conns {
		c.stop(stopRefusing)
	}
	s.mu.Unlock()
	if err := waitOrCut(ctx, e.gone, func() { s.cut(e) }); err != nil {
		return fmt.Errorf("remove export %q: requests are still under way: %w", name, err)
	}
	if err := e.flush(); err != nil {
		return fmt.Errorf("remove export %q: %w", name, err)
	}
	return nil
}

// Connections is how many connections the export has.
func (s *Server) Connections(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.exports[name]; ok {
		return len(e.conns)
	}
	return 0
}

// find returns an export that the peer may use, or an option reply for the client
// with the reason.
func (s *Server) find(p Peer, name string) (*export, error) {
	s.mu.Lock()
	e, ok := s.exports[name]
	if !ok && name == "" {
		name = s.o.DefaultExport
		e, ok = s.exports[name]
	}
	closing := s.closing
	s.mu.Unlock()
	if closing {
		return nil, &optionError{nbd.RepErrShutdown, "the server is shutting down"}
	}
	// Asked first, so that who may not use a name does not learn whether it exists.
	if err := s.o.Authorize(p, name); err != nil {
		return nil, &optionError{nbd.RepErrPolicy, err.Error()}
	}
	if !ok {
		return nil, &optionError{nbd.RepErrUnknown, fmt.Sprintf("export %q does not exist", name)}
	}
	return e, nil
}

// names lists the exports that the peer may use, in order.
func (s *Server) names(p Peer) []Export {
	s.mu.Lock()
	list := make([]Export, 0, len(s.exports))
	for _, e := range s.exports {
		list = append(list, e.Export)
	}
	s.mu.Unlock()
	list = slices.DeleteFunc(list, func(x Export) bool { return s.o.Authorize(p, x.Name) != nil })
	slices.SortFunc(list, func(a, b Export) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// attach binds a connection to an export that find has returned, unless that is
// being removed. To an export that can be written it returns after the barrier.
func (s *Server) attach(c *conn, e *export) error {
	s.mu.Lock()
	if e.removed || s.closing {
		s.mu.Unlock()
		return &optionError{nbd.RepErrShutdown, fmt.Sprintf("export %q is going away", e.Name)}
	}
	var others []*conn
	if !e.ReadOnly {
		others = slices.Collect(maps.Keys(e.conns))
	}
	if e.Exclusive {
		for _, o := range others {
			o.stop(stopSilently)
			o.abort()
		}
	}
	e.conns[c] = struct{}{}
	c.exp, c.size = e, e.Device.Size()
	s.mu.Unlock()
	if e.Exclusive && len(others) > 0 {
		s.o.Logger.Info("NBD clients are cut: another one has opened the export", "export", e.Name, "cut", len(others),
			"peer", c.peer.Addr, "pid", c.peer.PID)
	}
	if e.ReadOnly {
		return nil
	}
	if err := s.barrier(c, others); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.release(c)
		return err
	}
	return nil
}

// release ends the bond between a connection and its export. mu is held.
func (s *Server) release(c *conn) {
	e := c.exp
	c.exp = nil
	delete(e.conns, c)
	if e.removed && len(e.conns) == 0 {
		close(e.gone)
	}
}

// detach is called once per connection, when its last request has ended.
func (s *Server) detach(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.retired.add(c.counters.snapshot())
	e := c.exp
	if e != nil {
		s.release(c)
	}
	s.mu.Unlock()
	if e != nil {
		s.o.OnDisconnect(e.Name)
	}
}

// cut closes the sockets of an export, or all of them.
func (s *Server) cut(e *export) {
	s.mu.Lock()
	defer s.mu.Unlock()
	conns := s.conns
	if e != nil {
		conns = e.conns
	}
	for c := range conns {
		c.abort()
	}
}

// flush makes what clients have written durable, when the export ends.
func (e *export) flush() error {
	if e.ReadOnly {
		return nil
	}
	if err := e.Device.Flush(); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// waitOrCut waits for done; when ctx ends before, it calls cut and waits for what
// only a socket was holding up.
func waitOrCut(ctx context.Context, done <-chan struct{}, cut func()) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	cut()
	select {
	case <-done:
		return nil
	case <-time.After(100 * time.Millisecond):
		return ctx.Err()
	}
}
