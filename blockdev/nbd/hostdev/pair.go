package hostdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/nbd"
)

// handshakeLimit bounds the negotiation with the server in our own process.
const handshakeLimit = 30 * time.Second

// pair is a connection: one end is served, the other is for the kernel.
type pair struct {
	server, client net.Conn
}

func newPair() (pair, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return pair{}, fmt.Errorf("make a socketpair: %w", err)
	}
	server, err := connOf(fds[0])
	client, err2 := connOf(fds[1])
	if err := errors.Join(err, err2); err != nil {
		for _, c := range []net.Conn{server, client} {
			if c != nil {
				c.Close()
			}
		}
		return pair{}, fmt.Errorf("make a socketpair: %w", err)
	}
	return pair{server, client}, nil
}

// connOf takes a descriptor over.
func connOf(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "nbd")
	defer f.Close() // FileConn has its own
	return net.FileConn(f)
}

// connFile duplicates the descriptor of a connection.
func connFile(c net.Conn) (*os.File, error) {
	f, err := c.(*net.UnixConn).File()
	if err != nil {
		return nil, fmt.Errorf("duplicate a socket: %w", err)
	}
	return f, nil
}

// negotiate chooses an export, as a client that knows neither structured replies nor
// contexts: the kernel knows none.
func negotiate(c net.Conn, export string) (nbd.ExportInfo, error) {
	info, err := handshake(c, export)
	if err == nil && !info.HasExport {
		err = errors.New("the server did not tell the size")
	}
	if err != nil {
		return info, fmt.Errorf("negotiate export %q: %w", export, err)
	}
	return info, nil
}

func handshake(c net.Conn, export string) (info nbd.ExportInfo, err error) {
	if err := c.SetDeadline(time.Now().Add(handshakeLimit)); err != nil {
		return info, err
	}
	greeting := make([]byte, nbd.GreetingSize)
	if _, err := io.ReadFull(c, greeting); err != nil {
		return info, err
	}
	if _, err := nbd.ParseGreeting(greeting); err != nil {
		return info, err
	}
	b := binary.BigEndian.AppendUint32(nil, nbd.FlagCFixedNewstyle|nbd.FlagCNoZeroes)
	b = nbd.AppendOption(b, nbd.OptGo, nbd.AppendInfoRequest(nil, nbd.InfoRequest{Name: export}))
	if _, err := c.Write(b); err != nil {
		return info, err
	}
	for {
		// Read to the byte: what follows the last reply is the kernel's.
		head := make([]byte, nbd.OptionReplySize)
		if _, err := io.ReadFull(c, head); err != nil {
			return info, err
		}
		_, reply, length, err := nbd.ParseOptionReply(head)
		if err != nil {
			return info, err
		}
		data := make([]byte, length)
		if _, err := io.ReadFull(c, data); err != nil {
			return info, err
		}
		switch {
		case reply == nbd.RepAck:
			return info, c.SetDeadline(time.Time{})
		case reply&nbd.RepFlagError != 0:
			return info, fmt.Errorf("the server refuses: %s (%#x)", data, reply)
		case reply == nbd.RepInfo:
			if err := info.Parse(data); err != nil {
				return info, err
			}
		}
	}
}
