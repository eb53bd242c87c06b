package cli

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	nbd "github.com/keelblock/keelblock/blockdev/nbd/client"
)

// readerTTL is how long the daemon keeps a point pinned for a reader that is gone.
const readerTTL = 10 * time.Minute

// openReader opens a disk of a point for reading. done closes it and unpins the point.
func (c *client) openReader(ctx context.Context, point, disk string, ttl time.Duration) (*nbd.Client, func(), error) {
	r, err := c.points.OpenReader(ctx, connect.NewRequest(&kb.OpenReaderRequest{Point: point, Disk: disk, TtlSeconds: int64(ttl / time.Second)}))
	if err != nil {
		return nil, nil, err
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
		return nil, nil, fmt.Errorf("read disk %q of point %s: %w", disk, point, err)
	}
	return d, func() {
		_ = d.Close()
		closeReader()
	}, nil
}

func nbdURI(socket, export string) string {
	return (&url.URL{Scheme: "nbd+unix", Path: "/" + export, RawQuery: url.Values{"socket": {socket}}.Encode()}).String()
}
