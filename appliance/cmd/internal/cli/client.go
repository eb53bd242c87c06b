package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"

	"connectrpc.com/connect"

	"github.com/keelblock/keelblock/appliance/api/keelblockv1/keelblockv1connect"
)

// client talks to the daemon.
type client struct {
	address   string
	socket    string // path of the unix socket; "": another kind of address
	disks     keelblockv1connect.DisksClient
	machines  keelblockv1connect.MachinesClient
	groups    keelblockv1connect.GroupsClient
	cursors   keelblockv1connect.CursorsClient
	points    keelblockv1connect.RecoveryPointsClient
	jobs      keelblockv1connect.JobsClient
	appliance keelblockv1connect.ApplianceClient
	vaults    keelblockv1connect.VaultsClient
	keys      keelblockv1connect.KeysClient
}

// address is where the daemon is: --api, else --data, else $KEELBLOCK_API, else the
// socket in the daemon's folder.
func (a *app) address() string {
	if a.api != "" {
		return a.api
	}
	if env := a.Getenv("KEELBLOCK_API"); env != "" && a.data == "" {
		return env
	}
	return "unix:" + filepath.Join(a.dataDir(), "run", "api.sock")
}

// client makes a client. It does not connect yet.
func (a *app) client() (*client, error) {
	address := a.address()
	hc := &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}
	transport := hc.Transport.(*http.Transport)
	base := address
	var socket string
	switch {
	case strings.HasPrefix(address, "unix:"):
		path, err := filepath.Abs(strings.TrimPrefix(address, "unix:"))
		if err != nil {
			return nil, err
		}
		if len(path) > 107 {
			return nil, usageError{fmt.Errorf("the path of the socket %q is %d bytes long and the system allows 107; choose a shorter --data", path, len(path))}
		}
		transport.Proxy = nil
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}
		base, socket = "http://keelblock", path
	case strings.HasPrefix(address, "https://"):
	default:
		return nil, usageError{fmt.Errorf("address %q of the daemon is neither unix:PATH nor https://HOST:PORT", address)}
	}
	explain := connect.WithInterceptors(explainer{a, address})
	return &client{address: address, socket: socket,
		disks:     keelblockv1connect.NewDisksClient(hc, base, explain),
		machines:  keelblockv1connect.NewMachinesClient(hc, base, explain),
		groups:    keelblockv1connect.NewGroupsClient(hc, base, explain),
		cursors:   keelblockv1connect.NewCursorsClient(hc, base, explain),
		points:    keelblockv1connect.NewRecoveryPointsClient(hc, base, explain),
		jobs:      keelblockv1connect.NewJobsClient(hc, base, explain),
		appliance: keelblockv1connect.NewApplianceClient(hc, base, explain),
		vaults:    keelblockv1connect.NewVaultsClient(hc, base, explain),
		keys:      keelblockv1connect.NewKeysClient(hc, base, explain),
	}, nil
}

// explainer says what to do when the daemon cannot be reached.
type explainer struct {
	a       *app
	address string
}

// WrapUnary implements connect.Interceptor.
func (e explainer) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, r)
		return res, e.explain(err)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (e explainer) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (e explainer) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func (e explainer) explain(err error) error {
	if err == nil {
		return nil
	}
	start := "keelblock serve -d --data " + e.a.dataDir()
	switch {
	case errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist):
		hint := "start it with " + start
		switch {
		case e.a.api != "":
			hint = "start it there, or check --api"
		case e.a.data == "" && e.a.Getenv("KEELBLOCK_API") != "":
			hint = "start it there, or check $KEELBLOCK_API"
		}
		return unreachable{fmt.Errorf("no daemon at %s; %s", e.address, hint), err}
	case errors.Is(err, fs.ErrPermission):
		return unreachable{fmt.Errorf("no permission to use the daemon at %s; run as its user, or join the group of its folder", e.address), err}
	case errors.Is(err, syscall.ENOTDIR):
		return unreachable{fmt.Errorf("no daemon at %s: a part of the path is not a folder", e.address), err}
	}
	return err
}

// unreachable is a connection that could not be made. It hides the cause from
// exitStatus, for which a missing socket is not a missing object.
type unreachable struct {
	error
	cause error
}

// gone says whether the daemon cannot be reached.
func gone(err error) bool {
	var u unreachable
	return errors.As(err, &u)
}
