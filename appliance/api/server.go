package api

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/api/keelblockv1/keelblockv1connect"
	"github.com/keelblock/keelblock/appliance/backup"
	"github.com/keelblock/keelblock/appliance/clock"
	"github.com/keelblock/keelblock/appliance/cursor"
	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/appliance/doctor"
	"github.com/keelblock/keelblock/appliance/expiry"
	"github.com/keelblock/keelblock/appliance/job"
	"github.com/keelblock/keelblock/appliance/keys"
	"github.com/keelblock/keelblock/appliance/machine"
	"github.com/keelblock/keelblock/appliance/readers"
	"github.com/keelblock/keelblock/appliance/restore"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/appliance/verification"
)

// Limits of calls.
const (
	// OpeningTimeout bounds how long a call waits for catalog and vault to open.
	OpeningTimeout = 30 * time.Second
	// MaxRequestBytes bounds one request: a machine's definition is the largest part.
	MaxRequestBytes = 4 << 20
	// MaxExtents bounds the ranges of one answer.
	MaxExtents = 1 << 20
)

// Info is what does not change while the daemon runs.
type Info struct {
	Version    string
	PID        int
	StartedAt  time.Time
	DataDir    string
	SiteName   string
	APIURI     string
	NBDURIs    []string
	NBDTLS     string // "", "offered" or "required", over TCP
	NBDSocket  string // of live disks and named exports
	PointsPath string // of readers
}

// Alert is something that an operator should see to.
type Alert struct {
	Severity string // "warning" | "critical"
	Object   string
	Text     string
	Since    time.Time
}

// Parts are what the API calls. All are required.
type Parts struct {
	Info     Info
	Disks    *disks.Registry
	Machines *machine.Set
	Cursors  *cursor.Set
	Vaults   *vault.Set
	Keys     *keys.Store
	Jobs     *job.Manager
	Clock    *clock.Clock
	Expiry   *expiry.Engine
	Backup   *backup.Engine
	Restore  *restore.Engine
	Readers  *readers.Set
	Verifier *verification.Engine
	Doctor   *doctor.Doctor
	// Opened is closed when catalog and vault are open, or were refused.
	Opened <-chan struct{}
	// Stop begins the end of the daemon.
	Stop func()
	// Rebuild makes a vault's index anew and opens it.
	Rebuild func(ctx context.Context, t *job.Task, v *vault.Vault) error
	// Reopen opens a vault that was closed for want of its keys.
	Reopen func(ctx context.Context, vault string) error
	// Alerts are those of the daemon itself.
	Alerts func() []Alert
	Logger *slog.Logger
}

// service answers all services; each file has the methods of one.
type service struct{ Parts }

// Handler serves the API.
func Handler(p Parts) http.Handler {
	s := service{p}
	opts := []connect.HandlerOption{connect.WithInterceptors(interceptor{s}), connect.WithReadMaxBytes(MaxRequestBytes)}
	mux := http.NewServeMux()
	mux.Handle(keelblockv1connect.NewDisksHandler(disksService{s}, opts...))
	mux.Handle(keelblockv1connect.NewGroupsHandler(groupsService{s}, opts...))
	mux.Handle(keelblockv1connect.NewCursorsHandler(cursorsService{s}, opts...))
	mux.Handle(keelblockv1connect.NewMachinesHandler(machinesService{s}, opts...))
	mux.Handle(keelblockv1connect.NewRecoveryPointsHandler(pointsService{service: s}, opts...))
	mux.Handle(keelblockv1connect.NewJobsHandler(jobsService{s}, opts...))
	mux.Handle(keelblockv1connect.NewApplianceHandler(applianceService{s}, opts...))
	mux.Handle(keelblockv1connect.NewVaultsHandler(vaultsService{service: s}, opts...))
	mux.Handle(keelblockv1connect.NewKeysHandler(keysService{service: s}, opts...))
	return mux
}

// Peer is the user at the other end of a unix socket.
type Peer struct{ UID, PID int }

type peerKey struct{}

// ConnContext puts the peer of a unix socket, and the files that it hands over, into the
// context of its requests; it is for http.Server.ConnContext.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	var u *net.UnixConn
	switch c := c.(type) {
	case *net.UnixConn:
		u = c
	case *fileConn:
		u = c.UnixConn
		ctx = context.WithValue(ctx, fileKey{}, c)
	default:
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || credErr != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, Peer{UID: int(cred.Uid), PID: int(cred.Pid)})
}

// peerOf is the caller, with -1 for what is not known.
func peerOf(ctx context.Context) Peer {
	if p, ok := ctx.Value(peerKey{}).(Peer); ok {
		return p
	}
	return Peer{UID: -1, PID: -1}
}

// actor names the caller in notes.
func actor(ctx context.Context) string { return fmt.Sprintf("uid %d", peerOf(ctx).UID) }

// immediate are the procedures that need neither catalog nor vault, or answer without.
var immediate = map[string]bool{
	keelblockv1connect.DisksCreateProcedure:          true,
	keelblockv1connect.DisksListProcedure:            true,
	keelblockv1connect.DisksGetProcedure:             true,
	keelblockv1connect.ApplianceStatusProcedure:      true,
	keelblockv1connect.ApplianceStopProcedure:        true,
	keelblockv1connect.ApplianceVaultStatusProcedure: true,
	keelblockv1connect.ApplianceDoctorProcedure:      true,
	keelblockv1connect.KeysShowProcedure:             true,
}

// interceptor waits for the opening, maps errors, and keeps a panic in one call.
type interceptor struct{ s service }

func (i interceptor) wait(ctx context.Context, procedure string) error {
	if immediate[procedure] {
		return nil
	}
	t := time.NewTimer(OpeningTimeout)
	defer t.Stop()
	select {
	case <-i.s.Opened:
		return nil
	case <-t.C:
		return &appliance.Error{Op: "wait for the vault", Kind: appliance.ErrUnavailable, Text: "it is still being opened", Hint: "try again in a moment"}
	case <-ctx.Done():
		return ctx.Err()
	}
}

// finish maps the error of a call and reports what could not be mapped.
func (i interceptor) finish(procedure string, err *error) {
	if p := recover(); p != nil {
		i.s.Logger.Error("API call panicked", "procedure", procedure, "panic", p, "stack", string(debug.Stack()))
		*err = fmt.Errorf("internal error: %v", p)
	}
	if *err != nil && Code(*err) == connect.CodeInternal {
		i.s.Logger.Error("API call failed", "procedure", procedure, "error", *err)
	}
	*err = connectError(*err)
}

// WrapUnary is connect.Interceptor.
func (i interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (res connect.AnyResponse, err error) {
		defer i.finish(req.Spec().Procedure, &err)
		if err := i.wait(ctx, req.Spec().Procedure); err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
}

// WrapStreamingHandler is connect.Interceptor.
func (i interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, c connect.StreamingHandlerConn) (err error) {
		defer i.finish(c.Spec().Procedure, &err)
		if err := i.wait(ctx, c.Spec().Procedure); err != nil {
			return err
		}
		return next(ctx, c)
	}
}

// WrapStreamingClient is connect.Interceptor.
func (i interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}
