package cli

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	nbd "github.com/keelblock/keelblock/blockdev/nbd/client"
)

// readerTTL is how long the daemon keeps a point pinned for a reader that is gone.
const readerTTL = 10 * time.Minute

// pointReader is a disk of a point, read through the daemon.
type pointReader struct {
	*nbd.Client
	closeReader func()
}

// ReadAt fills p. Its errors leave out the one-time name of the export, which means
// nothing to anybody.
func (r pointReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.Client.ReadAt(p, off)
	if inner := errors.Unwrap(err); inner != nil {
		err = inner
	}
	return n, err
}

// Close ends the connection and unpins the point.
func (r pointReader) Close() error {
	err := r.Client.Close()
	r.closeReader()
	return err
}

// openReader opens a disk of a point for reading.
func (c *client) openReader(ctx context.Context, point, disk string, ttl time.Duration) (pointReader, error) {
	r, err := c.points.OpenReader(ctx, connect.NewRequest(&kb.OpenReaderRequest{Point: point, Disk: disk, TtlSeconds: int64(ttl / time.Second)}))
	if err != nil {
		return pointReader{}, err
	}
	m := r.Msg
	closeReader := func() {
		// The daemon forgets the reader by itself if this does not arrive.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_, _ = c.points.CloseReader(ctx, connect.NewRequest(&kb.CloseReaderRequest{ExportName: m.GetExportName()}))
	}
	d, err := nbd.Dial(ctx, nbdURI(m.GetSocket(), m.GetExportName()))
	if err != nil {
		closeReader()
		return pointReader{}, fmt.Errorf("read disk %q of point %s: %w", disk, point, err)
	}
	return pointReader{d, closeReader}, nil
}

func nbdURI(socket, export string) string {
	return (&url.URL{Scheme: "nbd+unix", Path: "/" + export, RawQuery: url.Values{"socket": {socket}}.Encode()}).String()
}
