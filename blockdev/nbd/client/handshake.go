package client

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/nbd"
)

// negotiate runs the handshake up to NBD_OPT_GO, over TLS if config is not nil.
func (c *Client) negotiate(export string, config *tls.Config) error {
	greeting := make([]byte, nbd.GreetingSize)
	if _, err := io.ReadFull(c.read, greeting); err != nil {
		return noEOF(err)
	}
	flags, err := nbd.ParseGreeting(greeting)
	if err != nil {
		return err
	}
	if flags&nbd.FlagFixedNewstyle == 0 {
		return errors.New("the server does not speak the fixed newstyle handshake")
	}
	answer := nbd.FlagCFixedNewstyle
	if flags&nbd.FlagNoZeroes != 0 {
		answer |= nbd.FlagCNoZeroes
	}
	if _, err := c.nc.Write(binary.BigEndian.AppendUint32(nil, answer)); err != nil {
		return noEOF(err)
	}
	if config != nil {
		if err := c.startTLS(config); err != nil {
			return err
		}
	}
	if err := c.negotiateContext(export); err != nil {
		return err
	}
	var info nbd.ExportInfo
	data := nbd.AppendInfoRequest(nil, nbd.InfoRequest{Name: export, Infos: []uint16{nbd.InfoBlockSize}})
	err = c.option(nbd.OptGo, data, func(reply uint32, data []byte) error {
		if reply != nbd.RepInfo {
			return nil
		}
		return info.Parse(data)
	})
	if err != nil {
		return err
	}
	return c.accept(info)
}

// accept takes what the server told of the export, or says why it cannot be a
// Device.
func (c *Client) accept(info nbd.ExportInfo) error {
	switch {
	case !info.HasExport:
		return errors.New("the server did not tell the size of the export")
	case info.Size > uint64(blockdev.MaxSize):
		return fmt.Errorf("the export has %d bytes, more than %d", info.Size, blockdev.MaxSize)
	case info.Size%blockdev.SectorSize != 0:
		return fmt.Errorf("the export has %d bytes, no multiple of %d", info.Size, blockdev.SectorSize)
	case info.BlockSizes.Minimum > 1:
		return fmt.Errorf("the server asks for requests aligned to %d bytes: %w", info.BlockSizes.Minimum, blockdev.ErrNotSupported)
	}
	c.size, c.flags = int64(info.Size), info.Flags
	if m := info.BlockSizes.Maximum; m >= blockdev.SectorSize {
		c.maxPayload = min(int64(m), nbd.MaxBlockSize)
	}
	return nil
}

// negotiateContext asks for structured replies and base:allocation, which a server
// may refuse.
func (c *Client) negotiateContext(export string) error {
	err := c.option(nbd.OptStructuredReply, nil, func(uint32, []byte) error { return nil })
	var refused *refusal
	if errors.As(err, &refused) {
		return nil
	}
	if err != nil {
		return err
	}
	c.structured = true
	data := nbd.AppendMetaContextRequest(nil, nbd.MetaContextRequest{Name: export, Queries: []string{nbd.ContextBaseAllocation}})
	err = c.option(nbd.OptSetMetaContext, data, func(reply uint32, data []byte) error {
		if reply != nbd.RepMetaContext {
			return nil
		}
		id, name, err := nbd.ParseMetaContext(data)
		if err == nil && name == nbd.ContextBaseAllocation {
			c.allocation, c.contextID = true, id
		}
		return err
	})
	if errors.As(err, &refused) {
		c.allocation = false
		return nil
	}
	return err
}

// refusal is an error reply to an option.
type refusal struct {
	option, reply uint32
	text          string
}

func (e *refusal) Error() string {
	what := map[uint32]string{
		nbd.RepErrUnsup:         "it does not know the option",
		nbd.RepErrPolicy:        "not allowed",
		nbd.RepErrInvalid:       "invalid request",
		nbd.RepErrTLSRequired:   "TLS is required",
		nbd.RepErrUnknown:       "no such export",
		nbd.RepErrShutdown:      "it is shutting down",
		nbd.RepErrBlockSizeReqd: "block sizes must be asked for",
		nbd.RepErrTooBig:        "request too big",
	}[e.reply]
	if what == "" {
		what = fmt.Sprintf("error %#x", e.reply)
	}
	if e.text != "" {
		what += ": " + e.text
	}
	return fmt.Sprintf("the server refuses option %d: %s", e.option, what)
}

// option sends an option and calls each for its replies until NBD_REP_ACK. An error
// reply is a *refusal.
func (c *Client) option(option uint32, data []byte, each func(reply uint32, data []byte) error) error {
	if _, err := c.nc.Write(nbd.AppendOption(nil, option, data)); err != nil {
		return noEOF(err)
	}
	for {
		head := make([]byte, nbd.OptionReplySize)
		if _, err := io.ReadFull(c.read, head); err != nil {
			return noEOF(err)
		}
		to, reply, length, err := nbd.ParseOptionReply(head)
		if err != nil {
			return err
		}
		if to != option {
			return fmt.Errorf("reply to option %d, want %d", to, option)
		}
		payload := make([]byte, length)
		if _, err := io.ReadFull(c.read, payload); err != nil {
			return noEOF(err)
		}
		if reply&nbd.RepFlagError != 0 {
			return &refusal{option, reply, string(payload)}
		}
		if reply == nbd.RepAck {
			return nil
		}
		if err := each(reply, payload); err != nil {
			return err
		}
	}
}
