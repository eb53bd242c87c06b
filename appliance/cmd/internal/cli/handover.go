package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/api/keelblockv1/keelblockv1connect"
	"github.com/keelblock/keelblock/appliance/cmd/internal/diskimage"
)

// handingConn hands a file over with the first bytes that are written to it.
type handingConn struct {
	*net.UnixConn
	file *os.File // nil: it is done
}

// Write writes bytes. It is called by one goroutine, the transport's.
func (c *handingConn) Write(p []byte) (int, error) {
	if c.file == nil || len(p) == 0 {
		return c.UnixConn.Write(p)
	}
	raw, err := c.file.SyscallConn() // Fd would make it a blocking file
	if err != nil {
		return 0, err
	}
	var n int
	var werr error
	err = raw.Control(func(fd uintptr) { n, _, werr = c.WriteMsgUnix(p, unix.UnixRights(int(fd)), nil) })
	if err = errors.Join(err, werr); err != nil {
		return n, err
	}
	if c.file = nil; n < len(p) {
		more, err := c.UnixConn.Write(p[n:])
		return n + more, err
	}
	return n, nil
}

// writtenByDaemon has the daemon write a disk of a point to the file, and gives it its
// name. Not done and no error: the daemon does not write to this file, or is of a release
// that cannot.
func (a *app) writtenByDaemon(ctx context.Context, c *client, out *diskimage.Output, shape fileShape, sizeBytes int64) (done bool, err error) {
	if c.socket == "" {
		return false, nil
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", c.socket)
		if u, ok := conn.(*net.UnixConn); ok && err == nil {
			return &handingConn{u, out.File}, nil
		}
		return conn, err
	}}
	defer transport.CloseIdleConnections()
	points := keelblockv1connect.NewRecoveryPointsClient(&http.Client{Transport: transport}, "http://keelblock")
	stream, err := points.RestoreFile(ctx, connect.NewRequest(&kb.RestoreFileRequest{Point: shape.PointID, Disk: shape.DiskName}))
	if err != nil {
		return false, fmt.Errorf("write %q: %w", shape.File, err)
	}
	bar := a.newProgress("write "+filepath.Base(shape.File), sizeBytes)
	defer bar.end()
	for stream.Receive() {
		switch m := stream.Msg(); {
		case m.GetDeclined() != "":
			return false, stream.Close()
		case m.GetDone():
			if err := stream.Close(); err != nil {
				return false, err
			}
			bar.end()
			return true, a.commitImage(out, shape, diskimage.Report{SizeBytes: m.GetSizeBytes(), WrittenBytes: m.GetWrittenBytes()})
		case m.GetTotalBytes() > 0:
			bar.set(m.GetDoneBytes(), m.GetTotalBytes())
		}
	}
	err = errors.Join(stream.Err(), stream.Close())
	if connect.CodeOf(err) == connect.CodeUnimplemented {
		return false, nil
	}
	if err == nil {
		err = errors.New("the daemon ended the call before the file was whole")
	}
	return false, fmt.Errorf("write %q: %w", shape.File, err)
}
