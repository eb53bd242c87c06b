package relay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/keelblock/keelblock/blockdev/nbd"
)

// maxOptionData is the longest data of an option that is passed on: more than our
// server takes.
const maxOptionData = 64 << 10

// handshakeTimeout is how long the client may take for the handshake. The server that
// the relay leads to has its own, which is shorter; this one ends what that does not.
const handshakeTimeout = time.Minute

// ErrNotFound: the server has no export of that name.
var ErrNotFound = errors.New("export does not exist")

// Relay leads to one export of a server.
type Relay struct {
	// Name of the export.
	Name string
	// Dial connects to its server.
	Dial func(ctx context.Context) (net.Conn, error)
}

// Probe asks the server what the export is, without opening it. The error is
// ErrNotFound if it has none of that name.
func (r *Relay) Probe(ctx context.Context) (nbd.ExportInfo, error) {
	info, err := r.probe(ctx)
	if err != nil {
		return info, fmt.Errorf("ask for export %q: %w", r.Name, err)
	}
	return info, nil
}

func (r *Relay) probe(ctx context.Context) (info nbd.ExportInfo, err error) {
	nc, err := r.Dial(ctx)
	if err != nil {
		return info, err
	}
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { nc.Close() })()
	nc.SetDeadline(time.Now().Add(handshakeTimeout))
	s := side{nc}
	p, err := s.take(nbd.GreetingSize)
	if err != nil {
		return info, err
	}
	if _, err := nbd.ParseGreeting(p); err != nil {
		return info, err
	}
	p = binary.BigEndian.AppendUint32(nil, nbd.FlagCFixedNewstyle|nbd.FlagCNoZeroes)
	if _, err := nc.Write(nbd.AppendOption(p, nbd.OptInfo, nbd.AppendInfoRequest(nil, nbd.InfoRequest{Name: r.Name}))); err != nil {
		return info, err
	}
	for {
		_, reply, data, err := s.optionReply()
		switch {
		case err != nil:
			return info, err
		case reply == nbd.RepErrUnknown:
			return info, ErrNotFound
		case reply&nbd.RepFlagError != 0:
			return info, fmt.Errorf("the server refuses it: %s", data)
		case reply == nbd.RepInfo:
			if err := info.Parse(data); err != nil {
				return info, err
			}
		case reply == nbd.RepAck:
			nc.Write(nbd.AppendOption(nil, nbd.OptAbort, nil)) // best effort
			return info, nil
		}
	}
}

// Serve serves one client until it leaves, or the server ends the connection, or ctx
// ends. It closes nc. An error says what was wrong.
func (r *Relay) Serve(ctx context.Context, nc net.Conn) error {
	defer nc.Close()
	up, err := r.Dial(ctx)
	if err != nil {
		return fmt.Errorf("relay export %q: %w", r.Name, err)
	}
	defer up.Close()
	defer context.AfterFunc(ctx, func() { nc.Close(); up.Close() })()
	h := handshake{name: r.Name, client: side{nc}, server: side{up}}
	nc.SetDeadline(time.Now().Add(handshakeTimeout))
	entered, err := h.run()
	nc.SetDeadline(time.Time{})
	if err == nil && entered {
		err = both(nc, up)
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("relay export %q: %w", r.Name, err)
	}
	return nil
}

// both moves bytes in both directions until both are at their end, or one has failed.
func both(client, server net.Conn) error {
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i, dir := range [][2]net.Conn{{server, client}, {client, server}} {
		wg.Go(func() {
			to, from := dir[0], dir[1]
			// Without the ways of the two types around the buffer, which is larger.
			_, errs[i] = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, 256<<10))
			half, ok := to.(interface{ CloseWrite() error })
			if errs[i] != nil || i == 1 || !ok || half.CloseWrite() != nil {
				client.Close()
				server.Close()
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil && !ended(err) {
			return err
		}
	}
	return nil
}

// side is one of the two connections, in the handshake.
type side struct{ nc net.Conn }

// take reads exactly n bytes.
func (s side) take(n int) ([]byte, error) {
	p := make([]byte, n)
	_, err := io.ReadFull(s.nc, p)
	return p, err
}

func (s side) optionReply() (option, reply uint32, data []byte, err error) {
	head, err := s.take(nbd.OptionReplySize)
	if err != nil {
		return 0, 0, nil, err
	}
	option, reply, length, err := nbd.ParseOptionReply(head)
	if err == nil {
		data, err = s.take(int(length))
	}
	return option, reply, data, err
}
