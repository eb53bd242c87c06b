package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/api"
	"github.com/keelblock/keelblock/appliance/config"
	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// maxSocketPath is sizeof(sockaddr_un.sun_path) less the ending zero.
const maxSocketPath = 107

type listenerKind int

const (
	kindNBD listenerKind = iota
	kindPoints
	kindAPI
)

// listener is one address that clients connect to.
type listener struct {
	kind listenerKind
	uri  string
	net.Listener
}

// lock makes the data directory and takes it for this process.
func lock(dir string) (unlock func() error, err error) {
	op := "open data directory " + dir
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close() // nothing was written
		if err != unix.EWOULDBLOCK {
			return nil, fmt.Errorf("%s: lock: %w", op, err)
		}
		who := make([]byte, 16)
		n, _ := f.ReadAt(who, 0) // an empty file is a daemon that begins just now
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInUse,
			Text: strings.TrimSpace("another keelblock daemon uses it, pid " + strings.TrimSpace(string(who[:n]))),
			Hint: "end it with keelblock stop, or give another --data"}
	}
	// In place and of one length: it works on a full file system, too. Who reads it only
	// wants a name for the daemon, so a failure is none of the start.
	_, _ = f.WriteAt(fmt.Appendf(nil, "%-11d\n", os.Getpid()), 0)
	return f.Close, nil
}

// listen opens all sockets. Those left by a daemon that died are replaced: the lock
// shows that nobody serves them.
func (d *daemon) listen() error {
	if err := os.MkdirAll(d.cfg.RunDir(), 0o750); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	for _, s := range d.cfg.Sockets {
		if err := d.takeOver(s); err != nil {
			return err
		}
	}
	for _, s := range []struct {
		kind listenerKind
		path string
	}{{kindNBD, d.cfg.NBDSocket()}, {kindPoints, d.cfg.PointsSocket()}, {kindAPI, d.cfg.APISocket()}} {
		if slices.ContainsFunc(d.listeners, func(l listener) bool { return l.uri == "unix:"+s.path }) {
			continue // it was handed over
		}
		l, err := listenUnix(s.path)
		if err != nil {
			return err
		}
		d.listeners = append(d.listeners, listener{s.kind, "unix:" + s.path, l})
	}
	for _, a := range d.cfg.NBDListen {
		network, address, err := config.SplitListen(a)
		if err != nil {
			return err
		}
		var l net.Listener
		if network == "unix" {
			l, err = listenUnix(address)
		} else {
			l, err = net.Listen(network, address)
		}
		if err != nil {
			return &appliance.Error{Op: "listen on " + a, Kind: appliance.ErrInUse, Err: err, Hint: "choose another --nbd-listen"}
		}
		d.listeners = append(d.listeners, listener{kindNBD, network + ":" + l.Addr().String(), l})
	}
	return nil
}

// takeOver serves a socket that was handed over. Its file, if it is a unix socket, stays
// that of who made it.
func (d *daemon) takeOver(s config.Socket) error {
	op := fmt.Sprintf("take over socket %q", s.Name)
	l, err := net.FileListener(s.File)
	if err := errors.Join(err, s.File.Close()); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	network, path := l.Addr().Network(), l.Addr().String()
	kind := kindNBD
	switch {
	case s.Name == config.SocketAPI, s.Name == config.SocketPoints:
		if network != "unix" {
			return errors.Join(&appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: "it is no unix socket",
				Hint: "only NBD is served over TCP: FileDescriptorName=" + config.SocketNBD}, l.Close())
		}
		if kind = kindAPI; s.Name == config.SocketPoints {
			kind = kindPoints
		}
	case s.Name == config.SocketNBD, network == "tcp", path == d.cfg.NBDSocket():
	case path == d.cfg.APISocket():
		kind = kindAPI
	case path == d.cfg.PointsSocket():
		kind = kindPoints
	default:
		return errors.Join(&appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: "neither its name nor its address, " + path + ", says what it is for",
			Hint: "give it FileDescriptorName=" + strings.Join([]string{config.SocketNBD, config.SocketAPI, config.SocketPoints}, ", ")}, l.Close())
	}
	d.listeners = append(d.listeners, listener{kind, network + ":" + path, l})
	return nil
}

func listenUnix(path string) (net.Listener, error) {
	op := "listen on " + path
	if len(path) > maxSocketPath {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid,
			Text: fmt.Sprintf("the path has %d bytes, a socket's at most %d", len(path), maxSocketPath), Hint: "use a shorter --data"}
	}
	st, err := os.Lstat(path)
	switch {
	case err == nil && st.Mode().Type() != fs.ModeSocket:
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: "something else than a socket is there"}
	case err == nil:
		err = os.Remove(path)
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", op, err), l.Close())
	}
	return l, nil
}

// uris of the listeners of a kind.
func (d *daemon) uris(kind listenerKind) []string {
	var out []string
	for _, l := range d.listeners {
		if l.kind == kind {
			out = append(out, l.uri)
		}
	}
	return out
}

// serveListener serves one address until its server is shut down. Losing an address is
// an alert and no reason to stop serving the others.
func (d *daemon) serveListener(ctx context.Context, l listener) error {
	var err error
	switch l.kind {
	case kindNBD:
		err = d.nbd.Serve(ctx, l.Listener)
	case kindPoints:
		err = d.points.server.Serve(ctx, l.Listener)
	case kindAPI:
		err = d.http.Serve(api.FileListener(l.Listener))
	}
	if err != nil && !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, server.ErrServerClosed) && ctx.Err() == nil {
		d.alert(l.uri, fmt.Sprintf("clients cannot connect to %s any more: %v; restart the daemon", l.uri, err))
	}
	return nil
}

// closeListeners closes what is still open; a Go listener removes its socket.
func (d *daemon) closeListeners() error {
	var errs []error
	for _, l := range d.listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// newNBDServer makes the server of live disks and named exports.
func (d *daemon) newNBDServer() (*server.Server, error) {
	o := server.Options{Logger: d.log, Authorize: d.authorize, RequireTLS: d.cfg.NBDTLSRequire}
	if d.cfg.NBDTLS != "" {
		var err error
		if o.TLS, err = server.LoadTLS(d.cfg.NBDTLS); err != nil {
			return nil, &appliance.Error{Op: "serve NBD with TLS", Kind: appliance.ErrInvalid, Err: err,
				Hint: "--nbd-tls is a folder with server-cert.pem, server-key.pem and ca-cert.pem"}
		}
	}
	return server.New(o), nil
}

// authorize keeps clients over TCP from disks that are for others, and from exports of
// points of these. Who may use a unix socket is said by the permissions of the socket and
// its folder.
func (d *daemon) authorize(peer server.Peer, name string) error {
	if peer.Network == "unix" {
		return nil
	}
	disk := name
	for _, r := range d.readers.Exports() {
		if r.Name == name {
			disk = r.Disk.Name
		}
	}
	switch {
	case d.disks.Allowed(disk, peer.CommonName):
		return nil
	case !peer.TLS:
		return fmt.Errorf("export %q needs TLS with a client certificate", name)
	case peer.CommonName == "":
		return fmt.Errorf("export %q needs a client certificate", name)
	}
	return fmt.Errorf("export %q is not for clients with the name %q", name, peer.CommonName)
}

// tlsMode is Ready.NBDTLS.
func (d *daemon) tlsMode() string {
	switch {
	case d.cfg.NBDTLS == "":
		return ""
	case d.cfg.NBDTLSRequire:
		return "required"
	}
	return "offered"
}

// pointsSocket serves readers' exports. The set of readers authorises their users.
type pointsSocket struct{ server *server.Server }

func (d *daemon) newPointsSocket() pointsSocket {
	return pointsSocket{server.New(server.Options{Logger: d.log, Authorize: func(peer server.Peer, name string) error {
		return d.readers.Authorize(peer.UID, name)
	}})}
}

func (p pointsSocket) Add(name, description string, dev blockdev.Device) error {
	return p.server.Add(server.Export{Name: name, Description: description, Device: dev, ReadOnly: true})
}

func (p pointsSocket) Remove(ctx context.Context, name string) error {
	return p.server.Remove(ctx, name)
}
func (p pointsSocket) Connections(name string) int { return p.server.Connections(name) }
