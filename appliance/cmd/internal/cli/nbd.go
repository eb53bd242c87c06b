package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/config"
	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/localdisk"
	"github.com/keelblock/keelblock/blockdev/nbd"
	nbdclient "github.com/keelblock/keelblock/blockdev/nbd/client"
	"github.com/keelblock/keelblock/blockdev/nbd/relay"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// nbdDrain bounds the end of keelblock nbd: requests that are under way, and the flush.
const nbdDrain = 10 * time.Second

// nbdExport is what keelblock nbd serves.
type nbdExport struct {
	// serve serves one connection to its end and closes it.
	serve func(ctx context.Context, nc net.Conn) error
	close func() error
}

func (a *app) nbdCommand() *cobra.Command {
	var (
		stdio, readOnly bool
		listen          string
	)
	cmd := &cobra.Command{
		Use:   "nbd (FILE | EXPORT) [--stdio | --listen ADDR] [--read-only]",
		Short: "serve one disk over NBD: a raw file, or an export of the daemon",
		Long: `Serves one export over NBD. A raw FILE or block device is served by this process, no
daemon is needed; a file that a daemon or another program has locked is refused. EXPORT is
a disk of the daemon, or an export of a point: then this process passes the connections on
to the daemon. A name that is both is the file. Clients may ask for the name "", or for
the name of the file or export. With --read-only a disk of the daemon shows what is
allocated, but not what has changed (dirty bitmaps).

  --stdio         one connection, on standard input; ends with it
  --listen ADDR   unix:PATH or tcp:HOST:PORT; prints a line "ready pid=N nbd=ADDR" when
                  clients can connect, and serves until SIGTERM
  neither         the sockets that systemd, or a program that does as systemd does
                  (LISTEN_FDS), has opened; serves until SIGTERM

Over TCP nothing is encrypted and nobody is asked who he is: use an address that only you
can reach, or keelblock serve --nbd-tls.`,
		Example: `  nbdinfo [ keelblock nbd disk.raw ]
  nbdcopy -- [ keelblock nbd web0 --read-only ] copy.raw
  nbdsh -c 'h.connect_command(["keelblock", "nbd", "disk.raw", "--stdio"])' -c 'print(h.get_size())'
  keelblock nbd disk.raw --listen unix:/tmp/disk.sock`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if stdio && listen != "" {
				return usageError{errors.New("--stdio and --listen exclude each other")}
			}
			return a.nbd(cmd.Context(), args[0], stdio, listen, readOnly)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			names, _ := a.completing(false, completeDisks)(cmd, args, word)
			return names, cobra.ShellCompDirectiveDefault
		},
	}
	f := cmd.Flags()
	f.BoolVar(&stdio, "stdio", false, "serve one connection on standard input")
	f.StringVar(&listen, "listen", "", "serve at this address: unix:PATH or tcp:HOST:PORT")
	f.BoolVar(&readOnly, "read-only", false, "refuse every change")
	return cmd
}

// nbd serves one export. Where clients come from is settled first, as it needs nothing
// but this process.
func (a *app) nbd(ctx context.Context, name string, stdio bool, listen string, readOnly bool) error {
	in, err := a.entrance(stdio, listen)
	if err != nil {
		return err
	}
	defer in.close()
	x, err := a.nbdExport(ctx, name, readOnly)
	if err != nil {
		return err
	}
	if in.address != "" {
		ready := readyShape{PID: os.Getpid(), NBD: []string{in.address}}
		err = a.print(ready, func(w io.Writer) { fmt.Fprintf(w, "ready pid=%d nbd=%s\n", ready.PID, in.address) })
	}
	if err == nil {
		err = in.serve(ctx, a.nbdLogger(), x.serve)
	}
	return errors.Join(err, x.close())
}

// nbdExport finds the file, or the export of the daemon.
func (a *app) nbdExport(ctx context.Context, name string, readOnly bool) (*nbdExport, error) {
	_, err := os.Stat(name)
	switch {
	case err == nil:
		return a.nbdFile(name, readOnly)
	case !errors.Is(err, fs.ErrNotExist) || strings.Contains(name, "/") || name == "":
		return nil, err
	}
	return a.nbdDaemon(ctx, name, readOnly)
}

// nbdFile serves a file or block device.
func (a *app) nbdFile(path string, readOnly bool) (*nbdExport, error) {
	d, err := localdisk.Open(path, localdisk.Options{ReadOnly: readOnly})
	switch {
	case errors.Is(err, localdisk.ErrInUse):
		return nil, fmt.Errorf("%w; if it is a disk of the daemon, give its name: keelblock nbd NAME", err)
	case errors.Is(err, fs.ErrPermission) && !readOnly:
		return nil, fmt.Errorf("%w; --read-only needs no permission to write", err)
	case err != nil:
		return nil, err
	}
	name := filepath.Base(path)
	if nbd.CheckName(name) != nil {
		name = ""
	}
	return a.nbdDevice(name, d, readOnly)
}

// nbdDevice serves a Device, which belongs to the export from now on.
func (a *app) nbdDevice(name string, d blockdev.Device, readOnly bool) (*nbdExport, error) {
	s := server.New(server.Options{AllowList: true, DefaultExport: name, Logger: a.nbdLogger()})
	if err := s.Add(server.Export{Name: name, Device: d, ReadOnly: readOnly}); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return &nbdExport{serve: s.ServeConn, close: func() error {
		ctx, cancel := context.WithTimeout(context.Background(), nbdDrain)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			return err // a request may still be under way
		}
		return d.Close()
	}}, nil
}

// nbdLogger writes what matters to standard error.
func (a *app) nbdLogger() *slog.Logger {
	return slog.New(slog.NewTextHandler(a.Err, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// nbdDaemon passes connections on to an export of the daemon.
func (a *app) nbdDaemon(ctx context.Context, name string, readOnly bool) (*nbdExport, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	status, err := c.appliance.Status(ctx, connect.NewRequest(&kb.StatusRequest{}))
	if err != nil {
		return nil, fmt.Errorf("there is no file %q, and the daemon cannot be asked for an export of that name: %w", name, err)
	}
	path := ""
	for _, uri := range status.Msg.GetNbdUris() {
		if network, address, err := config.SplitListen(uri); err == nil && network == "unix" {
			path = address
			break
		}
	}
	r := &relay.Relay{Name: name, Dial: func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}
	info, err := r.Probe(ctx)
	switch {
	case errors.Is(err, relay.ErrNotFound):
		return nil, a.nbdNotFound(ctx, c, name)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%w; run as the daemon's user, or join the group of its folder", err)
	case err != nil:
		return nil, err
	}
	if !readOnly || info.Flags&nbd.FlagReadOnly != 0 {
		return &nbdExport{serve: r.Serve, close: func() error { return nil }}, nil
	}
	if info.Flags&nbd.FlagCanMultiConn == 0 {
		return nil, codeError{connect.CodePermissionDenied,
			fmt.Sprintf("disk %q is exclusive: to open it would cut off who uses it; export a point of it instead: keelblock export MACHINE@latest:%s --as NAME", name, name)}
	}
	d, err := nbdclient.Dial(ctx, nbdURI(path, name))
	if err != nil {
		return nil, err
	}
	return a.nbdDevice(name, d, true)
}

// nbdNotFound says that nothing has the name, and what was probably meant.
func (a *app) nbdNotFound(ctx context.Context, c *client, name string) error {
	text := fmt.Sprintf("there is no file and no export of the daemon that is called %q", name)
	for _, n := range append(c.diskNames(ctx), completeExports(ctx, c)...) {
		if alike(name, n) {
			return notFoundError{fmt.Errorf("%s; did you mean %q?", text, n)}
		}
	}
	return notFoundError{fmt.Errorf("%s; see keelblock disk list", text)}
}
